"""自己的图片怎样摆放:分好部分的目录、只有类别目录、写在列表里,都读成一列 ``Picture``。"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .finding import Unused, find_images, inside, is_image_name, readable_name
from .lists import class_names, find_lists, named_rows, read_list
from .splits import Picture

__all__ = ["Collected", "collect"]

PARTS = ("train", "val", "test")
_MISPLACED = "不在类别目录里的", "请移进类别目录"
_UNKNOWN = "不在模型认得的类别目录里的", "类别目录的名字要与训练时相同"


@dataclasses.dataclass
class Collected:
    """目录里找到的。

    Attributes:
        classes (list[str]): 类别名,次序就是标签。
        pictures (list[Picture]): 各张图片,还没有内容的摘要;没有分部分的都在 ``'train'``。
        divided (bool): 写明了各张图片在哪一部分。
        notes (list[str]): 要告诉使用者的。
    """

    classes: list[str]
    pictures: list[Picture]
    divided: bool
    notes: list[str]


def collect(root: Path, known: Sequence[str] | None = None) -> Collected:
    """找出目录里的图片和标签,还没有打开图片。

    Args:
        root (Path): 数据目录,或一个列表文件。
        known (Sequence[str] | None): 评估别处的图片时,模型的类别名:只有其中几类、没有训练部分都可以。

    Raises:
        UserError: 看不出怎样摆放的,没有图片,或类别对不上。
    """
    if root.is_file():
        return _from_lists(root.parent, {"train": root}, known)
    divided = [part for part in PARTS if _folders(root / part)]
    if "train" in divided:
        return _from_folders(root, {part: root / part for part in PARTS if (root / part).is_dir()}, known)
    lists = find_lists(root)
    if "train" in lists or (known is not None and lists):
        return _from_lists(root, lists, known)
    places = {part: root / part for part in divided}
    if known is not None and places:
        return _from_folders(root, places, known)
    hint = _where_it_may_be(root, known is None)
    flat = [path.name for path in _folders(root) if path.name not in PARTS and find_images(path)]
    if hint or len(flat) < (2 if known is None else 1):
        raise UserError(
            f"{root} 里看不出类别:图片要按 {root}/train/类别名/图片 或 {root}/类别名/图片 摆放(至少 2 个类别目录),"
            f"或者有 train.txt(每行 路径 标签)。{hint}"
        )
    return _from_folders(root, {"train": root, **places}, known, flat)


def _folders(directory):
    """一个目录里的子目录,按名字排序;不算名字以 . 开头的。"""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_dir() and path.name[0] != ".")


def _where_it_may_be(root, look_above):
    """给错了一层的目录:说出像是对的那一个。"""
    above = root.resolve().parents[:2] if look_above else ()
    for other in (*above, *_folders(root)):  # 给了 DIR/train 或 DIR/train/猫,或上一层
        if (other / "train").is_dir():
            return f"--data-dir 是不是 {other}?"
    return ""


# ---- 目录 ----


def _from_folders(root, places, known, names=None):
    """places 是部分 -> 目录;names 是其中的类别,不给时是训练部分的各个子目录。"""
    unused, notes = Unused(), []
    if names is None:
        names = [path.name for path in _folders(places.get("train", root))] if "train" in places else list(known)
    for name in names:
        _check_name(places.get("train", root) / name)
    flat = places.get("train") == root
    if len(names) < 2 and known is None:
        raise UserError(f"{places['train']} 里有 {len(names)} 个类别目录:至少要有 2 个,每类一个目录。")
    pictures = []
    for part, directory in places.items():
        pictures += _part(root, part, directory, names, unused, flat and part == "train", known)
    if flat:
        notes.append(f"没有 train 目录:{root} 里的 {len(names)} 个目录各算一类")
    else:
        for path in sorted(root.iterdir()):
            _leave_out(path, places.values(), unused, "不在 train、val、test 目录里的", "验证、测试部分要叫 val、test")
    pictures.sort(key=lambda picture: PARTS.index(picture.part))  # 稳定的:各部分之内次序不变
    deep = [picture.path for picture in pictures if _depth(root, places, picture) > 2]
    if deep:
        first = readable_name(os.path.dirname(deep[0]))
        notes.append(f"有 {len(deep)} 张图片在类别目录的子目录里(如 {first}),算作它所在的那一类")
    return Collected(names, pictures, not flat, _with_unused(notes, unused, root))


def _depth(root, places, picture):
    return len((root / picture.path).relative_to(places[picture.part]).parts)


def _part(root, part, directory, names, unused, flat, known):
    """一个部分的各张图片。"""
    others = [root / other for other in PARTS] if flat else []
    pictures = []
    for path in sorted(directory.iterdir()):
        if path.is_dir() and path.name in names:
            continue
        if path.is_dir() and path.name[0] != "." and known is None and not flat:
            raise UserError(f"{path} 在 train 里没有同名的类别:请改名,或在 train 里也放这一类。")
        _leave_out(path, others, unused, *(_MISPLACED if known is None else _UNKNOWN))
    for name in names:
        if not (directory / name).is_dir():
            continue
        images = find_images(directory / name, unused)
        if not images and part == "train" and known is None:
            why = unused.line(directory) or "请放入图片,或删除它"
            raise UserError(f"类别目录 {directory / name} 里没有图片:{why}。")
        pictures += [Picture(part, name, path.relative_to(root).as_posix(), "") for path in images]
    if not pictures and not flat:
        raise UserError(f"{directory} 里没有图片:请按 {directory}/类别名/图片 摆放。{unused.line(directory) or ''}")
    return pictures


def _leave_out(path, used, unused, reason, advice):
    """没有用到的文件或目录:里面的图片记成一种,别的文件按后缀记。"""
    if path in used:
        return
    if path.is_dir():
        for image in find_images(path, Unused()):
            unused.add(image, reason, advice)
    elif is_image_name(path):
        unused.add(path, reason, advice)
    else:
        unused.add(path)


def _check_name(path):
    """类别名要能写进文件。"""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{readable_name(path.parent)} 里的类别目录 {readable_name(path.name)} 的名字不是 UTF-8(多半是在 Windows 上"
            "打包的):请改名,或用 unzip -O GBK 重新解压。"
        ) from None


def _with_unused(notes, unused, root):
    line = unused.line(root)
    return [*notes, line] if line else notes


# ---- 列表 ----


def _from_lists(root, lists, known):
    rows, notes = [], []
    for part, path in lists.items():
        found, without = read_list(path, root, part)
        rows += [row if row.part else row._replace(part=part) for row in found]
        if without:
            notes.append(f"{path.name} 里有 {len(without)} 行没有标签(如 {without[0]}),没有用")
    if not rows:
        raise UserError(f"{'、'.join(str(path) for path in lists.values())} 里没有一行有标签:每行应是 路径 标签。")
    names_file, names = class_names(root)
    rows, classes = named_rows(rows, names, root, known)
    used = {row.label for row in rows if row.part == "train"}
    if known is None:
        strange = sorted({row.label for row in rows} - used)
        if strange:
            raise UserError(f"{root} 的列表里,类别 {strange[0]} 在训练部分里一张也没有:请补上,或删去它的那几行。")
        empty = [name for name in classes if name not in used]
        if empty:
            notes.append(f"{names_file} 里的 {'、'.join(empty[:10])} 一张图片也没有,不算类别")
        classes = [name for name in classes if name in used]
        if len(classes) < 2:
            raise UserError(f"{root} 的列表里只有 {len(classes)} 类:至少要有 2 类。")
    pictures = [Picture(row.part, row.label, inside(row.path, root).as_posix(), "") for row in rows]
    pictures.sort(key=lambda picture: PARTS.index(picture.part))
    listed, unused = {picture.path for picture in pictures}, Unused()
    for path in find_images(root, Unused()):
        if inside(path, root).as_posix() not in listed:
            unused.add(path, "列表里没有写的图片", "要用请写进列表")
    divided = len(lists) > 1 or "test" in lists or len({picture.part for picture in pictures}) > 1
    return Collected(list(classes), pictures, divided, _with_unused(notes, unused, root))
