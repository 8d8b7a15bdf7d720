"""成批:训练的批(打乱、增强、混合)和评估的批(不打乱,一张不丢)。"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

import numpy as np

from ..config import Config
from ..errors import UserError
from .augment import NUMBERS, augment_batch, mix_batch, normalize
from .info import DataInfo
from .parts import ArrayPart, FilePart

__all__ = ["evaluation_batches", "one_ahead", "step_size", "training_batches"]

Item = TypeVar("Item")


def training_batches(
    part: ArrayPart | FilePart,
    config: Config,
    info: DataInfo,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """一轮训练的批,已增强、归一化、混合。

    第 epoch 轮第 step 步的一切随机数只由 (seed, epoch, step) 决定,所以能从任何一步接着来。
    整批先抽好数,第 rank 个进程取其中第 rank、rank + world、… 张,于是进程数不影响结果
    (mixup、cutmix 与隔半批的图像混合,批大小是 2 * world 的倍数时也不受影响)。
    最后不满一批的图像这一轮不用(每轮打乱,下一轮就用到);全部图像不足一批时,整个部分就是一批。

    Args:
        part (ArrayPart | FilePart): 训练部分,n 张。
        config (Config): 用到 seed、batch_size、accumulate、label_smoothing 和各种增强。
        info (DataInfo): 类别数、均值、标准差。
        epoch (int): 第几轮,从 0 起。
        start (int): 从第几步开始。
        rank, world (int): 本进程的序号和进程总数。

    Yields:
        tuple[ndarray, ndarray]: 图像 float32 [b, C, H, W] 和标签分布 float32 [b, K]。
    """
    batch = step_size(len(part), config, world)
    order = _rng(config.seed, "order", epoch).permutation(len(part))
    requests = []
    for step in range(start, len(part) // batch):
        indices = order[step * batch : (step + 1) * batch][rank::world]
        numbers = _rng(config.seed, "augment", epoch, step).random((batch, NUMBERS), "float32")[rank::world]
        requests.append((indices, numbers))
    smoothing, K = config.label_smoothing, len(info.classes)
    for step, (images, (indices, numbers)) in enumerate(zip(part.fetch(requests, config), requests), start):
        images = augment_batch(images, config, info.mean, info.std, numbers)  # [b, C, H, W]
        targets = np.eye(K, dtype="float32")[part.labels[indices]] * (1 - smoothing) + smoothing / K  # [b, K]
        mix_rng = _rng(config.seed, "mix", epoch, step)
        yield mix_batch(images, targets.astype("float32"), config.mixup, config.cutmix, mix_rng)


def _rng(seed, purpose, *position):
    """每种用途、每个位置各自独立的随机数发生器(NumPy 会在短的种子后面补零,所以用途放在位置之前)。"""
    return np.random.default_rng([seed, ("order", "augment", "mix").index(purpose) + 1, *position])


def step_size(count: int, config: Config, world: int = 1) -> int:
    """一轮有 count 张图像时,一次更新用多少张(所有进程合计)。

    是 batch_size * accumulate,图像不够时有多少用多少;取进程数的整数倍。
    """
    size = min(config.batch_size * config.accumulate, count)
    if size < world:
        raise UserError(f"每次更新只有 {size} 张图像,不够 {world} 个进程分:请减少进程,或加大 --batch-size。")
    return size - size % world


def evaluation_batches(
    part: ArrayPart | FilePart, info: DataInfo, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """依次给出第 rank、rank + world、… 张图像:(下标 [b], 图像 float32 [b, C, H, W])。不打乱,不增强,一张不丢。"""
    mine = np.arange(rank, len(part), world)
    requests = [(mine[i : i + batch_size], None) for i in range(0, len(mine), batch_size)]
    for (indices, _), images in zip(requests, part.fetch(requests)):
        yield indices, normalize(images, info.mean, info.std)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """逐个给出 items 里的各项;一项在用的时候,另一个线程取下一项。

    第一项由调用者的线程取:读取进程要在主线程里起动。中断时不等那个线程:它也许卡在读不完的文件上。
    """
    item = next(items, None)
    while item is not None:
        coming: Future = Future()
        thread = Thread(target=_take, args=(items, coming), daemon=True)
        thread.start()
        try:
            yield item
        except GeneratorExit:
            thread.join(1)  # 秒;一般马上就完,读取进程随之结束
            raise
        item = coming.result()


def _take(items, coming):
    """取下一项,没有了是 ``None``;异常留给等它的线程。"""
    try:
        coming.set_result(next(items, None))
    except BaseException as error:  # noqa: BLE001  在等它的线程里再抛出
        coming.set_exception(error)
