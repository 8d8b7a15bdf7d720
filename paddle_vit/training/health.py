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

__all__ = ["Health", "NotFinite", "load_health", "neighbour_top1"]

HEALTH_FILE = "health.json"
SAMPLE = 256  # 抽查这么多张训练图像:近邻正确率的标准误不到 3 个百分点,读它们的时间只是一轮的零头
FIRST_STEPS = 100  # 逐步记下开头这么多步的损失和梯度范数:没有预热时,坏事都发生在这里
LAST_STEPS = 20  # 损失变成 NaN 时,留下之前这么多步

# health.json 的样子;每一项都可以没有
_PARTS = {
    "sample": {
        **dict(images=int, dtype=str, min=float, max=float, mean=[float], std=[float]),
        **dict(neighbour_top1=float, chance=float),
    },
    "labels": dict(train=[int], val=[int]),
    "seen": {None: dict(mean=[float], std=[float], are_probabilities=bool)},
    "first_steps": {"from": int, "loss": [float], "grad_norm": [float]},
    "parameters": {None: dict(trainable=bool, grad=(int, float, type(None)), change=float)},
    "updates": [dict(step=int, lr=float, ratio=float)],
    "predicted": [int],
    "stopped": dict(epoch=int, step=int, loss=str, grad_norm=str, lr=float, inputs_finite=bool, recent=[[float]]),
}


class NotFinite(UserError):
    """损失或梯度变成了 NaN 或无穷大;``where`` 是当时的轮、步、损失、梯度范数和学习率。"""

    def __init__(self, message, where):
        super().__init__(message)
        self.where = where


class Health:
    """一次训练的体检记录。

    Args:
        directory (Path): 运行目录;续训时接着原来的记录。
        enabled (bool): ``False`` 时什么也不记(多进程里的其余进程)。
    """

    def __init__(self, directory, enabled=True):
        self.enabled = enabled
        if not enabled:
            return
        self.path = Path(directory) / HEALTH_FILE
        self.record = load_health(directory) or {}
        self.record.pop("stopped", None)
        self._recent = collections.deque(maxlen=LAST_STEPS)
        self._weights = None

    def data(self, data):
        """抽查训练图像(未增强、未归一化)和两部分的标签;续训时已经有了,不再做。"""
        if not self.enabled or "sample" in self.record:
            return
        count = len(data.info.classes)
        self.record["labels"] = {
            name: np.bincount(part.labels, minlength=count).tolist()
            for name, part in (("train", data.train), ("val", data.val))
        }
        chosen = np.random.default_rng(0).permutation(len(data.train))[:SAMPLE]
        images = np.concatenate(list(data.train.fetch([(chosen, None)])))  # [n, H, W, C]
        labels = data.train.labels[chosen]  # [n]
        shares = np.bincount(labels) / len(labels)
        values = _thinned(images).astype("float64")
        self.record["sample"] = {
            "images": len(images),
            "dtype": str(images.dtype),
            "min": values.min(),
            "max": values.max(),
            "mean": values.mean(axis=(0, 1, 2)).tolist(),
            "std": values.std(axis=(0, 1, 2)).tolist(),
            "neighbour_top1": neighbour_top1(images, labels),
            "chance": float((shares**2).sum()),
        }
        self.write()

    def watch(self, model):
        """记下模型第一次训练、第一次评估时的输入,和第一次评估时的输出;之后钩子自动取下。"""
        if not self.enabled:
            return
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
        if not self.enabled:
            return
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

    def evaluation(self, evaluation, classes):
        """记下验证集上各类各预测了多少张。"""
        if self.enabled:
            self.record["predicted"] = np.bincount(evaluation.classes[:, 0], minlength=classes).tolist()

    def stopped(self, where):
        """损失变成 NaN,训练停下时调用。"""
        if self.enabled:
            self.record["stopped"] = {**where, "recent": list(self._recent)}
            self.write()

    def write(self):
        """写 health.json。"""
        if self.enabled:
            atomic_write(self.path, f"{json.dumps(self.record, ensure_ascii=False)}\n".encode())


def _norm(array):
    return math.sqrt(np.square(array, dtype="float64").sum())  # np.linalg.norm 会起动 BLAS 的线程,与 Paddle 抢核


def _thinned(images):
    """大图隔几个像素取一个,得到 16 x 16 到 31 x 31:算统计量和找近邻都够了。"""
    stride = max(1, images.shape[1] // 16)
    return images[:, ::stride, ::stride]


def neighbour_top1(images, labels):
    """用像素最接近的另一张图像的标签当预测的正确率,0–1;标签与图像无关时,它等于瞎猜。

    Args:
        images (ndarray): [n, H, W, C]。
        labels (ndarray): [n]。
    """
    if len(images) < 2:
        return 0.0
    x = _thinned(images).reshape(len(images), -1).astype("float32")  # [n, M]
    squares = (x * x).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * x @ x.T  # [n, n]
    np.fill_diagonal(distances, np.inf)
    return float((labels[distances.argmin(axis=1)] == labels).mean())


def load_health(directory):
    """读回 health.json;没有(较早的运行)时是 ``None``。

    Raises:
        UserError: 文件已损坏。
    """
    path, advice = Path(directory) / HEALTH_FILE, "请删除它再试,少了它只是有几项查不了"
    record = read_json(path, advice=advice)
    if record is not None and not matches(record, {name: _PARTS[name] for name in _PARTS if name in record}):
        raise UserError(f"{path} 已损坏:{advice}。")
    return record
