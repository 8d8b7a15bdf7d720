"""训练循环:一步、一轮、整个过程。第三个读这个文件。

循环不知道学的是什么:一批是什么、损失是什么、量什么、画什么,都问任务(task,见 ``tasks.task``)。
学习率和优化器在 ``optimizer``,检查点在 ``resume``,体检的数据在 ``health``。
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Callable

import paddle
from paddle import nn

from ..config import Config
from ..data.batches import one_ahead
from ..system.interrupts import deferred_interrupt
from ..system.processes import meet, share_weights, sum_gradients, sum_over_processes
from ..system.run_files import BEST, LAST
from ..system.runtime import autocast, seed_step
from ..tasks.task import Result, Task
from ..weights.checkpoint import load_weights_into
from .health import Health, NoHealth, NotFinite, check_finite
from .optimizer import Ema, choose_trained, make_optimizer
from .progress import Progress, Step
from .results import save_best, save_summary
from .resume import read_checkpoint, write_checkpoint
from .schedule import Schedule
from .update import clip_gradients

__all__ = ["Trainer", "fit"]

PICTURE_STEPS = 80  # 混淆矩阵、注意力等图至少隔这么多步画一次:画一次与几步到几十步训练一样慢


class Trainer:
    """训练要用的一切:模型、任务、优化器、EMA 和进度;整个存进检查点,整个读回来。

    Args:
        model (nn.Layer): 要训练的模型。
        task (Task): 学什么。
        config (Config): 设置。
        directory (Path): 运行目录,已经建好。
        precision (str | None): 混合精度的类型,``None`` 是 float32。
        rank, world (int): 本进程的序号和进程总数。
    """

    def __init__(
        self, model: nn.Layer, task: Task, config: Config, directory, precision: str | None = None, rank=0, world=1
    ):
        self.model, self.task, self.config, self.directory = model, task, config, Path(directory)
        self.precision, self.rank, self.world = precision, rank, world
        self.trained = choose_trained(model, config.train_only)
        self.optimizer = make_optimizer(model, config)
        self.scaler = paddle.amp.GradScaler(enable=precision == "float16")
        self.ema = Ema(model, config.ema)
        self.progress = Progress()
        self.steps_per_epoch = task.steps_per_epoch(world)
        self.schedule = Schedule(self)
        self.health = NoHealth() if rank else Health(self.directory)

    # ---- 一步 ----

    def train_step(self, batch: tuple, lr: float, stop: bool = False, save: bool = False) -> Step:
        """一次更新:前向、反向(分成 accumulate 块)、各进程相加、裁剪、AdamW、EMA。

        Args:
            batch (tuple[ndarray, ...]): 一批,本进程的那一份;分类是图像 [b, C, H, W] 和标签分布 [b, K]。
            lr (float): 这一步的学习率。
            stop, save (bool): 本进程想停下、想存检查点;只要有一个进程想,大家一起做。
        """
        task, images = self.task, self.task.size(batch)
        loss_sum, sums = 0.0, dict.fromkeys(task.measures, 0.0)
        for piece in task.split(batch, min(self.config.accumulate, images)):
            with autocast(self.precision):
                loss, measured = task.loss(self.model, *map(paddle.to_tensor, piece))
            count = task.size(piece)
            self.scaler.scale(loss * (count / images / self.world)).backward()  # 这一块在全部图像里所占的份额
            loss_sum += float(loss) * count
            sums = {name: sums[name] + float(measured[name]) for name in sums}
        totals = [loss_sum, images, stop, save, *sums.values()]
        if self.world > 1:
            totals = sum_gradients(self.trained, totals)
        total, seen, stops, saves, *all_sums = totals
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.trained, self.config.clip_grad or math.inf)
        step = Step(total / seen, dict(zip(sums, all_sums)), int(seen), norm, bool(stops), bool(saves))
        check_finite(self, step, batch, lr)
        self._update(lr)
        return step

    def _update(self, lr):
        p = self.progress
        measured = self.schedule.is_measured()
        if measured:
            self.health.before_update(self.model)
        self.optimizer.set_lr(lr)
        self.scaler.step(self.optimizer)
        if measured:
            self.health.after_update(self.model, p.epoch * self.steps_per_epoch + p.step, lr)
        self.scaler.update()
        self.optimizer.clear_grad(set_to_zero=False)
        self.ema.update()

    # ---- 一轮 ----

    def train_epoch(self, log, interrupted: Callable[[], bool]) -> None:
        """训练一轮,续训时是一轮剩下的部分;按了 Ctrl-C 就做完手上的一步,存检查点,抛出 ``KeyboardInterrupt``。"""
        p, config, task = self.progress, self.config, self.task
        self.model.train()
        batches = one_ahead(task.batches(p.epoch, p.step, self.rank, self.world))
        count, started = p.count, time.monotonic()
        asked = last_save = started
        while p.step < self.schedule.steps_this_epoch:
            batch = next(batches)
            ready = time.monotonic()
            seed_step(config.seed, p.epoch, p.step, self.rank)
            global_step = p.epoch * self.steps_per_epoch + p.step
            if p.step == 0 and self.schedule.is_now_and_then():
                log.pictures(task.batch_pictures(batch), p.epoch + 1)
            lr = self.schedule.rate(global_step)
            late = ready - last_save > config.checkpoint_minutes * 60
            step = self.train_step(batch, lr, interrupted(), late)
            p.add(step)
            self.health.step(global_step, step.loss, step.grad_norm)
            now = time.monotonic()
            p.spend(now - asked, ready - asked)
            self.schedule.after_step(now - asked, log)
            asked = now
            log.step(self, step, lr, (p.count - count) / (now - started))
            if self._must_stop(step.stop, interrupted):
                self.save(log)
                raise KeyboardInterrupt
            if step.save and p.step < self.schedule.steps_this_epoch:
                self.save(log)
                last_save = now

    def _must_stop(self, stop, interrupted):
        if self.world == 1:
            return stop or interrupted()
        if self.progress.step == self.schedule.steps_this_epoch:  # 最后一步之后没有下一步来传话
            (stop,) = sum_over_processes([float(interrupted())])
        return bool(stop)

    def validate(self, log) -> Result:
        """用 EMA 的权重评估验证集;不比以往差就存为最好的。隔一阵子画图。"""
        p = self.progress
        started = time.monotonic()
        with self.ema.applied():
            result = self.evaluate("val")
            evaluated = time.monotonic()
            self.keep_best(result)
            if self.rank == 0 and self.schedule.is_now_and_then(PICTURE_STEPS):
                log.pictures(self.task.pictures(self.model, result, "val", f"第 {p.epoch + 1} 轮"), p.epoch + 1)
        self.health.observe(self.task.observe(result))
        if self.schedule.is_now_and_then():
            log.histograms(self.model, p.epoch + 1)
            self.health.write()
        ended = time.monotonic()
        p.seconds += ended - started
        self.schedule.after_epoch(evaluated - started, ended - evaluated, log)
        return result

    def evaluate(self, part: str) -> Result:
        """用模型当前的权重评估 ``'val'`` 或 ``'test'`` 部分。"""
        with autocast(self.precision):
            return self.task.evaluate(self.model, part, self.rank, self.world)

    def keep_best(self, result: Result) -> None:
        """验证结果不比以往最好的差,就存下当前(EMA)的权重。"""
        p, name = self.progress, self.task.best
        if p.best_epoch and not self.task.is_better(result.measures[name], p.best[name]):
            return
        p.remember_best(result.measures, name)
        if self.rank == 0:
            save_best(self)

    # ---- 检查点 ----

    def save(self, log) -> None:
        """存续训状态;各进程的状态相同,由 0 号进程写。"""
        if self.rank == 0:
            write_checkpoint(self.directory / LAST, self, log.position())
        meet(f"saved {self.progress.epoch} {self.progress.step}", self.world)

    def restore(self) -> dict | None:
        """读回续训状态,返回记录写到了哪里;没有存过就从头开始,返回 ``None``。"""
        path = self.directory / LAST
        return read_checkpoint(path, self) if path.exists() else None


def fit(
    model: nn.Layer, task: Task, config: Config, directory, make_log: Callable, precision=None, rank=0, world=1
) -> dict:
    """整个训练:每轮训练、验证、存检查点;最后用最好的权重在测试集上评估一次,写 summary.json。

    目录里有检查点时接着训练,结果与从未中断的训练相同。

    Args:
        model, task, config, directory, precision, rank, world: 见 ``Trainer``。
        make_log (Callable): (每轮步数, 续训位置) -> ``RunLog``,或什么也不写的 ``NoLog``。

    Returns:
        dict: summary.json 的内容。

    Raises:
        UserError: 损失变成 NaN、检查点损坏、磁盘满等。
    """
    trainer = Trainer(model, task, config, directory, precision, rank, world)
    position = trainer.restore()
    if world > 1:
        share_weights(model)
    trainer.health.data(task)
    meet("examined data", world)
    trainer.health.watch(model)
    log = make_log(trainer.steps_per_epoch, position)
    try:
        log.start(trainer, position is not None)
        while not trainer.schedule.is_over:
            with deferred_interrupt() as interrupted:
                trainer.train_epoch(log, interrupted)
            result = trainer.validate(log)
            line = log.epoch(trainer, result)
            trainer.progress.start_epoch(trainer.progress.epoch + 1)
            trainer.save(log)
            log.say(line)
        return _finish(trainer, log)
    except NotFinite as error:
        trainer.health.stopped(error.where)
        raise
    finally:
        log.close()


def _finish(trainer, log):
    """用验证集上最好的权重在测试集上评估一次。"""
    p = trainer.progress
    trainer.health.write()
    if trainer.rank == 0:
        load_weights_into(trainer.model, trainer.directory / BEST)
    if trainer.world > 1:
        share_weights(trainer.model)  # 别的机器上没有这个文件
    result = trainer.evaluate("test")
    summary = save_summary(trainer, result)
    if trainer.rank == 0:
        log.pictures(trainer.task.pictures(trainer.model, result, "test", f"第 {p.best_epoch} 轮"), p.best_epoch)
    log.finish(trainer, summary)
    return summary
