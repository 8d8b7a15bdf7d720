import paddle
import paddle.nn.functional as F
from einops import rearrange, repeat


def relative_position_index(window_size):
    w = window_size
    row = repeat(paddle.arange(w), "r -> (r c)", c=w)
    column = repeat(paddle.arange(w), "c -> (r c)", r=w)
    flat = row * (2 * w - 1) + column  # 行号是两个 token 各自的号之差,再移到从 0 数起
    return rearrange(flat, "i -> i 1") - rearrange(flat, "j -> 1 j") + 2 * w * (w - 1)


def relative_position_bias(table, index):
    return rearrange(table[index], "i j h -> h i j")


def cyclic_shift(x, shift):
    return x.roll(shifts=(-shift, -shift), axis=(1, 2))


def undo_shift(x, shift):
    return x.roll(shifts=(shift, shift), axis=(1, 2))


def shifted_window_mask(map_size, window_size, shift):
    H, W = map_size
    row = (paddle.arange(H) >= H - shift).astype("int64") * 2
    column = (paddle.arange(W) >= W - shift).astype("int64")
    region = row.unsqueeze(1) + column
    region = rearrange(region, "(r i) (c j) -> (r c) (i j)", i=window_size, j=window_size)
    same = region.unsqueeze(2) == region.unsqueeze(1)
    return paddle.where(same, paddle.to_tensor(0.0), paddle.to_tensor(-100.0))


def window_attention(q, k, v, bias, mask=None):
    total = bias.unsqueeze(0)
    if mask is not None:
        total = total + repeat(mask, "n i j -> (b n) 1 i j", b=q.shape[0] // mask.shape[0])
    weights = F.softmax(q @ rearrange(k, "g h j d -> g h d j") / q.shape[-1] ** 0.5 + total, axis=-1)
    return weights @ v, weights


def shifted_window_attention(x, window_size, shift, attend):
    H, W = x.shape[1:3]
    mask = shifted_window_mask((H, W), window_size, shift) if shift else None
    windows = rearrange(cyclic_shift(x, shift), "b (r i) (c j) d -> (b r c) (i j) d", i=window_size, j=window_size)
    z = attend(windows, mask)
    z = rearrange(z, "(b r c) (i j) d -> b (r i) (c j) d", r=H // window_size, c=W // window_size, i=window_size)
    return undo_shift(z, shift)
