import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from support.running import ROOT

from paddle_vit import Attention, Mlp, ViT, broadcast, functional


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


@pytest.mark.parametrize("frozen", ["weight", "bias", "weight bias"])
def test_layer_norm_carries_the_right_gradient_through_frozen_parameters(frozen):
    rng = np.random.default_rng(1)
    arrays = {name: rng.standard_normal(shape) for name, shape in [("x", (5, 6)), ("weight", 6), ("bias", 6)]}
    upstream = rng.standard_normal((5, 6))

    def loss(x, weight, bias):
        centred = x - x.mean(-1, keepdims=True)
        return ((centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias) * upstream).sum()

    tensors = {name: paddle.to_tensor(a, "float32", stop_gradient=name in frozen) for name, a in arrays.items()}
    (functional.layer_norm(**tensors) * paddle.to_tensor(upstream, "float32")).sum().backward()
    for name, tensor in tensors.items():
        if name in frozen:
            assert tensor.grad is None
            continue
        for index in np.ndindex(*tensor.shape):  # 中心差商(central difference)
            step = np.zeros(tensor.shape)
            step[index] = 1e-6
            slope = loss(**{**arrays, name: arrays[name] + step}) - loss(**{**arrays, name: arrays[name] - step})
            np.testing.assert_allclose(tensor.grad.numpy()[index], slope / 2e-6, rtol=1e-3, atol=1e-4)


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
    ours = gradients(lambda q, k, v: functional.attention(q, k, v, 0.3), *arrays)
    for mine, exact in zip(ours, gradients(lambda q, k, v: plain_attention(q, k, v, 0.3), *arrays, dtype="float64")):
        np.testing.assert_allclose(mine, exact, rtol=1e-4, atol=1e-5)


def plain_attention(q, k, v, scale):
    return paddle.matmul(F.softmax(paddle.matmul(q, k, transpose_y=True) * scale, axis=-1), v)


def plain_self_attention(qkv, heads):
    B, N, width = qkv.shape
    q, k, v = qkv.reshape([B, N, 3, heads, -1]).transpose([2, 0, 3, 1, 4]).unbind(0)  # 各 [B, h, N, d]
    return plain_attention(q, k, v, 0.3).transpose([0, 2, 1, 3]).reshape([B, N, width // 3])


# 名字 -> (我们的, 普通的公式, 各个输入的形状);形状有小有大,有一行、一列,有不能平分给各段的
def plain_mlp(x, weight1, bias1, weight2, bias2):
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


CASES = {
    "linear": (functional.linear, F.linear, [(3, 5, 6), (6, 4), (4,)]),
    "linear-without-bias": (functional.linear, F.linear, [(3, 5, 6), (6, 4)]),
    "linear-many-rows": (functional.linear, F.linear, [(257, 3), (3, 5), (5,)]),
    "layer_norm": (functional.layer_norm, lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), [(7, 9, 40), 40, 40]),
    "layer_norm-one-row": (functional.layer_norm, lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), [(1, 3), 3, 3]),
    "gelu": (functional.gelu, F.gelu, [(3, 7, 11)]),
    "mlp": (functional.mlp, plain_mlp, [(3, 7, 5), (5, 11), (11,), (11, 4), (4,)]),
    "mlp-many-rows": (functional.mlp, plain_mlp, [(2, 1100, 3), (3, 5), (5,), (5, 2), (2,)]),  # 分成几段
    "softmax": (functional.softmax, lambda x: F.softmax(x, axis=-1), [(2, 3, 5, 17)]),
    "self_attention": (
        lambda x: functional.self_attention(x, 2, 0.3),
        lambda x: plain_self_attention(x, 2),
        [(3, 5, 24)],
    ),
    "self_attention-one-token": (
        lambda x: functional.self_attention(x, 1, 0.3),
        lambda x: plain_self_attention(x, 1),
        [(1, 1, 3)],
    ),
    "self_attention-many": (
        lambda x: functional.self_attention(x, 3, 0.3),
        lambda x: plain_self_attention(x, 3),
        [(7, 50, 3 * 3 * 7)],
    ),
    "add_to_each": (broadcast.add_to_each, lambda x, row: x + row, [(40, 3, 5), (1, 3, 5)]),
    "scale_channels": (broadcast.scale_channels, lambda x, gamma: x * gamma, [(3, 13, 5), (5,)]),
    "mean_tokens": (broadcast.mean_tokens, lambda x: x.mean(axis=1), [(3, 7, 5)]),
}


def inputs_of(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def assert_same(ours, plain, arrays):
    for mine, exact in zip(gradients(ours, *arrays), gradients(plain, *arrays, dtype="float64")):
        np.testing.assert_allclose(mine, exact, rtol=2e-5, atol=5e-6 * max(1, np.abs(exact).max()))


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_float64(name, kernels):
    ours, plain, shapes = CASES[name]
    assert_same(ours, plain, inputs_of(shapes))


@pytest.mark.parametrize("name", CASES)
def test_inputs_of_any_layout(name):
    """换过轴、隔着取的 Tensor 在内存里不连续。"""
    ours, plain, shapes = CASES[name]
    before = paddle.get_flags("FLAGS_use_stride_kernel")
    paddle.set_flags({"FLAGS_use_stride_kernel": True})  # 这样换轴才不复制
    try:

        def turned(function):
            def apply(*tensors):
                turned = [t.transpose(list(range(t.ndim))[::-1]) for t in tensors]
                return function(*(t.transpose(list(range(t.ndim))[::-1]) for t in turned))

            return apply

        def strided(function):
            return lambda *tensors: function(*(paddle.stack([t, t * 0], axis=-1)[..., 0] for t in tensors))

        for change in (turned, strided):
            assert_same(change(ours), plain, inputs_of(shapes, seed=1))
    finally:
        paddle.set_flags(before)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_the_result_is_left_alone(name):
    """Paddle 累加梯度时原地改写;反向交出的 Tensor 要是与 dy 同一块内存,结果自己的梯度就会跟着变。"""
    ours, _, shapes = CASES[name]
    rng = np.random.default_rng(0)
    tensors = [paddle.to_tensor(rng.standard_normal(shape).astype("float32"), stop_gradient=False) for shape in shapes]
    inputs = [tensor * 1 for tensor in tensors]  # 不是叶子:梯度先在中间累加
    out = ours(*inputs)
    out.retain_grads()
    weight = rng.standard_normal(out.shape).astype("float32")
    ((out * paddle.to_tensor(weight)).sum() + sum((x * 3).sum() for x in inputs)).backward()
    np.testing.assert_array_equal(out.grad.numpy(), weight)


@pytest.mark.parametrize("name", CASES)
def test_frozen_inputs_get_no_gradient(name):
    ours, plain, shapes = CASES[name]
    arrays = inputs_of(shapes, seed=2)
    reference = gradients(plain, *arrays, dtype="float64")
    weight = np.random.default_rng(1).standard_normal(reference[0].shape)
    for needed in range(len(arrays)):
        tensors = [paddle.to_tensor(a.astype("float32"), stop_gradient=i != needed) for i, a in enumerate(arrays)]
        (ours(*tensors) * paddle.to_tensor(weight.astype("float32"))).sum().backward()
        for i, tensor in enumerate(tensors):
            if i != needed:
                assert tensor.grad is None
            else:
                exact = reference[1 + i]
                np.testing.assert_allclose(
                    tensor.grad.numpy(), exact, rtol=2e-5, atol=1e-5 * max(1, np.abs(exact).max())
                )


@pytest.mark.parametrize("name", ["layer_norm", "gelu", "softmax", "self_attention", "linear", "mean_tokens"])
def test_nan_is_not_swallowed(name):
    ours, plain, shapes = CASES[name]
    x, *others = (a.astype("float32") for a in inputs_of(shapes))
    for index in [(0,) * x.ndim, tuple(n - 1 for n in x.shape)]:
        spoiled = x.copy()
        spoiled[index] = np.nan
        mine, expected = (f(*map(paddle.to_tensor, [spoiled, *others])).isnan().numpy() for f in (ours, plain))
        np.testing.assert_array_equal(mine, expected)
        assert mine.any()


def test_extreme_scores():
    x = np.array([[1e4, -1e4, 9e3], [-np.inf, 0.0, 1.0], [-200.0, -200.0, -200.0], [88.0, 89.0, 90.0]])
    mine = functional.softmax(paddle.to_tensor(x.astype("float32"))).numpy()
    exact = np.exp(x - x.max(-1, keepdims=True))
    np.testing.assert_allclose(mine, exact / exact.sum(-1, keepdims=True), atol=1e-6)


def test_gelu_over_the_whole_range():
    x = np.concatenate([np.linspace(-40, 40, 80001), [-1e30, 1e30, 0.0, -0.0, 1e-30]])
    for mine, exact in zip(gradients(functional.gelu, x), gradients(F.gelu, x, dtype="float64")):
        np.testing.assert_allclose(mine, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape, patch", [((2, 3, 8, 12), (4, 3)), ((33, 1, 4, 4), (2, 2)), ((1, 2, 3, 3), (3, 3))])
@pytest.mark.parametrize("needs_images", [False, True])
def test_patch_embedding_is_a_convolution(shape, patch, needs_images, kernels):
    x, weight, bias = inputs_of([shape, (5, shape[1], *patch), 5])

    def run(function, dtype):
        tensors = [paddle.to_tensor(a.astype(dtype), stop_gradient=False) for a in (x, weight, bias)]
        tensors[0].stop_gradient = not needs_images
        out = function(*tensors)
        (out * paddle.arange(out.size).reshape(out.shape).astype(dtype)).sum().backward()
        assert (tensors[0].grad is not None) == needs_images
        return [out, *(tensor.grad for tensor in tensors if tensor.grad is not None)]

    def plain(x, weight, bias):
        return F.conv2d(x, weight, bias, stride=patch).flatten(2).transpose([0, 2, 1])

    for mine, exact in zip(run(functional.patch_embedding, "float32"), run(plain, "float64")):
        np.testing.assert_allclose(mine.numpy(), exact.numpy(), rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def test_scale_each(kernels):
    (x,) = inputs_of([(6, 3, 4)])
    factors = np.array([0.0, 1.0, 2.0, 0.0, 0.5, -1.0])
    assert_same(
        lambda x: broadcast.scale_each(x, paddle.to_tensor(factors.astype("float32"))),
        lambda x: x * paddle.to_tensor(factors).reshape([-1, 1, 1]),
        [x],
    )


@pytest.mark.parametrize("name", CASES)
def test_an_empty_batch(name):
    ours, _, shapes = CASES[name]
    arrays = inputs_of(shapes)
    arrays[0] = arrays[0][:0]
    assert ours(*(paddle.to_tensor(a.astype("float32")) for a in arrays)).shape[0] == 0


def test_several_threads_at_once():
    """预测时几个 Python 线程同时用一个模型。"""
    model = ViT(image_size=8, patch_size=2, in_channels=1, embed_dim=24, depth=2, num_heads=3, num_classes=3)
    model.eval()
    images = [paddle.randn([9, 1, 8, 8]) for _ in range(4)]
    expected = [model(x).numpy() for x in images]

    def predict(i):
        for _ in range(20):
            np.testing.assert_array_equal(model(images[i % 4]).numpy(), expected[i % 4])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(predict, range(8)))


def test_a_broken_or_missing_numba_leaves_the_plain_formulas(tmp_path):
    """没有 numba 时一切照旧,只是慢;原因说得出来。"""
    (tmp_path / "numba.py").write_text("raise ImportError('没有装')", encoding="utf-8")
    code = (
        "import paddle; from paddle_vit import ViT\n"
        "from paddle_vit.kernels.loading import load_kernels, why_no_kernels\n"
        "paddle.seed(0); model = ViT(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2)\n"
        "loss = model(paddle.ones([2, 1, 8, 8])).square().mean(); loss.backward(); print(float(loss))\n"
        "print(load_kernels() is None, why_no_kernels())"
    )
    outputs = []
    for path in (str(tmp_path), ""):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([path, str(ROOT)])}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        outputs.append(done.stdout.splitlines())
    assert outputs[0][1] == "True 没有能用的 numba(没有装)" and outputs[1][1] == "False None"
    np.testing.assert_allclose(float(outputs[0][0]), float(outputs[1][0]), rtol=1e-5)


def test_no_place_for_compiled_code_leaves_the_plain_formulas():
    """包的目录和主目录都写不了。"""
    code = (
        "from numba.core import caching\nfrom paddle_vit.kernels.loading import why_no_kernels\n"
        "(getattr(caching, 'CacheImpl', None) or caching._CacheImpl)._locator_classes = []\nprint(why_no_kernels())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "NUMBA_CACHE_DIR" in done.stdout and done.stderr == ""


FREED = """
import numpy as np, paddle
from paddle_vit import EncoderLayer
for tokens in (16, 64, 700):
    layer = EncoderLayer(16, num_heads=4)
    x = paddle.randn([2, tokens, 16])
    x.stop_gradient = False
    ours = layer(x)
    ours.sum().backward()
    gradient = x.grad.numpy()
    x.clear_grad()
    h = layer.mlp_norm(middle := x + layer.attn(layer.attn_norm(x), need_weights=True)[0])
    plain = middle + layer.mlp.fc2(paddle.nn.functional.gelu(layer.mlp.fc1(h)))
    plain.sum().backward()
    np.testing.assert_allclose(ours.numpy(), plain.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("env", [{}, {"MALLOC_PERTURB_": "85"}])
def test_no_memory_is_used_after_it_was_freed(env):
    """没有调用过 setup_runtime:大块内存放掉就还给系统,再用会崩溃;MALLOC_PERTURB_ 让放掉的内存变成乱的数。"""
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr


def test_the_parts_of_an_mlp_are_obeyed():
    """装了钩子、换了激活函数、用随机失活时,不能合在一起算。"""
    mlp, x = Mlp(6, 2.0), paddle.randn([2, 3, 6])
    seen = []
    hook = mlp.act.register_forward_post_hook(lambda layer, inputs, output: seen.append(output.shape))
    hooked = mlp(x)
    hook.remove()
    together = mlp(x)
    np.testing.assert_allclose(hooked.numpy(), together.numpy(), rtol=1e-5, atol=1e-6)
    assert seen == [[2, 3, 12]]
    mlp.act = paddle.nn.ReLU()
    expected = F.linear(F.relu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)
    np.testing.assert_allclose(mlp(x).numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    mlp = Mlp(6, 2.0, dropout=1.0)
    assert (mlp(x).numpy() == 0).all()
    mlp.eval()
    assert (mlp(x).numpy() != 0).any()


@pytest.mark.parametrize("step", ["split_heads", "transpose_multihead", "attend"])
def test_a_subclass_that_changes_a_step_is_obeyed(step):
    """学生在子类里改了中间的一步,快的写法不能绕过它。"""
    called = []

    def changed(self, *args, **options):
        called.append(step)
        return getattr(Attention, step)(self, *args, **options)

    own = type("Own", (Attention,), {step: changed})(8, 2)
    own(paddle.randn([1, 3, 8]), need_weights=False)
    assert called
