"""在目录里找图片;没有用到的文件都数一数,说出名字和怎么办。"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..system.fitting import kept_share, size_text
from .images import image_suffixes, orientation
from .info import DataInfo

__all__ = ["Unused", "expand_paths", "far_from_square", "find_images", "inside", "is_image_name", "readable_name"]

# 系统和编辑器自己放的,不必说
_JUNK = re.compile(r"\._.*|\.DS_Store|Thumbs\.db|desktop\.ini|\.git|\.gitkeep|\.gitignore|__MACOSX", re.IGNORECASE)
_HIDDEN, _NO_SUFFIX, _TO_JPEG = "名字以 . 开头", "没有后缀", "请转成 JPEG"
_ADVICE = {
    _HIDDEN: "要用请改名",
    _NO_SUFFIX: "是图片的话,请加上后缀",
    **dict.fromkeys((".heic", ".heif", ".hif"), "请运行 pip install pillow-heif,或转成 JPEG"),
    **dict.fromkeys((".avif", ".avifs"), "请运行 pip install pillow-avif-plugin,或转成 JPEG"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".jxl", ".svg", ".pdf"), _TO_JPEG),
    **dict.fromkeys((".zip", ".rar", ".7z", ".tar", ".gz", ".tgz"), "里面有图片的话,请先解压"),
}


class Unused:
    """没有用到的文件,按原因分开。"""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], list[Path]] = {}

    def add(self, path: Path, reason: str | None = None, advice: str = "不是图片的后缀") -> None:
        """记下一个文件;reason 不给时看它的后缀。"""
        if _JUNK.fullmatch(path.name):
            return
        if reason is None:
            reason = _HIDDEN if path.name.startswith(".") else path.suffix.lower() or _NO_SUFFIX
            advice = _ADVICE.get(reason, advice)
        self._files.setdefault((reason, advice), []).append(path)

    def line(self, root: str | Path | None = None) -> str | None:
        """一句话:几个、哪些、怎么办;都用到了是 ``None``。root 是它们所在的目录。"""
        if not self._files:
            return None
        total = sum(map(len, self._files.values()))
        kinds = [
            f"{reason} {len(paths)} 个(如 {readable_name(inside(paths[0], root or ''))};{advice})"
            for (reason, advice), paths in sorted(self._files.items(), key=lambda item: -len(item[1]))
        ]
        where = "" if root is None else f"{root} 里"
        return f"{where}有 {total} 个文件没有用到:{'、'.join(kinds)}"


def inside(path: Path, root: str | Path) -> Path:
    """在 root 里的路径,相对于它;在别处的原样。"""
    return path.relative_to(root) if path.is_relative_to(root) else path


def readable_name(path: str | Path) -> str:
    """给人看的文件名:不是 UTF-8 的字节按 GBK 读,读不出的换成问号。"""
    raw = os.fsencode(path)
    for encoding in ("utf-8", "gbk"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("utf-8", "replace")


def is_image_name(path: Path) -> bool:
    """是不是图片的名字:有图片的后缀,不以 . 开头。"""
    return path.suffix.lower() in image_suffixes() and not path.name.startswith(".")


def find_images(directory: str | Path, unused: Unused | None = None, deep: bool = True) -> list[Path]:
    """目录里的图片文件,按名字排序;后缀见 ``image_suffixes``。

    Args:
        directory (str | Path): 目录。
        unused (Unused | None): 别的文件记在这里。
        deep (bool): 也要各级子目录里的(名字以 . 开头的子目录除外);否则只要直接放在里面的。
    """
    unused = Unused() if unused is None else unused
    return _search(Path(directory), unused, deep, ())


def _search(directory, unused, deep, above):
    here = os.path.realpath(directory)
    if here in above:  # 指回上级的链接
        return []
    images, folders = [], []
    for path in sorted(directory.iterdir()):
        if _JUNK.fullmatch(path.name):
            continue
        if path.is_dir():
            folders.append(path)
        elif is_image_name(path):
            images.append(path)  # 断开的链接也算:检查时会说出它来
        else:
            unused.add(path)
    for path in folders:
        below = _search(path, unused, True, (*above, here))
        if deep and not path.name.startswith("."):
            images += below
        else:
            reason = "名字以 . 开头的目录里的" if deep else "子目录里的"
            for image in below:
                unused.add(image, reason, "要用请给出那个目录" if not deep else "要用请改名")
    return images


def expand_paths(patterns: Iterable[str], unused: Unused | None = None) -> list[Path]:
    """把文件、目录(取其中的图片;一张也没有时取各级子目录里的)和通配符展开成图片路径。

    Args:
        patterns (list[str]): 路径或通配符。
        unused (Unused | None): 目录里没有用到的文件记在这里。

    Raises:
        UserError: 某一项什么也没有找到。
    """
    paths = []
    for pattern in patterns:
        if Path(pattern).is_dir():
            left = Unused() if unused is None else unused
            has_direct = any(is_image_name(path) and not path.is_dir() for path in Path(pattern).iterdir())
            found = find_images(pattern, left, deep=not has_direct)
            if not found:
                why = left.line(pattern)
                raise UserError(f"{pattern} 里没有图片:请检查路径。{why or ''}")
        elif Path(pattern).exists():
            found = [Path(pattern)]
        else:
            found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True)) if Path(path).is_file()]
        if not found:
            raise UserError(f"{pattern} 没有对应的图片:请检查路径;通配符要加引号。")
        paths += found
    return paths


def far_from_square(paths: Sequence[str | Path], info: DataInfo, most: int = 200) -> str | None:
    """多数图片被裁去一大半时,一句提醒;否则是 ``None``。

    Args:
        paths (Sequence): 图片文件;只看均匀取出的 most 张的文件头,读不出来的不算。
        info (DataInfo): 用到 image_size 和 fit。
        most (int): 最多看几张。
    """
    kept = []
    for path in paths[:: max(1, len(paths) // most)]:
        with contextlib.suppress(OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
            with warnings.catch_warnings(), Image.open(path) as image:
                warnings.simplefilter("ignore")
                size = image.size[::-1] if orientation(image) in (5, 6, 7, 8) else image.size
            kept.append((kept_share(size, info.image_size, info.fit), size))
    kept.sort()
    if not kept:
        return None
    share, size = kept[len(kept) // 2]
    if share >= 0.5:
        return None
    return (
        f"提示:图片的长宽比与模型的 {size_text(info.image_size)} 像素相差很大(如宽 {size[0]}、高 {size[1]}),"
        f"居中裁剪后只剩约 {share:.0%} 的面积;要看到整张图片,请用 --fit squash(压扁)或 --fit pad(补边)训练,"
        "或让 --image-size 高x宽 接近图片的长宽比。"
    )
