"""作业 7 的检查:学习率和训练的一步。"""

import math

import numpy as np
import paddle
from paddle import nn

from .machinery import Exercise, Wrong, as_array, compare, tensor

MISTAKES = {
    "no_warmup": "没有预热:前 warmup 步应从小到大线性升到 peak。",
    "no_warmup_branch": "没有预热:少了 step < warmup 的分支,预热的几步也按余弦算了。",
    "warmup_from_zero": "预热差了一步:第 0 步应为 peak / warmup(用 step + 1),你从 0 开始。",
    "degrees": "余弦的角度错了:math.cos 用弧度,一半周期是 π,不是 180。",
    "progress_from_start": "退火的进度不对:从预热结束算起,(step - warmup) / (total - warmup),你用了 step / total。",
    "no_minimum": "没有降到 minimum:公式里少了 minimum。",
    "minimum_added": "多加了 minimum:余弦部分的幅度应为 peak - minimum,不是 peak。",
    "rising": "余弦反了:应从 peak 降到 minimum,是 1 + cos,不是 1 - cos。",
    "not_halved": "少了除以 2:1 + cos 在 0 和 2 之间。",
    "full_period": "余弦走了一整个周期:p 从 0 到 1 时角度应从 0 到 π,不是 2π。",
    "linear_decay": "退火是线性的,应为余弦。",
    "no_step": "权重没有变:忘了 loss.backward() 或 optimizer.step(),或在它之前就把梯度清零了。",
    "no_clear_grad": "忘了 optimizer.clear_grad():上一步的梯度加进了这一步。",
    "no_clip": "梯度没有裁剪:没有裁剪,或在 optimizer.step() 之后才裁剪(那时已经晚了)。",
    "clip_by_value": "裁剪的方法不对:是按全部梯度的总范数缩小,不是把每个数截到 ±max_norm。",
    "clip_each": "裁剪的方法不对:是全部参数的梯度合在一起的总范数,你给每个参数各裁了一次。",
    "always_rescaled": "梯度范数不到 max_norm 时不应该改变它,你总是缩放到 max_norm。",
    "softmax_twice": "softmax 做了两次:F.cross_entropy 自己带 softmax,给它的应是 logits。",
    "sum_not_mean": "损失没有取平均:应对一批取平均。",
    "loss_after_step": "返回的是更新之后的损失,应为更新之前的。",
    "not_float": "返回的不是 Python 的 float,应写 float(loss):留着 Tensor 会留着整个计算图,越训越占内存。",
}
EXERCISE = Exercise(7, "训练的一步和学习率", MISTAKES)

SCHEDULE = list(MISTAKES)[: list(MISTAKES).index("no_step")]
STEP = [name for name in MISTAKES if name not in (*SCHEDULE, "not_float")]


def rate_reference(step, total, warmup, peak, minimum, wrong=()):
    if step < warmup and not {"no_warmup", "no_warmup_branch"} & set(wrong):
        return peak * (step + (0 if "warmup_from_zero" in wrong else 1)) / warmup
    start = 0 if "no_warmup" in wrong else warmup
    p = step / total if "progress_from_start" in wrong else (step - start) / (total - start)
    angle = p * (180 if "degrees" in wrong else 2 * math.pi if "full_period" in wrong else math.pi)
    wave = 1 - math.cos(angle) if "rising" in wrong else 1 + math.cos(angle)
    wave = 2 * (1 - p) if "linear_decay" in wrong else wave
    wave = wave if "not_halved" in wrong else wave / 2
    if "no_minimum" in wrong:
        return peak * wave
    return minimum + (peak if "minimum_added" in wrong else peak - minimum) * wave


def compare_rates(function, total, warmup, peak, minimum):
    steps = range(total)
    got = np.array([as_array(f"learning_rate({s}, …)", function(s, total, warmup, peak, minimum)) for s in steps])

    def answer(wrong):
        return np.array([rate_reference(s, total, warmup, peak, minimum, wrong) for s in steps])

    compare("各步的学习率", got.reshape(-1), answer, EXERCISE.only(SCHEDULE))


@EXERCISE.check("learning_rate", "预热和退火", "先写 if step < warmup;之后 p 从 0 到 1,cos(math.pi * p) 从 1 到 -1。")
def check_schedule(function):
    compare_rates(function, 20, 5, 1.0, 0.1)


@EXERCISE.check("learning_rate", "没有预热时", "warmup = 0 时不能除以 warmup。")
def check_no_warmup(function):
    compare_rates(function, 8, 0, 0.5, 0.0)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def loss_and_gradients(weight, bias, x, labels, wrong):
    """线性分类器的平均交叉熵和它对 (weight, bias) 的梯度。"""
    p = softmax(x @ weight + bias)
    one_hot = np.eye(p.shape[1])[labels]
    count = 1 if "sum_not_mean" in wrong else len(x)
    if "softmax_twice" in wrong:
        twice = softmax(p)
        loss = -np.log((twice * one_hot).sum(1)).sum() / count
        error = twice - one_hot
        error = p * (error - (error * p).sum(1, keepdims=True)) / count
    else:
        loss = -np.log((p * one_hot).sum(1)).sum() / count
        error = (p - one_hot) / count
    return loss, [x.T @ error, error.sum(0)]


def clip(gradients, max_norm, wrong):
    if "no_clip" in wrong:
        return gradients
    if "clip_by_value" in wrong:
        return [np.clip(g, -max_norm, max_norm) for g in gradients]
    norms = [np.linalg.norm(g) for g in gradients]
    if "clip_each" in wrong:
        return [g * min(1, max_norm / norm) for g, norm in zip(gradients, norms)]
    scale = max_norm / math.hypot(*norms)
    return [g * (scale if "always_rescaled" in wrong else min(1, scale)) for g in gradients]


def training_reference(weight, bias, batches, rate, max_norm, wrong=()):
    """照公式训练几步,返回 (各步的损失, weight, bias)。"""
    parameters, kept, losses = [weight, bias], [0.0, 0.0], []
    for x, labels in batches:
        loss, gradients = loss_and_gradients(*parameters, x, labels, wrong)
        if "no_clear_grad" in wrong:
            gradients = [g + old for g, old in zip(gradients, kept)]
        gradients = kept = clip(gradients, max_norm, wrong)
        if "no_step" not in wrong:
            parameters = [p - rate * g for p, g in zip(parameters, gradients)]
        if "loss_after_step" in wrong:
            loss = loss_and_gradients(*parameters, x, labels, wrong)[0]
        losses.append(loss)
    return np.array(losses), *parameters


def compare_training(function, steps, max_norm, names):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((4, 3)), rng.standard_normal(3)
    batches = [(rng.standard_normal((6, 4)) * 2, rng.integers(0, 3, 6)) for _ in range(steps)]
    model = nn.Linear(4, 3)
    model.weight.set_value(weight.astype("float32"))
    model.bias.set_value(bias.astype("float32"))
    optimizer = paddle.optimizer.SGD(0.5, parameters=model.parameters())
    losses = [function(model, tensor(x), paddle.to_tensor(y), optimizer, max_norm) for x, y in batches]

    def answer(index):
        return lambda wrong: training_reference(weight, bias, batches, 0.5, max_norm, wrong)[index]

    mistakes = EXERCISE.only(names)
    compare("各步的损失", np.array([as_array("损失", loss).item() for loss in losses]), answer(0), mistakes)
    compare("更新之后的 weight", model.weight, answer(1), mistakes)
    compare("更新之后的 bias", model.bias, answer(2), mistakes)
    return losses


@EXERCISE.check("train_step", "一步的损失", "loss = F.cross_entropy(model(images), labels),返回 float(loss)。")
def check_loss(function):
    model = nn.Linear(4, 3)
    x, labels = np.random.default_rng(1).standard_normal((6, 4)), np.array([0, 1, 2, 2, 1, 0])
    weight, bias = (p.numpy().astype("float64") for p in (model.weight, model.bias))
    optimizer = paddle.optimizer.SGD(0.5, parameters=model.parameters())
    loss = function(model, tensor(x), paddle.to_tensor(labels), optimizer, 100.0)

    def answer(wrong):
        return training_reference(weight, bias, [(x, labels)], 0.5, 100.0, wrong)[0].reshape([])

    compare(
        "损失",
        as_array("损失", loss).reshape([]),
        answer,
        EXERCISE.only(["softmax_twice", "sum_not_mean", "loss_after_step"]),
    )
    if not isinstance(loss, float):
        EXERCISE.fail("not_float")


@EXERCISE.check("train_step", "一步之后的权重(不需要裁剪)", "loss.backward(),裁剪,optimizer.step(),再清零。")
def check_one_step(function):
    compare_training(function, 1, 100.0, [n for n in STEP if n not in ("no_clear_grad", "no_clip", "clip_each")])


@EXERCISE.check("train_step", "梯度清零:连做三步", "每步的最后 optimizer.clear_grad()。")
def check_clear_grad(function):
    compare_training(function, 3, 100.0, [n for n in STEP if n != "no_clip"])


@EXERCISE.check(
    "train_step", "梯度裁剪", "backward() 之后、step() 之前 clip_grad_norm_(model.parameters(), max_norm)。"
)
def check_clip(function):
    losses = compare_training(function, 3, 0.3, STEP)
    if not all(isinstance(loss, float) for loss in losses):
        raise Wrong(MISTAKES["not_float"], ["not_float"])
