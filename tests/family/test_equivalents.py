import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_vit import Attention, LinearPatchEmbedding, MultiHeadAttention, PatchEmbedding, UserError, causal_mask
from paddle_vit.family.equivalents import attention_by_einops, attention_by_einsum, cut_patches, patches_by_einops


def randomise(layer):
    """偏置的初值是零,换成随机数才看得出有没有用上。"""
    for parameter in layer.parameters():
        parameter.set_value(0.5 * paddle.randn(parameter.shape))
    return layer


def assert_close(mine, reference, atol=1e-5):
    assert list(mine.shape) == list(reference.shape)
    np.testing.assert_allclose(mine.numpy(), np.asarray(reference), rtol=0, atol=atol)


def paddles_attention(layer):
    theirs = nn.MultiHeadAttention(layer.d_model, layer.num_heads, need_weights=True)
    pairs = [(layer.W_q, theirs.q_proj), (layer.W_k, theirs.k_proj), (layer.W_v, theirs.v_proj)]
    for mine, reference in [*pairs, (layer.W_o, theirs.out_proj)]:
        reference.set_state_dict(mine.state_dict())
    return theirs


def numpy_attention(layer, query, key, value, mask):
    """float64 的公式,逐张图像、逐个头、逐个 token。"""

    def linear(sublayer, x):
        return x @ sublayer.weight.numpy().astype("float64") + sublayer.bias.numpy()

    query, key, value = (x.numpy().astype("float64") for x in (query, key, value))
    q, k, v = linear(layer.W_q, query), linear(layer.W_k, key), linear(layer.W_v, value)
    (B, N, D), M, h = q.shape, k.shape[1], layer.num_heads
    d = D // h
    z, weights = np.zeros((B, N, D)), np.zeros((B, h, N, M))
    for b in range(B):
        for i in range(h):
            columns = slice(i * d, (i + 1) * d)
            for n in range(N):
                seen = np.flatnonzero(mask[n])
                scores = np.exp([q[b, n, columns] @ k[b, m, columns] / np.sqrt(d) for m in seen])
                weights[b, i, n, seen] = scores / scores.sum()
                z[b, n, columns] = weights[b, i, n] @ v[b, :, columns]
    return linear(layer.W_o, z), weights


@pytest.mark.parametrize("qkv_bias, qk_scale", [(False, None), (True, None), (True, 0.7)])
def test_multi_head_attention_equals_attention(qkv_bias, qk_scale):
    attention = randomise(Attention(12, 3, qkv_bias=qkv_bias, qk_scale=qk_scale))
    x = paddle.randn([2, 5, 12])
    for mine, reference in zip(MultiHeadAttention.from_attention(attention)(x), attention(x)):
        assert_close(mine, reference)


def test_sublayers_and_parameters():
    layer = MultiHeadAttention(d_model=8, num_heads=2)
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    names = [f"W_{letter}.{kind}" for letter in "qkvo" for kind in ("weight", "bias")]
    assert shapes == {name: [8, 8] if name.endswith("weight") else [8] for name in names}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("M", [None, 4, 9])
def test_multi_head_attention_agrees_with_paddle_and_numpy(masked, M):
    layer = randomise(MultiHeadAttention(12, 3))
    query = paddle.randn([2, 6, 12])
    inputs = [query] if M is None else [query, paddle.randn([2, M, 12]), paddle.randn([2, M, 12])]
    M = M or 6
    mask = None
    if masked:  # 自注意力用因果掩码;交叉注意力用下三角,第 n 个 token 看前 n + 1 个
        mask = causal_mask(6) if M == 6 else paddle.tril(paddle.ones([6, M], dtype="bool"))
    z, weights = layer(*inputs, mask=mask)
    for mine, reference in zip((z, weights), paddles_attention(layer)(*inputs, attn_mask=mask)):
        assert_close(mine, reference)
    query, key, value = (inputs * 3)[:3] if len(inputs) == 1 else inputs
    seen = np.ones((6, M), bool) if mask is None else np.tri(6, M, dtype=bool)
    expected_z, expected_weights = numpy_attention(layer, query, key, value, seen)
    assert_close(z, expected_z)
    assert_close(weights, expected_weights)


def test_value_defaults_to_key():
    layer = randomise(MultiHeadAttention(8, 2))
    query, key = paddle.randn([2, 3, 8]), paddle.randn([2, 5, 8])
    for mine, reference in zip(layer(query, key), layer(query, key, key)):
        np.testing.assert_array_equal(mine.numpy(), reference.numpy())


def test_causal_mask_is_the_lower_triangle():
    mask = causal_mask(4)
    assert mask.dtype == paddle.bool
    np.testing.assert_array_equal(mask.numpy(), [[j <= i for j in range(4)] for i in range(4)])


def test_a_later_token_does_not_change_earlier_outputs():
    layer = randomise(MultiHeadAttention(8, 2))
    x, changed = paddle.randn([2, 6, 8]), 4
    other = x.clone()
    other[:, changed] = 10 * paddle.randn([2, 8])
    before, after = (layer(tokens, mask=causal_mask(6))[0].numpy() for tokens in (x, other))
    np.testing.assert_array_equal(before[:, :changed], after[:, :changed])
    assert (np.abs(before - after)[:, changed:].max(axis=-1) > 1e-3).all()
    free, free_after = (layer(tokens)[0].numpy() for tokens in (x, other))
    assert np.abs(free - free_after)[:, :changed].max() > 1e-3  # 没有掩码时会变


@pytest.mark.parametrize("shape", [[5], [1, 5], [4, 5], [1, 4, 5], [3, 4, 5], [2, 1, 1, 5], [2, 3, 4, 5]])
def test_masks_broadcast(shape):
    layer = randomise(MultiHeadAttention(6, 3))
    mask = np.random.rand(*shape) < 0.5
    mask[..., 0] = True
    _, weights = layer(paddle.randn([2, 4, 6]), paddle.randn([2, 5, 6]), mask=paddle.to_tensor(mask))
    np.testing.assert_array_equal(weights.numpy() > 0, np.broadcast_to(mask, [2, 3, 4, 5]))
    np.testing.assert_allclose(weights.numpy().sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("mask", [None, causal_mask(5)])
def test_every_parameter_of_multi_head_attention_receives_a_gradient(mask):
    layer = randomise(MultiHeadAttention(8, 2))
    layer(paddle.randn([3, 5, 8]), mask=mask)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        gradient = parameter.grad.numpy()
        assert np.isfinite(gradient).all(), name
        if name == "W_k.bias":  # 键的偏置对 softmax 只是加一个常数,梯度恒为零
            np.testing.assert_allclose(gradient, 0, atol=1e-3)
        else:
            assert np.abs(gradient).max() > 1e-3, name


def numpy_patches(x, height, width):
    """逐块切下来。"""
    H, W = x.shape[2:]
    corners = [(i, j) for i in range(0, H, height) for j in range(0, W, width)]
    return np.stack([x[:, :, i : i + height, j : j + width].reshape(len(x), -1) for i, j in corners], axis=1)


IMAGES_AND_PATCHES = [(8, 2), ((6, 12), 3), ((4, 6), (2, 3)), ((9, 4), (3, 4))]


@pytest.mark.parametrize("image_size, patch_size", IMAGES_AND_PATCHES)
@pytest.mark.parametrize("cut", [cut_patches, patches_by_einops])
def test_patches_are_cut_row_by_row(cut, image_size, patch_size):
    x = paddle.randn([2, 3, *np.broadcast_to(image_size, 2).tolist()])
    expected = numpy_patches(x.numpy(), *np.broadcast_to(patch_size, 2))
    np.testing.assert_array_equal(cut(x, patch_size).numpy(), expected)


@pytest.mark.parametrize("image_size, patch_size", IMAGES_AND_PATCHES)
def test_linear_patch_embedding_equals_the_convolution_both_ways(image_size, patch_size):
    x = paddle.randn([2, 3, *np.broadcast_to(image_size, 2).tolist()])
    conv = randomise(PatchEmbedding(image_size, patch_size, 3, 5))
    assert_close(LinearPatchEmbedding.from_conv(conv)(x), conv(x))
    linear = randomise(LinearPatchEmbedding(image_size, patch_size, 3, 5))
    assert_close(linear.to_conv()(x), linear(x))
    back = LinearPatchEmbedding.from_conv(linear.to_conv())
    np.testing.assert_array_equal(back(x).numpy(), linear(x).numpy())


def test_a_patch_of_16_pixels_and_3_channels_has_768_numbers():
    layer = LinearPatchEmbedding(256, 16, 3, 128)
    assert layer.projection.weight.shape == [16 * 16 * 3, 128] == [768, 128]
    x = paddle.randn([2, 3, 256, 256])
    assert cut_patches(x, 16).shape == [2, 256, 768]
    assert layer(x).shape == [2, 256, 128]
    assert_close(layer(x), layer.to_conv()(x))


def test_weights_of_one_sum_each_patch():
    layer = LinearPatchEmbedding((28, 14), 7, 1, 1)
    layer.projection.weight.set_value(paddle.ones([49, 1]))
    layer.projection.bias.set_value(paddle.zeros([1]))
    image = np.random.rand(28, 14).astype("float32")
    sums = image.reshape(4, 7, 2, 7).sum(axis=(1, 3)).flatten()
    np.testing.assert_allclose(layer(paddle.to_tensor(image[None, None])).numpy()[0, :, 0], sums, rtol=1e-5)


def test_every_parameter_of_linear_patch_embedding_receives_a_gradient():
    layer = LinearPatchEmbedding(8, 4, 3, 5)
    layer(paddle.randn([2, 3, 8, 8])).square().sum().backward()
    assert [name for name, _ in layer.named_parameters()] == ["projection.weight", "projection.bias"]
    for _, parameter in layer.named_parameters():
        assert (np.abs(parameter.grad.numpy()) > 0).all()


@pytest.mark.parametrize("form", [attention_by_einsum, attention_by_einops])
@pytest.mark.parametrize("settings", [dict(), dict(qkv_bias=True), dict(qkv_bias=True, qk_scale=0.3)])
@pytest.mark.parametrize("D, h", [(12, 3), (4, 4), (6, 1)])
def test_attention_by_einsum_and_einops(form, settings, D, h):
    attention = randomise(Attention(D, h, **settings))
    x = paddle.randn([2, 5, D])
    for mine, reference in zip(form(attention, x), attention(x)):
        assert_close(mine, reference)


@pytest.mark.parametrize("form", [attention_by_einsum, attention_by_einops])
def test_other_forms_have_the_same_gradients(form):
    attention = randomise(Attention(8, 2, qkv_bias=True))
    x = paddle.randn([2, 5, 8])
    gradients = []
    for forward in (attention, lambda x: form(attention, x)):
        attention.clear_gradients()
        forward(x)[0].square().sum().backward()
        gradients.append([parameter.grad.numpy() for parameter in attention.parameters()])
    for mine, reference in zip(*gradients):
        np.testing.assert_allclose(mine, reference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", [attention_by_einsum, attention_by_einops])
def test_other_forms_apply_the_same_dropout(form):
    attention = randomise(Attention(8, 2, dropout=0.3, attention_dropout=0.3))
    x = paddle.randn([2, 5, 8])
    paddle.seed(7)
    expected, _ = attention(x)
    paddle.seed(7)
    assert_close(form(attention, x)[0], expected)
    attention.eval()
    assert_close(form(attention, x)[0], attention(x)[0])


X = paddle.zeros([2, 4, 6])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: MultiHeadAttention(10, 3), ("10", "3")),
        (lambda: MultiHeadAttention(0, 1), ("d_model=0",)),
        (lambda: MultiHeadAttention(8, 0), ("num_heads=0",)),
        (lambda: MultiHeadAttention(8, 2.0), ("num_heads=2.0",)),
        (lambda: MultiHeadAttention(6, 2)(paddle.zeros([2, 4, 5])), ("query", "5", "6")),
        (lambda: MultiHeadAttention(6, 2)(paddle.zeros([4, 6])), ("query", "[4, 6]")),
        (lambda: MultiHeadAttention(6, 2)(X, paddle.zeros([2, 3, 6]), X), ("[2, 3, 6]", "[2, 4, 6]")),
        (lambda: MultiHeadAttention(6, 2)(X, paddle.zeros([3, 4, 6])), ("[3, 4, 6]", "[2, 4, 6]")),
        (lambda: MultiHeadAttention(6, 2)(X, mask=causal_mask(5)), ("[5, 5]", "[2, 2, 4, 4]")),
        (lambda: MultiHeadAttention(6, 2)(X, mask=causal_mask(4).expand([1, 1, 1, 4, 4])), ("[1, 1, 1, 4, 4]",)),
        (lambda: MultiHeadAttention(6, 2)(X, mask=causal_mask(4).astype("float32")), ("float32", "bool")),
        (lambda: MultiHeadAttention(6, 2)(X, mask=causal_mask(4).logical_not()), ("False",)),
        (lambda: causal_mask(0), ("num_tokens=0",)),
        (lambda: LinearPatchEmbedding(8, 3, 1, 4), ("8", "3")),
        (lambda: LinearPatchEmbedding(8, 4, 1, 4)(paddle.zeros([1, 1, 9, 8])), ("9", "8")),
        (lambda: LinearPatchEmbedding(8, 4, 1, 4)(paddle.zeros([1, 3, 8, 8])), ("3", "1")),
        (lambda: cut_patches(paddle.zeros([1, 1, 8, 9]), 4), ("9", "4")),
        (lambda: cut_patches(paddle.zeros([1, 8, 8]), 4), ("[1, 8, 8]", "[B, C, H, W]")),
        (lambda: patches_by_einops(paddle.zeros([1, 1, 8, 9]), 4), ("9", "4")),
    ],
)
def test_errors_state_what_was_given_and_expected(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
