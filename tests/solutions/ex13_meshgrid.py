import paddle
from paddle import nn

from paddle_vit.family.windows import window_partition, window_reverse


def relative_position_index(window_size):
    steps = paddle.arange(window_size)
    places = paddle.stack(paddle.meshgrid(steps, steps), axis=-1).reshape([-1, 2])
    difference = places[:, None, :] - places[None, :, :] + (window_size - 1)
    return (difference * paddle.to_tensor([2 * window_size - 1, 1])).sum(axis=-1)


def relative_position_bias(table, index):
    N = index.shape[0]
    return paddle.index_select(table, index.reshape([-1])).T.reshape([-1, N, N])


def cyclic_shift(x, shift):
    return paddle.roll(paddle.roll(x, -shift, axis=1), -shift, axis=2)


def undo_shift(x, shift):
    return paddle.roll(paddle.roll(x, shift, axis=2), shift, axis=1)


def shifted_window_mask(map_size, window_size, shift):
    labels = paddle.zeros([1, *map_size, 1])
    labels[:, -shift:] += 1
    labels[:, :, -shift:] += 2
    labels = window_partition(labels, window_size).squeeze(-1)
    return (labels.unsqueeze(1) != labels.unsqueeze(2)).astype("float32") * -100


class WindowSoftmax(nn.Layer):
    def forward(self, scores, mask):
        if mask is None:
            return nn.functional.softmax(scores)
        BW, h, N, _ = scores.shape
        grouped = scores.reshape([-1, mask.shape[0], h, N, N]) + mask.unsqueeze(1).unsqueeze(0)
        return nn.functional.softmax(grouped.reshape([BW, h, N, N]))


def window_attention(q, k, v, bias, mask=None):
    q = q * (q.shape[-1] ** -0.5)
    weights = WindowSoftmax()(q @ k.transpose([0, 1, 3, 2]) + bias.unsqueeze(0), mask)
    return weights @ v, weights


def shifted_window_attention(x, window_size, shift, attend):
    size = (x.shape[1], x.shape[2])
    mask = shifted_window_mask(size, window_size, shift) if shift else None
    windows = window_partition(cyclic_shift(x, shift) if shift else x, window_size)
    z = window_reverse(attend(windows, mask), window_size, size)
    return undo_shift(z, shift) if shift else z
