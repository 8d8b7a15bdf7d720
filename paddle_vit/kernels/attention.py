"""softmax 和注意力的内核。"""

import numpy as np
from numba import prange

from .base import ONE, ZERO, careless_piece, exp, floats, kernel, loop, matmul, piece

__all__ = ["attention_backward", "attention_forward", "softmax_backward", "softmax_forward"]


@careless_piece
def _largest(row):
    """一行里最大的;有 NaN 时是哪个都行。"""
    largest = row[0]
    for c in range(row.size):
        largest = max(largest, row[c])
    return largest


@piece
def _softmax_row(row):
    """row 原地换成 softmax(row);返回 log(sum(exp(row)))。"""
    largest, total = _largest(row), ZERO
    for c in range(row.size):
        e = exp(row[c] - largest)
        row[c] = e
        total += e
    inverse = ONE / total
    for c in range(row.size):
        row[c] *= inverse
    return largest + np.log(total)


@loop
def _softmax_forward(x, y):
    for r in prange(x.shape[0]):
        for c in range(x.shape[1]):
            y[r, c] = x[r, c]
        _softmax_row(y[r])


@kernel
def softmax_forward(x_, y_, M, N):
    """每一行的 softmax。"""
    _softmax_forward(floats(x_, (M, N)), floats(y_, (M, N)))


@loop
def _softmax_backward(y, dy, dx):
    for r in prange(y.shape[0]):
        total = ZERO
        for c in range(y.shape[1]):
            total += dy[r, c] * y[r, c]
        for c in range(y.shape[1]):
            dx[r, c] = y[r, c] * (dy[r, c] - total)


@kernel
def softmax_backward(y_, dy_, dx_, M, N):
    """dx = y * (dy - sum(dy * y))。"""
    _softmax_backward(floats(y_, (M, N)), floats(dy_, (M, N)), floats(dx_, (M, N)))


@loop
def _attention_forward(sgemm, qkv, z, log_sums, scale):
    B, N, _, h, d = qkv.shape
    D = h * d
    for i in prange(B * h):
        b, head = i // h, i % h
        q, out = qkv[b, 0, 0, head].ctypes.data, z[b, 0, head].ctypes.data
        k, v = q + 4 * D, q + 8 * D
        weights = np.empty((N, N), np.float32)
        w = weights.ctypes.data
        matmul(sgemm, N, N, d, scale, q, 3 * D, 0, k, 3 * D, 1, ZERO, w, N)
        for r in range(N):
            log_sums[b, head, r] = _softmax_row(weights[r])
        matmul(sgemm, N, d, N, ONE, w, N, 0, v, 3 * D, 0, ZERO, out, D)


@kernel
def attention_forward(sgemm, qkv_, z_, log_sums_, B, N, h, d, scale):
    """z = softmax(scale * q k^T) v,一次算一张图的一个头,N x N 的权重留在缓存里,不写进内存。

    qkv 是 [B, N, 3, h, d],z 是 [B, N, h, d]:sgemm 自己会跳着读,不必转置。
    log_sums [B, h, N] 留给反向:权重 = exp(分数 - log_sum)。
    """
    qkv, z, log_sums = floats(qkv_, (B, N, 3, h, d)), floats(z_, (B, N, h, d)), floats(log_sums_, (B, h, N))
    _attention_forward(sgemm, qkv, z, log_sums, np.float32(scale))


@loop
def _attention_backward(sgemm, qkv, z, log_sums, dz, dqkv, scale):
    B, N, _, h, d = qkv.shape
    D = h * d
    for i in prange(B * h):
        b, head = i // h, i % h
        q, dq, out = qkv[b, 0, 0, head].ctypes.data, dqkv[b, 0, 0, head].ctypes.data, dz[b, 0, head].ctypes.data
        k, v, dk, dv = q + 4 * D, q + 8 * D, dq + 4 * D, dq + 8 * D
        weights, ds = np.empty((N, N), np.float32), np.empty((N, N), np.float32)
        w_, ds_ = weights.ctypes.data, ds.ctypes.data
        matmul(sgemm, N, N, d, scale, q, 3 * D, 0, k, 3 * D, 1, ZERO, w_, N)
        matmul(sgemm, N, N, d, ONE, out, D, 0, v, 3 * D, 1, ZERO, ds_, N)
        for r in range(N):
            total = ZERO
            for c in range(d):
                total += z[b, r, head, c] * dz[b, r, head, c]
            for c in range(N):
                weights[r, c] = exp(weights[r, c] - log_sums[b, head, r])
                ds[r, c] = weights[r, c] * (ds[r, c] - total)
        matmul(sgemm, N, d, N, ONE, w_, N, 1, out, D, 0, ZERO, dv, 3 * D)
        matmul(sgemm, N, d, N, scale, ds_, N, 0, k, 3 * D, 0, ZERO, dq, 3 * D)
        matmul(sgemm, N, d, N, scale, ds_, N, 1, q, 3 * D, 0, ZERO, dk, 3 * D)


@kernel
def attention_backward(sgemm, qkv_, z_, log_sums_, dz_, dqkv_, B, N, h, d, scale):
    """权重 w 重新算一遍(比从内存里读回来快);dv = w^T dz,ds = w * (dz v^T - sum(dz * z)),dq = scale * ds k,
    dk = scale * ds^T q。参数同 ``attention_forward``。"""
    qkv, z, log_sums = floats(qkv_, (B, N, 3, h, d)), floats(z_, (B, N, h, d)), floats(log_sums_, (B, h, N))
    dz, dqkv = floats(dz_, (B, N, h, d)), floats(dqkv_, (B, N, 3, h, d))
    _attention_backward(sgemm, qkv, z, log_sums, dz, dqkv, np.float32(scale))
