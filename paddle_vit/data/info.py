"""数据集的说明:随运行保存在 ``data.json``,评估和预测都从这里取。"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..checks import as_pair
from ..errors import UserError
from ..system.files import atomic_write, matches, read_json
from ..system.fitting import Fit, Size, parse_fit, plain_size

__all__ = ["DARK_BACKGROUND", "DataInfo", "check_same_data", "load_info", "parse_info", "save_info", "shorten"]


DARK_BACKGROUND = ("digits", "mnist", "fashion-mnist")  # 图形比背景亮的数据集


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """数据集的说明,随运行保存在 ``data.json``,评估和预测都从这里取。

    Attributes:
        name (str): 数据集名。
        classes (tuple[str]): 类别名,下标就是标签。
        channels (int): 通道数 C:1、3 或 4。
        image_size (int | (int, int)): 图像边长,不是正方形时是 (高, 宽),像素。
        mean, std (tuple[float]): 每个通道的均值和标准差,像素值按 0–1。
        counts (dict): 训练、验证、测试各有多少张。
        fit (Fit): 任意大小的图片怎样摆成 image_size。
        pixel_max (dict | None): 超过 8 位的灰度图按多大缩放成 0–255,整个数据集一个:``{"I": 整数的, "F": 浮点的}``;
            没有这样的图是 ``None``。
        full_range (bool): 灰度保留全部精度,不降成 256 级。
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: dict[str, int]
    fit: Fit = dataclasses.field(default_factory=Fit)
    pixel_max: dict[str, float] | None = None
    full_range: bool = False

    @property
    def form(self) -> tuple[int, dict[str, float] | None, bool]:
        """读图片时要的像素,``read_image`` 和 ``convert_image`` 的后三个参数。"""
        return self.channels, self.pixel_max, self.full_range

    def describe(self) -> str:
        """图片怎样变成模型的输入,一行。"""
        mean, std = ("、".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{self.fit.describe(self.image_size)},像素(0–1)减 {mean},除以 {std}"


_INFO = dict(
    name=str, classes=[str], channels=int, image_size=(int, list), mean=[float], std=[float], counts={None: int}
)


def parse_info(values: dict, source: str | Path) -> DataInfo:
    """字典(JSON 读来的)-> ``DataInfo``。

    Args:
        values (dict): 各项;别处来的权重不知道有多少张图像,counts 是空的。
        source (str | Path): 从哪里读来的,写进提示。

    Raises:
        UserError: 缺了哪一项,或不合法。
    """
    good = (
        matches(values, _INFO)
        and values["classes"]
        and values["mean"]
        and min(values["counts"].values(), default=1) >= 1
        and (values.get("pixel_max") is None or _is_range(values["pixel_max"]))
        and type(values.get("full_range", False)) is bool
    )
    if not good or not len(values["mean"]) == len(values["std"]) == values["channels"] or not min(values["std"]) > 0:
        raise UserError(f"{source} 已损坏:请换一个备份,或重新训练。")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        fit, size = parse_fit(values.get("fit")), plain_size(*as_pair(values["image_size"], "image_size"))
    except (ValueError, TypeError, UserError):
        raise UserError(f"{source} 已损坏:请换一个备份,或重新训练。") from None
    values = {**values, "fit": fit, "image_size": size}
    return DataInfo(
        **{field.name: values[field.name] for field in dataclasses.fields(DataInfo) if field.name in values}
    )


def _is_range(value):
    return matches(value, {None: float}) and set(value) <= {"I", "F"} and all(top > 0 for top in value.values())


def save_info(info: DataInfo, path: str | Path) -> None:
    """把数据集的说明写成 JSON。"""
    atomic_write(path, json.dumps(dataclasses.asdict(info), ensure_ascii=False, indent=1).encode())


def load_info(path: Path) -> DataInfo:
    """读回 ``save_info`` 写的说明。

    Raises:
        UserError: 文件不存在或已损坏。
    """
    if not Path(path).exists():
        raise UserError(f"没有 {path}:这个运行还没有开始训练,请先训练至少一轮。")
    return parse_info(read_json(path, {"counts": dict(train=int, val=int, test=int)}), path)


def check_same_data(saved: DataInfo, found: DataInfo, where: str | Path, whole: bool = True) -> None:
    """核对现在的数据与运行当时的是否相同。

    Args:
        saved (DataInfo): 运行当时的说明。
        found (DataInfo): 现在载入的数据的说明。
        where (str | Path): 运行目录,写进提示。
        whole (bool): 续训要完全相同;评估只要类别、通道和图像大小相同。

    Raises:
        UserError: 不同。
    """
    names = {"classes": "类别", "channels": "通道数", "image_size": "图像边长"}
    if whole:
        names.update(counts="各部分的张数", mean="均值", std="标准差", fit="摆法")
    for name, chinese in names.items():
        before, now = getattr(saved, name), getattr(found, name)
        if before != now:
            raise UserError(
                f"数据的{chinese}与 {where} 训练时不同:当时是 {shorten(before)},现在是 {shorten(now)};"
                "请用 --data-dir 给出当时的数据,或用 --output 开一个新的运行。"
            )


def shorten(value: Any) -> str:
    text = "、".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
