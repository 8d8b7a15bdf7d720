"""一部分数据:训练、验证或测试。小数据集整个放在内存里,图片文件由读取进程边训练边读。"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..config import Config
from ..errors import UserError
from ..system.pictures import to_pillow
from ..system.shared_memory import shared_memory_room, workers_can_start
from .images import at_size, read_image
from .info import DataInfo

__all__ = [
    "FEW_IMAGES",
    "SPLIT_SEED",
    "ArrayPart",
    "Data",
    "FilePart",
    "pixel_statistics",
    "rounded",
    "stratified_split",
    "varied_images",
    "varied_indices",
]


FEW_IMAGES = 500  # 一遍少于这么多张时,起动读取进程的时间比读图还长,就在主进程里读


SPLIT_SEED = 0  # 分出验证集、测试集的种子,固定不变:换训练种子时各部分的图像不变


class ArrayPart:
    """放在内存里的一部分数据。

    Args:
        images (ndarray): uint8,[n, H, W, C],原来的大小。
        labels (ndarray): int64,[n]。
        image_size (int | None): 取出时缩放到的边长,像素;``None`` 不缩放。放大后的图像不常驻内存。
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, image_size: int | None = None):
        self.images, self.labels = images, np.asarray(labels, "int64")
        self.image_size = image_size or images.shape[1]

    def __len__(self):
        return len(self.labels)

    def fetch(
        self, requests: Sequence[tuple[np.ndarray, np.ndarray | None]], config: Config | None = None
    ) -> Iterator[np.ndarray]:
        """按 ``requests`` 逐批取图像:每项是 (下标 [b], 随机数 [b, NUMBERS] 或 ``None``),得到 uint8 [b, H, W, C]。"""
        for indices, numbers in requests:
            images = self.images[indices]  # [b, H, W, C]
            augment = config is not None and (config.rand_augment or config.crop_scale < 1)
            rows = numbers if augment else None
            if rows is not None or images.shape[1:3] != (self.image_size, self.image_size):
                size, each = self.image_size, itertools.repeat(None) if rows is None else rows
                images = np.stack([at_size(to_pillow(x), size, config, row) for x, row in zip(images, each)])
            yield images

    def read(self, index: int) -> np.ndarray:
        """一张图像,uint8 [H, W, C]。"""
        return self.images[index]

    def chosen(self, indices: np.ndarray, labels: np.ndarray) -> ArrayPart:
        """只留下 indices 里的图像,标签换成 labels(与 indices 一一对应)。"""
        return ArrayPart(self.images[indices], labels, self.image_size)


@dataclasses.dataclass(frozen=True)
class BadImage:
    """读取进程里读不出来的图片,代替像素带回主进程。"""

    reason: str


class FilePart(paddle.io.Dataset):
    """图片文件组成的一部分数据,由 ``paddle.io.DataLoader`` 的进程读取、缩放。

    Args:
        paths (list[Path]): 图片文件。
        labels (ndarray): int64,[n]。
        image_size (int): 缩放后的边长,像素。
        workers (int): 读取进程数。
        channels (int): 通道数 C:1 读成灰度,3 读成 RGB。
    """

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, image_size: int, workers: int, channels: int = 3):
        super().__init__()
        self.paths, self.labels = list(paths), np.asarray(labels, "int64")
        self.image_size, self.workers, self.channels = image_size, workers, channels
        self.config: Config | None = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, request):
        index, numbers = request
        try:
            image = read_image(self.paths[index], self.channels)
        except UserError as error:  # 在读取进程里抛出会变成一屏调用栈,带回主进程再抛
            return BadImage(str(error))
        return at_size(image, self.image_size, self.config, numbers)

    def fetch(
        self, requests: Sequence[tuple[np.ndarray, np.ndarray | None]], config: Config | None = None
    ) -> Iterator[np.ndarray]:
        """同 ``ArrayPart.fetch``。"""
        self.config = config
        count = sum(len(indices) for indices, _ in requests)
        workers = self.workers if count >= FEW_IMAGES and workers_can_start() else 0
        batch = max((len(indices) for indices, _ in requests), default=0)
        # 每个进程先读好两批,主进程手上还有两批;一张图像另占不到一页(4096 字节)。放宽一倍
        needed = 2 * (2 * workers + 2) * batch * (self.image_size**2 * self.channels + 4096)
        batches: Any = [
            [(index, None if numbers is None else numbers[i]) for i, index in enumerate(indices)]
            for indices, numbers in requests
        ]
        loader = paddle.io.DataLoader(
            self,
            batch_sampler=batches,
            collate_fn=list,  # type: ignore[arg-type]
            num_workers=workers,
            use_shared_memory=needed <= shared_memory_room(),  # 放不下时经管道交过来,慢一点
            return_list=True,
        )
        for batch in loader:
            for image in batch:
                if isinstance(image, BadImage):
                    raise UserError(image.reason)
            yield np.stack([np.asarray(image) for image in batch])  # [b, H, W, C]

    def read(self, index: int) -> np.ndarray:
        """一张图像,uint8 [H, W, C]。"""
        return at_size(read_image(self.paths[index], self.channels), self.image_size)

    def chosen(self, indices: np.ndarray, labels: np.ndarray) -> FilePart:
        """同 ``ArrayPart.chosen``。"""
        return FilePart([self.paths[i] for i in indices], labels, self.image_size, self.workers, self.channels)


@dataclasses.dataclass(frozen=True)
class Data:
    """一个数据集:说明和三个部分(``ArrayPart`` 或 ``FilePart``)。"""

    info: DataInfo
    train: ArrayPart | FilePart
    val: ArrayPart | FilePart
    test: ArrayPart | FilePart


def stratified_split(labels: np.ndarray, fraction: float, seed: int = SPLIT_SEED) -> tuple[np.ndarray, np.ndarray]:
    """按类别成比例地分成两部分。

    Args:
        labels (ndarray): [n]。
        fraction (float): 第二部分所占的比例;每类至少分出一张。
        seed (int): 随机种子。

    Returns:
        tuple[ndarray, ndarray]: 两部分的下标,各自升序。

    Raises:
        UserError: 某一类的图像太少,分不出来。
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        if len(indices) < 2:
            raise UserError(f"第 {label} 类只有 {len(indices)} 张图像,分不出验证集:每类至少要有 3 张,请补充图片。")
        chosen.append(indices[: max(1, round(len(indices) * fraction))])
    second = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(labels)), second), second


def varied_indices(labels: np.ndarray, count: int) -> np.ndarray:
    """固定的 count 张,各类轮流:先是每类的第一张,再是每类的第二张……不够时给出全部。

    Args:
        labels (ndarray): [n]。
        count (int): 要几张。

    Returns:
        ndarray: 下标,[min(count, n)]。
    """
    labels = np.asarray(labels)
    turns = np.zeros(len(labels), int)  # 每张是它那一类的第几张
    for label in np.unique(labels):
        turns[labels == label] = np.arange((labels == label).sum())
    return np.lexsort((labels, turns))[:count]


def varied_images(part: ArrayPart | FilePart, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``varied_indices`` 的那几张:(下标 [b], 图像 uint8 [b, H, W, C])。"""
    indices = varied_indices(part.labels, count)
    (images,) = part.fetch([(indices, None)])  # [b, H, W, C]
    return indices, images


def pixel_statistics(part: ArrayPart | FilePart) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """一部分图像每个通道的均值和标准差(像素按 0–1),两个元组。"""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for images in part.fetch([(batch, None) for batch in np.array_split(np.arange(len(part)), -(-len(part) // 64))]):
        pixels = images.reshape(-1, images.shape[-1]).astype("float64") / 255  # [b * H * W, C]
        count, total, squares = count + len(pixels), total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = total / count  # [C]
    return rounded(mean, np.sqrt(np.maximum(squares / count - mean**2, 0)))


def rounded(mean: Iterable[float], std: Iterable[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(round(float(m), 6) for m in mean), tuple(round(max(float(s), 1e-3), 6) for s in std)
