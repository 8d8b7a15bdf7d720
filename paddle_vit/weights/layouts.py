"""别处的张量换成我们的放法:线性层 [输入, 输出],卷积核 [D, C, P, P],token 和位置编码 [1, N, D]。"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["BIAS_TABLE", "KERNEL", "KERNEL_BIAS", "POSITIONS", "can_match_channels", "convert", "is_bias_table"]
__all__ += ["match_channels"]

POSITIONS, KERNEL = "position_embedding", "patch_embed.patch_embedding.weight"
KERNEL_BIAS = "patch_embed.patch_embedding.bias"
BIAS_TABLE = "relative_position_bias_table"


def convert(value: np.ndarray, ours: str, wanted, table) -> np.ndarray:
    """一个来源换成我们的放法。

    Args:
        value (ndarray): 文件里的张量,只看形状时可以是 ``broadcast_to`` 的。
        ours (str): 模型里的名字。
        wanted (Sequence[int]): 模型里的形状。
        table (Table): 换名表,用到 layout 和 patch_order。
    """
    layout = table.layout
    if ours == KERNEL:
        return _convert_kernel(value, wanted, table)
    if len(wanted) == 2 and ours.endswith(".weight"):
        if layout == "flax" and value.ndim == 3:  # q、k、v 是 [D, h, d],输出是 [h, d, D]
            keep_first = ours.endswith("qkv.weight")
            shape = (len(value), -1) if keep_first else (-1, value.shape[-1])
            return value.reshape(shape)
        return value.T if layout == "torch" and value.ndim == 2 else value  # [输入, 输出]
    if len(wanted) == 1:
        return value.reshape(-1) if layout == "flax" else value  # [h, d] -> [h * d]
    if len(wanted) == 3 and value.ndim < 3:
        return value.reshape((1,) * (3 - value.ndim) + value.shape)
    return value


def _convert_kernel(value, wanted, table):
    layout = table.layout
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1) if layout == "flax" else value  # [D, C, P, P]
    channels = wanted[1]
    if value.ndim != 2 or table.patch_order is None:
        return value
    value = value.T if layout != "torch" else value  # [D, P * P * C]
    side = math.isqrt(value.shape[1] // channels)
    if side * side * channels != value.shape[1]:
        return value
    order = table.patch_order.split()
    sizes = [channels if axis == "c" else side for axis in order]
    return value.reshape(-1, *sizes).transpose(0, *(1 + order.index(axis) for axis in ("c", "p1", "p2")))


def can_match_channels(channels: int, wanted: int) -> bool:
    """卷积核能不能换成 wanted 个通道的:彩色换灰度,灰度换彩色,或彩色加第四个通道。"""
    return (channels != wanted and 1 in (channels, wanted)) or (channels, wanted) == (3, 4)


def match_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """把图块嵌入的卷积核换成另一个通道数,使灰度图像得到的 token 与把它当作彩色(三个通道相同)时一样。

    彩色换灰度:各通道的核相加;灰度换彩色:每个通道用它的 1 / channels;彩色加第四个通道:它的核从零学起。

    Args:
        kernel (ndarray): [D, C, P, P],C 或 channels 是 1,或由 3 换成 4。
        channels (int): 新的通道数。

    Returns:
        ndarray: [D, channels, P, P]。
    """
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    if kernel.shape[1] == 3:
        return np.concatenate([kernel, np.zeros_like(kernel[:, :1])], axis=1)
    return np.repeat(kernel / channels, channels, axis=1)


def is_bias_table(shape, wanted):
    """两个形状是不是同样头数、不同窗口的偏置表。"""
    sides = [math.isqrt(length[0]) for length in (shape, wanted) if len(length) == 2]
    return (
        len(sides) == 2
        and shape[1] == wanted[1]
        and all(s % 2 and s * s == n[0] for s, n in zip(sides, (shape, wanted)))
    )
