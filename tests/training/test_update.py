"""更新权重的三个运算,与 Paddle 自己的比。"""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddle_vit import ViT
from paddle_vit.kernels import tensors
from paddle_vit.training.update import AdamW, clip_gradients, move_towards


def small_model():
    paddle.seed(0)
    return ViT(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=2, num_heads=2, num_classes=3)


def trained(optimizer_class, steps=12, frozen=()):
    model = small_model()
    for name, parameter in model.named_parameters():
        parameter.optimize_attr["learning_rate"] = 0.5 if name.startswith("encoders.0") else 1.0
        parameter.stop_gradient = name in frozen
    decayed = {parameter.name for parameter in model.parameters() if parameter.ndim > 1}

    optimizer = optimizer_class(
        learning_rate=1e-2,
        beta2=0.98,
        weight_decay=0.1,
        parameters=model.parameters(),
        apply_decay_param_fun=decayed.__contains__,
    )
    images, labels = paddle.randn([6, 1, 8, 8]), paddle.to_tensor([0, 1, 2, 0, 1, 2])
    for step in range(steps):
        optimizer.set_lr(1e-2 * (step + 1) / steps)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    return model, optimizer


@pytest.mark.parametrize("frozen", [(), ("head.weight", "encoders.0.mlp.fc1.bias")])
def test_adamw_equals_paddles(frozen, kernels):
    (mine, my_state), (theirs, their_state) = (trained(c, 12, frozen) for c in (AdamW, paddle.optimizer.AdamW))
    for one, other in zip(mine.parameters(), theirs.parameters()):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=2e-6)
    mine, theirs = (list(o.state_dict().values()) for o in (my_state, their_state))
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs):
        if isinstance(one, paddle.Tensor):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-3, atol=1e-6)


def test_adamw_uses_the_kernel(monkeypatch):
    calls = []
    monkeypatch.setattr(paddle.optimizer.AdamW, "_append_optimize_op", lambda *a: calls.append(a))
    trained(AdamW, 2)
    assert not calls
    monkeypatch.setattr(tensors, "load_kernels", lambda: None)
    trained(AdamW, 1)
    assert calls


def gradients_of(model, spoil=None):
    loss = model(paddle.ones([2, 1, 8, 8])).square().sum()
    (loss if spoil is None else loss * spoil).backward()
    return [parameter.grad.numpy().copy() for parameter in model.parameters()]


@pytest.mark.parametrize("most", [1e-3, 1e3, math.inf])
def test_clip_gradients(most, kernels):
    model = small_model()
    before = gradients_of(model)
    exact = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in before))
    assert 1e-3 < exact < 1e3
    assert clip_gradients(model.parameters(), most) == pytest.approx(exact, rel=1e-5)
    share = min(1, most / exact)
    for parameter, gradient in zip(model.parameters(), before):
        np.testing.assert_allclose(parameter.grad.numpy(), gradient * share, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_clip_gradients_tells_of_nan_and_infinity(spoil, kernels):
    model = small_model()
    gradients_of(model, spoil)
    norm = clip_gradients(model.parameters(), 1.0)
    assert math.isnan(norm) if math.isnan(spoil) else math.isinf(norm) or math.isnan(norm)


def test_clip_gradients_skips_parameters_without(kernels):
    model = small_model()
    model.head.weight.stop_gradient = True
    model(paddle.ones([2, 1, 8, 8])).sum().backward()
    assert model.head.weight.grad is None and clip_gradients(model.parameters(), 1.0) > 0


def test_move_towards(kernels):
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal(shape), rng.standard_normal(shape)) for shape in [(3, 4), (1,), (200, 7), (5,)]]
    averages = [paddle.to_tensor(a.astype("float32")) for a, _ in arrays]
    move_towards(averages, [paddle.to_tensor(b.astype("float32")) for _, b in arrays], 0.25)
    for average, (a, b) in zip(averages, arrays):
        np.testing.assert_allclose(average.numpy(), 0.75 * a + 0.25 * b, rtol=1e-5, atol=1e-6)


def test_nothing_to_do(kernels):
    move_towards([], [], 0.5)
    assert clip_gradients([], 1.0) == 0
