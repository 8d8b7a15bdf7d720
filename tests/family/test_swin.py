import numpy as np
import paddle
import pytest

from paddle_vit import UserError, count_parameters
from paddle_vit.family.swin import PatchMerging, SwinBlock, SwinStage, SwinTransformer, WindowAttention
from paddle_vit.family.windows import (
    pad_map,
    relative_position_index,
    round_up,
    shifted_window_mask,
    window_partition,
    window_reverse,
)
from paddle_vit.layers import Attention, EncoderLayer

# 16 x 16 的图块网格:第一级 4 个窗口,第二级 8 x 8,第三级 4 x 4,窗口等于整张特征图
SMALL = dict(
    image_size=32, patch_size=2, in_channels=1, num_classes=3, embed_dim=8, depths=(2, 2, 1), num_heads=(1, 2, 4)
)
SMALL["window_size"] = 4

# torchvision 公布的参数个数(1000 类)
PUBLISHED = [
    (28_288_354, dict()),
    (49_606_258, dict(depths=(2, 2, 18, 2))),
    (87_768_224, dict(depths=(2, 2, 18, 2), embed_dim=128, num_heads=(4, 8, 16, 32))),
]


@pytest.mark.parametrize("count, options", PUBLISHED)
def test_published_parameter_counts(count, options):
    assert count_parameters(SwinTransformer(**options)) == count


def test_window_12_only_enlarges_the_bias_tables():
    swin_t = dict(image_size=384, window_size=12)
    more_rows = 23**2 - 13**2
    heads_of_all_blocks = 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24
    assert count_parameters(SwinTransformer(**swin_t)) == 28_288_354 + more_rows * heads_of_all_blocks


def test_parameter_names_and_shapes():
    model = SwinTransformer(**{**SMALL, "depths": (1, 1), "num_heads": (1, 2)})
    names = {name: parameter.shape for name, parameter in model.named_parameters()}
    expected = {
        "patch_embed.patch_embedding.weight": [8, 1, 2, 2],
        "patch_embed.patch_embedding.bias": [8],
        "embed_norm.weight": [8],
        "embed_norm.bias": [8],
        "stages.0.downsample.norm.weight": [32],
        "stages.0.downsample.norm.bias": [32],
        "stages.0.downsample.reduction.weight": [32, 16],
        "norm.weight": [16],
        "norm.bias": [16],
        "head.weight": [16, 3],
        "head.bias": [3],
    }
    for i, (D, h) in enumerate([(8, 1), (16, 2)]):
        block = {
            "attn_norm.weight": [D],
            "attn_norm.bias": [D],
            "attn.qkv.weight": [D, 3 * D],
            "attn.qkv.bias": [3 * D],
            "attn.proj.weight": [D, D],
            "attn.proj.bias": [D],
            "attn.relative_position_bias_table": [49, h],
            "mlp_norm.weight": [D],
            "mlp_norm.bias": [D],
            "mlp.fc1.weight": [D, 4 * D],
            "mlp.fc1.bias": [4 * D],
            "mlp.fc2.weight": [4 * D, D],
            "mlp.fc2.bias": [D],
        }
        expected.update({f"stages.{i}.blocks.0.{name}": shape for name, shape in block.items()})
    assert names == expected


def test_index_tables_and_masks_are_not_saved():
    model = SwinTransformer(**SMALL)
    assert model.stages[0].blocks[1].mask is not None
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_one_block_serves_vit_and_swin():
    assert issubclass(SwinBlock, EncoderLayer) and issubclass(WindowAttention, Attention)
    assert SwinBlock.forward is EncoderLayer.forward and WindowAttention.attend is Attention.attend


@pytest.mark.parametrize(
    "map_size, w", [((4, 6), 2), ((6, 3), 3), ((5, 10), 5), ((3, 3), 3), ((2, 3), 1), ((14, 7), 7)]
)
def test_window_partition_by_indexing_and_reverse(map_size, w):
    H, W = map_size
    x = np.random.randn(2, H, W, 3).astype("float32")
    expected = [
        x[b, i : i + w, j : j + w].reshape(w * w, 3) for b in range(2) for i in range(0, H, w) for j in range(0, W, w)
    ]
    windows = window_partition(paddle.to_tensor(x), w)
    np.testing.assert_array_equal(windows.numpy(), np.stack(expected))
    np.testing.assert_array_equal(window_reverse(windows, w, map_size).numpy(), x)


@pytest.mark.parametrize("map_size", [(6, 6), (8, 6), (6, 8)])
def test_a_map_that_cannot_be_cut_is_refused(map_size):
    x = paddle.zeros([4, *map_size, 3])  # 4 张图凑够了数:不检查就会切成混着几张图的窗口
    for cut in (lambda: window_partition(x, 4), lambda: window_reverse(paddle.zeros([9, 16, 3]), 4, map_size)):
        with pytest.raises(UserError, match=f"{map_size[0]} x {map_size[1]}.*4 x 4.*pad_map"):
            cut()


@pytest.mark.parametrize("size, multiple", [(1, 1), (1, 7), (7, 7), (8, 7), (13, 4), (56, 7)])
def test_round_up_by_counting(size, multiple):
    counted = 0
    while counted < size:
        counted += multiple
    assert round_up(size, multiple) == counted


@pytest.mark.parametrize(
    "map_size, multiple, padded_size", [((5, 7), 4, (8, 8)), ((2, 9), 3, (3, 9)), ((4, 6), 2, (4, 6))]
)
def test_pad_map_adds_zeros_below_and_to_the_right(map_size, multiple, padded_size):
    (H, W), x = map_size, np.random.randn(2, *map_size, 3).astype("float32")
    expected = np.zeros((2, *padded_size, 3), "float32")
    expected[:, :H, :W] = x
    np.testing.assert_array_equal(pad_map(paddle.to_tensor(x), multiple).numpy(), expected)


@pytest.mark.parametrize("w", [1, 2, 3, 4, 5, 7])
def test_relative_position_index_by_loops(w):
    rows = {}  # (行差, 列差) -> 表里的行号:从最小的差数起
    for row_difference in range(-(w - 1), w):
        for column_difference in range(-(w - 1), w):
            rows[row_difference, column_difference] = len(rows)
    index = relative_position_index(w)
    assert index.shape == (w * w, w * w) and len(rows) == (2 * w - 1) ** 2
    for i in range(w * w):
        for j in range(w * w):
            assert index[i, j] == rows[i // w - j // w, i % w - j % w]


def numpy_softmax(scores):
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def attend_to_the_whole_map(block, x, map_size, w, s):
    """不切窗口也不滚动:整张特征图上的注意力,两个 token 在同一个移动过的窗口里才看得见。

    移动之后窗口的分界线在 s、s + w、s + 2w……,特征图的边上是不完整的窗口。
    """
    (H, W), h, d = map_size, block.attn.num_heads, block.attn.attn_head_size
    padded_H, padded_W = (int(np.ceil(size / w)) * w for size in map_size)
    table = block.attn.relative_position_bias_table.numpy()
    B, _, D = x.shape
    padded = np.zeros((B, padded_H, padded_W, D))
    padded[:, :H, :W] = x.reshape(B, H, W, D)
    qkv = padded.reshape(B, -1, D) @ block.attn.qkv.weight.numpy()
    if block.attn.qkv.bias is not None:
        qkv = qkv + block.attn.qkv.bias.numpy()
    tokens = [(row, column) for row in range(padded_H) for column in range(padded_W)]
    visible = np.zeros((len(tokens), len(tokens)), bool)
    bias = np.zeros((h, len(tokens), len(tokens)))
    for i, (row, column) in enumerate(tokens):
        for j, (other_row, other_column) in enumerate(tokens):
            if (row - s) // w == (other_row - s) // w and (column - s) // w == (other_column - s) // w:
                visible[i, j] = True
                bias[:, i, j] = table[(row - other_row + w - 1) * (2 * w - 1) + column - other_column + w - 1]
    z = np.zeros_like(padded).reshape(B, -1, D)
    for n in range(h):
        q, k, v = (qkv[:, :, m * D + n * d : m * D + (n + 1) * d] for m in range(3))
        scores = q @ k.transpose(0, 2, 1) * block.attn.scales + bias[n]
        z[:, :, n * d : (n + 1) * d] = numpy_softmax(np.where(visible, scores, -np.inf)) @ v
    z = z @ block.attn.proj.weight.numpy() + block.attn.proj.bias.numpy()
    return z.reshape(B, padded_H, padded_W, D)[:, :H, :W].reshape(B, H * W, D)


ATTENTION_CASES = [
    # 特征图,窗口,移动,实际的窗口,实际移动的 token 数
    ((8, 12), 4, False, 4, 0),
    ((8, 12), 4, True, 4, 2),
    ((6, 9), 3, True, 3, 1),
    ((6, 9), 4, True, 4, 2),  # 补零到 8 x 12
    ((6, 9), 4, False, 4, 0),
    ((4, 8), 4, True, 4, 0),  # 短边等于窗口:不移动
    ((3, 5), 4, True, 3, 0),  # 短边小于窗口:窗口缩成 3,补零到 3 x 6
]


@pytest.mark.parametrize("map_size, window_size, shifted, w, s", ATTENTION_CASES)
@pytest.mark.parametrize("qk_scale", [None, 0.8])
def test_shifted_windows_equal_attention_on_the_whole_map(map_size, window_size, shifted, w, s, qk_scale):
    block = SwinBlock(6, map_size, 2, window_size, shifted, qkv_bias=qk_scale is None, qk_scale=qk_scale)
    assert (block.window_size, block.shift) == (w, s)
    for parameter in block.attn.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    x = np.random.randn(2, map_size[0] * map_size[1], 6).astype("float32")
    expected = attend_to_the_whole_map(block, x, map_size, w, s)
    np.testing.assert_allclose(block.attend(paddle.to_tensor(x)).numpy(), expected, atol=2e-5)
    with paddle.no_grad():
        np.testing.assert_allclose(block.attend(paddle.to_tensor(x)).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(
    "map_size, w, s", [((8, 12), 4, 1), ((8, 4), 4, 3), ((6, 9), 3, 2), ((5, 7), 4, 3), ((10, 5), 5, 4)]
)
def test_any_shift_equals_attention_on_the_whole_map(map_size, w, s):
    block = SwinBlock(6, map_size, 2, w, qkv_bias=True)
    block.shift, block.mask = s, shifted_window_mask(block.padded_size, w, s)
    for parameter in block.attn.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    x = np.random.randn(2, map_size[0] * map_size[1], 6).astype("float32")
    expected = attend_to_the_whole_map(block, x, map_size, w, s)
    np.testing.assert_allclose(block.attend(paddle.to_tensor(x)).numpy(), expected, atol=2e-5)


def test_window_attention_weights():
    w, s, map_size = 4, 2, (8, 12)
    attention = WindowAttention(8, 2, w, qkv_bias=True)
    mask = shifted_window_mask(map_size, w, s)
    assert mask.shape == [6, 16, 16]
    windows = paddle.randn([2 * 6, 16, 8])
    z, weights = attention(windows, mask=mask)
    assert (z.shape, weights.shape) == ([12, 16, 8], [12, 2, 16, 16])
    np.testing.assert_allclose(weights.numpy().sum(-1), 1, atol=1e-5)
    hidden = np.broadcast_to(mask.numpy()[None, :, None] < 0, (2, 6, 2, 16, 16)).reshape(weights.shape)
    assert hidden.any() and weights.numpy()[hidden].max() < 1e-20 and weights.numpy()[~hidden].min() > 1e-6
    without, none = attention(windows, need_weights=False, mask=mask)
    assert none is None
    np.testing.assert_allclose(without.numpy(), z.numpy(), atol=1e-5)


MASK_CASES = [
    # 特征图,窗口,移动
    ((8, 12), 4, 2),
    ((8, 12), 4, 1),
    ((12, 8), 4, 3),
    ((9, 6), 3, 1),
    ((6, 6), 3, 2),
    ((14, 21), 7, 3),
    ((10, 5), 5, 4),  # 一个方向只有一个窗口
    ((4, 4), 4, 2),  # 窗口等于整张特征图
    ((6, 4), 2, 1),
]


@pytest.mark.parametrize("map_size, w, s", MASK_CASES)
def test_mask_by_loops(map_size, w, s):
    """滚动之后第 r 行原来是第 (r + s) % H 行;原来就在同一个窗口里(分界线在 s、s + w……)的 token 才互相看得见。"""
    (H, W), mask = map_size, shifted_window_mask(map_size, w, s).numpy()
    assert mask.shape == (H * W // w**2, w * w, w * w)
    for window in range(len(mask)):
        top, left = window // (W // w) * w, window % (W // w) * w
        origins = [((top + n // w + s) % H, (left + n % w + s) % W) for n in range(w * w)]
        labels = [((row - s) // w, (column - s) // w) for row, column in origins]
        for i in range(w * w):
            for j in range(w * w):
                assert mask[window, i, j] == (0 if labels[i] == labels[j] else -100), (window, i, j)


def test_mask_hides_only_what_wrapped_around():
    mask = shifted_window_mask((8, 8), 4, 2).numpy().reshape(2, 2, 16, 16)
    np.testing.assert_array_equal(mask[0, 0], 0)  # 左上的窗口里没有绕过来的 token
    column = np.arange(16) % 4
    np.testing.assert_array_equal(mask[0, 1], np.where((column[:, None] < 2) == (column < 2), 0, -100))
    np.testing.assert_array_equal(mask[1, 0], mask[0, 1].reshape(4, 4, 4, 4).transpose(1, 0, 3, 2).reshape(16, 16))
    assert ((mask[1, 1] == 0).sum(axis=1) == 4).all()  # 右下的窗口裂成四个 2 x 2


@pytest.mark.parametrize("shifted, labels", [(False, [0, 0, 0, 0, 1, 1, 1, 1]), (True, [0, 0, 1, 1, 1, 1, 2, 2])])
def test_a_token_reaches_its_own_window_only(shifted, labels):
    block, labels = SwinBlock(8, (8, 8), 2, 4, shifted), np.array(labels)
    x = np.random.randn(1, 8, 8, 8).astype("float32")
    for row, column in [(0, 0), (1, 5), (3, 3), (6, 7)]:
        changed = x.copy()
        changed[0, row, column] += 1 + np.arange(8)
        before, after = (block(paddle.to_tensor(y.reshape(1, 64, 8))).numpy() for y in (x, changed))
        reached = np.abs(after - before).max(axis=-1).reshape(8, 8) > 1e-7
        expected = (labels[:, None] == labels[row]) & (labels == labels[column])
        np.testing.assert_array_equal(reached, expected)


def test_translating_by_a_window_translates_the_output_of_an_unshifted_block():
    block, x = SwinBlock(8, (8, 12), 2, 4), np.random.randn(2, 8, 12, 8).astype("float32")

    def apply(x):
        return block(paddle.to_tensor(x.reshape(2, 96, 8))).numpy().reshape(x.shape)

    np.testing.assert_allclose(apply(np.roll(x, (4, 8), (1, 2))), np.roll(apply(x), (4, 8), (1, 2)), atol=1e-5)
    assert np.abs(apply(np.roll(x, 2, 1)) - np.roll(apply(x), 2, 1)).max() > 1e-3


def test_position_comes_from_the_bias_tables_alone():
    block = SwinBlock(8, 4, 2, 4)
    x, order = paddle.randn([2, 16, 8]), np.random.permutation(16)
    assert np.abs(block(x[:, order]).numpy() - block(x).numpy()[:, order]).max() > 1e-4
    block.attn.relative_position_bias_table.set_value(paddle.zeros([49, 2]))
    np.testing.assert_allclose(block(x[:, order]).numpy(), block(x).numpy()[:, order], atol=1e-5)


@pytest.mark.parametrize("map_size", [(4, 6), (5, 7), (1, 4)])
def test_patch_merging_by_indexing(map_size):
    H, W = map_size
    layer = PatchMerging(3, map_size)
    for parameter in layer.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    assert layer.reduction.bias is None
    x = np.zeros((2, H + H % 2, W + W % 2, 3), "float32")  # 奇数的边补一行或一列零
    x[:, :H, :W] = np.random.randn(2, H, W, 3)
    merged = [
        np.concatenate([x[:, i, j], x[:, i + 1, j], x[:, i, j + 1], x[:, i + 1, j + 1]], axis=-1)
        for i in range(0, H, 2)
        for j in range(0, W, 2)
    ]
    merged = np.stack(merged, axis=1)
    merged = (merged - merged.mean(-1, keepdims=True)) / np.sqrt(merged.var(-1, keepdims=True) + 1e-5)
    merged = merged * layer.norm.weight.numpy() + layer.norm.bias.numpy()
    out = layer(paddle.to_tensor(x[:, :H, :W].reshape(2, H * W, 3)))
    np.testing.assert_allclose(out.numpy(), merged @ layer.reduction.weight.numpy(), atol=1e-4)


def test_stage_alternates_and_merges_at_its_end():
    stage = SwinStage(8, (8, 8), 2, 4, [0.0, 0.1, 0.2], merge=True)
    assert [block.shift for block in stage.blocks] == [0, 2, 0]
    assert stage(paddle.randn([2, 64, 8])).shape == [2, 16, 16]
    assert SwinStage(8, (8, 8), 2, 4, [0.0], merge=False)(paddle.randn([2, 64, 8])).shape == [2, 64, 8]


@pytest.mark.parametrize(
    "image_size, maps, windows",
    [
        (224, [(56, 56), (28, 28), (14, 14), (7, 7)], [7, 7, 7, 7]),
        (256, [(64, 64), (32, 32), (16, 16), (8, 8)], [7, 7, 7, 7]),
        ((36, 52), [(9, 13), (5, 7), (3, 4), (2, 2)], [7, 5, 3, 2]),
        (32, [(8, 8), (4, 4), (2, 2), (1, 1)], [7, 4, 2, 1]),
    ],
)
def test_maps_and_windows_of_other_image_sizes(image_size, maps, windows):
    model = SwinTransformer(image_size=image_size, num_classes=5, embed_dim=4, num_heads=(1, 1, 2, 2))
    first_blocks = [stage.blocks[0] for stage in model.stages]
    assert [block.map_size for block in first_blocks] == maps
    assert [block.window_size for block in first_blocks] == windows
    x = paddle.randn([1, 3, *model.patch_embed.image_size])
    features = model.forward_features(x)
    assert features.shape == [1, maps[-1][0] * maps[-1][1], 32]
    assert model(x).shape == [1, 5]


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(qkv_bias=False, qk_scale=0.3, mlp_ratio=2.0),
        dict(image_size=(36, 30), dropout=0.1, attention_dropout=0.1, drop_path=0.2),
    ],
)
def test_every_parameter_receives_a_gradient(options):
    model = SwinTransformer(**{**SMALL, **options})
    H, W = model.patch_embed.image_size
    model(paddle.randn([8, 1, H, W])).square().sum().backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.numpy()
        if "qkv.bias" in name:  # 键的偏置对 softmax 只是加一个常数,梯度恒为零
            D = len(gradient) // 3
            gradient = np.concatenate([gradient[:D], gradient[2 * D :]])
        assert np.abs(gradient).max() > 0, name


def test_gradient_of_the_bias_table_equals_finite_differences():
    block = SwinBlock(4, (8, 8), 2, 4, shifted=True)
    x, upstream = paddle.randn([2, 64, 4]), paddle.randn([2, 64, 4])
    table = block.attn.relative_position_bias_table
    (block.attend(x) * upstream).sum().backward()
    direction = np.random.randn(*table.shape).astype("float32")
    start, step, values = table.numpy(), 1e-2, []
    for sign in (1, -1):
        table.set_value(start + sign * step * direction)
        values.append(float((block.attend(x) * upstream).sum()))
    numeric = (values[0] - values[1]) / (2 * step)
    np.testing.assert_allclose((table.grad.numpy() * direction).sum(), numeric, rtol=1e-2, atol=1e-2)


def test_drop_path_grows_linearly_over_all_stages():
    model = SwinTransformer(**SMALL, drop_path=0.2)
    rates = [block.drop_path.drop_path for stage in model.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "drop_path"])
def test_dropout_acts_in_training_only(name):
    model, x = SwinTransformer(**SMALL, **{name: 0.5}), paddle.randn([4, 1, 32, 32])
    assert not np.allclose(model(x).numpy(), model(x).numpy())
    model.eval()
    np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())


def test_settings_reach_every_layer():
    model = SwinTransformer(**SMALL, mlp_ratio=2.5, qk_scale=0.7, qkv_bias=False, epsilon=1e-3)
    for i, stage in enumerate(model.stages):
        for block in stage.blocks:
            assert block.mlp.fc1.weight.shape == [8 * 2**i, 20 * 2**i]
            assert (block.attn.scales, block.attn.qkv.bias) == (0.7, None)
    norms = [layer for layer in model.sublayers() if type(layer).__name__ == "LayerNorm"]
    assert len(norms) == 2 * 5 + 2 + 2 and {layer.epsilon for layer in norms} == {1e-3}


def test_initial_values():
    for block in SwinTransformer().stages[2].blocks:
        table = block.attn.relative_position_bias_table.numpy()
        assert abs(table.std() - 0.02) < 0.002 and abs(table.mean()) < 0.002
        assert not block.attn.qkv.bias.numpy().any()


def test_average_pool_is_the_mean_of_the_normalised_tokens():
    model, x = SwinTransformer(**SMALL), paddle.randn([2, 1, 32, 32])
    tokens = model.forward_features(x).numpy()
    np.testing.assert_allclose(tokens.mean(axis=-1), 0, atol=1e-5)
    features = tokens.mean(axis=1)
    np.testing.assert_allclose(model.pool_tokens(paddle.to_tensor(tokens)).numpy(), features, atol=1e-6)
    expected = features @ model.head.weight.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-5)
    model = SwinTransformer(**{**SMALL, "num_classes": 0})
    np.testing.assert_allclose(model(x).numpy(), model.forward_features(x).numpy().mean(axis=1), atol=1e-6)


def test_an_image_does_not_see_the_other_images_of_its_batch():
    model, x = SwinTransformer(**SMALL), paddle.randn([3, 1, 32, 32])
    alone = np.concatenate([model(x[i : i + 1]).numpy() for i in range(3)])
    np.testing.assert_allclose(model(x).numpy(), alone, atol=1e-5)


def test_a_static_graph_takes_any_batch_size():
    model = SwinBlock(4, (5, 6), 2, 4, shifted=True)
    model.eval()
    x = paddle.randn([3, 30, 4])
    expected = model(x).numpy()
    spec = paddle.static.InputSpec([-1, 30, 4], "float32")
    static = paddle.jit.to_static(model, full_graph=True, input_spec=[spec])
    np.testing.assert_allclose(static(x).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(static(x[:1]).numpy(), expected[:1], atol=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(num_heads=(1, 3, 4)), ("16", "3")),
        (dict(num_heads=(1, 2)), ("(2, 2, 1)", "(1, 2)")),
        (dict(depths=(2, 0, 1)), ("depths", "0")),
        (dict(depths=()), ("depths",)),
        (dict(depths=2), ("depths", "2")),
        (dict(embed_dim=0), ("embed_dim", "0")),
        (dict(window_size=0), ("window_size", "0")),
        (dict(num_classes=-1), ("-1",)),
        (dict(patch_size=3), ("3", "32")),
        (dict(drop_path=1.5), ("1.5",)),
        (dict(mlp_ratio=0.01), ("0.01",)),
    ],
)
def test_errors_state_what_was_given(options, words):
    with pytest.raises(UserError) as error:
        SwinTransformer(**{**SMALL, **options})
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(UserError) as error:
        SwinTransformer(**SMALL)(paddle.zeros([1, 1, 32, 64]))
    assert "64" in str(error.value) and "32" in str(error.value)
