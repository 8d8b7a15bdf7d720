import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddle_vit import ViT, functional


def gradients(function, *arrays, dtype="float32"):
    tensors = [paddle.to_tensor(array.astype(dtype), stop_gradient=False) for array in arrays]
    out = function(*tensors)
    weight = paddle.to_tensor(np.random.default_rng(1).standard_normal(out.shape).astype(dtype))
    (out * weight).sum().backward()
    return [out.numpy(), *(tensor.grad.numpy() for tensor in tensors)]


@pytest.mark.parametrize("shape", [(7, 6), (3, 5, 6), (2, 3, 4, 6)])
def test_linear_equals_float64(shape):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal(shape), rng.standard_normal((6, 4)), rng.standard_normal(4)
    ours = gradients(functional.linear, *arrays)
    reference = gradients(F.linear, *arrays, dtype="float64")
    for mine, exact in zip(ours, reference):
        np.testing.assert_allclose(mine, exact, rtol=1e-4, atol=1e-5)


def test_linear_gives_no_gradient_to_a_fixed_input():
    x, weight, bias = paddle.randn([5, 3]), paddle.randn([3, 2]), paddle.randn([2])
    weight.stop_gradient = bias.stop_gradient = False
    functional.linear(x, weight, bias).sum().backward()
    assert x.grad is None
    np.testing.assert_allclose(bias.grad.numpy(), 5, rtol=1e-6)


def test_linear_without_bias_and_without_gradient():
    x, weight, bias = paddle.randn([5, 3]), paddle.randn([3, 2]), paddle.randn([2])
    np.testing.assert_allclose(functional.linear(x, weight).numpy(), x.numpy() @ weight.numpy(), rtol=1e-5, atol=1e-6)
    with paddle.no_grad():
        out = functional.linear(x, weight, bias)
    np.testing.assert_allclose(out.numpy(), x.numpy() @ weight.numpy() + bias.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 6), (3, 5, 6), (2, 64, 96)])
def test_layer_norm_equals_float64(shape):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal(shape) * 3 + 1, rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])
    ours = gradients(functional.layer_norm, *arrays)
    reference = gradients(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), *arrays, dtype="float64")
    for mine, exact in zip(ours, reference):
        np.testing.assert_allclose(mine, exact, rtol=1e-4, atol=2e-5)


def test_layer_norm_gives_no_gradient_to_a_fixed_input():
    x, weight, bias = paddle.randn([5, 6]), paddle.ones([6]), paddle.zeros([6])
    weight.stop_gradient = bias.stop_gradient = False
    functional.layer_norm(x, weight, bias).sum().backward()
    assert x.grad is None
    normalized = F.layer_norm(x, [6]).numpy()
    np.testing.assert_allclose(weight.grad.numpy(), normalized.sum(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias.grad.numpy(), 5, rtol=1e-6)


def test_layer_norm_uses_its_epsilon():
    x, weight, bias = np.full((2, 4), 5.0) + np.eye(2, 4) * 1e-1, np.ones(4), np.zeros(4)
    ours = gradients(lambda *a: functional.layer_norm(*a, epsilon=1e-3), x, weight, bias)
    reference = gradients(lambda x, w, b: F.layer_norm(x, [4], w, b, 1e-3), x, weight, bias, dtype="float64")
    for mine, exact in zip(ours, reference):
        np.testing.assert_allclose(mine, exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(9,), (2, 4, 8), (2, 3, 4, 5)])
def test_gelu_equals_float64(shape):
    x = np.random.default_rng(0).standard_normal(shape) * 3
    for mine, exact in zip(gradients(functional.gelu, x), gradients(F.gelu, x, dtype="float64")):
        np.testing.assert_allclose(mine, exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_equals_float64(scale):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 7)) * scale
    exact = np.exp(x - x.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    np.testing.assert_allclose(functional.softmax(paddle.to_tensor(x.astype("float32"))).numpy(), exact, atol=2e-6)
    for mine, reference in zip(gradients(functional.softmax, x), gradients(F.softmax, x, dtype="float64")):
        np.testing.assert_allclose(mine, reference, atol=2e-6)


@pytest.mark.parametrize("function", [functional.gelu, functional.softmax])
def test_results_of_fast_operators_are_ordinary_tensors(function):
    """oneDNN's memory layout must not leak: a reshape and an addmm after it would abort the whole process."""
    x = paddle.randn([2, 4, 8])
    x.stop_gradient = False
    y = function(x)
    assert str(y.layout) == "NCHW"
    paddle.addmm(paddle.zeros([1, 3]), y.reshape([-1, 8]), paddle.randn([8, 3])).sum().backward()
    assert str(x.grad.layout) == "NCHW"
    with paddle.no_grad():
        assert str(function(x).layout) == "NCHW"


def test_without_onednn_the_plain_formulas_are_used(monkeypatch):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4))
    with_onednn = gradients(lambda x: functional.attention(x, x, functional.gelu(x), 0.5), x)
    monkeypatch.setattr(functional, "_onednn", lambda: None)
    without = gradients(lambda x: functional.attention(x, x, functional.gelu(x), 0.5), x)
    for one, other in zip(with_onednn, without):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_other_types_fall_back_to_paddle():
    x, weight, bias = (paddle.randn(shape, dtype="float64") for shape in ([3, 4], [4], [4]))
    for tensor in (x, weight, bias):
        tensor.stop_gradient = False
    assert functional.layer_norm(x, weight, bias).dtype == paddle.float64
    assert functional.gelu(x).dtype == functional.softmax(x).dtype == paddle.float64
    np.testing.assert_array_equal(functional.gelu(x).numpy(), F.gelu(x).numpy())


def test_a_static_graph_gives_the_same_values():
    model = ViT(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    model.eval()
    x = paddle.randn([2, 1, 8, 8])
    expected = model(x).numpy()
    static = paddle.jit.to_static(model, full_graph=True)
    np.testing.assert_allclose(static(x).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_attention_equals_float64():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 3, 5, 4)) for _ in range(3)]

    def plain(q, k, v):
        return paddle.matmul(F.softmax(paddle.matmul(q, k, transpose_y=True) * 0.3, axis=-1), v)

    assert functional._is_eager_cpu(paddle.zeros([1]))
    ours = gradients(lambda q, k, v: functional.attention(q, k, v, 0.3), *arrays)
    for mine, exact in zip(ours, gradients(plain, *arrays, dtype="float64")):
        np.testing.assert_allclose(mine, exact, rtol=1e-4, atol=1e-5)
