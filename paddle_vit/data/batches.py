"""成批:训练的批(打乱、增强、混合)和评估的批(不打乱,一张不丢)。"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

import numpy as np

from ..config import Config
from ..errors import UserError
from .augment import NUMBERS, augment_batch, augment_pixels, mix_batch, normalize, random_erasing
from .info import DataInfo
from .parts import ArrayPart, Data, FilePart

__all__ = ["evaluation_batches", "first_pixels", "one_ahead", "step_size", "training_batches"]

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
    各类一样多地抽(``balanced_sampling``)时,少的类一轮里有重复,多的类下一轮接着抽别的。

    Args:
        part (ArrayPart | FilePart): 训练部分,n 张。
        config (Config): 用到 seed、batch_size、accumulate、label_smoothing、balanced_sampling 和各种增强。
        info (DataInfo): 类别数、均值、标准差。
        epoch (int): 第几轮,从 0 起。
        start (int): 从第几步开始。
        rank, world (int): 本进程的序号和进程总数。

    Yields:
        tuple[ndarray, ndarray]: 图像 float32 [b, C, H, W] 和标签分布 float32 [b, K]。
    """
    batch, order = step_size(len(part), config, world), _order(part, config, epoch)
    requests = []
    for step in range(start, len(part) // batch):
        indices, numbers = _request(order, config, epoch, step, batch)
        requests.append((indices[rank::world], numbers[rank::world]))
    smoothing, K = config.label_smoothing, len(info.classes)
    for step, (images, (indices, numbers)) in enumerate(zip(part.fetch(requests, config), requests), start):
        images = augment_batch(images, config, info.mean, info.std, numbers)  # [b, C, H, W]
        targets = np.eye(K, dtype="float32")[part.labels[indices]] * (1 - smoothing) + smoothing / K  # [b, K]
        mix_rng = _rng(config.seed, "mix", epoch, step)
        yield mix_batch(images, targets.astype("float32"), config.mixup, config.cutmix, mix_rng)


def _order(part, config, epoch):
    """第 epoch 轮依次用哪些图像(下标)。"""
    rng = _rng(config.seed, "order", epoch)
    if not config.balanced_sampling:
        return rng.permutation(len(part))
    places = [np.flatnonzero(part.labels == label) for label in np.unique(part.labels)]
    each = -(-len(part) // len(places))  # 每类抽这么多张;抽完了自己的,重新打乱再抽
    drawn = [np.concatenate([rng.permutation(place) for _ in range(-(-each // len(place)))])[:each] for place in places]
    return rng.permutation(np.concatenate(drawn))[: len(part)]


def _request(order, config, epoch, step, batch):
    """第 step 步的图像的下标 [batch],和每张增强用的随机数 [batch, NUMBERS]。"""
    numbers = _rng(config.seed, "augment", epoch, step).random((batch, NUMBERS), "float32")
    return order[step * batch : (step + 1) * batch], numbers


def first_pixels(data: Data, config: Config) -> dict[str, np.ndarray]:
    """模型最先看到的一批训练图像和一批验证图像,同样地增强、混合过,只是没有归一化;体检用它们核对归一化。

    Args:
        data (Data): 三部分数据。
        config (Config): 见 ``training_batches``。

    Returns:
        dict[str, ndarray]: ``'train'`` 和 ``'val'``,[b, C, H, W],像素按 0–1。
    """
    mean = np.asarray(data.info.mean, "float32")[:, None, None]  # [C, 1, 1]
    request = _request(_order(data.train, config, 0), config, 0, 0, step_size(len(data.train), config))
    indices, numbers = request
    (images,) = data.train.fetch([request], config)  # [b, H, W, C]
    pixels = augment_pixels(images, config, numbers)
    pixels = (pixels.transpose(0, 3, 1, 2) / 255).astype("float32") - mean  # [b, C, H, W],0 是平均颜色
    if config.random_erasing:
        pixels = random_erasing(pixels, config.random_erasing, numbers[:, -5:])
    no_targets, mix_rng = np.zeros((len(indices), 1), "float32"), _rng(config.seed, "mix", 0, 0)
    pixels, _ = mix_batch(pixels, no_targets, config.mixup, config.cutmix, mix_rng)
    (plain,) = data.val.fetch([(np.arange(min(config.batch_size, len(data.val))), None)])  # [b, H, W, C]
    return {"train": pixels + mean, "val": plain.transpose(0, 3, 1, 2) / 255}


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
