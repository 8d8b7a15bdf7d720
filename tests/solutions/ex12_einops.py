import paddle.nn.functional as F
from einops import rearrange


def window_partition(x, window_size):
    return rearrange(x, "b (r i) (c j) d -> (b r c) (i j) d", i=window_size, j=window_size)


def window_reverse(windows, window_size, map_size):
    rows, columns = (size // window_size for size in map_size)
    return rearrange(windows, "(b r c) (i j) d -> b (r i) (c j) d", r=rows, c=columns, i=window_size)


def join_neighbours(x):
    if x.shape[1] % 2 or x.shape[2] % 2:
        x = F.pad(x, [0, 0, 0, x.shape[1] % 2, 0, x.shape[2] % 2, 0, 0], pad_from_left_axis=True)
    return rearrange(x, "b (r i) (c j) d -> b r c (j i d)", i=2, j=2)


def patch_merging(x, gamma, beta, weight):
    y = join_neighbours(x)
    return F.linear(F.layer_norm(y, y.shape[-1], gamma, beta, 1e-5), weight)


def attention_cost(map_size, dim, window_size=None):
    rows, columns = map_size
    window = window_size or rows
    area = rows * columns if window_size is None else window * window
    windows = rows * columns // area
    return windows * (4 * area * dim * dim + 2 * area * area * dim)
