"""沿一轴广播和求和的内核。"""

import numpy as np
from numba import prange

from .base import ONE, PARTS, ZERO, add_parts, add_rows, floats, kernel, loop

__all__ = [
    "add_to_each",
    "mean_tokens_backward",
    "mean_tokens_forward",
    "scale_channels_backward",
    "scale_channels_forward",
    "scale_each",
    "sum_rows",
]


@loop
def _add_to_each(x, row, y):
    for r in prange(x.shape[0]):
        for j in range(x.shape[1]):
            y[r, j] = x[r, j] + row[j]


@kernel
def add_to_each(x_, row_, y_, M, D):
    """每一行加上 row [D]。"""
    _add_to_each(floats(x_, (M, D)), floats(row_, D), floats(y_, (M, D)))


@kernel
def sum_rows(x_, total_, M, D):
    """[M, D] -> [D]。"""
    add_rows(floats(x_, (M, D)), floats(total_, D))


@loop
def _scale_each(x, factors, y):
    for r in prange(x.shape[0]):
        for j in range(x.shape[1]):
            y[r, j] = x[r, j] * factors[r]


@kernel
def scale_each(x_, factors_, y_, M, D):
    """第 r 行乘以 factors[r]。"""
    _scale_each(floats(x_, (M, D)), floats(factors_, M), floats(y_, (M, D)))


@loop
def _scale_channels_forward(x, gamma, y):
    for r in prange(x.shape[0]):
        for j in range(x.shape[1]):
            y[r, j] = x[r, j] * gamma[j]


@kernel
def scale_channels_forward(x_, gamma_, y_, M, D):
    """第 j 列乘以 gamma[j]。"""
    _scale_channels_forward(floats(x_, (M, D)), floats(gamma_, D), floats(y_, (M, D)))


@loop
def _scale_channels_backward(x, gamma, dy, dx, dgamma):
    M, D = x.shape
    parts = np.zeros((PARTS, D), np.float32)
    for p in prange(PARTS):
        for r in range(M * p // PARTS, M * (p + 1) // PARTS):
            for j in range(D):
                dx[r, j] = dy[r, j] * gamma[j]
                parts[p, j] += dy[r, j] * x[r, j]
    add_parts(parts, dgamma)


@kernel
def scale_channels_backward(x_, gamma_, dy_, dx_, dgamma_, M, D):
    """dx = dy * gamma,dgamma = sum(dy * x)。"""
    x, dy, dx = floats(x_, (M, D)), floats(dy_, (M, D)), floats(dx_, (M, D))
    _scale_channels_backward(x, floats(gamma_, D), dy, dx, floats(dgamma_, D))


@loop
def _mean_tokens_forward(x, y):
    B, N, D = x.shape
    share = ONE / np.float32(N)
    for b in prange(B):
        for j in range(D):
            y[b, j] = ZERO
        for n in range(N):
            for j in range(D):
                y[b, j] += x[b, n, j] * share


@kernel
def mean_tokens_forward(x_, y_, B, N, D):
    """[B, N, D] 沿 N 平均 -> [B, D]。"""
    _mean_tokens_forward(floats(x_, (B, N, D)), floats(y_, (B, D)))


@loop
def _mean_tokens_backward(dy, dx):
    B, N, D = dx.shape
    share = ONE / np.float32(N)
    for b in prange(B):
        for n in range(N):
            for j in range(D):
                dx[b, n, j] = dy[b, j] * share


@kernel
def mean_tokens_backward(dy_, dx_, B, N, D):
    """每个 token 得到 dy / N。"""
    _mean_tokens_backward(floats(dy_, (B, D)), floats(dx_, (B, N, D)))
