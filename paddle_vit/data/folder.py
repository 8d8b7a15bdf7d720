"""自己的图片:读出来,分成三部分;再读一个运行的数据时照着当时的来。"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..system.files import first_few
from .choosing import assemble, choose
from .finding import readable_name
from .images import check_image_files, pixel_range
from .layouts import collect
from .parts import FilePart, stratified_split
from .splits import compare_pictures, duplicates_note, split_off

__all__ = ["load_folder"]

_OLD_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def load_folder(config, size, kept=None):
    """读自己的图片。

    Args:
        config (Config): 用到 data_dir、val_fraction、classes、train_per_class、channels、full_range、workers。
        size (int): 图像边长,像素。
        kept (KeptRun | None): 再读这个运行的数据:每张图片还在当时的那一部分。

    Returns:
        Data

    Raises:
        UserError: 目录不合要求、有坏图,或续训时少了图片。
    """
    if config.data_dir is None:
        raise UserError("--dataset folder 需要 --data-dir:请给图片所在的目录,里面是 train/类别名/图片。")
    root = Path(config.data_dir)
    base = root if root.is_dir() else root.parent
    found = _collect(root, kept)
    channels = config.channels or 3
    paths = [base / picture.path for picture in found.pictures]
    facts = dict(zip(found.pictures, check_image_files(paths, channels)))
    pictures = [picture._replace(digest=facts[picture].digest) for picture in found.pictures]
    notes, pixel_max = _range(facts.values(), kept, config.full_range)
    external = kept is not None and kept.elsewhere and not _is_the_same(kept, pictures)
    if external:
        found = collect(root, kept.info.classes)  # 标签是序号的,按模型的类别算
        digests = {picture.path: picture.digest for picture in pictures}
        pictures = [picture._replace(digest=digests[picture.path]) for picture in found.pictures]
        pictures, more = _external(found, pictures, kept, config)
        notes += more
    elif kept is None:
        pictures = _divided(pictures, found.classes, config, split_off)
    elif kept.pictures is None:
        pictures = _divided(pictures, found.classes, config, _split_by_place)
    else:
        pictures, more = _as_kept(kept, pictures)
        notes += more
    repeated = duplicates_note(pictures)
    notes = [*found.notes, *notes, *([repeated] if repeated else [])]
    classes, parts = list(kept.info.classes) if external else found.classes, []
    labels = {name: label for label, name in enumerate(classes)}
    for name in ("train", "val", "test"):
        mine = [picture for picture in pictures if picture.part == name]
        paths = [base / picture.path for picture in mine]
        targets = np.array([labels[picture.category] for picture in mine], "int64")
        parts.append(FilePart(paths, targets, size, config.workers, channels, pixel_max, config.full_range))
    if not external:
        classes, parts = choose(config, classes, parts)
    middle = [0.5] * channels  # 均值和标准差:像素从 0–1 变成 -1–1
    data = assemble("folder", classes, size, middle, middle, *parts)
    info = dataclasses.replace(data.info, pixel_max=pixel_max, full_range=config.full_range)
    return dataclasses.replace(data, info=info, notes=tuple(notes), pictures=tuple(pictures))


def _collect(root, kept):
    """找出图片;再读一个运行的数据时,以前的版本看不见的不要,别处的图片可以不全。"""
    try:
        found = collect(root)
    except UserError:
        if kept is None or not kept.elsewhere:
            raise
        return collect(root, kept.info.classes)
    if kept is not None and kept.pictures is None and any(p.path.startswith("train/") for p in found.pictures):
        found.pictures = [picture for picture in found.pictures if _was_seen(picture)]
    return found


def _range(facts, kept, full_range):
    """(要说的话, 超过 8 位的灰度图用的范围);运行已经有一个的,用它的。"""
    if kept is not None and (kept.pictures is None or kept.info.pixel_max is not None):
        return [], kept.info.pixel_max
    pixel_max, lines = pixel_range(facts, full_range)
    return lines, pixel_max


def _divided(pictures, classes, config, split):
    """没有测试、验证部分的,从训练部分分出来。"""
    for part in ("test", "val"):
        if any(picture.part == part for picture in pictures):
            continue
        counts = collections.Counter(picture.category for picture in pictures if picture.part == "train")
        few = [name for name in classes if counts[name] < 2 + (part == "test")]
        if few:
            raise UserError(
                f"类别 {few[0]} 的图片太少(训练部分有 {counts[few[0]]} 张),分不出验证集和测试集:每类至少要有 3 张;"
                f"请补充图片,或自己放好 {config.data_dir}/val 和 {config.data_dir}/test。"
            )
        pictures = split(pictures, config.val_fraction, part)
    return pictures


def _split_by_place(pictures, fraction, part):
    """以前的版本的分法:看在排好的名单里第几个;续训、评估那时的运行要用。"""
    trained = [picture for picture in pictures if picture.part == "train"]
    names = sorted({picture.category for picture in trained})
    _, second = stratified_split(np.array([names.index(picture.category) for picture in trained]), fraction)
    moved = {trained[i] for i in second}
    return [picture._replace(part=part) if picture in moved else picture for picture in pictures]


def _was_seen(picture):
    """以前的版本会不会读它:直接放在类别目录里,后缀是这几种。"""
    path = Path(picture.path)
    return len(path.parts) == 3 and path.suffix.lower() in _OLD_SUFFIXES


def _is_the_same(kept, pictures):
    """另外给的目录里是不是训练时的那些图片(搬了家的):至少有一半内容相同。"""
    if kept.pictures is None:
        return any(picture.path.startswith("train/") for picture in pictures)
    now = compare_pictures(kept.pictures, pictures)
    return 2 * (len(now.pictures) - len(now.changed)) >= len(kept.pictures)


def _as_kept(kept, pictures):
    """照着运行当时的来;变了什么,说出来。"""
    now = compare_pictures(kept.pictures, pictures)
    changes = now.changes()
    if kept.resuming and now.removed:
        raise UserError(
            f"数据与 {kept.directory} 训练时不同:{changes}。请把少了的放回去,用 --data-dir 给出当时的数据,"
            "或用 --output 开一个新的运行。"
        )
    result = now.pictures
    if not kept.resuming:  # 自己放进 val、test 的,评估时就在那一部分
        added = set(now.added)
        result = result + [picture for picture in pictures if picture.path in added and picture.part != "train"]
    if not changes:
        return result, []
    left = "多了的没有用" if kept.resuming else "训练部分里多了的没有用"
    return result, [
        f"与 {kept.directory} 训练时相比,图片{changes};其余的仍在原来的部分{',' + left if now.added else ''}"
    ]


def _external(found, pictures, kept, config):
    """评估别处的图片:没有写明部分的,全都是测试部分。"""
    known = set(kept.info.classes)
    strange = sorted({picture.category for picture in pictures} - known)
    pictures = [picture for picture in pictures if picture.category in known]
    if not pictures:
        names = first_few(list(kept.info.classes))
        raise UserError(f"类别 {first_few(strange)} 都不是模型的:模型的 {len(known)} 类是 {names},请用同样的名字。")
    notes = []
    if strange:
        notes.append(f"模型没有学过类别 {first_few(strange)}(共 {len(strange)} 类),它们的图片没有用")
    parts = {picture.part for picture in pictures}
    if not found.divided:
        pictures = [picture._replace(part="test") for picture in pictures]
    elif "test" not in parts and "train" in parts:  # 另一个分好训练部分的数据集,也照样分出测试部分
        pictures = _divided(pictures, sorted({picture.category for picture in pictures}), config, split_off)
    trained = {picture.digest for picture in kept.pictures or () if picture.part != "test"}
    seen = [picture for picture in pictures if picture.part == "test" and picture.digest in trained]
    if seen:
        notes.append(f"有 {len(seen)} 张图片训练时用过(如 {readable_name(seen[0].path)}):正确率会偏高")
    return pictures, notes
