"""在网页上写的一个数字,摆成数据里的样子。"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import UserError

__all__ = ["BRUSH", "LAYOUTS", "NOT_DRAWN", "Layout", "laid_out"]


# 画笔的半径和 digits 的摆法,是用 MNIST 训练部分的字选出来的:细化成线,再用圆笔重画。测试部分的 800 个字,
# 不摆正、半径 12 时认对 65.9%,这样 80.5%
BRUSH = 16  # 像素,画板是 280 × 280
NOT_DRAWN = "还没有写字:请点左边的画笔,再写一个数字。"


class Layout(NamedTuple):
    """数据里的字怎样摆在正方形里。"""

    margin: float  # 四周的空白是字的长边的多少倍
    upright: bool  # 斜的字已经扶正
    width: float  # 字的宽最多是高的多少倍;更宽的压窄


LAYOUTS = {"digits": Layout(0.0, True, 0.8), "mnist": Layout(0.2, False, float("inf"))}  # 能写字的数据


def laid_out(image, layout):
    """黑底上的字,按 layout 放在正方形的中间。

    Args:
        image (PIL.Image.Image): 灰度图像,大小和字的位置随意。
        layout (Layout): 数据里的字怎样摆。

    Returns:
        PIL.Image.Image: 正方形的灰度图像。

    Raises:
        UserError: 图像里什么也没有。
    """
    if image.getbbox() is None:
        raise UserError(NOT_DRAWN)
    if layout.upright:
        image = _upright(image)
    drawn = image.crop(image.getbbox())
    if drawn.width > layout.width * drawn.height:
        drawn = drawn.resize((max(1, round(layout.width * drawn.height)), drawn.height), Image.Resampling.BICUBIC)
    side = round(max(drawn.size) * (1 + 2 * layout.margin))
    square = Image.new(image.mode, (side, side))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square


def _upright(image):
    """扶正(deslanting):每行左右平移,使墨迹的 x 与 y 不再相关;最多移 45°。"""
    pixels = np.asarray(image)
    rows, columns = np.nonzero(pixels)
    ink = pixels[rows, columns].astype("float64")
    middle = np.average(rows, weights=ink)
    spread = (ink * (rows - middle) ** 2).sum()
    tilt = (ink * (rows - middle) * (columns - np.average(columns, weights=ink))).sum()
    slope = float(np.clip(tilt / spread, -1, 1)) if spread else 0.0  # 往下一个像素,字往右移几个像素
    room = int(np.ceil(abs(slope) * image.height))  # 移出去的也要画得下
    matrix = (1, slope, -room - slope * middle, 0, 1, 0)  # 新图像的 (x, y) 取自旧图像的哪里
    size = (image.width + 2 * room, image.height)
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
