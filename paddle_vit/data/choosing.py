"""由读进来的三部分得到要用的:只留 ``--classes`` 里的类,每类至多 ``--train-per-class`` 张,写好说明。"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from .info import DataInfo, shorten
from .parts import SPLIT_SEED, Data, rounded

__all__ = ["assemble", "choose"]


def choose(config, classes, parts):
    """只留下 ``--classes`` 里的类,训练和验证部分每类至多 ``--train-per-class`` 张。

    Args:
        config (Config): 用到 dataset、classes、train_per_class。
        classes (Sequence[str]): 全部类别名。
        parts (list): 训练、验证、测试三部分。

    Returns:
        tuple[list[str], list]: 留下的类别名和三部分。
    """
    chosen = list(range(len(classes))) if config.classes is None else _class_indices(config, classes)
    limits = (config.train_per_class, config.train_per_class, None)
    return [classes[label] for label in chosen], [_choose_part(*pair, chosen) for pair in zip(parts, limits)]


def _choose_part(part, limit, chosen):
    rng = np.random.default_rng(SPLIT_SEED)
    places = [np.flatnonzero(part.labels == label) for label in chosen]
    places = [rng.permutation(place)[:limit] if limit else place for place in places]
    indices, labels = np.concatenate(places), np.repeat(np.arange(len(chosen)), [len(place) for place in places])
    order = indices.argsort()
    if len(order) == len(part) and (labels[order] == part.labels).all():
        return part
    return part.chosen(indices[order], labels[order])


def _class_indices(config, classes):
    """``--classes`` 写的名字或序号 -> 标签的列表。全都是类别名就按名字,否则全都要是序号。"""
    words = [word.strip() for word in config.classes.replace("，", ",").split(",")]
    known = shorten(tuple(classes))
    strange = [word for word in words if word not in classes]
    numbers = [word for word in words if word.isdecimal() and int(word) < len(classes)]
    if not strange:
        found = [list(classes).index(word) for word in words]
    elif len(numbers) == len(words):
        found = [int(word) for word in words]
    elif len(strange) < len(words) and set(strange) <= set(numbers):
        raise UserError(
            f"--classes {config.classes} 里有的是类别名、有的是序号({strange[0]}):请全写类别名,或全写序号({known})。"
        )
    else:
        wrong = next(word for word in strange if word not in numbers)
        raise UserError(
            f"--classes 里的 {wrong!r} 不是 {config.dataset} 的类:请写类别名或序号 0–{len(classes) - 1}({known})。"
        )
    if len(found) < 2 or len(set(found)) < len(found):
        raise UserError(f"--classes {config.classes} 不合法:至少要有 2 类,不能重复。")
    return found


def assemble(name, classes, image_size, mean, std, train, val, test):
    """三部分数据和它们的说明。"""
    counts = {"train": len(train), "val": len(val), "test": len(test)}
    mean, std = rounded(mean, std)
    return Data(DataInfo(name, tuple(classes), len(mean), image_size, mean, std, counts), train, val, test)
