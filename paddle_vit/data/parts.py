"""一部分数据:训练、验证或测试。小数据集整个放在内存里,图片文件由读取进程边训练边读。"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..checks import as_pair
from ..config import Config
from ..errors import UserError
from ..system.fitting import Fit, Size
from ..system.pictures import to_pillow
from .images import UnreadableImage, at_size, read_image
from .info import DataInfo
from .pixels import PixelMax
from .reading import ReaderDied, can_start_readers, read_batches
from .splits import SPLIT_SEED, Picture

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


class ArrayPart:
    """放在内存里的一部分数据。

    Args:
        images (ndarray): uint8,[n, H, W, C],原来的大小。
        labels (ndarray): int64,[n]。
        image_size (int | (int, int) | None): 取出时缩放到的边长或 (高, 宽),像素;``None`` 不缩放。
            放大后的图像不常驻内存。

    Attributes:
        fit (Fit): 怎样摆成这个大小。
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, image_size: Size | None = None):
        self.images, self.labels = images, np.asarray(labels, "int64")
        self.image_size: Size = image_size or images.shape[1]
        self.fit = Fit()

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
            ready = images.shape[1:3] == as_pair(self.image_size, "image_size") and self.fit.share == 1
            if rows is not None or not ready:
                place, each = (self.image_size, self.fit, config), itertools.repeat(None) if rows is None else rows
                images = np.stack([at_size(to_pillow(x), *place, row) for x, row in zip(images, each)])
            yield images

    def read(self, index: int) -> np.ndarray:
        """一张图像,uint8 [H, W, C]。"""
        return self.images[index]

    def chosen(self, indices: np.ndarray, labels: np.ndarray) -> ArrayPart:
        """只留下 indices 里的图像,标签换成 labels(与 indices 一一对应)。"""
        part = ArrayPart(self.images[indices], labels, self.image_size)
        part.fit = self.fit
        return part


class FilePart:
    """图片文件组成的一部分数据,由几个进程读取、缩放。

    Args:
        paths (list[Path]): 图片文件。
        labels (ndarray): int64,[n]。
        image_size (int | (int, int)): 缩放后的边长或 (高, 宽),像素。
        workers (int): 读取进程数;0 在主进程里读。
        channels (int): 通道数 C:1 读成灰度,3 读成 RGB,4 是四个通道。
        pixel_max (dict | None): 见 ``DataInfo.pixel_max``。
        full_range (bool): 灰度保留全部精度,像素是 float32,仍在 0–255。

    Attributes:
        fit (Fit): 怎样摆成这个大小。
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: np.ndarray,
        image_size: Size,
        workers: int,
        channels: int = 3,
        pixel_max: PixelMax = None,
        full_range: bool = False,
    ):
        self.paths, self.labels = list(paths), np.asarray(labels, "int64")
        self.image_size, self.workers = image_size, workers
        self.channels, self.pixel_max, self.full_range = channels, pixel_max, full_range
        self.config: Config | None = None
        self.fit = Fit()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, request):
        index, numbers = request
        image = read_image(self.paths[index], self.channels, self.pixel_max, self.full_range)
        try:
            return at_size(image, self.image_size, self.fit, self.config, numbers)
        except Exception as error:  # 大图缩放时内存不够,等等:说出是哪个文件
            raise UnreadableImage(self.paths[index], error) from error

    def fetch(
        self, requests: Sequence[tuple[np.ndarray, np.ndarray | None]], config: Config | None = None
    ) -> Iterator[np.ndarray]:
        """同 ``ArrayPart.fetch``。

        Raises:
            UserError: 有一张读不出来,或读取进程意外结束了。
        """
        self.config = config
        count = sum(len(indices) for indices, _ in requests)
        batches = [
            [(index, None if numbers is None else numbers[i]) for i, index in enumerate(indices)]
            for indices, numbers in requests
        ]
        if count >= FEW_IMAGES and self.workers and can_start_readers():
            results = read_batches(self._read_batch, batches, self.workers)
        else:
            results = map(self._read_batch, batches)
        try:
            for result in results:
                if isinstance(result, str):
                    raise UserError(result)
                yield result  # [b, H, W, C]
        except ReaderDied as error:
            first = self.paths[batches[error.batch][0][0]]
            why = f"被信号 {error.signal} 终止,多半是内存不够" if error.signal else "意外结束"
            raise UserError(
                f"读取图片的进程{why}(它正在读 {first} 等 {len(batches[error.batch])} 张):"
                "请减小 --workers 或 --batch-size,或先把大图片缩小。"
            ) from None

    def _read_batch(self, batch):
        """一批图像 [b, H, W, C];有一张读不出来时,是说明它的一行字(读取进程不能抛出异常)。"""
        try:
            return np.stack([self[request] for request in batch])
        except UserError as error:
            return str(error)
        except MemoryError:
            return "读一批图像时内存不够:请减小 --batch-size 或 --workers。"

    def read(self, index: int) -> np.ndarray:
        """一张图像,uint8 [H, W, C]。"""
        return self[index, None]

    def chosen(self, indices: np.ndarray, labels: np.ndarray) -> FilePart:
        """同 ``ArrayPart.chosen``。"""
        paths = [self.paths[i] for i in indices]
        pixels = self.channels, self.pixel_max, self.full_range
        part = FilePart(paths, labels, self.image_size, self.workers, *pixels)
        part.fit = self.fit
        return part


@dataclasses.dataclass(frozen=True)
class Data:
    """一个数据集:说明和三个部分(``ArrayPart`` 或 ``FilePart``)。

    Attributes:
        info (DataInfo): 说明。
        train, val, test (ArrayPart | FilePart): 三个部分。
        notes (tuple[str]): 读数据时要告诉使用者的,每项一句。
        pictures (tuple[Picture]): 自己的图片各在哪一部分,随运行保存;别的数据集没有。
    """

    info: DataInfo
    train: ArrayPart | FilePart
    val: ArrayPart | FilePart
    test: ArrayPart | FilePart
    notes: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def fitted(self, fit: Fit) -> Data:
        """同样的数据,图片换一种摆法;三个部分是就地改的。"""
        for part in (self.train, self.val, self.test):
            part.fit = fit
        return dataclasses.replace(self, info=dataclasses.replace(self.info, fit=fit))


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
