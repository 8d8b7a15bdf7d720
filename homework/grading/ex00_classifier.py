"""作业 0 的检查:softmax、交叉熵、一步梯度下降。"""

import numpy as np
import paddle

from .machinery import Exercise, Wrong, as_array, compare, tensor

MISTAKES = {
    "softmax_axis": "softmax 沿错了轴:应在每一行(各类别)之内归一化,你在各张图之间归一化了。",
    "overflow": "softmax 溢出:exp 之前没有先减去每一行的最大值。",
    "no_normalization": "只取了 exp,没有除以每一行之和。",
    "log_of_zero": "对 0 取了对数:先算 softmax 再取 log,概率太小时变成 0;请把 log 和 softmax 合在一起化简。",
    "softmax_twice": "softmax 做了两次:F.cross_entropy 自己带 softmax,给它的应是 logits。",
    "not_averaged": "损失没有取平均:应除以一批的张数 B。",
    "sign": "损失的符号反了:是负的对数概率。",
    "no_log": "没有取对数:交叉熵是 -log(正确类别的概率)。",
    "ascent": "方向反了:应减去 learning_rate * 梯度,你加上了,损失会越来越大。",
    "gradient_not_averaged": "梯度没有除以一批的张数 B:损失是平均值,梯度也要平均。",
    "no_one_hot": "梯度里忘了减 one-hot:d 损失 / d logits = (概率 - one-hot) / B。",
    "bias_not_updated": "bias 没有更新。",
    "no_learning_rate": "没有用学习率 learning_rate。",
    "loss_after_step": "返回的是更新之后的损失,应为更新之前的。",
    "not_updated": "weight 和 bias 都没有变:梯度下降一步要返回新的值。",
}
EXERCISE = Exercise(0, "线性分类器:softmax、交叉熵、梯度下降", MISTAKES)

LOGITS = np.array([[1.0, 2.0, 0.5, -1.0], [0.3, -0.7, 2.2, 0.1], [-1.5, 0.4, 0.0, 0.9]])
LABELS = np.array([1, 3, 2])
LOSS = ("softmax_twice", "not_averaged", "sign", "no_log", "softmax_axis")


def softmax(logits, wrong=()):
    axis = 0 if "softmax_axis" in wrong else 1
    e = np.exp(logits - (0 if "overflow" in wrong else logits.max(axis, keepdims=True)))
    return e if "no_normalization" in wrong else e / e.sum(axis, keepdims=True)


def cross_entropy(logits, labels, wrong=()):
    if "softmax_twice" in wrong:
        logits = softmax(logits)
    picked = softmax(logits, wrong)[np.arange(len(labels)), labels]  # [B]
    losses = -(picked if "no_log" in wrong else np.log(picked))
    loss = losses.sum() if "not_averaged" in wrong else losses.mean()
    return -loss if "sign" in wrong else loss


def gradient_step(weight, bias, x, labels, learning_rate, wrong=()):
    logits = x @ weight + bias
    one_hot = np.eye(logits.shape[1])[labels]
    error = softmax(logits, wrong) - (0 if "no_one_hot" in wrong else one_hot)
    error = error / (1 if "gradient_not_averaged" in wrong else len(x))
    rate = 1 if "no_learning_rate" in wrong else learning_rate
    rate = -rate if "ascent" in wrong else rate
    rate = 0 if "not_updated" in wrong else rate
    new_bias = bias if "bias_not_updated" in wrong else bias - rate * error.sum(0)
    new_weight = weight - rate * (x.T @ error)
    if "loss_after_step" in wrong:
        logits = x @ new_weight + new_bias
    return new_weight, new_bias, cross_entropy(logits, labels, wrong)


@EXERCISE.check("softmax", "softmax 的数值", "exp 之后除以每一行之和:第 1 轴是类别,求和用 axis=1, keepdim=True。")
def check_softmax(function):
    got = function(tensor(LOGITS))
    columns, rows = as_array("概率", got).sum(0), as_array("概率", got).sum(-1)
    if columns.shape == (4,) and np.allclose(columns, 1) and not np.allclose(rows, 1):
        EXERCISE.fail("softmax_axis")
    names = ("softmax_axis", "no_normalization", "overflow")
    compare("概率", got, lambda wrong: softmax(LOGITS, wrong), EXERCISE.only(names))


@EXERCISE.check("softmax", "softmax 不溢出", "每行同减一个数,softmax 不变:减去该行最大值之后,exp 最大是 1。")
def check_softmax_overflow(function):
    big = np.array([[1000.0, 999.0], [-1000.0, 0.0]])
    got = function(tensor(big))
    if not np.isfinite(as_array("概率", got)).all():
        EXERCISE.fail("overflow", f"logits 是 {big[0].tolist()} 时得到 {as_array('概率', got)[0].tolist()}。")
    compare("概率", got, lambda wrong: softmax(big))


@EXERCISE.check(
    "cross_entropy", "交叉熵的数值", "取出每行正确类别的对数概率(take_along_axis 或乘 one-hot),取负,取平均。"
)
def check_cross_entropy(function):
    got = function(tensor(LOGITS), paddle.to_tensor(LABELS))
    if as_array("损失", got).size == 1:  # 形状 [1] 也算对
        got = as_array("损失", got).reshape([])
    compare("损失", got, lambda wrong: np.asarray(cross_entropy(LOGITS, LABELS, wrong)), EXERCISE.only(LOSS))


@EXERCISE.check(
    "cross_entropy", "交叉熵不溢出", "log softmax(z)_k = z_k - max - log(sum(exp(z - max))),里面不会出现 log(0)。"
)
def check_cross_entropy_overflow(function):
    logits = np.array([[0.0, 1000.0], [1000.0, 0.0]])
    got = as_array("损失", function(tensor(logits), paddle.to_tensor([0, 0])))
    if not np.isfinite(got).all():
        EXERCISE.fail("log_of_zero", f"logits 是 {logits[0].tolist()}、类别是 0 时损失应为 1000,得到的平均是 {got}。")
    if min(abs(got.item() - 500), abs(got.item() - 32)) > 0.1:  # F.cross_entropy 把对数截在 -64,平均是 32
        details = f"logits 相差 1000 时平均损失应为 500,得到 {got.item():.4f}(给概率加一个很小的数只是掩盖问题)。"
        EXERCISE.fail("log_of_zero", details)


@EXERCISE.check("gradient_step", "一步梯度下降", "dW = x^T @ error,db = error 按列求和,error = (概率 - one-hot) / B。")
def check_gradient_step(function):
    rng = np.random.default_rng(1)
    weight, bias, x = rng.standard_normal((5, 4)), rng.standard_normal(4), rng.standard_normal((3, 5))

    def answer(index):
        return lambda wrong: np.asarray(gradient_step(weight, bias, x, LABELS, 0.3, wrong)[index])

    got = function(tensor(weight), tensor(bias), tensor(x), paddle.to_tensor(LABELS), 0.3)
    if not isinstance(got, (tuple, list)) or len(got) != 3:
        raise Wrong("应返回三样:(新的 weight, 新的 bias, 损失)。", ["no_return"])
    names = ("not_updated", "ascent", "gradient_not_averaged", "no_one_hot", "no_learning_rate", "softmax_axis")
    compare("新的 weight", got[0], answer(0), EXERCISE.only(names))
    compare("新的 bias", got[1], answer(1), EXERCISE.only(["bias_not_updated", *names[1:]]))
    compare("损失", as_array("损失", got[2]).reshape([]), answer(2), EXERCISE.only(["loss_after_step", *LOSS]))


@EXERCISE.check("gradient_step", "连做 50 步,损失一直下降", "每一步都用上一步返回的 weight 和 bias。")
def check_descent(function):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 30)
    x = tensor(rng.standard_normal((30, 4)) + labels[:, None])
    weight, bias, losses = paddle.zeros([4, 3]), paddle.zeros([3]), []
    for _ in range(50):
        weight, bias, loss = function(weight, bias, x, paddle.to_tensor(labels), 0.1)
        losses.append(as_array("损失", loss).item())
    rises = np.flatnonzero(np.diff(losses) > 1e-6)
    if len(rises):
        step = int(rises[0]) + 1
        raise Wrong(f"第 {step + 1} 步的损失从 {losses[step - 1]:.4f} 升到 {losses[step]:.4f}。")
