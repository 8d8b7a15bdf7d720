import paddle


def relative_position_index(window_size):
    w = window_size
    rows = []
    for i in range(w * w):
        row = []
        for j in range(w * w):
            down, right = i // w - j // w, i % w - j % w
            row.append((down + w - 1) * (2 * w - 1) + right + w - 1)
        rows.append(row)
    return paddle.to_tensor(rows)


def relative_position_bias(table, index):
    return paddle.stack([table[:, n][index.flatten()].reshape(index.shape) for n in range(table.shape[1])])


def cyclic_shift(x, shift):
    _, H, W, _ = x.shape
    rows = [paddle.stack([x[:, (i + shift) % H, (j + shift) % W] for j in range(W)], axis=1) for i in range(H)]
    return paddle.stack(rows, axis=1)


def undo_shift(x, shift):
    return cyclic_shift(x, -shift)


def shifted_window_mask(map_size, window_size, shift):
    (H, W), w = map_size, window_size
    masks = []
    for top in range(0, H, w):
        for left in range(0, W, w):
            mask = paddle.zeros([w * w, w * w])
            for i in range(w * w):
                for j in range(w * w):
                    rows = [top + n // w >= H - shift for n in (i, j)]  # 绕过来的行
                    columns = [left + n % w >= W - shift for n in (i, j)]
                    if rows[0] != rows[1] or columns[0] != columns[1]:
                        mask[i, j] = float("-inf")
            masks.append(mask)
    return paddle.stack(masks)


def window_attention(q, k, v, bias, mask=None):
    outputs, weights = [], []
    for g in range(q.shape[0]):
        heads, shares = [], []
        for n in range(q.shape[1]):
            scores = q[g, n] @ k[g, n].T * q.shape[-1] ** -0.5 + bias[n]
            if mask is not None:
                scores = scores + mask[g % mask.shape[0]]
            share = paddle.exp(scores - scores.max(axis=1, keepdim=True))
            share = share / share.sum(axis=1, keepdim=True)
            heads.append(share @ v[g, n])
            shares.append(share)
        outputs.append(paddle.stack(heads))
        weights.append(paddle.stack(shares))
    return paddle.stack(outputs), paddle.stack(weights)


def shifted_window_attention(x, window_size, shift, attend):
    B, H, W, D = x.shape
    w = window_size
    x = cyclic_shift(x, shift)
    windows = [
        x[b, top : top + w, left : left + w].reshape([w * w, D])
        for b in range(B)
        for top in range(0, H, w)
        for left in range(0, W, w)
    ]
    mask = shifted_window_mask((H, W), w, shift) if shift > 0 else None
    z = attend(paddle.stack(windows), mask)
    out = paddle.zeros([B, H, W, D])
    for g in range(z.shape[0]):
        b, place = divmod(g, H // w * (W // w))
        top, left = place // (W // w) * w, place % (W // w) * w
        out[b, top : top + w, left : left + w] = z[g].reshape([w, w, D])
    return undo_shift(out, shift)
