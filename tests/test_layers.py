import inspect
import math

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_vit import (
    Attention,
    DropPath,
    EncoderLayer,
    Identity,
    Mlp,
    PatchEmbedding,
    UserError,
    sincos_position_embedding,
    sincos_position_embedding_1d,
)
from paddle_vit.layers import NormalizedAttention

erf = np.vectorize(math.erf)
EMPTY = inspect.Parameter.empty
SIGNATURES = {
    Identity: {},
    Mlp: {"embed_dim": EMPTY, "mlp_ratio": 4.0, "dropout": 0.0},
    PatchEmbedding: {
        "image_size": EMPTY,
        "patch_size": EMPTY,
        "in_channels": EMPTY,
        "embed_dim": EMPTY,
        "dropout": 0.0,
    },
    Attention: {
        "embed_dim": EMPTY,
        "num_heads": EMPTY,
        "qkv_bias": False,
        "qk_scale": None,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
}


@pytest.mark.parametrize("layer", SIGNATURES)
def test_constructor_is_the_lessons(layer):
    parameters = inspect.signature(layer).parameters
    names = [name for name in parameters if name not in ("args", "kwargs", "name_scope", "dtype")]
    assert {name: parameters[name].default for name in names} == SIGNATURES[layer]


def test_encoder_layer_defaults_to_four_heads():
    parameters = list(inspect.signature(EncoderLayer).parameters.values())
    assert [p.name for p in parameters[:2]] == ["embed_dim", "num_heads"]
    assert parameters[1].default == 4


@pytest.mark.parametrize(
    "layer, attributes",
    [
        (Mlp(8), "fc1 act fc2 dropout"),
        (PatchEmbedding(8, 2, 3, 8), "patch_embedding dropout"),
        (
            Attention(8, 2),
            "num_heads attn_head_size all_head_size scales qkv proj softmax attn_dropout proj_dropout",
        ),
        (EncoderLayer(8), "attn_norm attn mlp_norm mlp"),
    ],
)
def test_attributes_are_the_lessons(layer, attributes):
    assert all(hasattr(layer, name) for name in attributes.split())


def test_lessons_demonstration_prints_its_shapes():
    z, attn_weights = Attention(embed_dim=96, num_heads=8)(paddle.randn([4, 16, 96]))
    assert z.shape == [4, 16, 96]
    assert attn_weights.shape == [4, 8, 16, 16]


def test_parameter_names():
    names = {name: parameter.shape for name, parameter in EncoderLayer(8, 2, qkv_bias=True).named_parameters()}
    assert names == {
        "attn_norm.weight": [8],
        "attn_norm.bias": [8],
        "attn.qkv.weight": [8, 24],
        "attn.qkv.bias": [24],
        "attn.proj.weight": [8, 8],
        "attn.proj.bias": [8],
        "mlp_norm.weight": [8],
        "mlp_norm.bias": [8],
        "mlp.fc1.weight": [8, 32],
        "mlp.fc1.bias": [32],
        "mlp.fc2.weight": [32, 8],
        "mlp.fc2.bias": [8],
    }


def test_identity_returns_its_input():
    x = paddle.randn([2, 3])
    assert Identity()(x) is x


@pytest.mark.parametrize(
    "activation, formula",
    [
        ("quick_gelu", lambda x: x / (1 + np.exp(-1.702 * x))),
        ("gelu_tanh", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_the_approximations_of_gelu(activation, formula):
    layer, x = EncoderLayer(8, 2, activation=activation).mlp, paddle.randn([2, 3, 8])
    weights = [tensor.numpy() for tensor in (layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias)]
    expected = formula(x.numpy() @ weights[0] + weights[1]) @ weights[2] + weights[3]
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-5)
    with pytest.raises(UserError, match="gelu、quick_gelu、gelu_tanh 之一"):
        EncoderLayer(8, 2, activation="relu")


def test_mlp_equals_numpy():
    layer = Mlp(6, mlp_ratio=2.5)
    assert layer.fc1.weight.shape == [6, 15]
    x = np.random.randn(2, 5, 6).astype("float32")
    hidden = x @ layer.fc1.weight.numpy() + layer.fc1.bias.numpy()
    hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    expected = hidden @ layer.fc2.weight.numpy() + layer.fc2.bias.numpy()
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("image_size, patch_size", [(8, 2), ((6, 9), 3), ((4, 6), (2, 3))])
def test_patch_embedding_equals_numpy(image_size, patch_size):
    layer = PatchEmbedding(image_size, patch_size, 3, 5)
    (H, W), (ph, pw) = np.broadcast_to(image_size, 2), np.broadcast_to(patch_size, 2)
    x = np.random.randn(2, 3, H, W).astype("float32")
    kernel = layer.patch_embedding.weight.numpy().reshape(5, -1)
    expected = [
        x[:, :, i : i + ph, j : j + pw].reshape(2, -1) @ kernel.T + layer.patch_embedding.bias.numpy()
        for i in range(0, H, ph)
        for j in range(0, W, pw)
    ]
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), np.stack(expected, axis=1), atol=1e-4)


def test_patch_embedding_of_ones_sums_each_patch():
    layer = PatchEmbedding(28, 7, 1, 1)
    layer.patch_embedding.weight.set_value(paddle.ones([1, 1, 7, 7]))
    layer.patch_embedding.bias.set_value(paddle.zeros([1]))
    image = np.random.rand(28, 28).astype("float32")
    sums = image.reshape(4, 7, 4, 7).sum(axis=(1, 3)).flatten()
    np.testing.assert_allclose(layer(paddle.to_tensor(image[None, None])).numpy()[0, :, 0], sums, rtol=1e-5)


def numpy_attention(layer, x, scale):
    B, N, _ = x.shape
    h, d = layer.num_heads, layer.attn_head_size
    qkv = x @ layer.qkv.weight.numpy()
    if layer.qkv.bias is not None:
        qkv = qkv + layer.qkv.bias.numpy()
    z, weights = np.zeros((B, N, h * d)), np.zeros((B, h, N, N))
    for b in range(B):
        for i in range(h):
            q, k, v = (qkv[b, :, j * h * d + i * d : j * h * d + (i + 1) * d] for j in range(3))
            scores = q @ k.T * scale
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights[b, i] = scores / scores.sum(axis=1, keepdims=True)
            z[b, :, i * d : (i + 1) * d] = weights[b, i] @ v
    return z @ layer.proj.weight.numpy() + layer.proj.bias.numpy(), weights


@pytest.mark.parametrize("qkv_bias, qk_scale", [(False, None), (True, 0.7)])
def test_attention_equals_numpy(qkv_bias, qk_scale):
    layer = Attention(12, 3, qkv_bias=qkv_bias, qk_scale=qk_scale)
    assert (layer.qkv.bias is not None) == qkv_bias
    if qkv_bias:
        layer.qkv.bias.set_value(paddle.randn([36]))
    x = np.random.randn(2, 5, 12).astype("float32")
    expected_z, expected_weights = numpy_attention(layer, x, qk_scale or 4**-0.5)
    z, weights = layer(paddle.to_tensor(x))
    np.testing.assert_allclose(z.numpy(), expected_z, atol=1e-4)
    np.testing.assert_allclose(weights.numpy(), expected_weights, atol=1e-4)
    z, weights = layer(paddle.to_tensor(x), need_weights=False)
    assert weights is None
    np.testing.assert_allclose(z.numpy(), expected_z, atol=1e-4)


def test_transpose_multihead_keeps_each_heads_columns():
    x = np.arange(2 * 3 * 8, dtype="float32").reshape(2, 3, 8)
    heads = Attention(8, 2).transpose_multihead(paddle.to_tensor(x)).numpy()
    assert heads.shape == (2, 2, 3, 4)
    for i in range(2):
        np.testing.assert_array_equal(heads[:, i], x[:, :, 4 * i : 4 * i + 4])


def copy_attention(ours, theirs):
    """paddle.nn.MultiHeadAttention 的 q、k、v 是分开的三个线性层。"""
    weights, biases = ours.qkv.weight.chunk(3, axis=-1), ours.qkv.bias.chunk(3)
    for part, weight, bias in zip((theirs.q_proj, theirs.k_proj, theirs.v_proj), weights, biases):
        part.weight.set_value(weight)
        part.bias.set_value(bias)
    theirs.out_proj.weight.set_value(ours.proj.weight)
    theirs.out_proj.bias.set_value(ours.proj.bias)


def test_attention_agrees_with_paddle():
    ours, theirs = Attention(16, 4, qkv_bias=True), nn.MultiHeadAttention(16, 4, need_weights=True)
    ours.qkv.bias.set_value(paddle.randn([48]))
    copy_attention(ours, theirs)
    x = paddle.randn([2, 7, 16])
    for mine, reference in zip(ours(x), theirs(x)):
        np.testing.assert_allclose(mine.numpy(), reference.numpy(), atol=1e-5)


def test_encoder_layer_agrees_with_paddle():
    ours = EncoderLayer(16, 4, mlp_ratio=3.0, qkv_bias=True)
    theirs = nn.TransformerEncoderLayer(16, 4, 48, dropout=0.0, activation="gelu", normalize_before=True)
    for parameter in ours.parameters():
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    copy_attention(ours.attn, theirs.self_attn)
    pairs = [(ours.attn_norm, theirs.norm1), (ours.mlp_norm, theirs.norm2)]
    pairs += [(ours.mlp.fc1, theirs.linear1), (ours.mlp.fc2, theirs.linear2)]
    for mine, reference in pairs:
        reference.set_state_dict(mine.state_dict())
    x = paddle.randn([2, 7, 16])
    np.testing.assert_allclose(ours(x).numpy(), theirs(x).numpy(), atol=1e-5)


def numpy_norm(x, layer):
    x = x.astype("float64")
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.epsilon)
    return x * layer.weight.numpy() + layer.bias.numpy()


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("qk_scale", [None, 0.3])
def test_qk_norm_equals_numpy(qk_scale, need_weights):
    layer = NormalizedAttention(12, 3, qkv_bias=True, qk_scale=qk_scale, epsilon=1e-3)
    for parameter in layer.parameters():
        parameter.set_value(parameter + 0.5 * paddle.randn(parameter.shape))
    x = paddle.randn([2, 5, 12])
    qkv = x.numpy().astype("float64") @ layer.qkv.weight.numpy() + layer.qkv.bias.numpy()
    q, k, v = qkv.reshape(2, 5, 3, 3, 4).transpose(2, 0, 3, 1, 4)  # 各 [B, h, N, d]
    q, k = numpy_norm(q, layer.q_norm), numpy_norm(k, layer.k_norm)
    scores = np.exp(q @ k.swapaxes(-1, -2) * (0.5 if qk_scale is None else qk_scale))  # d = 4,4 ** -0.5 = 0.5
    weights = scores / scores.sum(-1, keepdims=True)
    z = (weights @ v).transpose(0, 2, 1, 3).reshape(2, 5, 12)
    found, found_weights = layer(x, need_weights=need_weights)
    np.testing.assert_allclose(found.numpy(), z @ layer.proj.weight.numpy() + layer.proj.bias.numpy(), atol=1e-4)
    if need_weights:
        np.testing.assert_allclose(found_weights.numpy(), weights, atol=1e-5)


def test_layer_scale_multiplies_both_branches():
    layer = EncoderLayer(8, 2, layer_scale=0.25)
    plain = EncoderLayer(8, 2)
    plain.set_state_dict({name: value for name, value in layer.state_dict().items() if "gamma" not in name})
    for scale in (layer.attn_scale, layer.mlp_scale):
        np.testing.assert_array_equal(scale.gamma.numpy(), np.full(8, 0.25, "float32"))
        scale.gamma.set_value(paddle.randn([8]))
    x = paddle.randn([2, 5, 8])
    z = x.numpy() + layer.attn_scale.gamma.numpy() * plain.attn(plain.attn_norm(x))[0].numpy()
    branch = plain.mlp(plain.mlp_norm(paddle.to_tensor(z))).numpy()
    np.testing.assert_allclose(layer(x).numpy(), z + layer.mlp_scale.gamma.numpy() * branch, atol=1e-5)
    for scale in (layer.attn_scale, layer.mlp_scale):
        scale.gamma.set_value(paddle.zeros([8]))
    np.testing.assert_array_equal(layer(x).numpy(), x.numpy())


@pytest.mark.parametrize(
    "layer, call",
    [
        (Mlp(64, dropout=0.5), lambda layer, x: layer(x)),
        (Attention(64, 4, dropout=0.5), lambda layer, x: layer(x)[0]),
        (Attention(64, 4, attention_dropout=0.5), lambda layer, x: layer(x)[0]),
        (Attention(64, 4, attention_dropout=0.5), lambda layer, x: layer(x, need_weights=False)[0]),
        (EncoderLayer(64, drop_path=0.5), lambda layer, x: layer(x)),
    ],
)
def test_dropout_acts_in_training_only(layer, call):
    x = paddle.randn([8, 4, 64])
    layer.train()
    assert not np.allclose(call(layer, x).numpy(), call(layer, x).numpy())
    layer.eval()
    np.testing.assert_array_equal(call(layer, x).numpy(), call(layer, x).numpy())


def test_patch_embedding_dropout_zeroes_its_share():
    layer = PatchEmbedding(8, 1, 3, 64, dropout=0.25)
    share = float((layer(paddle.randn([16, 3, 8, 8])) == 0).astype("float32").mean())
    assert abs(share - 0.25) < 0.02


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = DropPath(0.25)
    out = layer(paddle.ones([4000, 3, 2])).numpy()
    assert set(np.unique(out.reshape(4000, -1), axis=0)[:, 0]) == {0.0, np.float32(1 / 0.75)}
    assert (out.reshape(4000, -1) == out[:, :1, 0]).all()
    assert abs(out.mean() - 1) < 0.03
    layer.eval()
    np.testing.assert_array_equal(layer(paddle.ones([4, 3, 2])).numpy(), 1)


def test_sincos_follows_the_formula():
    table = sincos_position_embedding((3, 4), 8)
    assert table.shape == (12, 8)
    row, column = 2, 3
    w = [1.0, 10000.0**-0.5]
    expected = [np.sin(row * w[0]), np.sin(row * w[1]), np.cos(row * w[0]), np.cos(row * w[1])]
    expected += [np.sin(column * w[0]), np.sin(column * w[1]), np.cos(column * w[0]), np.cos(column * w[1])]
    np.testing.assert_allclose(table[row * 4 + column], expected, atol=1e-6)


def test_sincos_1d_follows_the_papers_formula():
    N, D = 7, 6
    expected = np.zeros((N, D))
    for pos in range(N):
        for i in range(D // 2):
            expected[pos, 2 * i] = math.sin(pos / 10000 ** (2 * i / D))
            expected[pos, 2 * i + 1] = math.cos(pos / 10000 ** (2 * i / D))
    table = sincos_position_embedding_1d(N, D)
    assert (table.shape, table.dtype) == ((N, D), np.float32)
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_sincos_1d_of_a_later_token_is_a_rotation_that_depends_on_the_distance_only():
    N, D, distance = 20, 8, 5
    table = sincos_position_embedding_1d(N, D).reshape(N, D // 2, 2)
    table = table[..., 1] + 1j * table[..., 0]  # cos + i sin
    rotation = np.exp(1j * distance * 10000.0 ** (-np.arange(0, D, 2) / D))
    np.testing.assert_allclose(table[distance:], table[:-distance] * rotation, atol=1e-5)


@pytest.mark.parametrize(
    "make, numbers",
    [
        (lambda: Attention(10, 3), ("10", "3")),
        (lambda: PatchEmbedding(8, 3, 1, 4), ("8", "3")),
        (lambda: PatchEmbedding(0, 3, 1, 4), ("0",)),
        (lambda: sincos_position_embedding(4, 6), ("6", "4")),
        (lambda: sincos_position_embedding_1d(4, 7), ("7",)),
        (lambda: sincos_position_embedding_1d(0, 8), ("num_tokens=0",)),
        (lambda: DropPath(1.0), ("1.0",)),
        (lambda: Mlp(4, mlp_ratio=0.1), ("0.1",)),
        (lambda: PatchEmbedding(8, 4, 1, 4)(paddle.zeros([1, 1, 9, 8])), ("9", "8")),
        (lambda: PatchEmbedding(8, 4, 1, 4)(paddle.zeros([1, 3, 8, 8])), ("3", "1")),
    ],
)
def test_errors_state_both_numbers(make, numbers):
    with pytest.raises(UserError) as error:
        make()
    assert all(number in str(error.value) for number in numbers)
    assert "\n" not in str(error.value)
