"""窗口:把特征图切成窗口再拼回去,窗口里的相对位置,移位以后的掩码。来源:Swin(arXiv 2103.14030)3.2 节。"""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ..errors import UserError

__all__ = [
    "pad_map",
    "relative_position_index",
    "round_up",
    "shifted_window_mask",
    "window_partition",
    "window_reverse",
]


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """把特征图切成窗口:[B, H, W, D] -> [B * nW, N, D],窗口和窗口里的 token 都按行优先排列。

    Args:
        x (Tensor): [B, H, W, D],H 和 W 都是 window_size 的整数倍。
        window_size (int): 窗口边长 w,token。

    Raises:
        UserError: H 或 W 不是 window_size 的整数倍。
    """
    _, H, W, D = x.shape
    w = window_size
    _check_multiple((H, W), w)
    x = x.reshape([-1, H // w, w, W // w, w, D])  # [B, H/w, w, W/w, w, D]
    x = x.transpose([0, 1, 3, 2, 4, 5])  # [B, H/w, W/w, w, w, D]
    return x.reshape([-1, w * w, D])  # [B * nW, N, D]


def window_reverse(windows: Tensor, window_size: int, map_size: tuple[int, int]) -> Tensor:
    """``window_partition`` 的逆:[B * nW, N, D] -> [B, H, W, D]。

    Args:
        windows (Tensor): [B * nW, N, D]。
        window_size (int): 窗口边长 w,token。
        map_size ((int, int)): 特征图的 (行数, 列数),都是 window_size 的整数倍。

    Raises:
        UserError: map_size 里有一个不是 window_size 的整数倍。
    """
    _check_multiple(map_size, window_size)
    (H, W), w, D = map_size, window_size, windows.shape[-1]
    x = windows.reshape([-1, H // w, W // w, w, w, D])  # [B, H/w, W/w, w, w, D]
    x = x.transpose([0, 1, 3, 2, 4, 5])  # [B, H/w, w, W/w, w, D]
    return x.reshape([-1, H, W, D])  # [B, H, W, D]


def _check_multiple(map_size, window_size):
    """不检查的话,几张图凑够了数也能切,切出的窗口里混着别的图。"""
    H, W = map_size
    if H % window_size or W % window_size:
        raise UserError(
            f"特征图 {H} x {W} 切不成 {window_size} x {window_size} 的窗口:"
            "行数和列数都应是窗口边长的整数倍,请先用 pad_map 补零,或改 window_size。"
        )


def round_up(size: int, multiple: int) -> int:
    """不小于 size 的、multiple 的最小整数倍。"""
    return -(-size // multiple) * multiple


def pad_map(x: Tensor, multiple: int) -> Tensor:
    """在特征图的下边和右边补零,补到 multiple 的整数倍:[B, H, W, D] -> [B, H', W', D]。"""
    _, H, W, _ = x.shape
    bottom, right = round_up(H, multiple) - H, round_up(W, multiple) - W
    return F.pad(x, [0, right, 0, bottom], data_format="NHWC") if bottom or right else x


def relative_position_index(window_size: int) -> np.ndarray:
    """窗口里 token i 相对 token j 的位置在偏置表里的行号。

    行差和列差各有 2w-1 种取值(-(w-1) 到 w-1),行号是 (行差 + w-1) * (2w-1) + (列差 + w-1)。来源:论文 3.2 节。

    Args:
        window_size (int): 窗口边长 w,token。

    Returns:
        numpy.ndarray: int64,[N, N],取值 0 到 (2w-1)^2 - 1。
    """
    w = window_size
    row, column = np.divmod(np.arange(w * w), w)  # 各 [N]
    row_difference = row[:, None] - row  # [N, N]
    column_difference = column[:, None] - column  # [N, N]
    return (row_difference + w - 1) * (2 * w - 1) + column_difference + w - 1


def shifted_window_mask(map_size: tuple[int, int], window_size: int, shift: int) -> Tensor:
    """循环移动之后的窗口掩码:原来相邻的 token 之间是 0,绕到一起的之间是 -100。

    沿每个方向,滚动之后的特征图分成三段:没动过分界的、最后一个窗口里原来就在末尾的、从开头绕过来的;
    行、列两段都相同的 token 才互相看得见。来源:论文 3.2 节,图 4。

    Args:
        map_size ((int, int)): 特征图的 (行数, 列数),都是 window_size 的整数倍。
        window_size (int): 窗口边长 w,token。
        shift (int): 滚动的 token 数 s,0 < s < w。

    Returns:
        Tensor: [nW, N, N]。
    """
    row, column = (
        (np.arange(size) >= size - window_size).astype("float32") + (np.arange(size) >= size - shift)
        for size in map_size
    )  # [H] 和 [W],取值 0、1、2
    region = paddle.to_tensor(row[:, None] * 3 + column, "float32")  # [H, W]
    region = window_partition(region.unsqueeze([0, -1]), window_size)  # [nW, N, 1]
    return (region != region.transpose([0, 2, 1])).astype("float32") * -100.0  # [nW, N, N]
