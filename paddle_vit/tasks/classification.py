"""图像分类(image classification),第一个任务;有老师时的蒸馏是它的另一种目标。"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ..attention.figures import heads_figure, maps_figure
from ..attention.maps import rollout, token_map
from ..attention.recording import attention_weights, can_show_attention
from ..data.augment import normalize, to_pixels
from ..data.parts import Data, varied_indices
from ..system.files import quoted
from ..system.pictures import confusion_figure, mistakes_figure
from .evaluation import Evaluation, evaluate
from .examination import examine
from .task import Measure, Picture, Task

__all__ = ["Classification", "balanced_weights", "label_loss", "label_objective"]

_PART_NAMES = {"train": "训练集", "val": "验证集", "test": "测试集"}
_MOST_CURVES = 20  # 类不多于它时,VisualDL 里每类有一条召回率的曲线


def balanced_weights(labels: np.ndarray, num_classes: int) -> paddle.Tensor:
    """各类的权重,与张数成反比:总张数 / (有图像的类数 * 这一类的张数);一张图像平均是 1。没有图像的类是 0。

    Args:
        labels (ndarray): 训练图像的标签,[n]。
        num_classes (int): 类别数 K。

    Returns:
        Tensor: float32,[K]。
    """
    counts = np.bincount(labels, minlength=num_classes)  # [K]
    weights = np.where(counts, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0)
    return paddle.to_tensor(weights.astype("float32"))


def label_loss(logits: paddle.Tensor, targets: paddle.Tensor, weights: paddle.Tensor | None = None) -> paddle.Tensor:
    """对标签分布的交叉熵,整批的平均。

    Args:
        logits (Tensor): [B, K]。
        targets (Tensor): 标签分布,[B, K]。
        weights (Tensor | None): 各类的权重 [K];一张图像的损失乘以它的标签分布下的平均权重。

    Returns:
        Tensor: 一个数。
    """
    if weights is None:
        return F.cross_entropy(logits.astype("float32"), targets, soft_label=True)
    losses = F.cross_entropy(logits.astype("float32"), targets, soft_label=True, reduction="none")  # [B, 1]
    return (losses.squeeze(-1) * paddle.matmul(targets, weights)).mean()


def label_objective(
    model: nn.Layer, images: Tensor, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """没有老师时的目标:对标签的交叉熵;模型有两个头时,用它们的平均,与预测时相同。

    Args:
        model (nn.Layer): 图像 -> logits。
        images (Tensor): [B, C, H, W]。
        targets (Tensor): 标签分布,[B, K]。
        weights (Tensor | None): 见 ``label_loss``。

    Returns:
        tuple[Tensor, Tensor]: 预测用的 logits [B, K] 和损失(一个数)。
    """
    logits = model(images)  # [B, K]
    return logits, label_loss(logits, targets, weights)


class Classification(Task):
    """图像分类:交叉熵,top-1 正确率最高的一轮最好;照顾少的类时,是平衡正确率最高的一轮。

    Args:
        data (Data), config (Config): 见 ``Task``。
        objective (Callable): ``(model, images, targets) -> (logits, loss)``:``label_objective``,或有老师的
            ``Distillation``。
    """

    measures: ClassVar = {"top1": Measure("top-1", ".2%")}
    evaluated: ClassVar = {"top1_balanced": Measure("平衡正确率", ".2%")}
    best = "top1"

    def __init__(self, data: Data, config, objective=label_objective):
        super().__init__(data, config)
        self.objective = objective
        self._balances = config.class_weights != "none" or config.balanced_sampling
        if self._balances:
            self.best = "top1_balanced"

    def loss(self, model, images, targets):
        logits, loss = self.objective(model, images, targets)  # [B, K] 和一个数
        return loss, {"top1": int((logits.argmax(-1) == targets.argmax(-1)).sum())}

    def describe(self):
        lines, config = super().describe(), self.config
        if self._balances:
            counts = np.bincount(self.data.train.labels, minlength=len(self.info.classes))
            how = "少的类在损失里加重" if config.class_weights != "none" else "各类抽一样多"
            lines.append(f"训练图像最多的类 {counts.max()} 张,最少的 {counts.min()} 张:{how},由平衡正确率选最好的一轮")
        if config.distillation_kind != "none":
            share = f"损失占 {config.distillation_alpha:.0%}"
            lines.append(f"蒸馏({config.distillation_kind}):老师 {config.teacher},{share}")
        return lines

    def evaluate(self, model, part, rank=0, world=1):
        return evaluate(model, getattr(self.data, part), self.info, self.config.batch_size, rank, world)

    def curves(self, result):
        classes = self.info.classes
        recall = result.recall(len(classes)) if len(classes) <= _MOST_CURVES else []
        return {f"recall/{name}": float(value) for name, value in zip(classes, recall) if not np.isnan(value)}

    def batch_pictures(self, batch):
        images = batch[0][:32]  # [32, C, H, W]
        return [Picture("train/images", to_pixels(images, self.info.mean, self.info.std))]

    def pictures(self, model, result, part, title):
        return [*(self._attention(model, title) if part == "val" else ()), *self.result_pictures(result, part)]

    def result_pictures(self, result: Evaluation, part: str) -> Iterator[Picture]:
        """一部分(train、val 或 test)的评估结果:混淆矩阵,和错得最离谱的图像。"""
        name, classes = _PART_NAMES[part], self.info.classes
        heading = f"{name}混淆矩阵,top-1 {result.top1:.2%}"
        confusion = confusion_figure(result.confusion(len(classes)), classes, heading)
        yield Picture(f"{part}/confusion", confusion, f"confusion_{part}.png")
        worst, figure = result.worst(18), None  # 全对了就没有图
        if len(worst):
            images = [getattr(self.data, part).read(i) for i in worst]
            predicted, probability = result.classes[worst, 0], result.probabilities[worst, 0]
            guesses = [*zip(result.labels[worst], predicted, probability)]
            figure = mistakes_figure(images, guesses, classes, f"{name}上错得最离谱的图像(真实 → 预测)")
        yield Picture(f"{part}/mistakes", figure, f"mistakes_{part}.png")

    def _attention(self, model, title):
        """固定的几张验证图像的注意力:第一张各层各头的权重,和每张的 rollout;Swin 和自己写的模型没有。"""
        val, info = self.data.val, self.info
        indices = varied_indices(val.labels, self.config.attention_images)
        if not len(indices) or not can_show_attention(model):
            return
        (images,) = val.fetch([(indices, None)])  # uint8 [b, H, W, C]
        inputs = normalize(images, info.mean, info.std)  # [b, C, H, W]
        maps = []
        for i in range(len(indices)):  # 一张一张来:权重是 [L, 1, h, N, N],图块多时很大
            weights = attention_weights(model, inputs[i : i + 1])
            maps.append(token_map(rollout(weights), model))
            if i == 0:
                yield Picture("attention/heads", heads_figure(weights[:, 0], model, images[0]))
        names = [info.classes[label] for label in val.labels[indices]]
        figure = maps_figure(images, {"rollout": np.concatenate(maps)}, names, f"{title}看图像的哪里")
        yield Picture("attention/rollout", figure)

    def next_steps(self, directory: Path, summary: dict, own_model: bool) -> list[str]:
        chance, val, test = 1 / len(self.info.classes), len(self.data.val), len(self.data.test)
        top1 = (summary["val_top1"] * val + summary["test_top1"] * test) / (val + test)  # 测试部分也许只有几张
        steps = [] if own_model else [f"给图片分类:python scripts/predict.py {quoted(directory)} 图片.png"]
        steps += super().next_steps(directory, summary, own_model)
        if top1 <= chance + 3 * math.sqrt(chance * (1 - chance) / (val + test)):
            steps.append(f"正确率和猜差不多。找原因:python scripts/doctor.py {quoted(directory)}")
        return steps

    def examine(self):
        return examine(self.data, self.config)

    def observe(self, result):
        """验证集上各类各预测了多少张,对了多少张。"""
        confusion = result.confusion(len(self.info.classes))  # [K, K]
        return {"predicted": confusion.sum(axis=0).tolist(), "right": confusion.diagonal().tolist()}
