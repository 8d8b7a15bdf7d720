"""给图片文件分类。"""

import glob
from pathlib import Path

import paddle
import paddle.nn.functional as F
from PIL import ImageOps

from .data import find_images, read_image, to_input
from .errors import UserError

__all__ = ["expand_paths", "predict"]


def expand_paths(patterns):
    """把文件、目录(取其中的图片;一张也没有时取各级子目录里的)和通配符展开成图片路径。

    Args:
        patterns (list[str]): 路径或通配符。

    Raises:
        UserError: 某一项什么也没有找到。
    """
    paths = []
    for pattern in patterns:
        if Path(pattern).is_dir():
            found = find_images(pattern)
            if not found:
                folders = sorted(path for path in Path(pattern).rglob("*") if path.is_dir())
                found = [image for folder in folders for image in find_images(folder)]
        elif Path(pattern).exists():
            found = [Path(pattern)]
        else:
            found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if Path(path).is_file()]
        if not found:
            raise UserError(f"{pattern} 没有对应的图片:请检查路径;通配符要加引号。")
        paths += found
    return paths


def predict(loaded, paths, top=3, invert=False, batch_size=32):
    """依次给出每张图片最可能的几类。

    Args:
        loaded (LoadedRun): ``load_model`` 的结果。
        paths (list[Path]): 图片文件。
        top (int): 给出几类;超过类别数时给出全部。
        invert (bool): 先反色。
        batch_size (int): 每批几张。

    Yields:
        tuple[Path, list[tuple[str, float]]]: 路径和 (类别名, 概率 0–1) 的列表,概率从大到小。

    Raises:
        UserError: top 不是正数,或某个文件不是图片。
    """
    if top < 1:
        raise UserError(f"--top {top} 不合法:至少要打印 1 类。")
    info = loaded.info
    loaded.model.eval()
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        images = [read_image(path, info.channels) for path in batch]
        if invert:
            images = [ImageOps.invert(image) for image in images]
        with paddle.no_grad():
            logits = loaded.model(paddle.to_tensor(to_input(images, info)))  # [B, K]
        probabilities, classes = F.softmax(logits).topk(min(top, len(info.classes)))  # 各 [B, top]
        for path, row_classes, row in zip(batch, classes.tolist(), probabilities.tolist()):
            yield path, [(info.classes[k], p) for k, p in zip(row_classes, row)]
