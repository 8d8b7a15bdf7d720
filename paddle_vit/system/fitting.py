"""任意大小的图片怎样摆成模型要的大小:裁剪、压扁或补边;训练、评估、预测、导出都用这一份。"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Union

from PIL import Image

from ..checks import as_pair

__all__ = [
    "FITS",
    "INTERPOLATIONS",
    "Fit",
    "Size",
    "fit_image",
    "fit_named",
    "kept_share",
    "parse_fit",
    "parse_size",
    "plain_size",
    "size_setting",
    "size_text",
]

Size = Union[int, tuple[int, int]]  # 边长,或 (高, 宽),像素

FITS = ("crop", "squash", "pad")
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # 次序就是 Pillow 的编号 0–5
ROUNDINGS = ("exact", "floor", "round")
GRAY = 128  # 补边的颜色:正中的灰,按 0.5 归一化后是零


@dataclasses.dataclass(frozen=True)
class Fit:
    """任意大小的图片怎样摆成模型要的大小。

    Attributes:
        kind (str): ``'crop'`` 按短边缩放,裁去长边多出来的;``'squash'`` 两边各自缩放,长宽比变了;
            ``'pad'`` 按长边缩放,短边补上底色。
        interpolation (str): 插值,``INTERPOLATIONS`` 之一;缩小时都抗锯齿。
        share (float): 先缩放得大一些,再取正中间:模型的边长是缩放后的多少,0–1;1 是不再裁。
        rounding (str): ``'exact'`` 从原图的小数坐标处一次缩放到位;``'floor'``、``'round'`` 先缩放成整数的大小再裁,
            起点向下取整(Hugging Face)或四舍五入(torchvision、timm)。
        fill (tuple[int]): 补边的颜色,每个通道 0–255;空的是灰(128)。
    """

    kind: str = "crop"
    interpolation: str = "bicubic"
    share: float = 1.0
    rounding: str = "exact"
    fill: tuple[int, ...] = ()

    def __str__(self):
        return f"{self.kind}({self.interpolation})"

    def describe(self, size: Size) -> str:
        """一句话说明,``size`` 是模型的图像大小。"""
        ways = {"crop": "按短边缩放后居中裁剪", "squash": "不管长宽比缩放", "pad": "按长边缩放后补边"}
        more = "" if self.share == 1 else f",先缩放到 1/{self.share:g} 再裁"
        return f"{ways[self.kind]}到 {size_text(size)} 像素({self.interpolation}{more})"


def parse_fit(values: Any) -> Fit:
    """字典(JSON 读来的)-> ``Fit``;没有(``None``)就是默认的。

    Raises:
        ValueError: 哪一项不合法。
    """
    if values is None:
        return Fit()
    names = {field.name for field in dataclasses.fields(Fit)}
    if not isinstance(values, dict) or set(values) - names:
        raise ValueError(values)
    fit = Fit(**{**values, "fill": tuple(values.get("fill", ()))})
    good = fit.kind in FITS and fit.interpolation in INTERPOLATIONS and fit.rounding in ROUNDINGS
    good = good and isinstance(fit.share, (int, float)) and 0 < fit.share <= 1
    if not good or not all(type(level) is int and 0 <= level <= 255 for level in fit.fill):
        raise ValueError(values)
    return fit


def fit_named(kind: str, interpolation: str = "bicubic") -> Fit:
    """使用者写明的摆法:``crop``、``squash`` 或 ``pad``,一次缩放到位,不再裁。"""
    return Fit(kind, interpolation, rounding="round" if kind == "pad" else "exact")


def plain_size(height: int, width: int) -> Size:
    """正方形是一个整数,其余是 (高, 宽)。"""
    return height if height == width else (height, width)


def parse_size(value: Any) -> int | str:
    """使用者写的图像大小:边长(整数),或文字 ``高x宽``;正方形总是整数。``size_setting`` 是反过来。

    Raises:
        ValueError: 不是这两种。
    """
    words = re.split("[xX×*]", value.strip()) if isinstance(value, str) else [value]
    if not all(type(word) is int or (isinstance(word, str) and word.strip().isdecimal()) for word in words):
        raise ValueError(value)
    sides = [int(word) for word in words]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(value)
    return sides[0] if sides[0] == sides[-1] else f"{sides[0]}x{sides[1]}"


def size_setting(size: Size) -> int | str:
    """图像大小 -> 设置里的写法:边长,或 ``高x宽``。"""
    plain = plain_size(*as_pair(size, "image_size"))
    return plain if isinstance(plain, int) else f"{plain[0]}x{plain[1]}"


def size_text(size: Size) -> str:
    """图像大小写给人看:``224`` 或 ``64 x 128``(高 x 宽)。"""
    height, width = as_pair(size, "image_size")
    return str(height) if height == width else f"{height} x {width}"


def fit_image(image: Image.Image, size: Size, fit: Fit | None = None) -> Image.Image:
    """把一张图片摆成模型要的大小;本来就是这么大、又不用裁的,原样返回。

    Args:
        image (PIL.Image.Image): 任意大小,模式 L 或 RGB。
        size (int | (int, int)): 边长或 (高, 宽),像素。
        fit (Fit | None): 怎样摆;``None`` 是默认的。

    Returns:
        PIL.Image.Image: 宽 x 高,模式不变。
    """
    fit = fit or Fit()
    height, width = as_pair(size, "image_size")
    if image.size == (width, height) and fit.share == 1:
        return image
    method = Image.Resampling[fit.interpolation.upper()]
    if fit.rounding == "exact" and fit.kind != "pad":
        return image.resize((width, height), method, box=_middle(image.size, (width, height), fit))
    image = image.resize(_resized(image.size, (width, height), fit), method)
    left, top = (_start(have, want, fit.rounding) for have, want in zip(image.size, (width, height)))
    if left >= 0 and top >= 0:
        return image.crop((left, top, left + width, top + height))
    fill = fit.fill or (GRAY,) * len(image.getbands())
    canvas = Image.new(image.mode, (width, height), fill[0] if len(fill) == 1 else fill)
    canvas.paste(image, (-left, -top))
    return canvas


def _middle(have, want, fit):
    """原图里要的那一块的 (左, 上, 右, 下),小数。"""
    width, height = have
    if fit.kind == "crop" and width * want[1] >= height * want[0]:  # 太宽
        width = want[0] / want[1] * height
    elif fit.kind == "crop":
        height = width / (want[0] / want[1])
    width, height = width * fit.share, height * fit.share
    left, top = (have[0] - width) * 0.5, (have[1] - height) * 0.5
    return left, top, left + width, top + height


def _resized(have, want, fit):
    """裁或补之前缩放成的 (宽, 高);取整的次序与 Hugging Face、torchvision、timm 的相同。"""
    scaled = [math.floor(length / fit.share + 1e-6) for length in want]
    if fit.kind == "squash":
        return tuple(scaled)
    if fit.kind == "crop" and scaled[0] == scaled[1]:
        return tuple(scaled[0] if length == min(have) else int(scaled[0] * length / min(have)) for length in have)
    choose = max if fit.kind == "pad" else min
    ratio = choose(length / target for length, target in zip(have, scaled))
    return tuple(max(1, round(length / ratio)) for length in have)


def _start(have, want, rounding):
    """从哪里裁起;负数是补边的宽。"""
    if have < want:
        return -((want - have) // 2)
    return (have - want) // 2 if rounding == "floor" else round((have - want) / 2)


def kept_share(have: tuple[int, int], size: Size, fit: Fit) -> float:
    """一张图片裁剪之后还留下多大的面积,比例。

    Args:
        have ((int, int)): 图片的 (宽, 高)。
        size (int | (int, int)): 模型的图像边长或 (高, 宽)。
        fit (Fit): 怎样摆。
    """
    if fit.kind == "pad":
        return 1.0
    height, width = as_pair(size, "image_size")
    left, top, right, bottom = _middle(have, (width, height), fit)
    return (right - left) * (bottom - top) / (have[0] * have[1])
