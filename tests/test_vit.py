import numpy as np
import paddle
import pytest

from paddle_vit import UserError, ViT, count_parameters, sincos_position_embedding_1d

SMALL = dict(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=2, num_heads=2, num_classes=3)


def test_default_is_the_lessons_model():
    model = ViT()
    assert model(paddle.randn([4, 3, 224, 224])).shape == [4, 10]
    assert [len(model.encoders), model.patch_embed.num_patches] == [5, 1024]
    assert all(hasattr(model, name) for name in ("patch_embed", "encoders", "norm", "avgpool", "head"))
    assert model.patch_embed.patch_embedding.weight.shape == [16, 3, 7, 7]
    assert model.position_embedding is None and model.class_token is None
    by_hand = 3 * 7 * 7 * 16 + 16 + 5 * (4 * 16 + 16 * 48 + 16 * 17 + 16 * 64 + 64 + 64 * 16 + 16) + 32 + 170
    assert count_parameters(model) == by_hand


def test_an_articles_model_of_257_tokens():
    D, L, K, patch = 128, 3, 10, 16
    model = ViT(
        image_size=256,
        patch_size=patch,
        num_classes=K,
        embed_dim=D,
        depth=L,
        num_heads=8,
        qkv_bias=True,
        pool="cls",
        position_embedding="learnable",
    )
    x = paddle.randn([2, 3, 256, 256])
    assert model.patch_embed(x).shape == [2, 256, D]
    assert model.forward_features(x).shape == [2, 1 + 256, D]
    assert model.encoders[0].attn(paddle.randn([2, 257, D]))[1].shape == [2, 8, 257, 257]
    assert model(x).shape == [2, K]
    embedding = patch * patch * 3 * D + D + D + 257 * D  # 图块嵌入的权重和偏置,class token,位置编码
    layer = 2 * 2 * D + (D * 3 * D + 3 * D) + (D * D + D) + (D * 4 * D + 4 * D) + (4 * D * D + D)
    assert patch * patch * 3 == 768
    assert count_parameters(model) == embedding + L * layer + 2 * D + D * K + K


VARIANTS = [
    dict(),
    dict(pool="cls"),
    dict(position_embedding="learnable"),
    dict(position_embedding="sincos"),
    dict(position_embedding="sincos1d"),
    dict(pool="cls", position_embedding="learnable", qkv_bias=True, head="mlp"),
    dict(pool="cls", position_embedding="sincos", drop_path=0.2, dropout=0.1, attention_dropout=0.1),
    dict(image_size=(8, 12), patch_size=(4, 3), qk_scale=0.3, mlp_ratio=2.0),
]


@pytest.mark.parametrize("options", VARIANTS)
def test_every_parameter_receives_a_gradient(options):
    model = ViT(**{**SMALL, **options})
    H, W = model.patch_embed.image_size
    model(paddle.randn([16, 1, H, W])).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad.numpy()
        if "qkv.bias" in name:  # 键的偏置对 softmax 只是加一个常数,梯度恒为零
            D = len(gradient) // 3
            gradient = np.concatenate([gradient[:D], gradient[2 * D :]])
        assert np.abs(gradient).max() > 0, name


def permute_patches(x, order):
    """把 [B, 1, 8, 8] 的四个 4x4 图块按 order 重排。"""
    patches = x.reshape([-1, 1, 2, 4, 2, 4]).transpose([0, 2, 4, 1, 3, 5]).reshape([-1, 4, 1, 4, 4])
    patches = patches[:, order].reshape([-1, 2, 2, 1, 4, 4]).transpose([0, 3, 1, 4, 2, 5])
    return patches.reshape([-1, 1, 8, 8])


@pytest.mark.parametrize(
    "position_embedding, same", [("none", True), ("learnable", False), ("sincos", False), ("sincos1d", False)]
)
def test_permuting_patches(position_embedding, same):
    model = ViT(**SMALL, position_embedding=position_embedding)
    if position_embedding == "learnable":
        model.position_embedding.set_value(paddle.randn(model.position_embedding.shape))
    x = paddle.randn([3, 1, 8, 8])
    before, after = model(x).numpy(), model(permute_patches(x, [2, 0, 3, 1])).numpy()
    assert (np.abs(before - after).max() < 1e-5) == same


def test_average_pool_is_the_mean_of_the_normalised_tokens():
    model = ViT(**SMALL)
    x = paddle.randn([2, 1, 8, 8])
    tokens = model.forward_features(x)
    assert tokens.shape == [2, 4, 8]
    np.testing.assert_allclose(tokens.numpy().mean(axis=-1), 0, atol=1e-5)  # 归一化之后
    expected = tokens.numpy().mean(axis=1) @ model.head.weight.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-5)


def test_class_token_pool_reads_the_first_token():
    model = ViT(**SMALL, pool="cls")
    x = paddle.randn([2, 1, 8, 8])
    tokens = model.forward_features(x)
    assert tokens.shape == [2, 5, 8]
    expected = tokens.numpy()[:, 0] @ model.head.weight.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("position_embedding", ["sincos", "sincos1d"])
def test_sincos_is_fixed_and_not_saved(position_embedding):
    model = ViT(**SMALL, pool="cls", position_embedding=position_embedding)
    assert "position_embedding" not in model.state_dict()
    assert "position_embedding" not in dict(model.named_parameters())
    np.testing.assert_array_equal(model.position_embedding.numpy()[0, 0], 0)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_sincos_1d_numbers_the_patches_row_by_row(pool):
    model = ViT(**{**SMALL, "image_size": (8, 12)}, pool=pool, position_embedding="sincos1d")
    patches = model.position_embedding.numpy()[0, int(pool == "cls") :]
    np.testing.assert_array_equal(patches, sincos_position_embedding_1d(2 * 3, 8))


def test_drop_path_grows_linearly():
    model = ViT(**{**SMALL, "depth": 5}, drop_path=0.2)
    np.testing.assert_allclose([encoder.drop_path.drop_path for encoder in model.encoders], [0, 0.05, 0.1, 0.15, 0.2])


def test_heads():
    mlp = ViT(**SMALL, head="mlp").head
    assert [type(layer).__name__ for layer in mlp] == ["LayerNorm", "Linear", "GELU", "Linear"]
    assert [mlp[1].weight.shape, mlp[3].weight.shape] == [[8, 32], [32, 3]]
    assert ViT(**{**SMALL, "num_classes": 0})(paddle.zeros([2, 1, 8, 8])).shape == [2, 8]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(pool="max"), ("max", "avg")),
        (dict(position_embedding="rope"), ("rope", "sincos", "sincos1d")),
        (dict(position_embedding="sincos1d", embed_dim=7, num_heads=1), ("7",)),
        (dict(head="conv"), ("conv", "mlp")),
        (dict(depth=0), ("0", "1")),
        (dict(num_classes=-1), ("-1",)),
        (dict(num_heads=3), ("8", "3")),
        (dict(patch_size=3), ("3", "8")),
    ],
)
def test_errors(options, words):
    with pytest.raises(UserError) as error:
        ViT(**{**SMALL, **options})
    assert all(word in str(error.value) for word in words)
