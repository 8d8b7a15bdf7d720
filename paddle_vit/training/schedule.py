"""训练多久,每一步的学习率是多少:``--epochs``、``--patience``、``--max-minutes`` 和接着训练,都在这里定。

定下的都记在进度里,随检查点保存:续训照着原来的走。
"""

from __future__ import annotations

import collections
import math
import statistics

from ..system.processes import sum_over_processes
from .optimizer import learning_rate
from .progress import is_now_and_then

__all__ = ["Schedule"]

FIRST_LOOK = 20  # 第一轮做完这么多步、两倍、四倍……时,看一轮在限时之内做不做得完
MARGIN = 0.97  # 限时只用到这么多:存检查点没有算在内,各步也有快慢
DRAWINGS = 10  # 整个训练里大约画这么多次图,见 ``progress.is_now_and_then``


class Schedule:
    """一次训练的计划。

    Args:
        trainer (Trainer): 见 ``loop``;用到它的设置、进度和每轮步数。
    """

    def __init__(self, trainer):
        self.trainer, self.config, self.steps_per_epoch = trainer, trainer.config, trainer.steps_per_epoch
        self._steps: collections.deque = collections.deque(maxlen=50)  # 最近各步的用时,秒
        self._evaluation = self._drawing = 0.0  # 最近一次验证、画图的用时,秒

    @property
    def total_steps(self) -> int:
        """一共更新多少次。"""
        return self.trainer.progress.total_steps or self.config.epochs * self.steps_per_epoch

    @property
    def epochs(self) -> int:
        """一共几轮;限时的训练里,最后一轮可以不满。"""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def steps_this_epoch(self) -> int:
        """正在进行的一轮要做几步。"""
        return min(self.steps_per_epoch, self.total_steps - self.trainer.progress.epoch * self.steps_per_epoch)

    @property
    def is_over(self) -> bool:
        """训练完了,或者已经好几轮没有变好。"""
        return self.steps_this_epoch <= 0 or self.is_out_of_patience

    @property
    def is_out_of_patience(self) -> bool:
        """连续 ``--patience`` 轮,验证结果没有比以往更好。"""
        p, patience = self.trainer.progress, self.config.patience
        return patience is not None and p.epoch - max(p.improved_epoch, p.first_epoch) >= patience

    def rate(self, step: int) -> float:
        """全程第 step 步(从 0 起)的学习率。"""
        first_step = self.trainer.progress.first_epoch * self.steps_per_epoch
        return learning_rate(step, self.config, self.steps_per_epoch, first_step, self.total_steps)

    def is_now_and_then(self, least_steps: int = 0) -> bool:
        """这一轮要不要画图:见 ``progress.is_now_and_then``,其间至少隔 least_steps 步。"""
        least = max(1, math.ceil(least_steps / self.steps_per_epoch))
        return is_now_and_then(self.trainer.progress.epoch, self.epochs, least)

    def is_measured(self) -> bool:
        """这一步要不要量每个参数变了多少(体检用):最初两步,和隔一阵子一轮的最后一步;每步都量会慢几个百分点。"""
        p = self.trainer.progress
        return (p.epoch == 0 and p.step < 2) or (p.step == self.steps_this_epoch - 1 and self.is_now_and_then())

    # ---- 限时 ----

    def after_step(self, seconds: float, log) -> None:
        """每一步之后调用:记下它的用时;一轮很长时,第一轮里就定下步数。"""
        self._steps.append(seconds)
        p = self.trainer.progress
        looks, rest = divmod(p.step, FIRST_LOOK)
        is_first = p.epoch == p.first_epoch and not p.total_steps
        if self.config.max_minutes and is_first and rest == 0 and looks & (looks - 1) == 0:
            done = p.epoch * self.steps_per_epoch + p.step
            steps = (self._left() - 2 * self._cost_of_evaluation()) / statistics.median(self._steps)
            # 做得完两轮的,等一轮做完、量过验证再定
            self._plan(done + max(0, int(steps)) if steps < 2 * self.steps_per_epoch else 0, log)

    def after_epoch(self, evaluation: float, drawing: float, log) -> None:
        """每轮验证之后、换到下一轮之前调用:第一次定下步数;以后发现做不完,就再减。

        Args:
            evaluation, drawing (float): 这一轮的验证和画图的用时,秒。
        """
        self._evaluation, self._drawing = evaluation, max(self._drawing, drawing)
        if self.config.max_minutes and self._steps:
            done = (self.trainer.progress.epoch + 1) * self.steps_per_epoch
            left = self._left() - self._cost_of_evaluation() - self._drawing  # 最后还要评估测试集
            epoch = self.steps_per_epoch * statistics.median(self._steps) + self._evaluation
            more = (left - DRAWINGS * self._drawing) / epoch
            more = int(more) if more >= DRAWINGS else max(0.0, left / (epoch + self._drawing))
            self._plan(done + int(more * self.steps_per_epoch), log)

    def _left(self):
        p = self.trainer.progress
        return MARGIN * 60 * self.config.max_minutes - (p.seconds - p.first_seconds)

    def _cost_of_evaluation(self):
        """评估一次测试集的用时,秒;还没有验证过时,按前向是一步的三分之一估计。"""
        counts, p = self.trainer.task.info.counts, self.trainer.progress
        if not self._evaluation:
            return statistics.median(self._steps) / 3 * counts["test"] * p.step / max(p.count, 1)
        return self._evaluation * counts["test"] / counts["val"]

    def _plan(self, steps, log):
        """定下总步数(各进程听 0 号的);已经定过的只减不增,差得不多就不动。"""
        trainer, p = self.trainer, self.trainer.progress
        if trainer.world > 1:
            (steps,) = sum_over_processes([0.0 if trainer.rank else float(steps)])
        before, steps = p.total_steps, min(int(steps), self.config.epochs * self.steps_per_epoch)
        if not steps or (before and steps > MARGIN * before):
            return
        p.total_steps = max(steps, p.epoch * self.steps_per_epoch + max(p.step, 1))
        log.plan(
            f"限时 {self.config.max_minutes:g} 分钟:每步 {statistics.median(self._steps):.2g} 秒,"
            f"一共训练 {p.total_steps} 步({p.total_steps / self.steps_per_epoch:.3g} 轮),学习率在那时退火到底",
            self,
        )
