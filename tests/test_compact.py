"""CCT:由卷积得到 token,按学到的权重汇聚,主干上的归一化;参数的个数是论文和作者的代码里的。"""

import re

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from paddle_vit import EncoderLayer, UserError, ViT, convolution, create_model
from paddle_vit.compact import ConvTokenizer, SequencePool
from paddle_vit.family.models import count_parameters, full_name, list_models
from paddle_vit.kernels.loading import load_kernels

SMALL = dict(in_channels=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)
CCT = dict(tokenizer="conv", pool="seq", trunk_norm=True, position_embedding="learnable")

# 作者的代码(SHI-Labs/Compact-Transformers)里各模型的参数个数;论文写的是 0.28、0.48、3.17(不算位置编码)、3.76、3.85、
# 22.36(百万)
COUNTS = {
    "cct_2_3x2_32": 283723,
    "cct_4_3x2_32": 482123,
    "cct_6_3x1_32": 3233803,
    "cct_7_3x1_32": 3760139,
    "cct_7_3x2_32": 3853259,
    "cct_7_7x2_224": 4573735,
    "cct_14_7x2_224": 22367273,
}
# 通道、(高, 宽)、卷积核、步长、各层的输出通道
SHAPES = [
    (1, (28, 28), 3, 1, (64, 16)),
    (3, (14, 14), 3, 1, (5,)),
    (3, (7, 9), 3, 1, (6, 4)),
    (1, (30, 17), 5, 1, (7,)),
    (3, (32, 48), 7, 2, (64, 12)),
    (3, (15, 7), 7, 2, (9,)),
    (2, (1, 1), 3, 1, (3,)),
]


def by_layers(x, weights, stride, padding):
    """Paddle 自己的三层。"""
    for weight in weights:
        D, C, k, _ = weight.shape
        layer = nn.Conv2D(C, D, k, stride, padding, bias_attr=False)
        layer.weight.set_value(weight.detach())
        x = nn.Sequential(layer, nn.ReLU(), nn.MaxPool2D(3, 2, 1))(x)  # [B, D, H', W']
    return x.flatten(2).transpose([0, 2, 1])


def by_loops(x, weight, stride, padding):
    """一层,一个数一个数地算,float64。"""
    B, _, H, W = x.shape
    D, _, k, _ = weight.shape
    padded = np.pad(x.astype("float64"), [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    rows, columns = (H + 2 * padding - k) // stride + 1, (W + 2 * padding - k) // stride + 1
    z = np.zeros((B, D, rows, columns))
    for r in range(rows):
        for q in range(columns):
            window = padded[:, :, r * stride : r * stride + k, q * stride : q * stride + k]
            z[:, :, r, q] = np.einsum("bcij,dcij->bd", window, weight)
    y = np.zeros((B, D, (rows + 1) // 2, (columns + 1) // 2))
    for r in range(y.shape[2]):
        for q in range(y.shape[3]):
            window = z[:, :, max(2 * r - 1, 0) : 2 * r + 2, max(2 * q - 1, 0) : 2 * q + 2]
            y[:, :, r, q] = np.maximum(window.max(axis=(2, 3)), 0)
    return y.reshape(B, D, -1).transpose(0, 2, 1)


def example(channels, size, k, outputs, batch=3, seed=0):
    """一批图像和各层的卷积核。"""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, channels, *size)).astype("float32")
    weights = []
    for D in outputs:
        weights.append((rng.standard_normal((D, channels, k, k)) / (channels**0.5 * k)).astype("float32"))
        channels = D
    return x, weights


def tokens_and_gradients(function, x, weights, stride, k, dtype="float32"):
    x, weights = paddle.to_tensor(x, dtype), [paddle.to_tensor(w, dtype, stop_gradient=False) for w in weights]
    y = function(x, weights, stride, k // 2)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    (y * paddle.to_tensor(dy, dtype)).sum().backward()
    return [y.numpy(), *(w.grad.numpy() for w in weights)]


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(("channels", "size", "k", "stride", "outputs"), SHAPES)
def test_tokens_and_gradients_equal_float64(channels, size, k, stride, outputs, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(convolution, "kernels_for", lambda *tensors: None)
    x, weights = example(channels, size, k, outputs)
    ours = tokens_and_gradients(convolution.conv_tokens, x, weights, stride, k)
    exact = tokens_and_gradients(by_layers_in_float64, x, weights, stride, k, "float64")
    for mine, true in zip(ours, exact):
        np.testing.assert_allclose(mine, true, rtol=1e-4, atol=1e-5 * max(1, np.abs(true).max()))


def by_layers_in_float64(x, weights, stride, padding):
    for weight in weights:
        x = F.max_pool2d(F.relu(F.conv2d(x, weight, stride=stride, padding=padding)), 3, 2, 1)
    return x.flatten(2).transpose([0, 2, 1])


@pytest.mark.parametrize(("channels", "size", "k", "stride", "outputs"), SHAPES)
def test_the_tokenizer_is_three_layers_of_paddle(channels, size, k, stride, outputs):
    x, weights = example(channels, size, k, outputs)
    ours = convolution.conv_tokens(paddle.to_tensor(x), list(map(paddle.to_tensor, weights)), stride, k // 2)
    plain = by_layers(paddle.to_tensor(x), list(map(paddle.to_tensor, weights)), stride, k // 2)
    np.testing.assert_allclose(ours.numpy(), plain.numpy(), rtol=1e-4, atol=1e-5)
    if len(weights) == 1:
        np.testing.assert_allclose(ours.numpy(), by_loops(x, weights[0], stride, k // 2), rtol=1e-4, atol=1e-5)


def test_equal_pixels_send_the_gradient_to_the_first_of_a_window():
    """一片相同的像素:最大的不止一个,梯度给谁与 Paddle 相同。"""
    x, weights = np.ones((2, 1, 12, 12), "float32"), [np.full((4, 1, 3, 3), 0.1, "float32")]
    weights[0][1] *= -1
    ours, plain = (
        tokens_and_gradients(function, x, weights, 1, 3) for function in (convolution.conv_tokens, by_layers_in_float64)
    )
    for mine, theirs in zip(ours, plain):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_large_images_are_cut_into_several_bands():
    x, weights = example(3, (256, 64), 3, (6, 4), batch=1)
    ours = tokens_and_gradients(convolution.conv_tokens, x, weights, 1, 3)
    exact = tokens_and_gradients(by_layers_in_float64, x, weights, 1, 3, "float64")
    for mine, true in zip(ours, exact):
        np.testing.assert_allclose(mine, true, rtol=1e-4, atol=1e-5 * np.abs(true).max())


def test_more_images_than_parts_and_frozen_kernels():
    x, weights = example(1, (8, 8), 3, (4, 6), batch=70)
    tensors = [paddle.to_tensor(w, stop_gradient=i == 0) for i, w in enumerate(weights)]
    convolution.conv_tokens(paddle.to_tensor(x), tensors, 1, 1).sum().backward()
    exact = [paddle.to_tensor(w, stop_gradient=i == 0) for i, w in enumerate(weights)]
    by_layers_in_float64(paddle.to_tensor(x), exact, 1, 1).sum().backward()
    assert tensors[0].grad is None
    np.testing.assert_allclose(tensors[1].grad.numpy(), exact[1].grad.numpy(), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_the_tokens_and_of_the_image_are_those_of_paddle():
    x, weights = example(1, (8, 8), 3, (4,))
    image, kernel = paddle.to_tensor(x, stop_gradient=False), paddle.to_tensor(weights[0], stop_gradient=False)
    y = convolution.conv_tokens(image, [kernel], 1, 1)
    y.retain_grads()
    (y * y).sum().backward()
    np.testing.assert_allclose(y.grad.numpy(), 2 * y.numpy(), rtol=1e-5)
    plain = paddle.to_tensor(x, stop_gradient=False)
    (by_layers_in_float64(plain, [kernel], 1, 1) ** 2).sum().backward()
    np.testing.assert_allclose(image.grad.numpy(), plain.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["image", "kernel"])
def test_nan_is_not_swallowed(where):
    x, weights = example(1, (8, 8), 3, (4,))
    (x if where == "image" else weights[0])[0, 0, 1, 1] = np.nan
    y = convolution.conv_tokens(paddle.to_tensor(x), [paddle.to_tensor(weights[0])], 1, 1)
    assert np.isnan(y.numpy()).any()


def test_the_kernels_are_used_on_a_cpu(monkeypatch):
    if load_kernels() is None:
        pytest.skip("没有 numba")

    def refuse(*args, **kwargs):
        raise AssertionError("用了 Paddle 的卷积")

    x, weights = example(1, (8, 8), 3, (4,))
    monkeypatch.setattr(convolution.F, "conv2d", refuse)
    assert convolution.conv_tokens(paddle.to_tensor(x), [paddle.to_tensor(weights[0])], 1, 1).shape == [3, 16, 4]


def test_sequence_pooling_equals_the_formula():
    pool, x = SequencePool(6), np.random.default_rng(0).standard_normal((2, 5, 6)).astype("float32")
    scores = x @ pool.attention.weight.numpy() + pool.attention.bias.numpy()  # [B, N, 1]
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pool(paddle.to_tensor(x)).numpy(), (weights * x).sum(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pool.weights(paddle.to_tensor(x)).numpy()[:, 0], weights[..., 0], rtol=1e-5)


def test_the_block_normalises_on_the_trunk():
    layer = EncoderLayer(8, 2, trunk_norm=True)
    for norm in (layer.attn_norm, layer.mlp_norm):
        norm.weight.set_value(paddle.uniform([8], min=0.5, max=1.5))
        norm.bias.set_value(paddle.randn([8]))
    x = paddle.randn([2, 5, 8])
    y = layer.mlp_norm(x + layer.attn(layer.attn_norm(x))[0])
    np.testing.assert_allclose(layer(x).numpy(), (y + layer.mlp(y)).numpy(), rtol=1e-5, atol=1e-5)
    assert not np.allclose(layer(x).numpy(), (x + layer.attn(layer.attn_norm(x))[0] + layer.mlp(y)).numpy(), atol=1e-2)


def test_the_models_have_the_published_number_of_parameters():
    assert {name for name in list_models() if name.startswith("cct")} == COUNTS.keys()
    with paddle.LazyGuard():
        assert {name: count_parameters(create_model(name)) for name in COUNTS} == COUNTS


def test_names_say_what_the_models_are():
    for name in COUNTS:
        depth, kernel, layers, image = map(int, re.fullmatch(r"cct_(\d+)_(\d)x(\d)_(\d+)", name).groups())
        with paddle.LazyGuard():
            model = create_model(name)
        assert len(model.encoders) == depth and model.settings["image_size"] == image
        kernels = [tuple(layer.weight.shape[2:]) for layer in model.patch_embed.convolutions]
        assert kernels == [(kernel, kernel)] * layers


def test_short_names():
    assert full_name("cct_7") == "cct_7_3x1_32"
    assert full_name("cct_14") == "cct_14_7x2_224"


@pytest.mark.parametrize("registers", [0, 2])
def test_a_model_is_the_tokenizer_the_encoders_and_the_pooling(registers):
    model = ViT(8, 4, register_tokens=registers, **SMALL, **CCT)
    model.eval()
    image = paddle.randn([2, 1, 8, 8])
    assert isinstance(model.patch_embed, ConvTokenizer) and model.patch_embed.grid_size == (2, 2)
    assert [layer.weight.shape for layer in model.patch_embed.convolutions] == [[64, 1, 3, 3], [8, 64, 3, 3]]
    x = model.forward_features(image)  # [B, R + N, D]
    assert x.shape == [2, registers + 4, 8]
    expected = model.head(model.sequence_pool(x[:, registers:]))
    np.testing.assert_allclose(model(image).numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_gradient():
    model = ViT(8, 4, **SMALL, **CCT)
    F.cross_entropy(model(paddle.randn([4, 1, 8, 8])), paddle.to_tensor([0, 1, 2, 0])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and np.abs(parameter.grad.numpy()).sum() > 0, name


def test_the_kernels_start_as_the_authors_do():
    paddle.seed(0)
    weight = ConvTokenizer(32, 4, 3, 128).convolutions[1].weight.numpy()  # [128, 64, 3, 3]
    np.testing.assert_allclose(weight.std(), (2 / (64 * 9)) ** 0.5, rtol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(image_size=28, patch_size=7), r"patch_size=\(7, 7\).*可用的是 2、4。"),
        (dict(image_size=28, patch_size=8), "可用的是 2、4。"),
        (dict(image_size=32, patch_size=(4, 2)), "可用的是 2、4、8、16、32。"),
        (dict(image_size=32, patch_size=4, tokenizer_kernel=7), None),
        (dict(image_size=64, patch_size=8, tokenizer_kernel=7), "可用的是 4、16、64。"),
        (dict(image_size=27, patch_size=3), "一个也没有,请改图像的大小"),
        (dict(image_size=28, patch_size=4, tokenizer_kernel=4), "tokenizer_kernel=4 不合法.*奇数"),
        (dict(image_size=28, patch_size=4, tokenizer_kernel=1), "tokenizer_kernel=1 不合法"),
        (dict(image_size=28, patch_size=4, tokenizer="patch", tokenizer_kernel=5), "tokenizer='patch':请改"),
        (dict(image_size=28, patch_size=4, tokenizer="convolution"), "只能是 patch、conv 之一"),
        (dict(image_size=28, patch_size=4, pool="max"), "只能是 avg、cls、seq 之一"),
        (dict(image_size=28, patch_size=4, distillation_token=True), "pool='seq':请改用 pool='cls'"),
    ],
)
def test_impossible_settings_say_what_is_possible(settings, message):
    settings = {**SMALL, **CCT, **settings}
    if message is None:
        assert ViT(**settings).patch_embed.num_patches == 64
        return
    with pytest.raises(UserError, match=message) as error:
        ViT(**settings)
    assert "\n" not in str(error.value)
