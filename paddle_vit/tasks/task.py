"""任务(task)的样子:一批是什么,损失是什么,量什么,凭什么选最好的一轮,往记录里画什么。

训练循环(``training.loop``)只认识这里的 ``Task``。自己的损失,写一个子类、改 ``loss`` 就够了,见 docs/own-model.md。
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import paddle
from paddle import nn

from ..config import Config
from ..data.batches import evaluation_batches, step_size, training_batches
from ..data.parts import Data
from ..system.files import quoted
from ..system.fitting import size_text
from ..system.processes import all_reduce

__all__ = ["Measure", "Picture", "Result", "Task"]


@dataclasses.dataclass(frozen=True)
class Measure:
    """一种指标怎样显示、怎样比较。

    Attributes:
        title (str): 打印时的名字。
        form (str): 数的写法,Python 的格式说明,如 ``'.2%'``。
        higher_is_better (bool): 越大越好。
    """

    title: str
    form: str = ".4f"
    higher_is_better: bool = True


class Picture(NamedTuple):
    """写进记录的一张图。

    Attributes:
        tag (str): VisualDL 的标签,``/`` 之前的是分组。
        image (Figure | ndarray | None): matplotlib 的图,或 uint8 [B, H, W, C] 的一批图像(排成网格);
            ``None`` 表示这次没有可画的,要有 file。
        file (str | None): 也存进运行目录,用这个文件名。
    """

    tag: str
    image: Any
    file: str | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """在一部分数据上量得的结果。

    Attributes:
        measures (dict): 指标名 -> 数;至少有 ``loss`` 和任务的 ``measures`` 里的那些。
    """

    measures: dict[str, float]


class Task:
    """一种任务;各种任务都由它继承。这里的一批是图像和标签分布,评估就是在没有增强的图像上求同样的损失。

    Attributes:
        measures (dict): 除 ``loss`` 以外的指标,名字 -> ``Measure``;``loss`` 方法要给出其中每一个。
        evaluated (dict): 只在评估时量的指标,名字 -> ``Measure``;``evaluate`` 的结果里要有它们。
        best (str): 验证集上凭哪个指标选最好的一轮,``'loss'``,或 ``measures``、``evaluated`` 里的一个。

    Args:
        data (Data): 数据集的三个部分。
        config (Config): 设置。
    """

    measures: ClassVar[dict[str, Measure]] = {}
    evaluated: ClassVar[dict[str, Measure]] = {}
    best = "loss"

    def __init__(self, data: Data, config: Config):
        self.data, self.config, self.info = data, config, data.info

    # ---- 子类通常要改的 ----

    def loss(self, model: nn.Layer, *batch: paddle.Tensor) -> tuple[paddle.Tensor, dict[str, float]]:
        """一批的损失,由循环求它的梯度。

        Args:
            model (nn.Layer): 正在训练的模型。
            *batch (Tensor): ``batches`` 给出的一批,已是 Tensor;这里是图像 [B, C, H, W] 和标签分布 [B, K]。

        Returns:
            tuple: ``(loss, sums)``:整批的平均损失(一个数),和每个指标在这一批各张图像上的和(字典)。
        """
        raise NotImplementedError(f"{type(self).__name__} 要写出自己的 loss(model, images, targets)。")

    def describe(self) -> list[str]:
        """训练开始时打印的几行:数据是什么,有什么要提醒。"""
        info = self.info
        counts = " / ".join(f"{info.counts[part]}" for part in ("train", "val", "test"))
        lines = [
            f"数据 {info.name}:训练/验证/测试 {counts} 张,{len(info.classes)} 类,{size_text(info.image_size)} 像素"
        ]
        lines.append(f"预处理:{info.describe()}")
        if info.counts["val"] < 50:
            lines.append(f"提示:验证集只有 {info.counts['val']} 张,选出的最好一轮很不可靠;请多准备一些图像。")
        return lines

    def batch_pictures(self, batch: Sequence[np.ndarray]) -> list[Picture]:
        """一批训练数据的样子。"""
        return []

    def curves(self, result: Result) -> dict[str, float]:
        """验证之后,各个指标以外另写的曲线:标签 -> 数。"""
        return {}

    def pictures(self, model: nn.Layer, result: Result, part: str, title: str) -> list[Picture]:
        """评估之后画的图。

        Args:
            model (nn.Layer): 评估时的模型。
            result (Result): ``evaluate`` 的结果。
            part (str): ``'val'`` 或 ``'test'``。
            title (str): 这是什么时候,写进图的标题,如“第 3 轮”。
        """
        return []

    def next_steps(self, directory: Path, summary: dict, own_model: bool) -> list[str]:
        """训练完以后可以做什么,打印在最后。

        Args:
            directory (Path): 运行目录。
            summary (dict): summary.json 的内容。
            own_model (bool): 模型是使用者自己写的,脚本不能由设置建立它。
        """
        return [f"看曲线:python scripts/board.py {quoted(directory.parent)}"]

    def examine(self) -> dict:
        """训练之前看一看数据,记进 health.json 供体检用(见 ``training.health``)。"""
        return {}

    def observe(self, result: Result) -> dict:
        """评估之后记进 health.json 的。"""
        return {}

    # ---- 一批、一步 ----

    def step_size(self, world: int = 1) -> int:
        """一次更新用多少张图像,所有进程合计。"""
        return step_size(len(self.data.train), self.config, world)

    def steps_per_epoch(self, world: int = 1) -> int:
        """每轮更新多少次;最后不满一批的图像这一轮不用。"""
        return len(self.data.train) // self.step_size(world)

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[tuple[np.ndarray, ...]]:
        """第 epoch 轮(从 0 起)从第 start 步起、第 rank 个进程的各批;只由种子和位置决定,从哪一步接着来都一样。

        训练一步时,另一个线程取下一批:这里不能用 Paddle 和 NumPy 全局的随机数发生器。
        """
        return training_batches(self.data.train, self.config, self.info, epoch, start, rank, world)

    def size(self, batch: Sequence) -> int:
        """一批有多少张图像。"""
        return len(batch[0])

    def split(self, batch: Sequence, parts: int) -> list[tuple]:
        """把一批分成几块,逐块求梯度再相加(``--accumulate``)。"""
        return list(zip(*(np.array_split(array, parts) for array in batch)))

    # ---- 评估 ----

    @paddle.no_grad()
    def evaluate(self, model: nn.Layer, part: str, rank: int = 0, world: int = 1) -> Result:
        """在一部分数据(``'val'`` 或 ``'test'``)上评估;几个进程各算一份,每张图像恰好算一次。"""
        was_training = model.training
        model.eval()
        data, classes = getattr(self.data, part), len(self.info.classes)
        totals = np.zeros(1 + len(self.measures))
        for indices, images in evaluation_batches(data, self.info, self.config.batch_size, rank, world):
            targets = np.eye(classes, dtype="float32")[data.labels[indices]]  # [b, K]
            loss, sums = self.loss(model, paddle.to_tensor(images), paddle.to_tensor(targets))
            totals += [float(loss) * len(indices), *(float(sums[name]) for name in self.measures)]
        if world > 1:
            shared = paddle.to_tensor(totals)
            all_reduce(shared)
            totals = shared.numpy()
        if was_training:
            model.train()
        return Result(dict(zip(["loss", *self.measures], (totals / len(data)).tolist())))

    def is_better(self, new: float, old: float) -> bool:
        """新的不比旧的差;相同时取较晚的一轮,那时学习率已经降下来,更稳。"""
        return new >= old if self.evaluated_measures()[self.best].higher_is_better else new <= old

    @classmethod
    def all_measures(cls) -> dict[str, Measure]:
        """训练和评估都量的指标,``loss`` 在最前。"""
        return {"loss": Measure("loss", ".4f", higher_is_better=False), **cls.measures}

    @classmethod
    def evaluated_measures(cls) -> dict[str, Measure]:
        """评估量的全部指标,``loss`` 在最前。"""
        return {**cls.all_measures(), **cls.evaluated}

    @classmethod
    def show(cls, values: dict[str, float]) -> str:
        """各个指标的数写成一行字。"""
        return " ".join(f"{kind.title} {values[name]:{kind.form}}" for name, kind in cls.all_measures().items())
