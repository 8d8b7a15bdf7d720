"""哪张图片在哪一部分:由图片的内容决定,与名字和次序无关;随运行存一份,以后看得出变了什么。"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..system.files import LISTED, atomic_write, first_few
from .finding import readable_name
from .info import DataInfo

__all__ = [
    "SPLIT_SEED",
    "Comparison",
    "KeptRun",
    "Picture",
    "compare_pictures",
    "duplicates_note",
    "load_pictures",
    "save_pictures",
    "split_off",
]

SPLIT_SEED = 0  # 分出验证集、测试集的种子,固定不变:换训练种子时各部分的图像不变


class Picture(NamedTuple):
    """一张自己的图片。

    Attributes:
        part (str): ``'train'``、``'val'`` 或 ``'test'``。
        category (str): 类别名。
        path (str): 相对于数据目录的路径,用 ``/`` 隔开;在别处的是绝对路径。
        digest (str): 内容的摘要,见 ``ImageFacts``。
    """

    part: str
    category: str
    path: str
    digest: str


# ---- 分 ----


def split_off(pictures: Sequence[Picture], fraction: float, part: str) -> list[Picture]:
    """从训练部分里每类分出一份,改作 part;一类里分出几张由比例定,是哪几张由内容和固定的种子定。

    多一张、少一张图片,至多让每个边界上的一张换地方;改名、换次序什么也不变。内容相同的总是挨在一起。

    Args:
        pictures (list[Picture]): 全部图片;只动训练部分的。
        fraction (float): 分出的比例;每类至少一张。
        part (str): ``'val'`` 或 ``'test'``:一个从一头数起,一个从另一头。

    Returns:
        list[Picture]: 原来的次序,分出的换了 part。
    """
    by_category: dict[str, list[Picture]] = collections.defaultdict(list)
    for picture in pictures:
        if picture.part == "train":
            by_category[picture.category].append(picture)
    chosen = set()
    for members in by_category.values():
        ranked = sorted(members, key=_rank, reverse=part == "val")
        chosen.update(ranked[: max(1, round(len(members) * fraction))])
    return [picture._replace(part=part) if picture in chosen else picture for picture in pictures]


def _rank(picture):
    return hashlib.blake2b(f"{SPLIT_SEED} {picture.digest}".encode(), digest_size=16).digest(), picture.path


def duplicates_note(pictures: Sequence[Picture]) -> str | None:
    """训练部分和验证、测试部分里有内容相同的图片时,说明它的一句话。"""
    trained = {picture.digest: picture for picture in pictures if picture.part == "train"}
    twice = [picture for picture in pictures if picture.part != "train" and picture.digest in trained]
    if not twice:
        return None
    first = twice[0]
    return (
        f"验证、测试部分里有 {len(twice)} 张与训练部分的内容相同(如 {readable_name(first.path)} 和 "
        f"{readable_name(trained[first.digest].path)}):正确率会偏高,请删去重复的"
    )


# ---- 随运行存一份 ----


@dataclasses.dataclass(frozen=True)
class KeptRun:
    """一个运行当时的数据,再读数据时照着它来。

    Attributes:
        directory (Path): 运行目录。
        info (DataInfo): 当时的说明。
        pictures (tuple[Picture] | None): 当时的图片;以前的版本没有存,是 ``None``。
        resuming (bool): 续训:要与当时完全相同;否则是评估。
        elsewhere (bool): 评估时另外给了数据目录,也许是别的图片。
    """

    directory: Path
    info: DataInfo
    pictures: tuple[Picture, ...] | None
    resuming: bool = False
    elsewhere: bool = False


def save_pictures(pictures: Sequence[Picture], path: str | Path) -> None:
    """写成 CSV,Excel 能打开。"""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Picture._fields)
    writer.writerows(pictures)
    atomic_write(path, text.getvalue().encode("utf-8-sig", "surrogateescape"))  # 文件名可以不是 UTF-8


def load_pictures(path: Path) -> tuple[Picture, ...] | None:
    """读回 ``save_pictures`` 写的;没有这个文件是 ``None``。

    Raises:
        UserError: 文件已损坏。
    """
    if not path.exists():
        return None
    rows = list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig", "surrogateescape"), newline="")))
    good = rows and tuple(rows[0]) == Picture._fields and all(len(row) == len(Picture._fields) for row in rows)
    if not good or not {row[0] for row in rows[1:]} <= {"train", "val", "test"}:
        raise UserError(f"{path} 已损坏:请换一个备份,或重新训练。")
    return tuple(Picture(*row) for row in rows[1:])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """现在的图片与运行当时的相比。

    Attributes:
        pictures (list[Picture]): 现在还在的,按当时的次序,在当时的那一部分;路径和类别是现在的。
        renamed, changed (list[str]): 改了名(或换了类别)的、内容变了的。
        removed, added (list[str]): 没有了的、多出来的。
    """

    pictures: list[Picture]
    renamed: list[str]
    changed: list[str]
    removed: list[str]
    added: list[str]

    def changes(self) -> str:
        """变了什么,一句话;什么也没有变是空的。"""
        kinds = (
            ("少了", self.removed),
            ("多了", self.added),
            ("改了名或换了类别", self.renamed),
            ("内容变了", self.changed),
        )
        return "、".join(
            f"{verb} {len(names)} 张({first_few([*map(readable_name, names)], LISTED)})"
            for verb, names in kinds
            if names
        )


def compare_pictures(kept: Sequence[Picture], now: Sequence[Picture]) -> Comparison:
    """把当时的图片一一找回来:先看路径和内容都相同的,再看内容相同的(改了名),再看路径相同的(内容变了)。

    Args:
        kept (list[Picture]): 运行当时的。
        now (list[Picture]): 现在的;它们的 part 不用。
    """
    all_now = {picture.path: picture for picture in now}
    found: dict[int, Picture] = {}
    renamed, changed, removed = [], [], []
    for i, old in enumerate(kept):
        if old.path in all_now and all_now[old.path].digest == old.digest:
            new = found[i] = all_now[old.path]  # 一张图片可以同时写在两个列表里
            if new.category != old.category:
                renamed.append(f"{old.path}:{old.category} → {new.category}")
    same = {picture.path for picture in found.values()}
    left = {path: picture for path, picture in all_now.items() if path not in same}
    by_digest = collections.defaultdict(list)
    for picture in left.values():
        by_digest[picture.digest].append(picture)
    for i, old in enumerate(kept):
        if i not in found and by_digest[old.digest]:
            new = found[i] = left.pop(by_digest[old.digest].pop(0).path)
            renamed.append(f"{old.path} → {new.path}")
    for i, old in enumerate(kept):
        if i not in found and old.path in left:
            found[i] = left.pop(old.path)
            changed.append(old.path)
        elif i not in found:
            removed.append(old.path)
    pictures = [found[i]._replace(part=old.part) for i, old in enumerate(kept) if i in found]
    return Comparison(pictures, renamed, changed, removed, list(left))
