"""评估:逐张的损失和前几名,各种指标都由它们算出。"""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ..data.batches import evaluation_batches
from ..data.info import DataInfo
from ..data.parts import ArrayPart, FilePart
from ..system.processes import all_reduce

__all__ = ["Evaluation", "evaluate"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """逐张的评估结果,各种指标都由它算出。

    Attributes:
        labels (ndarray): int64,[n],真实类别。
        losses (ndarray): float32,[n],交叉熵(不含标签平滑)。
        classes (ndarray): int64,[n, k],概率最大的 k 个类别,k = min(5, 类别数)。
        probabilities (ndarray): float32,[n, k],它们的概率。
    """

    labels: np.ndarray
    losses: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    @property
    def measures(self) -> dict[str, float]:
        """各种指标(字典):loss、top1、top5、top1_balanced。"""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, "top1_balanced": self.top1_balanced}

    @property
    def loss(self) -> float:
        """平均损失。"""
        return float(self.losses.mean())

    @property
    def top1(self) -> float:
        """第一名就是真实类别的比例,0–1。"""
        return float((self.classes[:, 0] == self.labels).mean())

    @property
    def top5(self) -> float:
        """前五名(类别不足五个时是全部)里有真实类别的比例,0–1。"""
        return float((self.classes == self.labels[:, None]).any(axis=1).mean())

    @property
    def top1_balanced(self) -> float:
        """平衡正确率(balanced accuracy):各类召回率的平均,0–1;每一类一样重,不管它有几张。"""
        return float(np.nanmean(self.recall(int(self.labels.max()) + 1)))

    def recall(self, num_classes: int) -> np.ndarray:
        """各类的召回率(recall):这一类的图像对了几成,[K];没有图像的类是 NaN。"""
        totals = np.bincount(self.labels, minlength=num_classes)  # [K]
        right = np.bincount(self.labels[self.classes[:, 0] == self.labels], minlength=num_classes)  # [K]
        return np.where(totals, right / np.maximum(totals, 1), np.nan)

    def confusion(self, num_classes: int) -> np.ndarray:
        """混淆矩阵,int [K, K],行是真实类别,列是预测类别。"""
        matrix = np.zeros((num_classes, num_classes), int)
        np.add.at(matrix, (self.labels, self.classes[:, 0]), 1)
        return matrix

    def worst(self, count: int) -> np.ndarray:
        """判错的图像里,预测概率最高的几张的下标。"""
        wrong = np.flatnonzero(self.classes[:, 0] != self.labels)
        return wrong[np.argsort(-self.probabilities[wrong, 0], kind="stable")][:count]


@paddle.no_grad()
def evaluate(
    model: nn.Layer, part: ArrayPart | FilePart, info: DataInfo, batch_size: int, rank: int = 0, world: int = 1
) -> Evaluation:
    """在一部分数据上评估;多进程时各算一份,每张图像恰好算一次。

    Args:
        model (nn.Layer): 图像 [B, C, H, W] -> logits [B, K]。
        part (ArrayPart | FilePart): 数据,n 张。
        info (DataInfo): 均值、标准差、类别。
        batch_size (int): 每批多少张。
        rank, world (int): 本进程的序号和进程总数。

    Returns:
        Evaluation
    """
    was_training = model.training
    model.eval()
    k = min(5, len(info.classes))
    results = np.zeros((len(part), 1 + 2 * k), "float32")  # 每张:损失、k 个类别、k 个概率
    for indices, images in evaluation_batches(part, info, batch_size, rank, world):
        logits = model(paddle.to_tensor(images)).astype("float32")  # [b, K]
        labels = paddle.to_tensor(part.labels[indices])  # [b]
        losses = F.cross_entropy(logits, labels, reduction="none")  # [b, 1] 或 [b]
        probabilities, classes = F.softmax(logits).topk(k)  # 各 [b, k]
        results[indices, 0] = losses.numpy().reshape(-1)
        results[indices, 1 : 1 + k] = classes.numpy()
        results[indices, 1 + k :] = probabilities.numpy()
    if world > 1:
        shared = paddle.to_tensor(results)
        all_reduce(shared)  # 各进程的非零行互不重叠,相加就是合并
        results = shared.numpy()
    if was_training:
        model.train()
    return Evaluation(part.labels, results[:, 0], results[:, 1 : 1 + k].astype("int64"), results[:, 1 + k :])
