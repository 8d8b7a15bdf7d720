"""一张 Pillow 图像的像素:转成 1、3 或 4 个通道,超过 8 位的缩放成 0–255,反色。"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import numpy as np
from PIL import Image, ImageCms, ImageOps

from ..errors import UserError

__all__ = ["PixelMax", "check_channels", "convert_image", "image_mode", "invert_image", "lightness", "wide_kind"]

PixelMax = Optional[Mapping[str, float]]  # 见 DataInfo.pixel_max


def wide_kind(image: Image.Image) -> str | None:
    """超过 8 位的灰度:``'I'`` 整数,``'F'`` 浮点;不是的为 ``None``。"""
    return "I" if image.mode == "I" or image.mode.startswith("I;16") else "F" if image.mode == "F" else None


def _has_alpha(image):
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def image_mode(channels: int, full_range: bool = False) -> str:
    """``convert_image`` 给出的图像的模式。"""
    return "F" if full_range else {1: "L", 4: "RGBX"}.get(channels, "RGB")


def check_channels(image: Image.Image, channels: int) -> None:
    """模型要四个通道,而图片没有第四个时,抛出 ``UserError``。"""
    if channels == 4 and not (_has_alpha(image) or image.mode == "RGBX"):
        raise UserError(f"没有第四个通道(它是 {image.mode})")


def convert_image(
    image: Image.Image, channels: int, pixel_max: PixelMax = None, full_range: bool = False
) -> Image.Image:
    """Pillow 图像转成灰度(channels=1)、RGB(3)或四个通道(4);前两种透明处垫白。

    四个通道的模式是 RGBX,每个通道原样:RGBA 缩放时 Pillow 会按透明度加权,第四个通道是红外、深度时就错了。

    Args:
        image (PIL.Image.Image): 任何模式。
        channels (int): 1、3 或 4。
        pixel_max (dict | None): 见 ``DataInfo.pixel_max``;没有写的,整数灰度按 65535,浮点灰度最大不超过 1 时按 1,
            否则按 255。
        full_range (bool): 灰度保留全部精度:模式是 F,值仍是 0–255,可以有小数。

    Raises:
        UserError: 没有第四个通道。
    """
    check_channels(image, channels)
    kind, tops = wide_kind(image), pixel_max or {}
    if kind is not None:
        values = np.nan_to_num(np.asarray(image, "float64"))
        usual = 65535 if kind == "I" else 1 if values.max(initial=0) <= 1 else 255
        top = tops.get(kind, usual)
        levels = np.clip(values, 0, top) * 255 / top
        if full_range:
            return Image.fromarray(levels.astype("float32"))
        image = Image.fromarray((np.floor(levels) if kind == "I" else np.rint(levels)).astype("uint8"))
    elif image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, to_rgb) or image
    elif _has_alpha(image):
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        if channels == 4:
            return Image.merge("RGBX", image.split())
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    if channels == 4:
        return image
    image = image.convert(image_mode(channels))
    return image.convert("F") if full_range else image


def invert_image(image: Image.Image) -> Image.Image:
    """``convert_image`` 给出的图像反色;第四个通道不变。"""
    if image.mode == "RGBX":
        *colors, fourth = image.split()
        return Image.merge("RGBX", (*map(ImageOps.invert, colors), fourth))
    if image.mode == "F":
        return Image.fromarray(255 - np.asarray(image))
    return ImageOps.invert(image)


def lightness(image: Image.Image) -> float:
    """一张图像的底色有多亮,0–255:像素的中位数,图形只占小半。"""
    gray = image if image.mode == "F" else image.convert("RGB").convert("L")
    return float(np.median(np.asarray(gray)))
