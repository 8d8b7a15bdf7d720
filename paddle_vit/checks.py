"""参数的检查:不合法时抛出一行中文的 ``UserError``。各层和模型都用它们。"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

from .errors import UserError

__all__ = ["as_pair", "check_image_shape", "check_positive", "check_vit", "patch_grid", "settings_of"]


def _is_positive(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0


def check_positive(value: Any, name: str) -> None:
    """不是正整数时抛出 ``UserError``。"""
    if not _is_positive(value):
        raise UserError(f"{name}={value!r} 不合法:应为正整数,请改 {name}。")


def as_pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """把 ``size`` 或 ``(高, 宽)`` 统一成 ``(高, 宽)``,单位像素;不是正整数时抛出 ``UserError``。"""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(_is_positive(v) for v in pair):
        raise UserError(f"{name}={value!r} 不合法:应为正整数或 (高, 宽) 两个正整数,请改 {name}。")
    return pair


def patch_grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """图块网格的 (行数, 列数);两个参数都是 (高, 宽),像素;图块不能整除图像时抛出 ``UserError``。"""
    if any(image % patch for image, patch in zip(image_size, patch_size)):
        raise UserError(
            f"patch_size={patch_size} 不能整除 image_size={image_size}:图像的高和宽都要是图块的整数倍,请改其中一个。"
        )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def check_image_shape(x: paddle.Tensor, in_channels: int, image_size: tuple[int, int]) -> None:
    """图像的形状不是 [B, in_channels, 高, 宽] 时抛出 ``UserError``。"""
    if tuple(x.shape[1:]) != (in_channels, *image_size):
        raise UserError(
            f"输入图像的形状是 {list(x.shape)},应为 [B, {in_channels}, {image_size[0]}, {image_size[1]}];"
            "请缩放图像,或建模型时改 image_size / in_channels。"
        )


def settings_of(arguments: dict) -> dict:
    """构造函数的全部参数(字典),在它的开头用 ``settings_of(locals())`` 得到;读回、导出模型时都看它。"""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


def check_vit(settings: dict) -> None:
    """``ViT`` 的设置不合法,或几个设置互相矛盾时,抛出 ``UserError``。

    Args:
        settings (dict): 构造函数的全部参数。
    """
    choices = {"pool": ("avg", "cls"), "position_embedding": ("none", "learnable", "sincos", "sincos1d")}
    for name, known in {**choices, "head": ("linear", "mlp")}.items():
        if settings[name] not in known:
            raise UserError(f"{name}={settings[name]!r} 不合法:只能是 {'、'.join(known)} 之一。")
    pool, class_token, registers = (settings[name] for name in ("pool", "class_token", "register_tokens"))
    if settings["depth"] < 1:
        raise UserError(f"depth={settings['depth']} 不合法:编码器至少要有 1 层。")
    if settings["num_classes"] < 0:
        raise UserError(f"num_classes={settings['num_classes']} 不合法:应为正整数,或用 0 表示不要分类头。")
    if pool == "cls" and class_token is not None and not class_token:
        raise UserError("pool='cls' 要取 class token,而 class_token=False:请用 pool='avg',或去掉 class_token。")
    if settings["distillation_token"] and pool != "cls":
        raise UserError(f"distillation_token=True 要与 class token 一起用,而 pool={pool!r}:请改用 pool='cls'。")
    if not isinstance(registers, int) or registers < 0:
        raise UserError(f"register_tokens={registers!r} 不合法:应为不小于 0 的整数。")
