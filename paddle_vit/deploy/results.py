"""一批图片的预测写成表格:CSV 或 JSON;图片放在类别目录里的,还有正确率和混淆矩阵。"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..system.files import atomic_write
from ..system.tables import terminal
from .predictor import Prediction

__all__ = ["PredictionTable", "check_table", "true_label"]

MOST_CLASSES = 20  # 混淆矩阵最多印这么多类,再多终端里放不下


def check_table(path: str | Path) -> None:
    """写预测的文件要是 .csv 或 .json。

    Raises:
        UserError: 是别的后缀。
    """
    if Path(path).suffix.lower() not in (".csv", ".json"):
        raise UserError(f"--output {path} 的后缀不是 .csv 或 .json:请改成其中一个。")


def true_label(path: Path, classes: Sequence[str], roots: Sequence[str] = ()) -> str | None:
    """图片所在的目录里,离它最近的、与一个类别同名的;没有是 ``None``。

    只看 roots 以内的各级;不在其中的图片只看它直接所在的那一级。
    """
    inside = [folder for folder in path.parents if any(Path(root) in (folder, *folder.parents) for root in roots)]
    return next((folder.name for folder in inside or list(path.parents)[:1] if folder.name in classes), None)


@dataclasses.dataclass
class PredictionTable:
    """一批图片的预测。

    Attributes:
        classes (tuple[str]): 类别名。
        roots (list[str]): 使用者给的目录,见 ``true_label``。
        rows (list[tuple]): 每张图片一项:(路径, 真实类别或 ``None``, ``Prediction``)。
        bad (list[tuple]): 读不出来的:(路径, 原因)。
    """

    classes: tuple[str, ...]
    roots: Sequence[str] = ()
    rows: list[tuple[Path, str | None, Prediction]] = dataclasses.field(default_factory=list)
    bad: list[tuple[Path, str]] = dataclasses.field(default_factory=list)

    def add(self, path: Path, prediction: Prediction) -> None:
        """记下一张。"""
        self.rows.append((path, true_label(path, self.classes, self.roots), prediction))

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """知道真实类别的各张:(真实类别, 预测类别)。"""
        return [(true, prediction.label) for _, true, prediction in self.rows if true is not None]

    @property
    def accuracy(self) -> float | None:
        """正确率,0–1;没有一张知道真实类别是 ``None``。"""
        pairs = self.labelled
        return sum(true == predicted for true, predicted in pairs) / len(pairs) if pairs else None

    def confusion(self) -> np.ndarray:
        """混淆矩阵,int [K, K],行是真实类别,列是预测类别。"""
        matrix, index = np.zeros((len(self.classes),) * 2, int), {name: k for k, name in enumerate(self.classes)}
        for true, predicted in self.labelled:
            matrix[index[true], index[predicted]] += 1
        return matrix

    def summary(self) -> str | None:
        """正确率和混淆矩阵,给人看的几行;没有一张知道真实类别是 ``None``。"""
        pairs = self.labelled
        if not pairs:
            return None
        confusion = self.confusion()
        lines = [f"按所在目录的名字,{len(pairs)} 张里对了 {confusion.trace()} 张,正确率 {self.accuracy:.2%}"]
        if len(self.classes) <= MOST_CLASSES:
            rows = [[name, *map(str, row)] for name, row in zip(self.classes, confusion)]
            lines.append(terminal([["真实 \\ 预测", *self.classes], *rows]))
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """按后缀写成 CSV(UTF-8,Excel 能打开)或 JSON。

        Raises:
            UserError: 不是这两种后缀,或写不进去。
        """
        check_table(path)
        data = self._csv() if Path(path).suffix.lower() == ".csv" else self._json()
        atomic_write(path, data)

    def _csv(self):
        top = max((len(prediction.labels) for _, _, prediction in self.rows), default=1)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["path", "true", *(f"{kind}{k}" for k in range(1, top + 1) for kind in ("label", "probability")), "error"]
        )
        for path, true, prediction in self.rows:
            pairs = [
                f"{cell:.6f}" if isinstance(cell, float) else cell for pair in _ranking(prediction) for cell in pair
            ]
            writer.writerow([path, true or "", *pairs, *[""] * (2 * top - len(pairs)), ""])
        for path, reason in self.bad:
            writer.writerow([path, true_label(path, self.classes, self.roots) or "", *[""] * (2 * top), reason])
        return text.getvalue().encode("utf-8-sig", "surrogateescape")

    def _json(self):
        images = [
            {
                "path": str(path),
                "true": true,
                "top": [{"label": name, "probability": p} for name, p in _ranking(prediction)],
            }
            for path, true, prediction in self.rows
        ]
        value = {
            "classes": self.classes,
            "images": images,
            "errors": [{"path": str(p), "error": e} for p, e in self.bad],
        }
        if self.labelled:
            value |= {"accuracy": self.accuracy, "confusion": self.confusion().tolist()}
        return f"{json.dumps(value, ensure_ascii=False, indent=1)}\n".encode("utf-8", "surrogateescape")


def _ranking(prediction):
    return list(zip(prediction.labels, prediction.probabilities))
