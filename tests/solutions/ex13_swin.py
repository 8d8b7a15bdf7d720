import numpy as np
import paddle
import paddle.nn.functional as F

from paddle_vit.family.windows import window_partition, window_reverse


def relative_position_index(window_size):
    w = window_size
    token = paddle.arange(w * w)
    row = token // w
    column = token % w
    row = row.unsqueeze(1) - row.unsqueeze(0)
    column = column.unsqueeze(1) - column.unsqueeze(0)
    return (row + w - 1) * (2 * w - 1) + (column + w - 1)


def relative_position_bias(table, index):
    bias = F.embedding(index, table)
    return bias.transpose([2, 0, 1])


def cyclic_shift(x, shift):
    return paddle.roll(x, [-shift, -shift], axis=[1, 2])


def undo_shift(x, shift):
    return paddle.roll(x, [shift, shift], axis=[1, 2])


def shifted_window_mask(map_size, window_size, shift):
    H, W = map_size
    regions = np.zeros([1, H, W, 1], "float32")
    number = 0
    for rows in (slice(0, H - window_size), slice(H - window_size, H - shift), slice(H - shift, H)):
        for columns in (slice(0, W - window_size), slice(W - window_size, W - shift), slice(W - shift, W)):
            regions[:, rows, columns] = number
            number += 1
    regions = window_partition(paddle.to_tensor(regions), window_size)
    differences = regions.transpose([0, 2, 1]) - regions
    return paddle.where(differences != 0, paddle.full_like(differences, -100.0), paddle.zeros_like(differences))


def window_attention(q, k, v, bias, mask=None):
    scores = paddle.matmul(q, k, transpose_y=True) / q.shape[-1] ** 0.5
    scores = scores + bias
    if mask is not None:
        mask = mask.tile([q.shape[0] // mask.shape[0], 1, 1]).unsqueeze(1)
        scores = scores + mask
    weights = F.softmax(scores, axis=-1)
    return paddle.matmul(weights, v), weights


def shifted_window_attention(x, window_size, shift, attend):
    map_size = x.shape[1:3]
    mask = None
    if shift:
        x = paddle.roll(x, [-shift, -shift], axis=(1, 2))
        mask = shifted_window_mask(map_size, window_size, shift)
    x = attend(window_partition(x, window_size), mask)
    x = window_reverse(x, window_size, map_size)
    return paddle.roll(x, [shift, shift], axis=(1, 2))
