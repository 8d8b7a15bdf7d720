import paddle
import paddle.nn.functional as F


def window_partition(x, window_size):
    if any(size % window_size for size in x.shape[1:3]):
        raise ValueError("特征图的边长不是窗口的整数倍")
    bands = paddle.split(x, x.shape[1] // window_size, axis=1)
    windows = [window for band in bands for window in paddle.split(band, x.shape[2] // window_size, axis=2)]
    return paddle.stack(windows, axis=1).flatten(0, 1).flatten(1, 2)


def window_reverse(windows, window_size, map_size):
    rows, columns = map_size[0] // window_size, map_size[1] // window_size
    windows = windows.reshape([-1, rows * columns, window_size, window_size, windows.shape[-1]])
    windows = paddle.unstack(windows, axis=1)
    bands = [paddle.concat(windows[r * columns : (r + 1) * columns], axis=2) for r in range(rows)]
    return paddle.concat(bands, axis=1)


def join_neighbours(x):
    if x.shape[1] % 2:
        x = paddle.concat([x, paddle.zeros_like(x[:, :1])], axis=1)
    if x.shape[2] % 2:
        x = paddle.concat([x, paddle.zeros_like(x[:, :, :1])], axis=2)
    columns = [paddle.concat([x[:, 0::2, j::2], x[:, 1::2, j::2]], axis=-1) for j in (0, 1)]
    return paddle.concat(columns, axis=-1)


def patch_merging(x, gamma, beta, weight):
    y = join_neighbours(x)
    y = F.layer_norm(y, y.shape[-1:], gamma, beta)
    return y.matmul(weight)


def attention_cost(map_size, dim, window_size=None):
    H, W = map_size
    if window_size is None:
        return 4 * H * W * dim * dim + 2 * (H * W) ** 2 * dim
    return 4 * H * W * dim * dim + 2 * window_size * window_size * H * W * dim
