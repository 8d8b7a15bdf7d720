"""softmax 和注意力的内核。"""

import numpy as np
from numba import prange

from .base import ONE, PARTS, ZERO, address, exp, floats, kernel, loop, matmul, part, piece

__all__ = ["attention_backward", "attention_forward", "softmax_backward", "softmax_forward"]


@piece
def _order(bits):
    """float32 的位当作 int32,换成大小顺序与 float32 相同的整数;再换一次就换回来。"""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@part
def _softmax_rows(rows, log_sums):
    """每一行原地换成 softmax;log_sums 是各行的 log(sum(exp(x)))。

    一行一遍做完的话,下一行要等这一行的对数;各行一起一步一步做,CPU 能同时算几行。比较整数才用得上向量指令:
    浮点数的 max 还要管 NaN。
    """
    sums = np.empty(rows.shape[0], np.float32)
    for r in range(rows.shape[0]):
        bits = rows[r].view(np.int32)
        largest = np.int32(-(2**31))
        for c in range(bits.size):
            largest = max(largest, _order(bits[c]))
        log_sums[r] = _order(largest).view(np.float32)
    for r in range(rows.shape[0]):
        row, largest, total = rows[r], log_sums[r], ZERO
        for c in range(row.size):
            e = exp(row[c] - largest)
            row[c] = e
            total += e
        sums[r] = total
    for r in range(rows.shape[0]):
        row, inverse = rows[r], ONE / sums[r]
        for c in range(row.size):
            row[c] *= inverse
        log_sums[r] += np.log(sums[r])


@loop
def _softmax_forward(x, y):
    M = x.shape[0]
    for p in prange(PARTS):
        here, there = x[M * p // PARTS : M * (p + 1) // PARTS], y[M * p // PARTS : M * (p + 1) // PARTS]
        for r in range(here.shape[0]):
            for c in range(here.shape[1]):
                there[r, c] = here[r, c]
        _softmax_rows(there, np.empty(there.shape[0], np.float32))


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


# 一个头的计算是单独的函数,中间结果是它的参数:在分配它们的函数里,numba 见数组的名字不再出现就放掉内存,
# 而矩阵乘还在按地址读写


@part
def _head_forward(sgemm, q, z, D, d, weights, log_sums, scale):
    N = weights.shape[0]
    k, v, w = q + 4 * D, q + 8 * D, address(weights)
    matmul(sgemm, N, N, d, scale, q, 3 * D, 0, k, 3 * D, 1, ZERO, w, N)
    _softmax_rows(weights, log_sums)
    matmul(sgemm, N, d, N, ONE, w, N, 0, v, 3 * D, 0, ZERO, z, D)


@loop
def _attention_forward(sgemm, qkv, z, log_sums, scale):
    B, N, _, h, d = qkv.shape
    for i in prange(B * h):
        b, head = i // h, i % h
        weights = np.empty((N, N), np.float32)
        q, out = address(qkv[b, 0, 0, head]), address(z[b, 0, head])
        _head_forward(sgemm, q, out, h * d, d, weights, log_sums[b, head], scale)


@kernel
def attention_forward(sgemm, qkv_, z_, log_sums_, B, N, h, d, scale):
    """z = softmax(scale * q k^T) v,一次算一张图的一个头,N x N 的权重留在缓存里,不写进内存。

    qkv 是 [B, N, 3, h, d],z 是 [B, N, h, d]:sgemm 自己会跳着读,不必转置。
    log_sums [B, h, N] 留给反向:权重 = exp(分数 - log_sum)。
    """
    qkv, z, log_sums = floats(qkv_, (B, N, 3, h, d)), floats(z_, (B, N, h, d)), floats(log_sums_, (B, h, N))
    _attention_forward(sgemm, qkv, z, log_sums, np.float32(scale))


@part
def _head_backward(sgemm, q, z, dz, dq, D, weights, ds, log_sums, scale):
    N, d = z.shape
    k, v, dk, dv, out = q + 4 * D, q + 8 * D, dq + 4 * D, dq + 8 * D, address(dz)
    w_, ds_ = address(weights), address(ds)
    matmul(sgemm, N, N, d, scale, q, 3 * D, 0, k, 3 * D, 1, ZERO, w_, N)
    matmul(sgemm, N, N, d, ONE, out, D, 0, v, 3 * D, 1, ZERO, ds_, N)
    for r in range(N):
        total = ZERO
        for c in range(d):
            total += z[r, c] * dz[r, c]
        for c in range(N):
            weights[r, c] = exp(weights[r, c] - log_sums[r])
            ds[r, c] = weights[r, c] * (ds[r, c] - total)
    matmul(sgemm, N, d, N, ONE, w_, N, 1, out, D, 0, ZERO, dv, 3 * D)
    matmul(sgemm, N, d, N, scale, ds_, N, 0, k, 3 * D, 0, ZERO, dq, 3 * D)
    matmul(sgemm, N, d, N, scale, ds_, N, 1, q, 3 * D, 0, ZERO, dk, 3 * D)


@loop
def _attention_backward(sgemm, qkv, z, log_sums, dz, dqkv, scale):
    B, N, _, h, d = qkv.shape
    for i in prange(B * h):
        b, head = i // h, i % h
        weights, ds = np.empty((N, N), np.float32), np.empty((N, N), np.float32)
        q, dq = address(qkv[b, 0, 0, head]), address(dqkv[b, 0, 0, head])
        _head_backward(sgemm, q, z[b, :, head], dz[b, :, head], dq, h * d, weights, ds, log_sums[b, head], scale)


@kernel
def attention_backward(sgemm, qkv_, z_, log_sums_, dz_, dqkv_, B, N, h, d, scale):
    """权重 w 重新算一遍(比从内存里读回来快);dv = w^T dz,ds = w * (dz v^T - sum(dz * z)),dq = scale * ds k,
    dk = scale * ds^T q。参数同 ``attention_forward``。"""
    qkv, z, log_sums = floats(qkv_, (B, N, 3, h, d)), floats(z_, (B, N, h, d)), floats(log_sums_, (B, h, N))
    dz, dqkv = floats(dz_, (B, N, h, d)), floats(dqkv_, (B, N, 3, h, d))
    _attention_backward(sgemm, qkv, z, log_sums, dz, dqkv, np.float32(scale))
