import numpy as np
import paddle


def order_of(map_size, w):
    """按窗口的次序排列的 token 号。"""
    row, column = np.divmod(np.arange(map_size[0] * map_size[1]), map_size[1])
    keys = (column % w, row % w, column // w, row // w)
    return np.lexsort(keys)


def window_partition(x, window_size):
    _, H, W, D = x.shape
    if H % window_size != 0 or W % window_size != 0:
        raise ValueError("不整除")
    tokens = x.flatten(1, 2)
    tokens = paddle.index_select(tokens, paddle.to_tensor(order_of((H, W), window_size)), axis=1)
    return tokens.reshape([-1, window_size**2, D])


def window_reverse(windows, window_size, map_size):
    H, W = map_size
    back = np.argsort(order_of(map_size, window_size))
    tokens = windows.reshape([-1, H * W, windows.shape[-1]])
    return paddle.index_select(tokens, paddle.to_tensor(back), axis=1).reshape([-1, H, W, windows.shape[-1]])


def join_neighbours(x):
    B, H, W, D = x.shape
    rows, columns = (H + 1) // 2, (W + 1) // 2
    padded = paddle.zeros([B, 2 * rows, 2 * columns, D])
    padded[:, :H, :W] = x
    four = window_partition(padded, 2)
    four = paddle.index_select(four, paddle.to_tensor([0, 2, 1, 3]), axis=1)
    return four.reshape([B, rows, columns, 4 * D])


def patch_merging(x, gamma, beta, weight):
    y = join_neighbours(x)
    centred = y - y.mean(-1, keepdim=True)
    y = centred * paddle.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
    return paddle.einsum("bhwc,cd->bhwd", y * gamma + beta, weight)


def attention_cost(map_size, dim, window_size=None):
    tokens = int(np.prod(map_size))
    keys = tokens if window_size is None else window_size * window_size
    linear = 4 * tokens * dim * dim
    scores = tokens * keys * dim
    mixing = tokens * keys * dim
    return linear + scores + mixing
