"""逐行和逐元素的内核:线性层、图块、GELU、多层感知机、层归一化。"""

import numpy as np
from numba import prange

from .base import HALF, ONE, PARTS, ZERO, add_parts, add_rows, address, exp, floats, kernel, loop, matmul, part, piece

__all__ = [
    "cut_patches",
    "gelu_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_forward",
    "mlp_backward",
    "mlp_forward",
    "multiply",
]

CHUNK = 1024  # 多层感知机一次算这么多行:中间结果留在缓存里,矩阵乘也还够大


@loop
def _fill_rows(y, row):
    for r in prange(y.shape[0]):
        for j in range(y.shape[1]):
            y[r, j] = row[j]


@kernel
def linear_forward(sgemm, x_, weight_, bias_, y_, M, D_in, D_out):
    """y = x @ weight + bias。"""
    beta = ZERO
    if bias_ != 0:
        _fill_rows(floats(y_, (M, D_out)), floats(bias_, D_out))
        beta = ONE
    matmul(sgemm, M, D_out, D_in, ONE, x_, D_in, 0, weight_, D_out, 0, beta, y_, D_out)


@kernel
def linear_backward(sgemm, x_, weight_, dy_, dx_, dweight_, dbias_, M, D_in, D_out):
    """dx = dy @ weight^T,dweight = x^T @ dy,dbias = sum(dy);地址为 0 的不算。"""
    if dx_ != 0:
        matmul(sgemm, M, D_in, D_out, ONE, dy_, D_out, 0, weight_, D_out, 1, ZERO, dx_, D_in)
    if dweight_ != 0:
        matmul(sgemm, D_in, D_out, M, ONE, x_, D_in, 1, dy_, D_out, 0, ZERO, dweight_, D_out)
    if dbias_ != 0:
        add_rows(floats(dy_, (M, D_out)), floats(dbias_, D_out))


@loop
def _cut_patches(x, y):
    B, C, rows, height, columns, width = x.shape
    for i in prange(B * rows):
        b, row = i // rows, i % rows
        for column in range(columns):
            patch = y[b, row, column]
            for c in range(C):
                for h in range(height):
                    for w in range(width):
                        patch[c, h, w] = x[b, c, row, h, column, w]


@kernel
def cut_patches(x_, y_, B, C, rows, height, columns, width):
    """图像 [B, C, rows * height, columns * width] -> 图块 [B, rows * columns, C * height * width]。"""
    x, y = floats(x_, (B, C, rows, height, columns, width)), floats(y_, (B, rows, columns, C, height, width))
    _cut_patches(x, y)


@piece
def _normal(x):
    """标准正态分布的分布函数 Phi(x) 和密度 phi(x)。

    1 - Phi(a) = t * (t 的多项式) * exp(-a^2 / 2),a >= 0,误差 1e-7
    (Abramowitz & Stegun,Handbook of Mathematical Functions,式 7.1.26)。
    """
    a = abs(x)
    t = ONE / (ONE + np.float32(0.3275911 / 2**0.5) * a)
    e = exp(-HALF * a * a)
    tail = (np.float32(1.061405429) * t + np.float32(-1.453152027)) * t + np.float32(1.421413741)
    tail = ((tail * t + np.float32(-0.284496736)) * t + np.float32(0.254829592)) * t * e * HALF  # 1 - Phi(|x|)
    return tail if x < ZERO else ONE - tail, np.float32(0.3989422804014327) * e


@loop
def _gelu_forward(x, y, slope):
    for p in prange(PARTS):
        here = slice(x.size * p // PARTS, x.size * (p + 1) // PARTS)
        a, b, c = x[here], y[here], slope[here]
        for i in range(a.size):
            distribution, density = _normal(a[i])
            b[i] = a[i] * distribution
            c[i] = distribution + a[i] * density


@loop
def _gelu(x, y):
    for p in prange(PARTS):
        here = slice(x.size * p // PARTS, x.size * (p + 1) // PARTS)
        a, b = x[here], y[here]
        for i in range(a.size):
            distribution, _ = _normal(a[i])
            b[i] = a[i] * distribution


@kernel
def gelu_forward(x_, y_, slope_, size):
    """y = x * Phi(x),slope = dy/dx = Phi(x) + x * phi(x)。"""
    if slope_ == 0:
        _gelu(floats(x_, size), floats(y_, size))
    else:
        _gelu_forward(floats(x_, size), floats(y_, size), floats(slope_, size))


@loop
def _multiply(x, y, z):
    for p in prange(PARTS):
        here = slice(x.size * p // PARTS, x.size * (p + 1) // PARTS)
        a, b, c = x[here], y[here], z[here]
        for i in range(a.size):
            c[i] = a[i] * b[i]


@kernel
def multiply(x_, y_, z_, size):
    """z = x * y。"""
    _multiply(floats(x_, size), floats(y_, size), floats(z_, size))


@loop
def _times_slope(gradient, slope, total):
    M, D = gradient.shape
    parts = np.zeros((PARTS, D), np.float32)
    for p in prange(PARTS):
        for r in range(M * p // PARTS, M * (p + 1) // PARTS):
            for j in range(D):
                g = gradient[r, j] * slope[r, j]
                gradient[r, j] = g
                parts[p, j] += g
    add_parts(parts, total)


@part
def _mlp_forward(sgemm, x_, weight1_, bias1_, hidden_, weight2_, bias2_, y_, M, D, H, D_out, activated, spare):
    for r in range(0, M, CHUNK):
        n = min(CHUNK, M - r)
        h_ = address(spare) if hidden_ == 0 else hidden_ + 4 * r * H
        linear_forward(sgemm, x_ + 4 * r * D, weight1_, bias1_, h_, n, D, H)
        _gelu(floats(h_, n * H), activated[: n * H])
        linear_forward(sgemm, address(activated), weight2_, bias2_, y_ + 4 * r * D_out, n, H, D_out)


@kernel
def mlp_forward(sgemm, x_, weight1_, bias1_, hidden_, weight2_, bias2_, y_, M, D, H, D_out):
    """y = gelu(hidden) @ weight2 + bias2,hidden = x @ weight1 + bias1;hidden 的地址为 0 时不留下它。"""
    size = min(M, CHUNK) * H
    activated, spare = np.empty(size, np.float32), np.empty(size if hidden_ == 0 else 0, np.float32)
    _mlp_forward(sgemm, x_, weight1_, bias1_, hidden_, weight2_, bias2_, y_, M, D, H, D_out, activated, spare)


@part
def _mlp_backward(
    sgemm, x_, weight1_, hidden_, weight2_, dy_, dx_, dweight1_, dbias1_, dweight2_, M, D, H, D_out, g, slope, sums
):
    g_ = address(g)  # 先是 gelu(hidden),后是 dhidden
    for r in range(0, M, CHUNK):
        n, beta, part_dy_ = min(CHUNK, M - r), ONE if r else ZERO, dy_ + 4 * r * D_out
        s = slope[: n * H]
        _gelu_forward(floats(hidden_ + 4 * r * H, n * H), g[: n * H], s)
        if dweight2_ != 0:
            matmul(sgemm, H, D_out, n, ONE, g_, H, 1, part_dy_, D_out, 0, beta, dweight2_, D_out)
        matmul(sgemm, n, H, D_out, ONE, part_dy_, D_out, 0, weight2_, D_out, 1, ZERO, g_, H)
        _times_slope(g[: n * H].reshape((n, H)), s.reshape((n, H)), sums)
        if dweight1_ != 0:
            matmul(sgemm, D, H, n, ONE, x_ + 4 * r * D, D, 1, g_, H, 0, beta, dweight1_, H)
        if dbias1_ != 0:
            dbias1 = floats(dbias1_, H)
            for j in range(H):
                dbias1[j] = sums[j] + (dbias1[j] if r else ZERO)
        if dx_ != 0:
            matmul(sgemm, n, D, H, ONE, g_, H, 0, weight1_, H, 1, ZERO, dx_ + 4 * r * D, D)


@kernel
def mlp_backward(
    sgemm, x_, weight1_, hidden_, weight2_, dy_, dx_, dweight1_, dbias1_, dweight2_, dbias2_, M, D, H, D_out
):
    """gelu(hidden) 重新算一遍;地址为 0 的梯度不算。"""
    size = min(M, CHUNK) * H
    g, slope, sums = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(H, np.float32)
    _mlp_backward(
        sgemm, x_, weight1_, hidden_, weight2_, dy_, dx_, dweight1_, dbias1_, dweight2_, M, D, H, D_out, g, slope, sums
    )
    if dbias2_ != 0:
        add_rows(floats(dy_, (M, D_out)), floats(dbias2_, D_out))


@loop
def _layer_norm_forward(x, weight, bias, y, mean, scale, epsilon):
    M, D = x.shape
    for r in prange(M):
        total = ZERO
        for j in range(D):
            total += x[r, j]
        m = total / np.float32(D)
        total = ZERO
        for j in range(D):
            c = x[r, j] - m
            total += c * c
        s = ONE / np.sqrt(total / np.float32(D) + np.float32(epsilon))
        for j in range(D):
            y[r, j] = (x[r, j] - m) * s * weight[j] + bias[j]
        mean[r] = m
        scale[r] = s


@kernel
def layer_norm_forward(x_, weight_, bias_, y_, mean_, scale_, M, D, epsilon):
    """y = (x - mean) * scale * weight + bias,scale = 1 / sqrt(var + epsilon)。"""
    x, y, weight, bias = floats(x_, (M, D)), floats(y_, (M, D)), floats(weight_, D), floats(bias_, D)
    _layer_norm_forward(x, weight, bias, y, floats(mean_, M), floats(scale_, M), epsilon)


@loop
def _layer_norm_backward(x, weight, mean, scale, dy, dx, dweight, dbias):
    M, D = x.shape
    weights, biases = np.zeros((PARTS, D), np.float32), np.zeros((PARTS, D), np.float32)
    for p in prange(PARTS):
        for r in range(M * p // PARTS, M * (p + 1) // PARTS):
            m, s = mean[r], scale[r]
            sum_g, sum_gh = ZERO, ZERO
            for j in range(D):
                g = dy[r, j] * weight[j]
                sum_g += g
                sum_gh += g * ((x[r, j] - m) * s)
            sum_g /= np.float32(D)
            sum_gh /= np.float32(D)
            for j in range(D):
                h = (x[r, j] - m) * s
                dx[r, j] = s * (dy[r, j] * weight[j] - sum_g - h * sum_gh)
                weights[p, j] += dy[r, j] * h
                biases[p, j] += dy[r, j]
    add_parts(weights, dweight)
    add_parts(biases, dbias)


@kernel
def layer_norm_backward(x_, weight_, mean_, scale_, dy_, dx_, dweight_, dbias_, M, D):
    """dx = scale * (g - mean(g) - h * mean(g * h)),g = dy * weight,h = (x - mean) * scale。"""
    x, dy, dx, weight = floats(x_, (M, D)), floats(dy_, (M, D)), floats(dx_, (M, D)), floats(weight_, D)
    mean, scale = floats(mean_, M), floats(scale_, M)
    _layer_norm_backward(x, weight, mean, scale, dy, dx, floats(dweight_, D), floats(dbias_, D))
