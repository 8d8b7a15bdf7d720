import warnings

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddle_vit import Attention, UserError, ViT, functional
from paddle_vit.attention.figures import (
    distance_figure,
    filters_figure,
    heads_figure,
    maps_figure,
    overlay,
    position_figure,
    side_by_side,
)
from paddle_vit.attention.maps import (
    attention_distance,
    gradient_rollout,
    position_similarity,
    position_table,
    rollout,
    token_map,
)
from paddle_vit.attention.recording import attention_weights, record_attention
from paddle_vit.family.swin import SwinTransformer
from paddle_vit.system import pictures

rng = np.random.default_rng(0)
# 汇聚方式、位置编码、图像、图块、通道、别的 token
KINDS = [
    ("avg", "none", 8, 4, 1, {}),
    ("avg", "learnable", (8, 12), (4, 2), 3, {}),
    ("cls", "sincos", (12, 8), 4, 1, {}),
    ("cls", "none", 8, 2, 3, {}),
    ("cls", "learnable", (8, 12), (4, 2), 1, dict(distillation_token=True, register_tokens=3)),
    ("avg", "learnable", 8, 4, 3, dict(class_token=True, register_tokens=2)),
    ("seq", "learnable", (8, 12), 4, 3, dict(tokenizer="conv", trunk_norm=True)),
]
# 汇聚方式、别的 token、它们的个数、分类头用到的 token
PREFIXES = [
    ("avg", {}, 0, slice(0, None)),
    ("seq", {}, 0, slice(0, None)),
    ("cls", {}, 1, slice(0, 1)),
    ("avg", dict(class_token=True, register_tokens=2), 3, slice(3, None)),
    ("cls", dict(distillation_token=True), 2, slice(0, 2)),
    ("cls", dict(distillation_token=True, register_tokens=3), 5, slice(0, 2)),
]


def make_model(pool="avg", position="none", image_size=8, patch_size=4, channels=1, tokens=None, **options):
    options = {**(tokens or {}), **options}
    settings = dict(embed_dim=8, depth=3, num_heads=2, num_classes=3, qkv_bias=True, position_std=0.5)
    settings.update(pool=pool, position_embedding=position, image_size=image_size, patch_size=patch_size)
    model = ViT(in_channels=channels, **{**settings, **options})
    for parameter in model.parameters():  # 初值太小时注意力处处相同,什么也测不出
        parameter.set_value(parameter + 0.5 * paddle.randn(parameter.shape))
    return model


def make_images(model, count=2):
    embed = model.patch_embed
    return rng.standard_normal((count, embed.in_channels, *embed.image_size)).astype("float32")


def numpy_attention(attention, x):
    """NumPy 的 softmax(q k^T * scale),x 是 [B, N, D]。"""
    D = x.shape[-1]
    h, d = attention.num_heads, attention.attn_head_size
    qkv = x.astype("float64") @ attention.qkv.weight.numpy() + attention.qkv.bias.numpy()
    q, k = (qkv[..., i * D : (i + 1) * D].reshape(*x.shape[:2], h, d) for i in (0, 1))
    scores = np.einsum("bihd,bjhd->bhij", q, k) * attention.scales
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_equal_the_layers_own_and_numpy(kind):
    model = make_model(*kind)
    images = make_images(model)
    inputs = []
    layers = [layer for layer in model.sublayers() if isinstance(layer, Attention)]
    hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].numpy())) for layer in layers]
    model.eval()
    model(paddle.to_tensor(images))
    for hook in hooks:
        hook.remove()
    weights = attention_weights(model, images)
    N = model.patch_embed.num_patches + model.num_prefix_tokens
    assert weights.shape == (3, 2, 2, N, N) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    for layer, x, recorded in zip(layers, inputs, weights):
        _, own = layer(paddle.to_tensor(x), need_weights=True)
        np.testing.assert_allclose(recorded, own.numpy(), atol=1e-5)
        np.testing.assert_allclose(recorded, numpy_attention(layer, x), atol=1e-5)


def test_recording_is_refilled_keeps_the_graph_and_the_output():
    model = make_model("cls", "learnable")
    model.eval()
    first, second = (paddle.to_tensor(make_images(model, count)) for count in (2, 3))
    plain = model(first)
    with record_attention(model) as weights:
        logits = model(first)
        assert [list(layer.shape) for layer in weights] == [[2, 2, 5, 5]] * 3
        model(second)
        assert [list(layer.shape) for layer in weights] == [[3, 2, 5, 5]] * 3
        model(first)[:, 0].sum().backward()
        assert all(not layer.stop_gradient for layer in weights)
    np.testing.assert_allclose(logits.numpy(), plain.numpy(), atol=1e-5)


def test_the_fast_path_returns_after_recording(monkeypatch):
    model = make_model()
    images = make_images(model)
    attention_weights(model, images)
    with pytest.raises(RuntimeError), record_attention(model):
        raise RuntimeError
    calls = []
    fast = functional.self_attention
    monkeypatch.setattr(functional, "self_attention", lambda *args: calls.append(args) or fast(*args))
    slow = []
    monkeypatch.setattr(F, "softmax", lambda *args: slow.append(args))
    for encoder in model.encoders:
        encoder.attn.softmax.forward = lambda scores: slow.append(scores)
    model.train()
    model(paddle.to_tensor(images)).sum().backward()
    assert len(calls) == 3 and not slow


def test_modes_gradients_and_random_numbers_are_left_alone():
    model = make_model(dropout=0.3, attention_dropout=0.3, drop_path=0.3)
    images = make_images(model)
    model.train()
    model.encoders[1].eval()  # 冻结的一层
    model.head.weight.stop_gradient = True
    modes = [layer.training for layer in model.sublayers(include_self=True)]
    model(paddle.to_tensor(images)).sum().backward()
    gradient = model.patch_embed.patch_embedding.weight.grad.numpy().copy()
    paddle.seed(3)
    expected = paddle.randn([4]).numpy()
    paddle.seed(3)
    first = attention_weights(model, images), gradient_rollout(model, images)
    np.testing.assert_array_equal(paddle.randn([4]).numpy(), expected)
    assert [layer.training for layer in model.sublayers(include_self=True)] == modes
    assert [name for name, p in model.named_parameters() if p.stop_gradient] == ["head.weight"]
    np.testing.assert_array_equal(model.patch_embed.patch_embedding.weight.grad.numpy(), gradient)
    with paddle.no_grad():  # 外面不求梯度也可以
        again = attention_weights(model, images), gradient_rollout(model, images)
    for parameter in model.parameters():  # 全部冻结也一样
        parameter.stop_gradient = True
    frozen = attention_weights(model, images), gradient_rollout(model, images)
    for one, two, three in zip(first, again, frozen):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_rollout_equals_loops():
    L, B, h, N = 3, 2, 4, 5
    weights = rng.random((L, B, h, N, N)).astype("float32")
    weights /= weights.sum(axis=-1, keepdims=True)
    for residual in (0.0, 0.5):
        expected = np.zeros((B, N, N))
        for b in range(B):
            product = np.eye(N)
            for layer in range(L):
                mixed = np.zeros((N, N))
                for i in range(N):
                    for j in range(N):
                        mean = sum(weights[layer, b, head, i, j] for head in range(h)) / h
                        mixed[i, j] = (1 - residual) * mean + residual * (i == j)
                product = mixed @ product
            expected[b] = product
        result = rollout(weights, residual)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)
        np.testing.assert_allclose(result.sum(axis=-1), 1, atol=1e-5)


def plant(model, target):
    """改成每一层所有 token 都只看第 target 个 token:q 是常数,指向它的 k;残差支路关掉。"""
    D, R = model.norm.weight.shape[0], 0 if model.register_tokens is None else model.register_tokens.shape[1]
    model.patch_embed.patch_embedding.weight.set_value(paddle.zeros_like(model.patch_embed.patch_embedding.weight))
    model.patch_embed.patch_embedding.bias.set_value(paddle.zeros([D]))
    x = model.position_embedding.numpy()[0, target - R]
    x = (x - x.mean()) / x.std()
    for encoder in model.encoders:
        encoder.attn_norm.weight.set_value(paddle.ones([D]))
        encoder.attn_norm.bias.set_value(paddle.zeros([D]))
        weight = np.concatenate([np.zeros((D, D)), np.eye(D), np.zeros((D, D))], axis=1)
        encoder.attn.qkv.weight.set_value(weight.astype("float32"))
        encoder.attn.qkv.bias.set_value(np.concatenate([50 * x, np.zeros(2 * D)]).astype("float32"))
        for layer in (encoder.attn.proj, encoder.mlp.fc2):
            layer.weight.set_value(paddle.zeros_like(layer.weight))
            layer.bias.set_value(paddle.zeros_like(layer.bias))


@pytest.mark.parametrize("pool, tokens, prefix, _", PREFIXES)
def test_a_planted_peak_is_found(pool, tokens, prefix, _):
    model = make_model(pool, "learnable", (8, 12), (4, 2), num_heads=1, tokens=tokens)
    row, column = 1, 4
    patch = row * 6 + column
    target = patch + prefix
    plant(model, target)
    weights = attention_weights(model, make_images(model))
    assert (weights[..., target] > 0.99).all()
    # A 的每一行都是 e_target,A A = A,所以 (A / 2 + I / 2)^3 = 7/8 A + 1/8 I
    N = weights.shape[-1]
    expected = 7 / 8 * np.eye(N)[np.full(N, target)] + np.eye(N) / 8
    np.testing.assert_allclose(rollout(weights), np.broadcast_to(expected, (2, N, N)), atol=0.02)
    for query in (None, (0, 0), 3):
        peak = token_map(rollout(weights), model, query)[0]
        assert np.unravel_index(peak.argmax(), peak.shape) == (row, column)
    picture = overlay(np.zeros((2, 8, 12, 1), "uint8"), token_map(rollout(weights), model), min_side=8)
    bright = picture[0].sum(axis=-1)
    assert (bright[4:, 8:10] == bright.max()).all() and (bright == bright.max()).sum() == 8


def test_gradient_rollout_equals_the_formula():
    model = make_model("cls", "learnable", depth=2)
    images = make_images(model)
    for class_index in (None, 1, [2, 0]):
        model.eval()
        with record_attention(model) as weights:
            logits = model(paddle.to_tensor(images))
            for layer in weights:
                layer.retain_grads()
            chosen = logits.numpy().argmax(axis=1) if class_index is None else np.broadcast_to(class_index, 2)
            (logits[0, int(chosen[0])] + logits[1, int(chosen[1])]).backward()
        expected = []
        for b in range(2):
            R = np.eye(5)
            for layer in weights:
                A = np.maximum(layer.grad.numpy()[b] * layer.numpy()[b], 0).mean(axis=0)
                R = R + A @ R
            expected.append(R - np.eye(5))
        np.testing.assert_allclose(gradient_rollout(model, images, class_index), expected, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_the_change_of_the_logit():
    """一层的模型,把权重一个个改动一点,logit 的变化率(有限差分)就是梯度。"""
    model = make_model("cls", "learnable", depth=1)
    model.eval()
    images = make_images(model, 1)
    weights = attention_weights(model, images)[0]  # [1, h, N, N]
    encoder = model.encoders[0]

    def logit(weights):
        tokens = []
        hook = encoder.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
        model(paddle.to_tensor(images))
        hook.remove()
        (x,) = tokens
        _, _, v = encoder.attn.transpose_multihead(encoder.attn.qkv(encoder.attn_norm(x))).chunk(3, axis=1)
        z = paddle.matmul(paddle.to_tensor(weights), v).transpose([0, 2, 1, 3]).flatten(2)
        x = x + encoder.attn.proj(z)
        x = x + encoder.mlp(encoder.mlp_norm(x))
        return float(model.head(model.norm(x)[:, 0])[0, 1])

    gradient, step = np.zeros_like(weights), 1e-2
    for index in np.ndindex(weights.shape):
        up, down = weights.copy(), weights.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (logit(up) - logit(down)) / (2 * step)
    expected = np.maximum(gradient * weights, 0).mean(axis=1)
    np.testing.assert_allclose(gradient_rollout(model, images, 1), expected, rtol=0.02, atol=2e-4)


def test_the_patch_that_decides_the_class_is_highlighted():
    """类别只由 (1, 2) 这个图块的亮暗决定,其余是噪声;取 class token 的模型只能靠注意力看到它。"""
    model = ViT(8, 2, 1, 2, embed_dim=16, depth=1, num_heads=2, pool="cls", position_embedding="learnable")
    optimizer = paddle.optimizer.AdamW(0.01, parameters=model.parameters())

    def batch(count):
        labels = rng.integers(0, 2, count)
        images = rng.standard_normal((count, 1, 8, 8)).astype("float32")
        images[:, :, 2:4, 4:6] = np.where(labels, 1.5, -1.5)[:, None, None, None] + 0.3 * images[:, :, 2:4, 4:6]
        return images, labels

    for _ in range(150):
        images, labels = batch(64)
        loss = F.cross_entropy(model(paddle.to_tensor(images)), paddle.to_tensor(labels))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    images, labels = batch(50)
    assert float(loss) < 0.2
    mean = token_map(gradient_rollout(model, images, labels), model).mean(axis=0)
    assert mean[1, 2] > 0.5 * mean.sum()  # 16 个图块里的一个


def test_token_map_rows():
    for pool, tokens, prefix, outputs in PREFIXES:
        model = make_model(pool, "none", (8, 12), 4, tokens=tokens)
        N = 6 + prefix
        matrix = rng.random((2, N, N)).astype("float32")
        default = matrix[:, outputs, prefix:].mean(axis=1)
        np.testing.assert_allclose(token_map(matrix, model), default.reshape(2, 2, 3), rtol=1e-6)
        expected = matrix[:, prefix + 5, prefix:].reshape(2, 2, 3)
        np.testing.assert_array_equal(token_map(matrix, model, (1, 2)), expected)
        np.testing.assert_array_equal(token_map(matrix, model, 5), expected)
        for query in ((2, 0), (0, 3), (-1, 0), 6, -1):
            with pytest.raises(UserError, match="2 行 3 列"):
                token_map(matrix, model, query)


def test_attention_distance_closed_forms():
    for pool, tokens, prefix, _ in PREFIXES:
        model = make_model(pool, "none", (8, 16), (4, 8), tokens=tokens)  # 2 x 2 个图块,相距 4 和 8 像素
        N = 4 + prefix
        uniform = np.full((3, 2, 2, N, N), 1 / N, "float32")
        np.testing.assert_allclose(attention_distance(uniform, model), (4 + 8 + np.hypot(4, 8)) / 4, rtol=1e-6)
        itself = np.broadcast_to(np.eye(N, dtype="float32"), uniform.shape)
        np.testing.assert_array_equal(attention_distance(itself, model), np.zeros((3, 2)))
        if prefix:  # 给 class token 等的注意力不算,其余归一化
            half = 0.5 * itself
            half[..., prefix - 1] += 0.5
            np.testing.assert_allclose(attention_distance(half, model), 0)
    swap = np.zeros((1, 1, 2, 4, 4), "float32")
    model = make_model("avg", "none", (8, 16), (4, 8))
    swap[0, 0, 0, range(4), [1, 0, 3, 2]] = 1  # 看同一行的另一个
    swap[0, 0, 1, range(4), [2, 3, 0, 1]] = 1  # 看同一列的另一个
    np.testing.assert_allclose(attention_distance(swap, model), [[8, 4]])


def test_position_similarity_equals_the_formula():
    table = rng.standard_normal((6, 4)).astype("float32")
    table[5] = 0
    similarity = position_similarity(table)
    for i in range(5):
        for j in range(5):
            cosine = table[i] @ table[j] / np.sqrt(table[i] @ table[i]) / np.sqrt(table[j] @ table[j])
            np.testing.assert_allclose(similarity[i, j], cosine, atol=1e-6)
    np.testing.assert_array_equal(similarity[5], np.zeros(6))
    assert position_table(make_model("cls", "none")) is None
    for tokens, special in (({}, 1), (dict(distillation_token=True, register_tokens=3), 2)):
        model = make_model("cls", "learnable", tokens=tokens)
        np.testing.assert_array_equal(position_table(model), model.position_embedding.numpy()[0, special:])


def test_bad_arguments():
    model = make_model()
    for class_index in (3, -1, [0, 5]):
        with pytest.raises(UserError, match="3 类"):
            gradient_rollout(model, make_images(model), class_index)
    with pytest.raises(UserError, match="Attention"):
        attention_weights(paddle.nn.Linear(2, 2), np.zeros((1, 2), "float32"))
    swin = SwinTransformer(8, 2, 1, 3, embed_dim=8, depths=(1, 1), num_heads=(1, 2))
    for function in (attention_weights, gradient_rollout):
        with pytest.raises(UserError, match="SwinTransformer 的注意力在小窗口里"):
            function(swin, np.zeros((1, 1, 8, 8), "float32"))
    with pytest.raises(UserError, match="position-embedding"):
        position_figure(model)
    with pytest.raises(UserError, match="5 个通道"):
        filters_figure(make_model(channels=5))


def all_figures(kind):
    model = make_model(*kind)
    images = make_images(model)
    pixels = rng.integers(0, 256, (2, *model.patch_embed.image_size, kind[4])).astype("uint8")
    weights = attention_weights(model, images)
    yield heads_figure(weights[:, 0], model, pixels[0])
    yield heads_figure(weights[:, 0], model, pixels[0], (1, 0))
    maps = {"rollout": token_map(rollout(weights), model), "梯度": token_map(gradient_rollout(model, images), model)}
    yield maps_figure(pixels, maps, ["猫", "$x_$"])
    yield distance_figure(attention_distance(weights, model))
    yield filters_figure(model)
    if kind[1] != "none":
        yield position_figure(model)


@pytest.mark.parametrize("kind", KINDS)
def test_figures_have_chinese_titles_that_render(kind, tmp_path):
    from matplotlib.text import Text

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # 缺字时 matplotlib 会警告
        for i, figure in enumerate(all_figures(kind)):
            figure.savefig(tmp_path / f"{i}.png")
            assert (tmp_path / f"{i}.png").stat().st_size > 3000
            texts = [text.get_text() for text in figure.findobj(Text)]
            if pictures.figure_and_words(1, 1)[1].font:
                assert any("\u4e00" <= letter <= "\u9fff" for text in texts for letter in text)


def test_figures_without_a_chinese_font(monkeypatch, tmp_path):
    from matplotlib.text import Text

    monkeypatch.setattr(pictures, "_CJK_FONTS", ())
    for figure in all_figures(KINDS[1]):
        figure.savefig(tmp_path / "figure.png")
        for text in figure.findobj(Text):
            assert max(text.get_text(), default=" ") < "\u4e00", text.get_text()


def test_side_by_side_shows_the_original_pixels():
    images = rng.integers(0, 256, (2, 4, 4, 1)).astype("uint8")
    maps = rng.random((2, 2, 2))
    cells = side_by_side(images, maps, 1 - maps, min_side=8)
    assert cells.shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(cells[3, ::2, ::2, 1], images[1, ..., 0])
    np.testing.assert_array_equal(cells[4], overlay(images, maps, min_side=8)[1])
    framed = overlay(images, maps, (1, 0), min_side=64)[0]
    assert (framed[32, :32] == (0, 255, 0)).all() and (framed[35:60, 5:25] != (0, 255, 0)).any(axis=-1).all()


def test_principal_components_equal_the_covariance_eigenvectors():
    from paddle_vit.attention.figures import _filter_components

    kernels = rng.standard_normal((40, 3, 2, 2)) * np.arange(1, 13).reshape(3, 2, 2)
    components, shares = _filter_components(kernels, 5)
    values, vectors = np.linalg.eigh(np.cov(kernels.reshape(40, 12).T))
    np.testing.assert_allclose(shares, values[::-1][:5] / values.sum(), rtol=1e-6)
    for component, vector in zip(components.reshape(5, 12), vectors.T[::-1]):
        np.testing.assert_allclose(abs(component @ vector), 1, rtol=1e-6)
        assert component.sum() >= 0
