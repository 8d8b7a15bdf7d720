"""图像分类(image classification),第一个任务;有老师时的蒸馏是它的另一种目标。"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import paddle.nn.functional as F

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

__all__ = ["Classification", "label_objective"]

_PART_NAMES = {"train": "训练集", "val": "验证集", "test": "测试集"}


def label_objective(model, images, targets):
    """没有老师时的目标:对标签的交叉熵;模型有两个头时,用它们的平均,与预测时相同。

    Args:
        model (nn.Layer): 图像 -> logits。
        images (Tensor): [B, C, H, W]。
        targets (Tensor): 标签分布,[B, K]。

    Returns:
        tuple[Tensor, Tensor]: 预测用的 logits [B, K] 和损失(一个数)。
    """
    logits = model(images)  # [B, K]
    return logits, F.cross_entropy(logits.astype("float32"), targets, soft_label=True)


class Classification(Task):
    """图像分类:交叉熵,top-1 正确率最高的一轮最好。

    Args:
        data (Data), config (Config): 见 ``Task``。
        objective (Callable): ``(model, images, targets) -> (logits, loss)``:``label_objective``,或有老师的
            ``Distillation``。
    """

    measures: ClassVar = {"top1": Measure("top-1", ".2%")}
    best = "top1"

    def __init__(self, data: Data, config, objective=label_objective):
        super().__init__(data, config)
        self.objective = objective

    def loss(self, model, images, targets):
        logits, loss = self.objective(model, images, targets)  # [B, K] 和一个数
        return loss, {"top1": int((logits.argmax(-1) == targets.argmax(-1)).sum())}

    def describe(self):
        lines, config = super().describe(), self.config
        if config.distillation_kind != "none":
            share = f"损失占 {config.distillation_alpha:.0%}"
            lines.append(f"蒸馏({config.distillation_kind}):老师 {config.teacher},{share}")
        return lines

    def evaluate(self, model, part, rank=0, world=1):
        return evaluate(model, getattr(self.data, part), self.info, self.config.batch_size, rank, world)

    def batch_pictures(self, batch):
        images = batch[0][:32]  # [32, C, H, W]
        return [Picture("train/images", to_pixels(images, self.info.mean, self.info.std))]

    def pictures(self, model, result, part, title):
        return [*(self._attention(model, title) if part == "val" else ()), *self.result_pictures(result, part)]

    def result_pictures(self, result: Evaluation, part: str) -> Iterator[Picture]:
        """一部分(train、val 或 test)的评估结果:混淆矩阵,和错得最离谱的图像。"""
        name, classes = _PART_NAMES[part], self.info.classes
        heading = f"{name}混淆矩阵,top-1 {result.top1:.2%}"
        figure = confusion_figure(result.confusion(len(classes)), classes, heading)
        yield Picture(f"{part}/confusion", figure, f"confusion_{part}.png")
        worst = result.worst(18)
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
        return examine(self.data)

    def observe(self, result):
        """验证集上各类各预测了多少张。"""
        return {"predicted": np.bincount(result.classes[:, 0], minlength=len(self.info.classes)).tolist()}
