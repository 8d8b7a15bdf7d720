"""训练到哪里了;续训时从检查点恢复。"""

from __future__ import annotations

import dataclasses
import math

__all__ = ["Progress", "Step", "is_now_and_then"]


@dataclasses.dataclass(frozen=True)
class Step:
    """一次更新的结果,所有进程合计。"""

    loss: float  # 平均损失
    sums: dict  # 各个指标在这一步的图像上的和
    count: int  # 图像数
    grad_norm: float  # 裁剪之前的梯度总范数
    stop: bool  # 有进程要停下(按了 Ctrl-C)
    save: bool  # 有进程要存检查点


@dataclasses.dataclass
class Progress:
    """训练的进度,和正在进行的这一轮至今的各个总和。

    Attributes:
        epoch (int): 正在进行的一轮,从 0 起。
        step (int): 这一轮里已经做完的步数。
        count (int): 这一轮至今的图像数。
        loss_sum (float): 这一轮至今各张图像的损失之和。
        sums (dict): 这一轮至今各个指标的和。
        epoch_seconds, wait_seconds (float): 这一轮的用时和其中等数据的时间,秒。
        grad_norm_sum, grad_norm_max (float): 这一轮至今的梯度范数之和、最大值。
        seconds (float): 全程用时(秒),含评估。
        best_epoch (int): 最好的一轮,从 1 起;0 表示还没有。
        best (dict): 最好的一轮的验证指标。
        improved_epoch (int): 验证结果最近一次比以往都好是哪一轮,从 1 起;与以往最好的相同的不算。
        first_epoch (int), first_seconds (float): 学习率的计划从哪一轮(从 0 起)、哪一刻开始;接着训练的运行不是 0。
        total_steps (int): 限时的训练定下的总步数;0 表示没有限时,或还没有定。
    """

    epoch: int = 0
    step: int = 0
    count: int = 0
    loss_sum: float = 0.0
    sums: dict = dataclasses.field(default_factory=dict)
    epoch_seconds: float = 0.0
    wait_seconds: float = 0.0
    grad_norm_sum: float = 0.0
    grad_norm_max: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best: dict = dataclasses.field(default_factory=dict)
    improved_epoch: int = 0
    first_epoch: int = 0
    first_seconds: float = 0.0
    total_steps: int = 0

    def start_epoch(self, epoch: int) -> None:
        """开始第 epoch 轮:这一轮的各个总和归零,全程的留着。"""
        kept = "seconds best_epoch best improved_epoch first_epoch first_seconds total_steps".split()
        self.__dict__.update(dataclasses.asdict(Progress(epoch=epoch, **{name: getattr(self, name) for name in kept})))

    def add(self, step: Step) -> None:
        """计入一步。"""
        self.step += 1
        self.count += step.count
        self.loss_sum += step.loss * step.count
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in step.sums.items()}
        if math.isfinite(step.grad_norm):  # float16 偶尔溢出,那一步不更新,也不算
            self.grad_norm_sum += step.grad_norm
            self.grad_norm_max = max(self.grad_norm_max, step.grad_norm)

    def remember_best(self, measures: dict, name: str) -> None:
        """验证结果不比以往差:记下这一轮;name 是凭哪个指标选的。"""
        if not self.best_epoch or measures[name] != self.best[name]:
            self.improved_epoch = self.epoch + 1
        self.best_epoch, self.best = self.epoch + 1, dict(measures)

    def spend(self, seconds: float, waited: float) -> None:
        """计入一步的用时,和其中等数据的时间,秒。"""
        self.seconds += seconds
        self.epoch_seconds += seconds
        self.wait_seconds += waited

    @property
    def means(self) -> dict[str, float]:
        """这一轮至今的平均损失和各个指标。"""
        return {"loss": self.loss_sum / self.count, **{name: s / self.count for name, s in self.sums.items()}}


def is_now_and_then(epoch: int, epochs: int, least: int = 1) -> bool:
    """整个训练里大约十次,首尾两轮总在内;其间至少每隔 least 轮一次,轮数少时就不到十次。epoch 从 0 起。"""
    return epoch == 0 or epoch == epochs - 1 or (epoch + 1) % max(least, epochs // 10) == 0
