"""卷积、ReLU 和最大池化的内核,三步合一。

一张图像的像素按 [H, W, C] 存放:一个卷积窗口里的一行就是连续的 k * C 个数,拉直窗口(im2col)是整段的复制,
卷积是一个矩阵乘。每段图像只分配一次中间结果;图像大时一次算若干行,中间结果留在缓存里。
"""

import numpy as np
from numba import prange

from .base import ONE, PARTS, ZERO, add_parts, address, floats, kernel, loop, matmul, part, piece

__all__ = ["conv_pool_backward", "conv_pool_forward"]

COLUMNS = 1 << 16  # 拉直的窗口一次最多这么多个数
NOWHERE = np.float32(9)  # 池化的窗口里没有大于 0 的数


@piece
def _side(size, kernel_size, stride, padding):
    """卷积的输出的一边。"""
    return (size + 2 * padding - kernel_size) // stride + 1


@piece
def _band(height, width, size):
    """一次算输出的几行:各次差不多一样多。"""
    bands = min(height, (height * width * size + COLUMNS - 1) // COLUMNS)
    return (height + bands - 1) // bands


@part
def _pad(x, padded, padding, planes):
    """一张图像放到四周补零的 padded [H + 2p, W + 2p, C] 中间;planes 为 1 时 x 按 [C, H, W] 存放,否则 [H, W, C]。"""
    rows, columns, C = padded.shape
    H, W = rows - 2 * padding, columns - 2 * padding
    if planes:
        image = x.reshape((C, H, W))
        for h in range(H):
            for w in range(W):
                for c in range(C):
                    padded[h + padding, w + padding, c] = image[c, h, w]
    else:
        lines = x.reshape((H, W * C))
        for h in range(H):
            line = padded[h + padding].reshape(columns * C)[padding * C : (padding + W) * C]
            for i in range(line.size):
                line[i] = lines[h, i]


@part
def _cut_windows(padded, columns, first, rows, stride):
    """输出的第 first 行起的 rows 行:每个位置的窗口拉直成一行,columns [rows * OW, k, k * C]。"""
    _, kernel_size, run = columns.shape
    C = padded.shape[2]
    OW = columns.shape[0] // rows
    for r in range(rows):
        for j in range(kernel_size):
            line = padded[(first + r) * stride + j].reshape(padded.shape[1] * C)
            for q in range(OW):
                window = line[q * stride * C : q * stride * C + run]
                target = columns[r * OW + q, j]
                for i in range(run):
                    target[i] = window[i]


@part
def _add_windows(padded, columns, first, rows, stride):
    """``_cut_windows`` 反过来:各窗口加回它们的位置。"""
    _, kernel_size, run = columns.shape
    C = padded.shape[2]
    OW = columns.shape[0] // rows
    for r in range(rows):
        for j in range(kernel_size):
            line = padded[(first + r) * stride + j].reshape(padded.shape[1] * C)
            for q in range(OW):
                window = line[q * stride * C : q * stride * C + run]
                source = columns[r * OW + q, j]
                for i in range(run):
                    window[i] += source[i]


@part
def _pool(z, y, taps, keep):
    """y = max(0, z 的 3 x 3 窗口里最大的),步长 2,补 1;taps 是它在窗口里的序号,先遇到的优先。

    窗口伸到外面的行和列用边上的代替,最大值不变;一次比三个数,分支都写成选择,才用得上向量指令。
    """
    H, W, D = z.shape
    for r in range(y.shape[0]):
        for q in range(y.shape[1]):
            best, tap = y[r, q], taps[r, q] if keep else taps[0, 0]
            for c in range(D):
                best[c] = ZERO
                tap[c] = NOWHERE
            for a in range(3):
                line, number = z[min(max(2 * r - 1 + a, 0), H - 1)], np.float32(3 * a)
                first, second, third = line[max(2 * q - 1, 0)], line[2 * q], line[min(2 * q + 1, W - 1)]
                for c in range(D):
                    most, where = best[c], tap[c]
                    larger = not (first[c] <= most)  # 这样写,NaN 还是 NaN
                    most, where = first[c] if larger else most, number if larger else where
                    larger = not (second[c] <= most)
                    most, where = second[c] if larger else most, number + ONE if larger else where
                    larger = not (third[c] <= most)
                    best[c] = third[c] if larger else most
                    tap[c] = number + np.float32(2) if larger else where


@part
def _pool_backward(dy, taps, dz):
    """dz:每个 dy 回到 taps 指的位置,其余是 0。"""
    H, W, D = dz.shape
    for r in range(H):
        for q in range(W):
            for c in range(D):
                dz[r, q, c] = ZERO
    for r in range(dy.shape[0]):
        for q in range(dy.shape[1]):
            gradient, tap = dy[r, q], taps[r, q]
            for i in range(9):
                values = dz[min(max(2 * r - 1 + i // 3, 0), H - 1), min(max(2 * q - 1 + i % 3, 0), W - 1)]
                number = np.float32(i)
                for c in range(D):
                    values[c] += gradient[c] if tap[c] == number else ZERO


@part
def _image_forward(sgemm, x, weight_, y, taps, keep, kernel_size, stride, padding, planes, padded, columns, z):
    OH, OW, D = z.shape
    size = kernel_size * kernel_size * padded.shape[2]
    rows = columns.shape[0] // OW
    _pad(x, padded, padding, planes)
    for first in range(0, OH, rows):
        n = min(rows, OH - first)
        _cut_windows(padded, columns[: n * OW], first, n, stride)
        matmul(sgemm, n * OW, D, size, ONE, address(columns), size, 0, weight_, D, 0, ZERO, address(z[first]), D)
    _pool(z, y, taps, keep)


@loop
def _conv_pool_forward(sgemm, x, weight_, y, taps, keep, height, width, kernel_size, stride, padding, planes):
    B, D = y.shape[0], y.shape[3]
    C = x.shape[1] // (height * width)
    OH, OW = _side(height, kernel_size, stride, padding), _side(width, kernel_size, stride, padding)
    rows = _band(OH, OW, kernel_size * kernel_size * C)
    for p in prange(PARTS):
        start, stop = B * p // PARTS, B * (p + 1) // PARTS
        if start < stop:
            padded = np.zeros((height + 2 * padding, width + 2 * padding, C), np.float32)
            columns = np.empty((rows * OW, kernel_size, kernel_size * C), np.float32)
            z, spare = np.empty((OH, OW, D), np.float32), np.empty((1, 1, D), np.float32)
            for b in range(start, stop):
                tap = taps[b] if keep else spare
                _image_forward(
                    sgemm, x[b], weight_, y[b], tap, keep, kernel_size, stride, padding, planes, padded, columns, z
                )


@kernel
def conv_pool_forward(sgemm, x_, weight_, y_, taps_, B, C, H, W, D, kernel_size, stride, padding, planes):
    """y = max_pool(relu(conv(x))),[B, H, W, C] -> [B, OH / 2, OW / 2, D],向上取整;最大池化的窗口 3 x 3,步长 2,补 1。

    weight 是 [k, k, C, D];planes 为 1 时 x 是 [B, C, H, W];taps 与 y 同形状,是最大的那个在窗口里的序号(0–8,
    9 表示都不大于 0),留给反向,地址为 0 时不留。
    """
    OH, OW = _side(H, kernel_size, stride, padding), _side(W, kernel_size, stride, padding)
    shape, keep = (B, (OH + 1) // 2, (OW + 1) // 2, D), taps_ != 0
    x, y, taps = floats(x_, (B, H * W * C)), floats(y_, shape), floats(taps_ if keep else y_, shape)
    _conv_pool_forward(sgemm, x, weight_, y, taps, keep, H, W, kernel_size, stride, padding, planes)


@part
def _image_backward(
    sgemm, x, weight_, dy, taps, dx, dweight, kernel_size, stride, padding, planes, padded, columns, dz, whole
):
    OH, OW, D = dz.shape
    rows, columns_, dweight_ = columns.shape[0] // OW, address(columns), address(dweight)
    size = kernel_size * kernel_size * padded.shape[2]
    _pool_backward(dy, taps, dz)
    if dweight.size:
        _pad(x, padded, padding, planes)
        for first in range(0, OH, rows):
            n = min(rows, OH - first)
            _cut_windows(padded, columns[: n * OW], first, n, stride)
            matmul(sgemm, size, D, n * OW, ONE, columns_, size, 1, address(dz[first]), D, 0, ONE, dweight_, D)
    if dx.size:
        for i in range(whole.size):
            whole[i] = ZERO
        H, W, C = padded.shape
        for first in range(0, OH, rows):
            n = min(rows, OH - first)
            matmul(sgemm, n * OW, size, D, ONE, address(dz[first]), D, 0, weight_, D, 1, ZERO, columns_, size)
            _add_windows(whole.reshape((H, W, C)), columns[: n * OW], first, n, stride)
        for h in range(H - 2 * padding):
            line = whole[((h + padding) * W + padding) * C :]
            target = dx[h * (W - 2 * padding) * C : (h + 1) * (W - 2 * padding) * C]
            for i in range(target.size):
                target[i] = line[i]


@loop
def _conv_pool_backward(sgemm, x, weight_, dy, taps, dx, dweight, height, width, kernel_size, stride, padding, planes):
    B, D = dy.shape[0], dy.shape[3]
    C = x.shape[1] // (height * width)
    OH, OW = _side(height, kernel_size, stride, padding), _side(width, kernel_size, stride, padding)
    rows = _band(OH, OW, kernel_size * kernel_size * C)
    parts = np.zeros((PARTS, dweight.size), np.float32)
    for p in prange(PARTS):
        start, stop = B * p // PARTS, B * (p + 1) // PARTS
        if start < stop:
            padded = np.zeros((height + 2 * padding, width + 2 * padding, C), np.float32)
            columns = np.empty((rows * OW, kernel_size, kernel_size * C), np.float32)
            dz, whole = np.empty((OH, OW, D), np.float32), np.empty(padded.size if dx.size else 0, np.float32)
            for b in range(start, stop):
                _image_backward(
                    sgemm,
                    x[b],
                    weight_,
                    dy[b],
                    taps[b],
                    dx[b],
                    parts[p],
                    kernel_size,
                    stride,
                    padding,
                    planes,
                    padded,
                    columns,
                    dz,
                    whole,
                )
    add_parts(parts, dweight)


@kernel
def conv_pool_backward(
    sgemm, x_, weight_, dy_, taps_, dx_, dweight_, B, C, H, W, D, kernel_size, stride, padding, planes
):
    """dy 回到 taps 指的位置,得 dz;窗口再拉直一遍,dweight = windows^T dz;dwindows = dz weight^T,加回各自的位置得 dx。

    地址为 0 的梯度不算;dx 是 [B, H, W, C]。其余同 ``conv_pool_forward``。
    """
    OH, OW = _side(H, kernel_size, stride, padding), _side(W, kernel_size, stride, padding)
    shape = (B, (OH + 1) // 2, (OW + 1) // 2, D)
    x, dy, taps = floats(x_, (B, H * W * C)), floats(dy_, shape), floats(taps_, shape)
    dx = floats(dx_, (B, H * W * C if dx_ != 0 else 0))
    dweight = floats(dweight_, kernel_size * kernel_size * C * D if dweight_ != 0 else 0)
    _conv_pool_backward(sgemm, x, weight_, dy, taps, dx, dweight, H, W, kernel_size, stride, padding, planes)
