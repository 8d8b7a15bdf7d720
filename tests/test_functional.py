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

    ours = gradients(lambda q, k, v: functional.attention(q, k, v, 0.3), *arrays)
    for mine, exact in zip(ours, gradients(plain, *arrays, dtype="float64")):
        np.testing.assert_allclose(mine, exact, rtol=1e-4, atol=1e-5)
