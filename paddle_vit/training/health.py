"""训练时顺手记下的体检数据 ``health.json``,供 ``scripts/doctor.py`` 判断哪里出了问题。

只看不改:不动权重、梯度和随机数,训练的结果与不记时逐位相同。
"""

import collections
import json
import math
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..system.files import atomic_write, matches, read_json
from ..system.run_files import HEALTH

__all__ = ["Health", "NoHealth", "NotFinite", "check_finite", "load_health"]

FIRST_STEPS = 100  # 逐步记下开头这么多步的损失和梯度范数:没有预热时,坏事都发生在这里
LAST_STEPS = 20  # 损失变成 NaN 时,留下之前这么多步

# health.json 的样子;每一项都可以没有
_PARTS = {
    "sample": {
        **dict(images=int, dtype=str, min=float, max=float, mean=[float], std=[float]),
        **dict(neighbour_top1=float, chance=float),
    },
    "labels": dict(train=[int], val=[int]),
    "expected": {None: dict(mean=[float], std=[float])},
    "seen": {None: dict(mean=[float], std=[float], are_probabilities=bool)},
    "first_steps": {"from": int, "loss": [float], "grad_norm": [float]},
    "parameters": {None: dict(trainable=bool, grad=(int, float, type(None)), change=float)},
    "updates": [dict(step=int, lr=float, ratio=float)],
    "predicted": [int],
    "right": [int],
    "stopped": dict(epoch=int, step=int, loss=str, grad_norm=str, lr=float, inputs_finite=bool, recent=[[float]]),
}


class NotFinite(UserError):
    """损失或梯度变成了 NaN 或无穷大;``where`` 是当时的轮、步、损失、梯度范数和学习率。"""

    def __init__(self, message, where):
        super().__init__(message)
        self.where = where


def check_finite(trainer, step, batch, lr):
    """损失或梯度不是有限的数时停下;float16 的梯度偶尔溢出,那一步不更新,不算错。

    Args:
        trainer (Trainer), step (Step): 见 ``loop``。
        batch (tuple[ndarray, ...]): 这一步的图像等。
        lr (float): 这一步的学习率。

    Raises:
        NotFinite: 损失或梯度是 NaN 或无穷大。
    """
    if math.isfinite(step.loss) and (math.isfinite(step.grad_norm) or trainer.precision == "float16"):
        return
    p = trainer.progress
    total = p.epoch * trainer.steps_per_epoch + p.step + 1
    finite = all(np.isfinite(array).all() for array in batch)
    where = {"epoch": p.epoch + 1, "step": p.step + 1, "loss": str(step.loss), "grad_norm": str(step.grad_norm)}
    raise NotFinite(
        f"第 {p.epoch + 1} 轮第 {p.step + 1} 步(全程第 {total} 步)损失或梯度变成了 NaN 或无穷大"
        f"(loss={step.loss},梯度范数={step.grad_norm},lr={lr:g}):"
        "请调小 --lr,加长 --warmup-epochs,或检查数据;之前的检查点不受影响。",
        {**where, "lr": lr, "inputs_finite": bool(finite)},
    )


class NoHealth:
    """多进程里其余进程的体检记录:什么也不记。"""

    def _nothing(self, *_):
        """不记。"""

    data = watch = step = before_update = after_update = observe = stopped = write = _nothing


class Health:
    """一次训练的体检记录。

    Args:
        directory (Path): 运行目录;续训时接着原来的记录。
    """

    def __init__(self, directory):
        self.path = Path(directory) / HEALTH
        self.record = load_health(directory) or {}
        self.record.pop("stopped", None)
        self._recent = collections.deque(maxlen=LAST_STEPS)
        self._weights = None

    def data(self, task):
        """抽查训练数据,怎样查由任务定;续训时已经有了,不再做。"""
        if "sample" not in self.record:
            self.record.update(task.examine())
            self.write()

    def watch(self, model):
        """记下模型第一次训练、第一次评估时的输入,和第一次评估时的输出;之后钩子自动取下。"""
        seen = self.record.setdefault("seen", {})

        def look(layer, inputs):
            part = "train" if layer.training else "val"
            if part not in seen:
                x = inputs[0].numpy()  # [B, C, H, W]
                seen[part] = {
                    "mean": x.mean(axis=(0, 2, 3), dtype="float64").tolist(),
                    "std": x.std(axis=(0, 2, 3), dtype="float64").tolist(),
                    "are_probabilities": False,
                }
            if len(seen) == 2:
                inputs_hook.remove()

        def judge(layer, inputs, outputs):
            if not layer.training and "val" in seen:
                logits = outputs.astype("float32").numpy()  # [B, K]
                are_probabilities = logits.min() >= 0 and np.allclose(logits.sum(axis=1), 1, atol=1e-3)
                seen["val"]["are_probabilities"] = bool(are_probabilities)
                outputs_hook.remove()

        # 有老师的蒸馏在训练时调用 forward_heads,不经过模型自己的 forward 和钩子,所以看图块嵌入的输入
        inputs_hook = getattr(model, "patch_embed", model).register_forward_pre_hook(look)
        outputs_hook = model.register_forward_post_hook(judge)

    def step(self, step, loss, grad_norm):
        """每一步之后调用;step 从 0 起,grad_norm 是裁剪之前的。"""
        self._recent.append([step, loss, grad_norm])
        first = self.record.setdefault("first_steps", {"from": step, "loss": [], "grad_norm": []})
        if len(first["loss"]) < FIRST_STEPS:
            first["loss"].append(loss)
            first["grad_norm"].append(grad_norm)

    def before_update(self, model):
        """要量的那一步,更新权重之前调用。"""
        self._weights = {name: parameter.numpy() for name, parameter in model.named_parameters()}
        table = self.record.setdefault("parameters", {})
        for name, parameter in model.named_parameters():
            entry = table.setdefault(name, {"trainable": True, "grad": None, "change": 0.0})
            entry["trainable"] = not parameter.stop_gradient
            if parameter.grad is not None:
                entry["grad"] = max(entry["grad"] or 0.0, _norm(parameter.grad.numpy()))

    def after_update(self, model, step, lr):
        """要量的那一步,更新权重之后调用:每个参数、全部没有冻结的参数的相对变化 |新 - 旧| / |旧|。"""
        moved = total = 0.0
        for name, parameter in model.named_parameters():
            if parameter.stop_gradient:
                continue
            before = self._weights[name]
            change, size = _norm(parameter.numpy() - before), _norm(before)
            entry = self.record["parameters"][name]
            entry["change"] = max(entry["change"], change / size if size else math.copysign(1.0, change) * (change > 0))
            moved, total = moved + change**2, total + size**2
        self._weights = None
        ratio = math.sqrt(moved / total) if total else 0.0
        self.record.setdefault("updates", []).append({"step": step, "lr": lr, "ratio": ratio})

    def observe(self, values):
        """记下任务在评估之后看到的(字典)。"""
        self.record.update(values)

    def stopped(self, where):
        """损失变成 NaN,训练停下时调用。"""
        self.record["stopped"] = {**where, "recent": list(self._recent)}
        self.write()

    def write(self):
        """写 health.json。"""
        atomic_write(self.path, f"{json.dumps(self.record, ensure_ascii=False)}\n".encode())


def _norm(array):
    return math.sqrt(np.square(array, dtype="float64").sum())  # np.linalg.norm 会起动 BLAS 的线程,与 Paddle 抢核


def load_health(directory):
    """读回 health.json;没有(较早的运行)时是 ``None``。

    Raises:
        UserError: 文件已损坏。
    """
    path, advice = Path(directory) / HEALTH, "请删除它再试,少了它只是有几项查不了"
    record = read_json(path, advice=advice)
    if record is not None and not matches(record, {name: _PARTS[name] for name in _PARTS if name in record}):
        raise UserError(f"{path} 已损坏:{advice}。")
    return record
