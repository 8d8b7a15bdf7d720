"""图片文件 -> 像素:任何 Pillow 支持的格式和模式,找文件,查坏图,缩放成模型的输入。"""

from __future__ import annotations

import contextlib
import glob
import struct
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ..config import Config
from ..errors import UserError
from ..system.fitting import Fit, Size, fit_image, kept_share, size_text
from ..system.pictures import to_array
from .augment import IMAGE_NUMBERS, augment_image, normalize
from .info import DataInfo

__all__ = [
    "IMAGE_SUFFIXES",
    "at_size",
    "check_image_files",
    "convert_image",
    "expand_paths",
    "far_from_square",
    "find_images",
    "looks_light",
    "read_image",
    "to_input",
]


ORIENTATION = 0x0112  # EXIF 里的朝向;5–8 是转了 90°
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def at_size(
    image: Image.Image,
    size: Size,
    fit: Fit | None = None,
    config: Config | None = None,
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """Pillow 图像 -> uint8 [H, W, C],size 是边长或 (H, W);有随机数时增强,没有时(评估、预测)只照 fit 摆好。"""
    if numbers is None or config is None:
        return to_array(fit_image(image, size, fit))
    return to_array(augment_image(image, size, config, numbers[:IMAGE_NUMBERS], fit))


def read_image(path: str | Path, channels: int) -> Image.Image:
    """读一张图片,任何 Pillow 支持的格式和模式,转成灰度或 RGB;透明处垫白,按 EXIF 摆正。

    Args:
        path (str | Path): 图片文件。
        channels (int): 1 得到灰度(L),3 得到 RGB。

    Returns:
        PIL.Image.Image: 模式为 L 或 RGB。

    Raises:
        UserError: 不是图片、文件不完整,或像素多得可疑。
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 有些文件的 EXIF、调色板不规范,Pillow 会警告,图像本身没有问题
        try:
            with Image.open(path) as file:
                file.load()
                image = ImageOps.exif_transpose(file)
        except FileNotFoundError:
            raise UserError(f"没有 {path}:请检查路径。") from None
        except IsADirectoryError:
            raise UserError(f"{path} 是一个目录:请给图片文件,或一列图片文件。") from None
        except Image.DecompressionBombError:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise UserError(f"{path} 的像素太多({limit} 以上):请先缩小再用。") from None
        except (OSError, SyntaxError, ValueError, struct.error, EOFError):
            raise UserError(f"{path} 不是图片,或文件不完整:请替换或删除它,然后重新运行。") from None
        return convert_image(image, channels)


def looks_light(path: str | Path) -> bool:
    """一张图片是不是大半是亮的,如白底黑字;读不出来的错误同 ``read_image``。"""
    return float(np.median(np.asarray(read_image(path, 1)))) > 160  # 中位数是底色,图形只占小半


def convert_image(image: Image.Image, channels: int) -> Image.Image:
    """Pillow 图像转成灰度(channels=1)或 RGB(3);透明处垫白。"""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 位灰度
        image = Image.fromarray((np.clip(np.asarray(image, "int64"), 0, 65535) // 257).astype("uint8"))
    elif image.mode == "F":  # 浮点灰度:最大值不超过 1 时按 0–1,否则按 0–255
        values = np.nan_to_num(np.asarray(image, "float64"))
        scale = 255 if values.max(initial=0) <= 1 else 1
        image = Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype("uint8"))
    elif image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, to_rgb) or image
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def find_images(directory: str | Path) -> list[Path]:
    """目录里(不含子目录)的图片文件,按名字排序;其他文件忽略。"""
    return sorted(
        path
        for path in Path(directory).iterdir()
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def check_image_files(paths: Iterable[Path]) -> None:
    """开始训练之前把每个文件完整地解码一遍,免得最后才发现坏图。

    Raises:
        UserError: 有文件不是图片或不完整。
    """

    def check(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Image.open(path) as image:
                    image.draft("RGB", (64, 64))  # JPEG 缩小解码,快得多,但仍要读完整个文件
                    image.load()
            except (OSError, SyntaxError, ValueError, struct.error, EOFError, Image.DecompressionBombError):
                return path
        return None

    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise UserError(f"没有 {missing}:图片不全,可能是上次解压时中断了;请删除 {missing.parent} 后重新运行。")
    with ThreadPoolExecutor() as pool:
        bad = [path for path in pool.map(check, paths) if path is not None]
    if bad:
        more = f"(另有 {len(bad) - 1} 个)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]} 不是图片,或文件不完整{more}:请替换或删除,然后重新运行。")


def to_input(images: Iterable[Image.Image], info: DataInfo) -> np.ndarray:
    """一批 Pillow 图像 -> 模型的输入 float32 [B, C, H, W](照 info.fit 摆好,归一化,与训练时评估的处理相同)。"""
    pixels = np.stack([at_size(image, info.image_size, info.fit) for image in images])  # [B, H, W, C]
    return normalize(pixels, info.mean, info.std)


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
                turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
                size = image.size[::-1] if turned else image.size
            kept.append((kept_share(size, info.image_size, info.fit), size))
    kept.sort()
    share, size = kept[len(kept) // 2] if kept else (1.0, None)
    if share >= 0.5:
        return None
    return (
        f"提示:图片的长宽比与模型的 {size_text(info.image_size)} 像素相差很大(如宽 {size[0]}、高 {size[1]}),"
        f"居中裁剪后只剩约 {share:.0%} 的面积;要看到整张图片,请用 --fit squash(压扁)或 --fit pad(补边)训练,"
        "或让 --image-size 高x宽 接近图片的长宽比。"
    )


def expand_paths(patterns: Iterable[str]) -> list[Path]:
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
