import paddle


def window_partition(x, window_size):
    B, H, W, D = x.shape
    assert H % window_size == 0 and W % window_size == 0
    windows = []
    for b in range(B):
        for top in range(0, H, window_size):
            for left in range(0, W, window_size):
                window = x[b, top : top + window_size, left : left + window_size]
                windows.append(window.reshape([-1, D]))
    return paddle.stack(windows)


def window_reverse(windows, window_size, map_size):
    H, W = map_size
    D = windows.shape[-1]
    columns = W // window_size
    per_image = H // window_size * columns
    images = []
    for b in range(windows.shape[0] // per_image):
        tokens = []
        for row in range(H):
            for column in range(W):
                window = b * per_image + row // window_size * columns + column // window_size
                tokens.append(windows[window, row % window_size * window_size + column % window_size])
        images.append(paddle.stack(tokens).reshape([H, W, D]))
    return paddle.stack(images)


def join_neighbours(x):
    B, H, W, D = x.shape
    zero = paddle.zeros([B, D])

    def token(row, column):
        return x[:, row, column] if row < H and column < W else zero

    rows = []
    for i in range(0, H, 2):
        row = []
        for j in range(0, W, 2):
            row.append(paddle.concat([token(i, j), token(i + 1, j), token(i, j + 1), token(i + 1, j + 1)], axis=-1))
        rows.append(paddle.stack(row, axis=1))
    return paddle.stack(rows, axis=1)


def patch_merging(x, gamma, beta, weight):
    norm = paddle.nn.LayerNorm(4 * x.shape[-1])
    norm.weight.set_value(gamma)
    norm.bias.set_value(beta)
    return paddle.matmul(norm(join_neighbours(x)), weight)


def attention_cost(map_size, dim, window_size=None):
    H, W = map_size
    total = 0
    for row in range(H):
        for column in range(W):
            total += 4 * dim * dim
            for other_row in range(H):
                for other_column in range(W):
                    w = window_size
                    if w is None or (row // w, column // w) == (other_row // w, other_column // w):
                        total += 2 * dim
    return total
