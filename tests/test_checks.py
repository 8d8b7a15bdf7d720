"""笔记本里最常见的错:一行中文,说给了什么、应为什么、怎样改。"""

import numpy as np
import paddle
import pytest

from paddle_vit import (
    Attention,
    DropPath,
    EncoderLayer,
    LinearPatchEmbedding,
    Mlp,
    MultiHeadAttention,
    PatchEmbedding,
    SwinTransformer,
    UserError,
    ViT,
)
from paddle_vit.checks import check_normalization, check_type
from paddle_vit.layers import LayerNorm

SIZES = dict(image_size=8, patch_size=2, in_channels=3)
MODELS = {
    "ViT": lambda: ViT(**SIZES, embed_dim=8, depth=1, num_heads=2),
    "Swin": lambda: SwinTransformer(**SIZES, embed_dim=8, depths=(1,), num_heads=(2,), window_size=2),
    "PatchEmbedding": lambda: PatchEmbedding(8, 2, 3, 8),
    "LinearPatchEmbedding": lambda: LinearPatchEmbedding(8, 2, 3, 8),
}
LAYERS = {
    "Attention": lambda: Attention(8, 2),
    "EncoderLayer": lambda: EncoderLayer(8, 2),
    "MultiHeadAttention": lambda: MultiHeadAttention(8, 2),
}


def one_line(call, *words):
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), error.value


@pytest.mark.parametrize("model", MODELS)
def test_images_of_the_wrong_kind(model):
    model, images = MODELS[model](), paddle.rand([2, 3, 8, 8])
    model(images)
    one_line(lambda: model(images.astype("float64")), "float64", "float32")
    one_line(lambda: model((images * 255).astype("uint8")), "uint8", "float32", "255")
    one_line(lambda: model(images.numpy()), "ndarray", "paddle.to_tensor")
    one_line(lambda: model(images[0]), "[3, 8, 8]", "[B, 3, 8, 8]", "unsqueeze")
    one_line(lambda: model(images.transpose([0, 2, 3, 1])), "[2, 8, 8, 3]", "transpose([0, 3, 1, 2])")
    one_line(lambda: model(images[:, :, :6]), "[2, 3, 6, 8]", "[B, 3, 8, 8]")


@pytest.mark.parametrize("layer", [*LAYERS, "Mlp"])
def test_tokens_of_the_wrong_kind(layer):
    layer, tokens = {**LAYERS, "Mlp": lambda: Mlp(8)}[layer](), paddle.rand([2, 4, 8])
    layer(tokens)
    one_line(lambda: layer(tokens.astype("float64")), "float64", "float32")
    one_line(lambda: layer(tokens.astype("int64")), "int64", "float32")
    one_line(lambda: layer(tokens.numpy()), "ndarray", "paddle.to_tensor")
    one_line(lambda: layer(tokens[:, :, :6]), "[2, 4, 6]", "8")


@pytest.mark.parametrize("layer", LAYERS)
def test_tokens_without_a_batch(layer):
    one_line(lambda: LAYERS[layer]()(paddle.rand([4, 8])), "[4, 8]", "[B, ")


@pytest.mark.parametrize("make", [lambda **p: Mlp(8, **p), lambda **p: PatchEmbedding(8, 2, 3, 8, **p)])
@pytest.mark.parametrize("value", [2, -0.1, "0.1", float("nan"), None])
def test_dropout_that_is_no_probability(make, value):
    one_line(lambda: make(dropout=value), f"dropout={value!r}", "0 到 1")


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "drop_path"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **p: ViT(**SIZES, embed_dim=8, depth=2, num_heads=2, **p),
        lambda **p: SwinTransformer(**SIZES, embed_dim=8, depths=(2,), num_heads=(2,), window_size=2, **p),
        lambda **p: EncoderLayer(8, 2, **p),
    ],
)
def test_every_probability_of_a_model(make, name):
    for value in (2, -1):
        one_line(lambda: make(**{name: value}), f"{name}={value!r}")  # noqa: B023  在这一轮循环里就用完


@pytest.mark.parametrize("value", [1.0, -0.5, "0.1"])
def test_drop_path_that_drops_everything(value):
    one_line(lambda: DropPath(value), f"drop_path={value!r}", "< 1")


def test_what_can_be_calculated_is_allowed():
    """另一种精度的模型,混合精度,to_static。"""
    paddle.set_default_dtype("float64")
    try:
        wide = ViT(**SIZES, embed_dim=8, depth=1, num_heads=2)
    finally:
        paddle.set_default_dtype("float32")
    assert wide(paddle.rand([1, 3, 8, 8], dtype="float64")).dtype == paddle.float64
    model = MODELS["ViT"]()
    check_type(paddle.rand([1]).astype("bfloat16"), model.head.weight, "输入")  # 混合精度(只在 GPU 上有)里是这样
    program = paddle.jit.to_static(model)
    images = paddle.rand([2, 3, 8, 8])
    np.testing.assert_allclose(program(images).numpy(), model(images).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("x", [None, 3, "图.png", [1.0], (paddle.ones([1]),)])
def test_what_is_no_tensor(x):
    for make in {**MODELS, **LAYERS, "Mlp": lambda: Mlp(8)}.values():
        one_line(lambda make=make: make()(x), type(x).__name__, "paddle.to_tensor")


def test_both_things_that_attention_returns():
    both = Attention(8, 2)(paddle.rand([2, 4, 8]))
    for layer in (EncoderLayer(8, 2), Attention(8, 2), Mlp(8)):
        one_line(lambda layer=layer: layer(both), "tuple", "(z, attn_weights)")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Mlp(96.0), "embed_dim=96.0"),
        (lambda: Mlp(-1), "embed_dim=-1"),
        (lambda: Mlp("96"), "embed_dim='96'"),
        (lambda: Mlp(8, "4"), "mlp_ratio='4'"),
        (lambda: Mlp(8, None), "mlp_ratio=None"),
        (lambda: Mlp(8, float("nan")), "mlp_ratio=nan"),
        (lambda: Attention(8.0, 2), "embed_dim=8.0"),
        (lambda: Attention(8, "2"), "num_heads='2'"),
        (lambda: Attention(8, None), "num_heads=None"),
        (lambda: EncoderLayer("8", 2), "embed_dim='8'"),
        (lambda: PatchEmbedding(8, 2, "3", 8), "in_channels='3'"),
        (lambda: ViT(**SIZES, embed_dim=8, depth="3", num_heads=2), "depth='3'"),
        (lambda: ViT(**SIZES, embed_dim=8, depth=1.5, num_heads=2), "depth=1.5"),
        (lambda: ViT(**SIZES, embed_dim=8, depth=1, num_heads=2, num_classes="10"), "num_classes='10'"),
        (lambda: ViT(**SIZES, embed_dim=8, depth=1, num_heads=2, num_classes=2.5), "num_classes=2.5"),
        (lambda: ViT(**SIZES, embed_dim=8, depth=1, num_heads=2, register_tokens=None), "register_tokens=None"),
        (lambda: ViT(**SIZES, embed_dim=8, depth=1, num_heads=2, epsilon="1e-5"), "epsilon='1e-5'"),
        (lambda: LayerNorm(8, None), "epsilon=None"),
        (lambda: SwinTransformer(**SIZES, embed_dim=8, depths=("2",), num_heads=(2,)), "depths"),
        (lambda: SwinTransformer(**SIZES, embed_dim=8, depths=2, num_heads=(2,)), "depths=2"),
        (lambda: SwinTransformer(**SIZES, embed_dim=8, depths=(1,), num_heads=2), "num_heads=2"),
    ],
)
def test_settings_of_the_wrong_kind(make, words):
    one_line(make, words, "应")


def test_a_mask_where_there_is_none():
    tokens, mask = paddle.rand([2, 4, 8]), paddle.ones([4, 4])
    one_line(lambda: Attention(8, 2)(tokens, mask), "need_weights", "Tensor", "mask")
    one_line(lambda: Attention(8, 2)(tokens, None), "need_weights", "NoneType")


@pytest.mark.parametrize(
    "mean, std", [((127,) * 3, (0.5,) * 3), ((0.5,) * 3, (58.4, 57.1, 57.4)), ((-127.5,) * 3, (1,) * 3)]
)
def test_a_normalization_of_pixels_up_to_255(mean, std):
    one_line(lambda: check_normalization(mean, std, 3), "255")
    check_normalization([0.0] * 3, [1.0] * 3, 3)
