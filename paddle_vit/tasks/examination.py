"""训练之前看一看带标签的图像:像素的统计,标签的分布,标签与图像有没有关系。体检(doctor)要用。"""

from __future__ import annotations

import numpy as np

from ..config import Config
from ..data.batches import first_pixels
from ..data.parts import Data

__all__ = ["examine", "neighbour_top1"]

SAMPLE = 256  # 抽查这么多张训练图像:近邻正确率的标准误不到 3 个百分点,读它们的时间只是一轮的零头


def examine(data: Data, config: Config) -> dict:
    """抽查训练图像(未增强、未归一化)、最先用到的两批和两部分的标签;结果记进 health.json。"""
    num_classes = len(data.info.classes)
    counts = {
        name: np.bincount(part.labels, minlength=num_classes).tolist()
        for name, part in (("train", data.train), ("val", data.val))
    }
    chosen = np.random.default_rng(0).permutation(len(data.train))[:SAMPLE]
    images = np.concatenate(list(data.train.fetch([(chosen, None)])))  # [n, H, W, C]
    labels = data.train.labels[chosen]  # [n]
    shares = np.bincount(labels) / len(labels)
    values = _thinned(images).astype("float64")
    sample = {
        "images": len(images),
        "dtype": str(images.dtype),
        "min": values.min(),
        "max": values.max(),
        "mean": values.mean(axis=(0, 1, 2)).tolist(),
        "std": values.std(axis=(0, 1, 2)).tolist(),
        "neighbour_top1": neighbour_top1(images, labels),
        "chance": float((shares**2).sum()),
    }
    expected = {
        part: {"mean": pixels.mean(axis=(0, 2, 3)).tolist(), "std": pixels.std(axis=(0, 2, 3)).tolist()}
        for part, pixels in first_pixels(data, config).items()
    }
    return {"labels": counts, "sample": sample, "expected": expected}


def _thinned(images):
    """大图隔几个像素取一个,得到 16 x 16 到 31 x 31:算统计量和找近邻都够了。"""
    stride = max(1, images.shape[1] // 16)
    return images[:, ::stride, ::stride]


def neighbour_top1(images: np.ndarray, labels: np.ndarray) -> float:
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
