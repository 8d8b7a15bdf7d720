"""装入权重的报告:每个张量的去处。"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ..family.models import is_head
from ..system.files import atomic_write, first_few

__all__ = ["LoadReport", "save_report"]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """装入权重的结果:每个张量恰好属于其中一类。

    Attributes:
        source (str): 从哪里取的。
        format (str): 权重的格式。
        loaded (tuple[str]): 取来的张量,模型里的名字。
        resized (tuple[str]): 改了大小之后取来的张量,模型里的名字。
        fresh (tuple[str]): 保持原来的(随机)值的张量,模型里的名字。
        unused (tuple[str]): 没有用到的张量,文件里的名字。
        notes (tuple[str]): 其他要知道的事。
    """

    source: str
    format: str
    loaded: tuple
    resized: tuple = ()
    fresh: tuple = ()
    unused: tuple = ()
    notes: tuple = ()

    def __str__(self):
        heads = [name for name in self.fresh if is_head(name)]
        others = [name for name in self.fresh if not is_head(name)]
        text = f"从 {self.source} 取来 {len(self.loaded) + len(self.resized)} 个张量,"
        taken = "分类头也取来了" if any(map(is_head, self.loaded)) else "模型没有分类头"
        text += f"分类头重新开始学({'、'.join(heads)})" if heads else taken
        counts = [(self.resized, "改了大小"), (others, "保持随机的初值"), (self.unused, "没有用到")]
        text += "".join(f";{word} {len(names)} 个({first_few(names)})" for names, word in counts if names)
        return ";".join([f"{text};格式 {self.format}", *self.notes])

    def details(self) -> str:
        """每个张量一行的详情。"""
        kinds = ("loaded", "resized", "fresh", "unused")
        words = ("取来", "改了大小", "初值", "没有用到")
        return "\n".join(f"{word}\t{name}" for kind, word in zip(kinds, words) for name in getattr(self, kind))


def save_report(report: LoadReport, path: str | Path) -> None:
    """把 ``LoadReport`` 写成 JSON(运行目录里的 init.json)。"""
    text = json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=1)
    atomic_write(path, f"{text}\n".encode())
