import paddle
import paddle.nn.functional as F


def window_partition(x, window_size):
    _, H, W, D = x.shape
    w = window_size
    if H % w or W % w:
        raise ValueError(f"{H} x {W} 不能切成 {w} x {w} 的窗口")
    x = x.reshape([-1, H // w, w, W // w, w, D])
    x = x.transpose([0, 1, 3, 2, 4, 5])
    return x.reshape([-1, w * w, D])


def window_reverse(windows, window_size, map_size):
    w = window_size
    H, W = map_size
    D = windows.shape[-1]
    y = windows.reshape([-1, H // w, W // w, w, w, D])
    y = y.transpose([0, 1, 3, 2, 4, 5])
    return y.reshape([-1, H, W, D])


def join_neighbours(x):
    H, W = x.shape[1:3]
    x = F.pad(x, [0, W % 2, 0, H % 2], data_format="NHWC")
    four = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    return paddle.concat(four, axis=-1)


def patch_merging(x, gamma, beta, weight):
    y = join_neighbours(x)
    mean = y.mean(axis=-1, keepdim=True)
    variance = y.var(axis=-1, unbiased=False, keepdim=True)
    y = (y - mean) / paddle.sqrt(variance + 1e-5)
    y = y * gamma + beta
    return y @ weight


def attention_cost(map_size, dim, window_size=None):
    N = map_size[0] * map_size[1]
    seen = N if window_size is None else window_size**2
    return 4 * N * dim**2 + 2 * N * seen * dim
