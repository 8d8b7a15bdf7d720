"""写在文件里的标签:``train.txt`` 一类的列表(一行一张:路径 标签),有表头的 CSV,类别名的 ``labels.txt``。"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..system.files import LISTED, describe_os_error, first_few
from .finding import readable_name

__all__ = ["Row", "class_names", "find_lists", "named_rows", "read_list"]

PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev", "eval"), "test": ("test",)}
_SUFFIXES = (".txt", ".csv", ".tsv", ".lst")
_NAME_FILES = ("labels.txt", "label_list.txt", "label.txt", "classes.txt", "class_names.txt", "names.txt")
# 表头里的列名,小写
_PATH: tuple[str, ...] = (
    "path",
    "file",
    "image",
    "img",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image_path",
    "img_path",
)
_PATH += ("image_name", "image_id", "id", "图片", "图像", "文件", "文件名", "路径", "图片路径", "文件路径")
_LABEL: tuple[str, ...] = ("label", "labels", "class", "class_name", "classname", "category", "target", "y")
_LABEL += ("类别", "标签", "种类", "类别名", "分类", "类")
_PART = ("split", "part", "subset", "set", "划分", "部分")
_ENCODINGS = ("utf-8-sig", "gb18030")  # 后一种是中文 Windows 上的,GBK 是它的一部分


class Row(NamedTuple):
    """列表里的一行。

    Attributes:
        path (Path): 图片文件,已经找到。
        label (str): 标签的文字。
        part (str | None): 表里写着的部分;没有这一列是 ``None``。
    """

    path: Path
    label: str
    part: str | None = None


def find_lists(root: Path) -> dict[str, Path]:
    """目录里的列表:部分 -> 文件;只有一个不分部分的列表时,它是 ``'train'``;没有列表是空的。"""
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    found = {}
    for part, words in PARTS.items():
        stems = {f"{word}{tail}" for word in words for tail in ("", "_list", "list", "_label", "_labels")}
        mine = [path for path in files if path.stem.lower() in stems]
        if len(mine) > 1:
            raise UserError(f"{root} 里有几个 {part} 的列表({first_few([path.name for path in mine])}):请只留一个。")
        if mine:
            found[part] = mine[0]
    if not found:
        whole = [path for path in files if _looks_like_list(path, root)]
        if len(whole) == 1:
            return {"train": whole[0]}
        if whole:
            names = first_few([path.name for path in whole])
            raise UserError(f"{root} 里有几个列表({names}),不知道用哪一个:请把它写在 --data-dir 里,如 {whole[0]}。")
    return found


def _looks_like_list(path, root):
    """第一行(表头之后的)指着一张有标签的图片。"""
    try:
        rows, _ = _read_rows(path, root, "train", only_first=True)
    except UserError:
        return False
    return bool(rows)


def read_list(path: Path, root: Path, part: str) -> tuple[list[Row], list[str]]:
    """读一个列表。

    Args:
        path (Path): 列表文件:每行 路径 标签(空格、制表符或逗号隔开),或有表头的表;UTF-8 或 GBK。
        root (Path): 图片所在的目录;路径相对于它(也可以多几级、少几级,用反斜杠)。
        part (str): ``'train'``、``'val'`` 或 ``'test'``;图片也可以在 root 里的这个目录下。

    Returns:
        tuple[list[Row], list[str]]: 各行;没有标签的行的路径。

    Raises:
        UserError: 读不出来,有的图片不存在,或一张图片有两种标签。
    """
    rows, unlabelled = _read_rows(path, root, part)
    labels: dict[Path, str] = {}
    for row in rows:
        if labels.setdefault(row.path, row.label) != row.label:
            raise UserError(
                f"{path} 里 {readable_name(row.path.name)} 有两种标签({labels[row.path]}、{row.label}):"
                "一张图片只能属于一类,请只留一行。"
            )
    unique = {row.path: row for row in rows}
    return list(unique.values()), unlabelled


def _texts(path):
    """文件的文字,能用几种编码读就有几种读法;最像的在前。"""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(describe_os_error(error, path)) from None
    encodings = ("utf-16",) if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else _ENCODINGS
    texts = []
    for encoding in encodings:
        with contextlib.suppress(UnicodeDecodeError):
            texts.append(raw.decode(encoding))
    if not texts:
        raise UserError(f"{path} 不是 UTF-8 或 GBK 编码的文字:请用 UTF-8 另存。")
    return texts[:1] if raw.isascii() else texts


def _read_rows(path, root, part, only_first=False):
    """(各行, 没有标签的行的路径);几个汉字的 GBK 碰巧也是合法的 UTF-8,所以找不到图片时换一种编码再试。"""
    texts = _texts(path)
    for text in texts[:-1]:
        with contextlib.suppress(UserError):
            return _parsed(path, text, root, part, only_first)
    return _parsed(path, texts[-1], root, part, only_first)


def _parsed(path, text, root, part, only_first):
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path} 是空的:每行应是 路径 标签。")
    places = _Places(root, path.parent, part)
    delimiter = next((mark for mark in "\t,;" if mark in lines[0]), None)
    header = [cell.strip().lower() for cell in next(csv.reader(lines[:1], delimiter=delimiter or ","))]
    columns = [next((header.index(name) for name in names if name in header), None) for names in (_PATH, _LABEL, _PART)]
    if columns[0] is not None and (columns[1] is not None or len(header) == 1):
        cells = _table(path, lines[1:], delimiter or ",", columns)
    else:
        cells = _pairs(lines, places)
    rows, unlabelled, missing = [], [], []
    for name, label, split in cells:
        image = places.find(name)
        if image is None:
            missing.append(name)
        elif not label:
            unlabelled.append(name)
        elif re.fullmatch(r"\d+([,;|]\d+)+", label):
            raise UserError(f"{path} 里 {name} 有几个标签({label}):这里一张图片只能属于一类,请每行只留一个标签。")
        else:
            rows.append(Row(image, re.sub(r"^(\d+)\.0$", r"\1", label), _part_named(split)))
        if only_first and (rows or missing or unlabelled):
            break
    if missing:
        names = first_few(missing, LISTED)
        raise UserError(f"{path} 里写的 {len(missing)} 张图片不在 {root} 里({names}):请检查路径,或从列表里删去。")
    return rows, unlabelled


def _table(path, lines, delimiter, columns):
    """有表头的表 -> (路径, 标签, 部分)。"""
    for number, cells in enumerate(csv.reader(lines, delimiter=delimiter), 2):
        if len(cells) <= max(column for column in columns if column is not None):
            raise UserError(f"{path} 的第 {number} 行只有 {len(cells)} 列,比表头少:请补齐,或检查逗号和引号。")
        yield tuple("" if column is None else cells[column].strip() for column in columns)


def _pairs(lines, places):
    """没有表头的列表 -> (路径, 标签, "");路径和标签怎样隔开,由第一行能找到图片的那种写法定。"""
    delimiter = next((mark for mark in "\t,;" if mark in lines[0] and places.find(_cut(lines[0], mark)[0])), None)
    for line in lines:
        if delimiter is not None:
            yield (*_cut(line, delimiter), "")
            continue
        words = line.split()
        # 路径和类别名里都可以有空格:从最长的路径试起
        ends = (k for k in range(len(words), 0, -1) if places.find(" ".join(words[:k])))
        end = next(ends, max(1, len(words) - 1))
        yield " ".join(words[:end]), " ".join(words[end:]), ""


def _cut(line, delimiter):
    """一行在最后一个分隔符处切开:(路径, 标签)。"""
    name, _, label = line.rpartition(delimiter)
    return name.strip().strip('"'), label.strip().strip('"')


def _part_named(word):
    return next((part for part, words in PARTS.items() if word and word.lower() in words), None)


class _Places:
    """列表里写的路径 -> 文件:路径可以相对于 root、列表所在的目录、其中的 part 或 images 目录,也可以多出开头的几级。"""

    def __init__(self, root, beside, part):
        bases = [root, beside, *(base / name for base in (root, beside) for name in (part, "images", "image", "imgs"))]
        self._bases = [base for base in dict.fromkeys(bases) if base.is_dir()]
        self._last = self._bases[0], 0

    def find(self, name: str) -> Path | None:
        """文件;找不到是 ``None``。"""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts:
            return None
        if name.startswith("/") and Path(name).is_file():
            return Path(name)
        tries = [self._last, *((base, skip) for skip in range(len(parts)) for base in self._bases)]
        for base, skip in tries:
            for suffix in ("",) if Path(parts[-1]).suffix else ("", ".jpg", ".png", ".jpeg"):
                path = base.joinpath(*parts[skip:-1], parts[-1] + suffix)
                if skip < len(parts) and path.is_file():
                    self._last = base, skip
                    return path
        return None


# ---- 类别名 ----


def class_names(root: Path) -> tuple[Path | None, list[str]]:
    """``labels.txt`` 一类的文件和里面的类别名,次序就是标签;没有是 ``(None, [])``。

    一行一个名字;也可以带着序号:``0 猫`` 或 ``猫 0``。
    """
    path = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if path is None or _looks_like_list(path, root):
        return None, []
    lines = [line.strip() for line in _texts(path)[0].splitlines() if line.strip()]
    for pattern, number, name in ((r"(\d+)[\s,:]+(.+)", 1, 2), (r"(.+?)[\s,:]+(\d+)", 2, 1)):
        found = [re.fullmatch(pattern, line) for line in lines]
        if all(found):
            order = {int(match[number]): match[name] for match in found if match}
            if len(order) == len(lines) and max(order) - min(order) == len(lines) - 1 and min(order) <= 1:
                return path, [order[key] for key in sorted(order)]
    if len(set(lines)) < len(lines):
        raise UserError(f"{path} 里有重复的类别名:请每行写一个,各不相同。")
    return path, lines


def named_rows(
    rows: Iterable[Row], names: Sequence[str], source: Path, known: Sequence[str] | None = None
) -> tuple[list[Row], list[str]]:
    """各行的标签换成类别名。

    Args:
        rows (Iterable[Row]): 各个部分的全部行。
        names (list[str]): ``labels.txt`` 里的类别名;没有就是空的。
        source (Path): 列表所在的目录,写进提示。
        known (Sequence[str] | None): 评估时模型的类别名:没有 ``labels.txt`` 时,序号按它算。

    Returns:
        tuple[list[Row], list[str]]: 换好的各行;全部类别名,次序就是标签。

    Raises:
        UserError: 标签不在类别名里。
    """
    rows = list(rows)
    labels = sorted({row.label for row in rows})
    table = list(names) or list(known or ())
    if not table:
        classes = sorted(labels, key=int) if all(label.isdecimal() for label in labels) else labels
        return rows, classes
    if all(label in table for label in labels):
        return rows, table
    if all(label.isdecimal() for label in labels):
        numbers = [int(label) for label in labels]
        first = 1 if max(numbers) == len(table) and min(numbers) >= 1 else 0  # 有的从 1 数起
        if max(numbers) - first < len(table):
            return [row._replace(label=table[int(row.label) - first]) for row in rows], table
    unknown = [label for label in labels if label not in table]
    if names:
        raise UserError(
            f"{source} 的列表里的标签 {first_few(unknown)} 不在 labels.txt 的 {len(table)} 个类别里:请改正。"
        )
    return rows, table
