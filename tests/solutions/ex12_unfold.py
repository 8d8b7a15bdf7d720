import paddle.nn.functional as F


def window_partition(x, window_size):
    B, H, W, D = x.shape
    w = window_size
    if H % w or W % w:
        raise ValueError("H 和 W 应是 window_size 的整数倍")
    columns = F.unfold(x.transpose([0, 3, 1, 2]), w, strides=w)
    return columns.reshape([B, D, w * w, -1]).transpose([0, 3, 2, 1]).reshape([-1, w * w, D])


def window_reverse(windows, window_size, map_size):
    w = window_size
    D = windows.shape[-1]
    count = map_size[0] * map_size[1] // w**2
    columns = windows.reshape([-1, count, w * w, D]).transpose([0, 3, 2, 1])
    image = F.fold(columns.reshape([-1, D * w * w, count]), list(map_size), w, strides=w)
    return image.transpose([0, 2, 3, 1])


def join_neighbours(x):
    B, H, W, D = x.shape
    image = F.pad(x.transpose([0, 3, 1, 2]), [0, W % 2, 0, H % 2])
    four = F.pixel_unshuffle(image, 2)
    four = four.reshape([B, D, 2, 2, *four.shape[2:]])
    return four.transpose([0, 4, 5, 3, 2, 1]).flatten(3)


def patch_merging(x, gamma, beta, weight):
    y = join_neighbours(x)
    return F.layer_norm(y, [y.shape[-1]], weight=gamma, bias=beta, epsilon=1e-5) @ weight


def attention_cost(map_size, dim, window_size=None):
    rows, columns = map_size
    height, width = (rows, columns) if window_size is None else (window_size, window_size)
    per_token = 4 * dim**2 + 2 * height * width * dim
    return rows * columns * per_token
