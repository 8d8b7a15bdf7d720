"""自己的图片:DIR/train/类别/图片,还可以有 val 和 test。"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UserError
from .choosing import assemble, choose
from .images import IMAGE_SUFFIXES, check_image_files, find_images
from .parts import FilePart, stratified_split

__all__ = ["load_folder"]


def load_folder(config, size):
    if config.data_dir is None:
        raise UserError("--dataset folder 需要 --data-dir:请给图片所在的目录,里面是 train/类别名/图片。")
    root = Path(config.data_dir)
    if not (root / "train").is_dir():
        raise UserError(f"{root} 里没有 train 目录:图片要按 {root}/train/类别名/图片 摆放。{_where_it_may_be(root)}")
    classes = sorted(path.name for path in (root / "train").iterdir() if path.is_dir() and path.name[0] != ".")
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} 里有 {len(classes)} 个类别目录:至少要有 2 个,每类一个目录。")
    parts = {"train": _scan(root / "train", classes)}
    for part in ("val", "test"):
        if (root / part).is_dir():
            parts[part] = _scan(root / part, classes)
    for part in ("test", "val"):
        if part not in parts:
            paths, labels = parts["train"]
            few = [name for i, name in enumerate(classes) if (labels == i).sum() < 2 + (part == "test")]
            if few:
                raise UserError(
                    f"{root / 'train' / few[0]} 的图片太少,分不出验证集和测试集:每类至少要有 3 张;"
                    f"请补充图片,或自己放好 {root / 'val'} 和 {root / 'test'}。"
                )
            keep, rest = stratified_split(labels, config.val_fraction)
            parts[part] = [paths[i] for i in rest], labels[rest]
            parts["train"] = [paths[i] for i in keep], labels[keep]
    for paths, _ in parts.values():
        check_image_files(paths)
    channels = 1 if config.grayscale else 3
    parts = [FilePart(*parts[name], size, config.workers, channels) for name in ("train", "val", "test")]
    classes, parts = choose(config, classes, parts)
    middle = [0.5] * channels  # 均值和标准差:像素从 0–1 变成 -1–1
    return assemble("folder", classes, size, middle, middle, *parts)


def _where_it_may_be(root):
    """给错了一层的目录:说出像是对的那一个,或怎样摆。"""
    around = *root.resolve().parents[:2], *sorted(path for path in root.iterdir() if path.is_dir())
    for other in around:  # 给了 DIR/train 或 DIR/train/猫,或上一层
        if (other / "train").is_dir():
            return f"--data-dir 是不是 {other}?"
    if any(find_images(path) for path in root.iterdir() if path.is_dir() and path.name[0] != "."):
        return f"里面已经是类别目录的话,请建 {root / 'train'},把它们移进去。"
    return ""


def _scan(directory, classes):
    """目录/类别/图片 -> (图片路径, 标签)。"""
    paths, labels = [], []
    for path in sorted(directory.iterdir()):
        if path.is_dir() and path.name[0] != "." and path.name not in classes:
            raise UserError(f"{path} 在 train 里没有同名的类别:请改名,或在 train 里也放这一类。")
    for label, name in enumerate(classes):
        if not (directory / name).is_dir():
            continue
        images = find_images(directory / name)
        if not images and directory.name == "train":
            raise UserError(f"类别目录 {directory / name} 里没有图片:请放入图片({' '.join(IMAGE_SUFFIXES)}),或删除它。")
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"{directory} 里没有图片:请按 {directory}/类别名/图片 摆放({' '.join(IMAGE_SUFFIXES)})。")
    return paths, np.array(labels)
