import json
import math

import numpy as np
import paddle
import pytest
from support.toys import INFO, ToyData, small_model, toy_part

from paddle_vit import UserError, create_model
from paddle_vit.config import make_config
from paddle_vit.system.pictures import _chinese_font
from paddle_vit.system.runtime import autocast
from paddle_vit.tasks.classification import Classification
from paddle_vit.tasks.evaluation import evaluate
from paddle_vit.training.health import Health
from paddle_vit.training.loop import Trainer
from paddle_vit.training.optimizer import Ema, choose_trained, learning_rate, make_optimizer
from paddle_vit.training.progress import is_now_and_then


def trainer(model, **settings):
    config = make_config(settings)
    return Trainer(model, Classification(ToyData, config), config, "unused")


def test_learning_rate_warms_up_and_anneals():
    config = make_config({"lr": 1.0, "min_lr": 0.1, "epochs": 10, "warmup_epochs": 2})
    rates = [learning_rate(step, config, 5) for step in range(51)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    np.testing.assert_allclose(rates[30], 0.55)  # 余弦的中点
    np.testing.assert_allclose(rates[50], 0.1)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:]))
    short = make_config({"lr": 1.0, "epochs": 2, "warmup_epochs": 5})
    assert learning_rate(4, short, 5) == 1.0  # 预热不超过一半


SPARED = ("class_token", "distillation_token", "register_tokens", "position_embedding")
SPARED += ("relative_position_bias_table", "gamma")


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit_tiny", dict(depth=1)),
        ("deit_tiny_distilled", dict(depth=1, register_tokens=2, layer_scale=0.1, qk_norm=True)),
        ("swin_tiny", dict(embed_dim=12, depths=(1, 1), num_heads=(1, 2))),
    ],
)
def test_weight_decay_spares_biases_norms_tokens_and_positions(name, options):
    model = create_model(name, image_size=32, **options)
    optimizer = make_optimizer(model, make_config({"lr": 0.1, "weight_decay": 0.5}))
    before = {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = paddle.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "norm" in name or name.split(".")[-1] in SPARED
        expected = before[name] * (1 if spared else 1 - 0.1 * 0.5)
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=1e-5, atol=1e-8, err_msg=name)


def test_adamw_step_equals_numpy():
    weight = paddle.create_parameter([3, 2], "float32")
    model = paddle.nn.Layer()
    model.weight = weight
    config = make_config({"lr": 0.01, "weight_decay": 0.1, "beta2": 0.98})
    optimizer = make_optimizer(model, config)
    value, m, v = weight.numpy().astype("float64"), 0.0, 0.0
    rng = np.random.default_rng(0)
    for t in range(1, 6):
        gradient = rng.standard_normal((3, 2)).astype("float32")
        weight.grad = paddle.to_tensor(gradient)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        value *= 1 - 0.01 * 0.1
        value -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
        np.testing.assert_allclose(weight.numpy(), value, rtol=1e-5)


def test_ema_equals_numpy_and_is_swapped_back():
    model = small_model()
    ema = Ema(model, 0.5)
    parameter = model.head.weight
    average = parameter.numpy().copy()
    for n in range(1, 8):
        parameter.set_value(parameter + 1.0)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * parameter.numpy()
    current = parameter.numpy().copy()
    with ema.applied():
        np.testing.assert_allclose(parameter.numpy(), average, rtol=1e-5)
    np.testing.assert_array_equal(parameter.numpy(), current)


def test_accumulation_equals_one_large_batch():
    rng = np.random.default_rng(0)
    images, targets = (
        rng.standard_normal((10, 1, 8, 8)).astype("float32"),
        np.eye(3, dtype="float32")[np.arange(10) % 3],
    )
    start = small_model().state_dict()
    start = {name: value.numpy().copy() for name, value in start.items()}
    results = []
    for accumulate in (1, 3):
        model = small_model()
        model.set_state_dict(start)
        model.train()
        step = trainer(model, accumulate=accumulate, batch_size=10).train_step((images, targets), 0.01)
        results.append((step.loss, step.sums["top1"], step.grad_norm, model.head.weight.numpy()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    assert results[0][1] == results[1][1]
    np.testing.assert_allclose(results[0][2], results[1][2], rtol=1e-4)
    np.testing.assert_allclose(results[0][3], results[1][3], atol=1e-5)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_gradient_clipping(clip):
    model = small_model()
    images, targets = np.ones((4, 1, 8, 8), "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]]
    made = trainer(model, clip_grad=clip)
    seen = {}
    made.optimizer.clear_grad = lambda set_to_zero: seen.update(
        norm=math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    )
    norm = made.train_step((images, targets), 0.0).grad_norm
    assert norm > 0.01
    np.testing.assert_allclose(seen["norm"], clip or norm, rtol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stops_names_the_step_and_leaves_the_weights(bad):
    model = small_model()
    before = model.head.weight.numpy().copy()
    made = trainer(model, batch_size=10)
    made.progress.epoch, made.progress.step = 2, 1
    with pytest.raises(UserError, match=r"第 3 轮第 2 步.全程第 10 步"):
        made.train_step((np.full((4, 1, 8, 8), bad, "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]]), 0.1)
    np.testing.assert_array_equal(model.head.weight.numpy(), before)


def test_mixed_precision_path_trains_and_evaluates():
    """Paddle 在 CPU 上不做混合精度,这里只确认那条路走得通。"""
    images, targets = np.ones((4, 1, 8, 8), "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]]
    model = small_model()
    made = trainer(model)
    plain = evaluate(model, toy_part(10), INFO, 4)
    with pytest.warns(UserWarning, match="no effect"), autocast("bfloat16"):
        mixed = evaluate(model, toy_part(10), INFO, 4)
    np.testing.assert_allclose(mixed.losses, plain.losses, atol=0.05)
    made.precision = "bfloat16"
    with pytest.warns(UserWarning, match="no effect"):
        step = made.train_step((images, targets), 0.01)
        loss, norm = step.loss, step.grad_norm
    assert math.isfinite(loss) and norm > 0 and model.head.weight.dtype == paddle.float32


def test_a_model_learns_to_tell_bright_from_dark():
    model = small_model(embed_dim=16)
    made = trainer(model, label_smoothing=0.0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        labels = rng.integers(0, 3, 32)
        images = rng.normal(labels[:, None, None, None] - 1, 0.3, (32, 1, 8, 8)).astype("float32")
        step = made.train_step((images, np.eye(3, dtype="float32")[labels]), 0.01)
        loss, correct = step.loss, step.sums["top1"]
    assert correct >= 31
    assert loss < 0.2


@pytest.mark.parametrize(
    "epochs, least, drawn",
    [
        (1, 1, [1]),
        (8, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
        (8, 4, [1, 4, 8]),  # 8 轮 digits 只有 160 步
        (150, 4, [1, 15, 30, 45, 60, 75, 90, 105, 120, 135, 150]),
        (3, 80, [1, 3]),
    ],
)
def test_figures_are_drawn_now_and_then(epochs, least, drawn):
    assert [epoch + 1 for epoch in range(epochs) if is_now_and_then(epoch, epochs, least)] == drawn


def attention_pictures(model, **settings):
    """评估验证集之后画的注意力:标签 -> 图。"""
    task = trainer(model, **settings).task
    pictures = task.pictures(model, task.evaluate(model, "val"), "val", "第 1 轮")
    return {picture.tag: picture.image for picture in pictures if picture.tag.startswith("attention/")}


def test_attention_is_drawn_with_titles():
    model = small_model(embed_dim=12, depth=2, num_heads=3)
    model.eval()
    figures = attention_pictures(model, attention_images=2)
    assert figures.keys() == {"attention/heads", "attention/rollout"}
    (heads,), (rollout,) = (figures[tag].axes for tag in ("attention/heads", "attention/rollout"))
    assert len(heads.get_yticklabels()) == 2 and len(heads.get_xticklabels()) == 3  # 一行一层,一列一头
    assert [label.get_text() for label in rollout.get_yticklabels()] == ["a", "b"]
    if _chinese_font():
        assert [label.get_text() for label in heads.get_yticklabels()] == ["第 1 层", "第 2 层"]
        assert figures["attention/rollout"].get_suptitle() == "第 1 轮看图像的哪里"
    assert attention_pictures(model, attention_images=0) == {}


@pytest.mark.parametrize("name", ["vit", "distilled", "swin"])
def test_health_sees_the_images_of_every_model(name, tmp_path):
    """蒸馏训练两个头时调用的是 forward_heads。"""
    if name == "swin":
        model = create_model("swin_tiny", image_size=8, in_channels=1, embed_dim=12, depths=(1, 1), num_heads=(1, 2))
    else:
        model = small_model(pool="cls", distillation_token=name == "distilled")
    health = Health(tmp_path)
    health.watch(model)
    images = {"train": 2 + 3 * paddle.randn([8, 1, 8, 8]), "val": paddle.randn([8, 1, 8, 8])}
    for part, x in images.items():
        model.train() if part == "train" else model.eval()
        model.forward_heads(x) if (name, part) == ("distilled", "train") else model(x)
    for part, x in images.items():
        np.testing.assert_allclose(health.record["seen"][part]["mean"], float(x.mean()), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(health.record["seen"][part]["std"], x.numpy().std(), rtol=1e-4)
        assert health.record["seen"][part]["are_probabilities"] is False
    before = json.dumps(health.record)
    model(paddle.ones([8, 1, 8, 8]))  # 只记第一次
    assert json.dumps(health.record) == before
    assert not model._forward_post_hooks and not model.patch_embed._forward_pre_hooks


def test_attention_of_swin_and_of_ones_own_model_is_not_drawn():
    shape = dict(image_size=8, in_channels=1, num_classes=3, embed_dim=12, depths=(1, 1), num_heads=(1, 2))
    swin = create_model("swin_tiny", **shape)
    own = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(64, 3))
    for model in (swin, own):
        assert attention_pictures(model, attention_images=2) == {}


@pytest.mark.parametrize("name, heads", [("vit_tiny", 2), ("deit_tiny_distilled", 4)])
def test_only_the_heads_are_trained(name, heads):
    model = create_model(name, depth=1, image_size=32)
    trained = choose_trained(model, "head")
    names = [name for name, parameter in model.named_parameters() if not parameter.stop_gradient]
    assert len(trained) == heads == len(names)
    assert set(names) <= {f"{head}.{part}" for head in ("head", "distillation_head") for part in ("weight", "bias")}
