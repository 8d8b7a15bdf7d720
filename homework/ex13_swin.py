"""作业 13:Swin 的相对位置偏置、循环移动和掩码。课程第 13 课。

特征图是 H x W 个 token,[B, H, W, D];窗口边长 w,窗口里 N = w * w 个 token,行优先;一张图有
nW = (H / w) * (W / w) 个窗口。
移动窗口的做法:把特征图向左上滚动 s 个 token,照旧切窗口,算完再滚回去。
检查:python scripts/homework.py check 13
"""

import paddle

from paddle_vit.family.windows import window_partition, window_reverse


def relative_position_index(window_size):
    """窗口里每一对 token 的偏置在偏置表里的行号:(行差 + w - 1) * (2w - 1) + (列差 + w - 1)。

    行差 = token i 的行号 - token j 的行号,列差同样,各从 -(w - 1) 到 w - 1。

    Args:
        window_size (int): 窗口边长 w。

    Returns:
        Tensor: 整数,[N, N],行是 i,列是 j。
    """
    raise NotImplementedError("TODO")


def relative_position_bias(table, index):
    """按行号从偏置表里取出每个头、每一对 token 的偏置。

    Args:
        table (Tensor): 偏置表,[(2w - 1)^2, h],每个头一列,是可学习的参数。
        index (Tensor): int64,[N, N]。

    Returns:
        Tensor: [h, N, N]。
    """
    raise NotImplementedError("TODO")


def cyclic_shift(x, shift):
    """循环移动:特征图向左上滚动 shift 个 token,滚出去的从另一头补进来;原来在 (s, s) 的 token 到了 (0, 0)。

    Args:
        x (Tensor): [B, H, W, D]。
        shift (int): s。

    Returns:
        Tensor: [B, H, W, D]。
    """
    raise NotImplementedError("TODO")


def undo_shift(x, shift):
    """``cyclic_shift`` 的逆。

    Args:
        x (Tensor): [B, H, W, D]。
        shift (int): s。

    Returns:
        Tensor: [B, H, W, D]。
    """
    raise NotImplementedError("TODO")


def shifted_window_mask(map_size, window_size, shift):
    """滚动之后每个窗口的掩码:原来就在同一片的两个 token 之间是 0,绕到一起的之间是 -100(-inf 也可以)。

    Args:
        map_size ((int, int)): 特征图的 (行数 H, 列数 W),都是 window_size 的整数倍。
        window_size (int): 窗口边长 w。
        shift (int): 滚动的 token 数 s,0 < s < w,不一定是 w 的一半。

    Returns:
        Tensor: float32,[nW, N, N]。
    """
    raise NotImplementedError("TODO")


def window_attention(q, k, v, bias, mask=None):
    """窗口里的注意力:softmax(q k^T / √d + bias + mask) v。

    Args:
        q, k, v (Tensor): [B * nW, h, N, d],第 0 轴先是第一张图的全部窗口,再是第二张图的。
        bias (Tensor): [h, N, N],各窗口共用。
        mask (Tensor | None): [nW, N, N],0 或 -100,各图、各头共用;``None`` 表示没有。

    Returns:
        tuple: ``(z [B * nW, h, N, d], attn_weights [B * nW, h, N, N])``。
    """
    raise NotImplementedError("TODO")


def shifted_window_attention(x, window_size, shift, attend):
    """一层移动窗口的注意力:滚动、切窗口、算注意力、拼回去、滚回去。

    Args:
        x (Tensor): [B, H, W, D]。
        window_size (int): 窗口边长 w,整除 H 和 W。
        shift (int): 滚动的 token 数 s;0 表示不移动,这时不要掩码。
        attend (Callable): 窗口里的注意力,这样调用:``attend(windows, mask)``;windows 是 [B * nW, N, D],
            mask 是 [nW, N, N] 或 ``None``,返回 [B * nW, N, D]。

    Returns:
        Tensor: [B, H, W, D]。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex13_swin.py
    print(relative_position_index(2))  # 应为 [4, 4] 的表,对角线上都是 4
    numbers = paddle.arange(16, dtype="float32").reshape([1, 4, 4, 1])
    print(cyclic_shift(numbers, 1).reshape([4, 4]))  # 第一行应为 5 6 7 4
    mask = shifted_window_mask((4, 4), 2, 1)
    print(mask.shape, mask[0].abs().max(), mask[1])  # 应为 [4, 4, 4];第 0 个窗口全是 0,第 1 个窗口左右两列互相看不见

    def attend(windows, mask):
        q = windows.unsqueeze(1)  # [B * nW, 1, N, D],一个头
        bias = relative_position_bias(paddle.zeros([9, 1]), relative_position_index(2))  # [1, N, N]
        return window_attention(q, q, q, bias, mask)[0].squeeze(1)  # [B * nW, N, D]

    print(shifted_window_attention(numbers, 2, 1, attend).shape)  # 应为 [1, 4, 4, 1]
    print((window_reverse(window_partition(numbers, 2), 2, (4, 4)) == numbers).all())
