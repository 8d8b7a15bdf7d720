"""从每个 token 原来的位置出发:滚动是取号,掩码是比较原来在哪个移动过的窗口里。"""

import numpy as np
import paddle


def relative_position_index(window_size):
    w = window_size
    numbers = np.arange((2 * w - 1) ** 2).reshape(2 * w - 1, 2 * w - 1)
    rows = [numbers[r : r + w, c : c + w][::-1, ::-1].ravel() for r in range(w) for c in range(w)]
    return paddle.to_tensor(np.stack(rows))


def relative_position_bias(table, index):
    one_hot = paddle.nn.functional.one_hot(index, table.shape[0])
    return paddle.einsum("ijt,th->hij", one_hot, table)


def cyclic_shift(x, shift):
    x = paddle.concat([x[:, shift:], x[:, :shift]], axis=1)
    return paddle.concat([x[:, :, shift:], x[:, :, :shift]], axis=2)


def undo_shift(x, shift):
    H, W = x.shape[1:3]
    x = paddle.concat([x[:, H - shift :], x[:, : H - shift]], axis=1)
    return paddle.concat([x[:, :, W - shift :], x[:, :, : W - shift]], axis=2)


def order(map_size, w, shift):
    """滚动、切窗口之后,每个位置上是原来的第几个 token,[nW, N]。"""
    (H, W) = map_size
    numbers = np.roll(np.arange(H * W).reshape(H, W), (-shift, -shift), (0, 1))
    return numbers.reshape(H // w, w, W // w, w).swapaxes(1, 2).reshape(-1, w * w)


def shifted_window_mask(map_size, window_size, shift):
    origin = order(map_size, window_size, shift)
    row, column = np.divmod(origin, map_size[1])
    label = (row - shift) // window_size * 1000 + (column - shift) // window_size
    hidden = label[:, :, None] != label[:, None, :]
    return paddle.to_tensor(np.where(hidden, -1e9, 0).astype("float32"))


def window_attention(q, k, v, bias, mask=None):
    scores = paddle.einsum("ghid,ghjd->ghij", q, k) * q.shape[-1] ** -0.5 + bias
    if mask is not None:
        which = paddle.arange(q.shape[0]) % mask.shape[0]
        scores = scores + mask[which].unsqueeze(1)
    weights = paddle.nn.functional.softmax(scores, axis=-1)
    return paddle.einsum("ghij,ghjd->ghid", weights, v), weights


def shifted_window_attention(x, window_size, shift, attend):
    B, H, W, D = x.shape
    origin = order((H, W), window_size, shift)
    windows = paddle.index_select(x.reshape([B, H * W, D]), paddle.to_tensor(origin.ravel()), axis=1)
    mask = None if shift == 0 else shifted_window_mask((H, W), window_size, shift)
    z = attend(windows.reshape([-1, window_size**2, D]), mask).reshape([B, H * W, D])
    return paddle.index_select(z, paddle.to_tensor(np.argsort(origin.ravel())), axis=1).reshape([B, H, W, D])
