"""作业 12:切窗口,拼回去,合并图块,数一数窗口注意力的乘加次数。课程第 12 课。

特征图是 H x W 个 token,[B, H, W, D];窗口边长 w,一张图有 nW = (H / w) * (W / w) 个窗口。
一律按行优先排列:先从左到右,再从上到下。
检查:python scripts/homework.py check 12
"""

import paddle


def window_partition(x, window_size):
    """把特征图切成窗口:[B, H, W, D] -> [B * nW, w * w, D]。

    次序是:先第一张图的全部窗口(行优先),再第二张图的……;每个窗口里的 token 也是行优先。

    Args:
        x (Tensor): [B, H, W, D]。
        window_size (int): 窗口边长 w,token。

    Returns:
        Tensor: [B * nW, w * w, D]。

    Raises:
        ValueError: H 或 W 不是 window_size 的整数倍。
    """
    raise NotImplementedError("TODO")


def window_reverse(windows, window_size, map_size):
    """``window_partition`` 的逆:[B * nW, w * w, D] -> [B, H, W, D]。

    Args:
        windows (Tensor): [B * nW, w * w, D]。
        window_size (int): 窗口边长 w,token。
        map_size ((int, int)): 特征图的 (行数 H, 列数 W)。

    Returns:
        Tensor: [B, H, W, D]。
    """
    raise NotImplementedError("TODO")


def join_neighbours(x):
    """相邻的 2 x 2 个 token 拼成一个:[B, H, W, D] -> [B, H/2, W/2, 4D]。

    拼接的次序是左上、左下、右上、右下,各占连续的 D 个数。H 或 W 是奇数时,先在下边或右边补一行(列)零。

    Args:
        x (Tensor): [B, H, W, D]。

    Returns:
        Tensor: [B, H/2, W/2, 4D],除法向上取整。
    """
    raise NotImplementedError("TODO")


def patch_merging(x, gamma, beta, weight):
    """图块合并(patch merging):拼接之后,在 4D 维上做层归一化,再线性映射到 2D 维(没有偏置)。

    层归一化:(y - 均值) / √(方差 + 1e-5) * gamma + beta,均值和方差沿最后一轴,方差除以 4D(不是 4D - 1)。

    Args:
        x (Tensor): [B, H, W, D]。
        gamma, beta (Tensor): [4D]。
        weight (Tensor): [4D, 2D]。

    Returns:
        Tensor: [B, H/2, W/2, 2D]。
    """
    raise NotImplementedError("TODO")


def attention_cost(map_size, dim, window_size=None):
    """一层自注意力的乘加次数(一张图)。

    数 q、k、v、输出四个线性层 [D, D],加上 q k^T 和 attn_weights v 两次矩阵乘法;不数偏置和 softmax。
    一次乘加(multiply-add)算一次。

    Args:
        map_size ((int, int)): 特征图的 (行数 H, 列数 W)。
        dim (int): D。
        window_size (int | None): 窗口边长 w,整除 H 和 W;``None`` 表示每个 token 看全图。

    Returns:
        int: 乘加次数。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex12_window_attention.py
    numbers = paddle.arange(24, dtype="float32").reshape([1, 4, 6, 1])  # 4 行 6 列,依次编号
    print(numbers.reshape([4, 6]))
    windows = window_partition(numbers, 2)
    print(windows.shape, windows[1].flatten())  # 应为 [6, 4, 1];第 1 个窗口是 2 3 8 9
    print(bool((window_reverse(windows, 2, (4, 6)) == numbers).all()))  # 应为 True
    print(join_neighbours(numbers)[0, 0, 0])  # 应为 0 6 1 7
    for side in (28, 56, 112):
        print(side, attention_cost((side, side), 96), attention_cost((side, side), 96, 7))
