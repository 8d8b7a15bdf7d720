"""参数的检查:不合法时抛出一行中文的 ``UserError``。各层和模型都用它们。"""

import numpy as np

from .errors import UserError

__all__ = ["as_pair", "check_image_shape", "check_positive", "patch_grid"]


def _is_positive(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0


def check_positive(value, name):
    """不是正整数时抛出 ``UserError``。"""
    if not _is_positive(value):
        raise UserError(f"{name}={value!r} 不合法:应为正整数,请改 {name}。")


def as_pair(value, name):
    """把 ``size`` 或 ``(高, 宽)`` 统一成 ``(高, 宽)``,单位像素;不是正整数时抛出 ``UserError``。"""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(_is_positive(v) for v in pair):
        raise UserError(f"{name}={value!r} 不合法:应为正整数或 (高, 宽) 两个正整数,请改 {name}。")
    return pair


def patch_grid(image_size, patch_size):
    """图块网格的 (行数, 列数);两个参数都是 (高, 宽),像素;图块不能整除图像时抛出 ``UserError``。"""
    if any(image % patch for image, patch in zip(image_size, patch_size)):
        raise UserError(
            f"patch_size={patch_size} 不能整除 image_size={image_size}:图像的高和宽都要是图块的整数倍,请改其中一个。"
        )
    return tuple(image // patch for image, patch in zip(image_size, patch_size))


def check_image_shape(x, in_channels, image_size):
    """图像的形状不是 [B, in_channels, 高, 宽] 时抛出 ``UserError``。"""
    if tuple(x.shape[1:]) != (in_channels, *image_size):
        raise UserError(
            f"输入图像的形状是 {list(x.shape)},应为 [B, {in_channels}, {image_size[0]}, {image_size[1]}];"
            "请缩放图像,或建模型时改 image_size / in_channels。"
        )
