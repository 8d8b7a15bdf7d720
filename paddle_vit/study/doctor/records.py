"""一个运行目录里的全部记录,和一个发现的样子。"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from ...config import Config
from ...config_files import load_config
from ...data.batches import step_size
from ...data.info import DataInfo, load_info
from ...errors import UserError
from ...runs.directory import is_in_use
from ...runs.logs import load_metrics
from ...system.files import read_json
from ...system.run_files import DATA, INIT, SUMMARY
from ...training.health import load_health

__all__ = ["Finding", "Run", "balancing_advice", "load_records"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """一个发现。

    Attributes:
        name (str): 名字。
        evidence (str): 证据,带数字。
        why (str): 原因。
        advice (str): 可以试的办法:命令行参数或要检查的代码。
        explains_failure (bool): 单凭它就会学不会;这时不再找别的病因。
    """

    name: str
    evidence: str
    why: str
    advice: str
    explains_failure: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """一个运行目录里的全部记录。

    Attributes:
        directory (Path): 运行目录。
        config (Config), info (DataInfo): 设置和数据集的说明。
        metrics (list[dict]): 每轮一项。
        health (dict): health.json;没有时是空的。
        summary (dict | None): 训练完才有。
        init (dict | None): 微调才有:source、loaded、fresh。
        running (bool): 现在正在训练。
    """

    directory: Path
    config: Config
    info: DataInfo
    metrics: list[dict]
    health: dict
    summary: dict | None
    init: dict | None
    running: bool

    @property
    def chance_loss(self) -> float:
        """瞎猜(各类概率相等)的交叉熵:ln(类别数);标签平滑和 mixup 都不改变它。"""
        return math.log(len(self.info.classes))

    @property
    def chance_top1(self) -> float:
        """总猜验证集里最多的那一类能对多少,0–1。"""
        counts = self.health.get("labels", {}).get("val")
        return max(counts) / sum(counts) if counts else 1 / len(self.info.classes)

    @property
    def steps_per_epoch(self) -> int:
        images = self.info.counts["train"]
        return images // step_size(images, self.config)

    @property
    def total_steps(self) -> int:
        """做完的各轮一共更新了多少次。"""
        return len(self.metrics) * self.steps_per_epoch

    def late(self, name: str) -> float:
        """一个指标在最后五分之一轮里的平均;单独一轮会有起伏。"""
        return float(np.mean([line[name] for line in self.metrics[-max(1, len(self.metrics) // 5) :]]))

    def is_chance(self, top1: float) -> bool:
        """这个验证正确率是否与瞎猜没有区别:没有超过瞎猜加三个标准误(偶然超过的概率约千分之一)。"""
        chance = self.chance_top1
        return top1 <= chance + 3 * math.sqrt(chance * (1 - chance) / self.info.counts["val"])

    @property
    def poor(self) -> bool:
        """结果很差:最后几轮的验证正确率还没走完从瞎猜到全对的一半,或不如拿像素最接近的训练图像的标签当预测。"""
        top1, chance = self.late("val_top1"), self.chance_top1
        if top1 < (chance + 1) / 2:
            return True
        sample = self.health.get("sample")
        if sample is None:
            return False
        pixels = sample["neighbour_top1"]  # 只用抽查的二百来张;学好了的模型看过全部训练图像,应当更好
        # 两个正确率都有偶然的起伏;差两个标准误以上才算
        variance = pixels * (1 - pixels) / sample["images"] + top1 * (1 - top1) / self.info.counts["val"]
        return top1 < pixels - 2 * math.sqrt(variance)

    @property
    def failed(self) -> bool:
        """最后几轮的验证正确率没有超过瞎猜;验证集太小、看不出来时不算。"""
        return self.is_chance(self.late("val_top1")) and not self.is_chance(0.9)


def balancing_advice(run: Run) -> str:
    """类别不平衡时可以试的;已经用着的不再说。"""
    if run.config.class_weights == "balanced" or run.config.balanced_sampling:
        return "已经在照顾少的类了,还要给它们补图像,或加强增强"
    return "--class-weights balanced(少的类在损失里加重)和 --balanced-sampling(每轮各类抽一样多)各试一次;给少的类补图像"


def load_records(directory: str | Path) -> Run:
    """读一个运行目录里的全部记录。

    Args:
        directory (str | Path): 运行目录。

    Returns:
        Run

    Raises:
        UserError: 不是运行目录,或文件损坏。
    """
    directory = Path(directory)
    config, info = load_config(directory), load_info(directory / DATA)
    health = load_health(directory) or {}
    if not _is_about(health, info):
        raise UserError(f"{directory / 'health.json'} 与 data.json 对不上:请删除它再试,少了它只是有几项查不了。")
    return Run(
        directory,
        config,
        info,
        load_metrics(directory, ("train_top1", "val_top1")),
        health,
        read_json(directory / SUMMARY),
        read_json(directory / INIT, {"source": str, "fresh": [str]}),
        is_in_use(directory),
    )


def _is_about(health, info):
    """体检记录里的类别数、通道数是不是这个数据集的,各项是不是有内容、在合理的范围里。"""
    counts = [*health.get("labels", {}).values()] + ([health["predicted"]] if "predicted" in health else [])
    if not all(len(count) == len(info.classes) and min(count) >= 0 and sum(count) for count in counts):
        return False
    if "right" in health and not (len(health["right"]) == len(info.classes) and min(health["right"]) >= 0):
        return False
    sample, first = health.get("sample"), health.get("first_steps")
    pictures = [*health.get("seen", {}).values(), *health.get("expected", {}).values()] + ([sample] if sample else [])
    if not all(len(picture[name]) == info.channels for picture in pictures for name in ("mean", "std")):
        return False
    if sample and not (sample["images"] > 0 and 0 <= sample["neighbour_top1"] <= 1 and 0 <= sample["chance"] <= 1):
        return False
    return not first or len(first["loss"]) == len(first["grad_norm"]) > 0
