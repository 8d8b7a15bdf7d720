"""更新权重的内核:裁剪梯度、AdamW、滑动平均。

许多个 Tensor 当作一个长向量:ends[k] 是前 k 个的总长,分成 PARTS 段,一段可以跨过几个 Tensor。
逐段的函数用 part,不用 piece:它们写进不是参数的数组,展开了会被 numba 当作没用的删掉。
"""

import numpy as np
from numba import prange

from .base import ONE, PARTS, floats, parallel_kernel, part, piece

__all__ = ["adamw", "clip", "move_towards"]


@part
def _square_sum(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


@part
def _multiply_by(x, factor):
    for i in range(x.size):
        x[i] *= factor


@part
def _move_towards(x, target, share):
    for i in range(x.size):
        x[i] += share * (target[i] - x[i])


@part
def _adamw(weight, gradient, first, second, beta1, beta2, kept, rate, epsilon):
    for i in range(weight.size):
        g = gradient[i]
        m = beta1 * first[i] + (ONE - beta1) * g
        v = beta2 * second[i] + (ONE - beta2) * g * g
        first[i] = m
        second[i] = v
        weight[i] = weight[i] * kept - rate * m / (np.sqrt(v) + epsilon)


@piece
def _overlap(ends, k, p):
    """第 p 段与第 k 个 Tensor 重合的部分:(从它的第几个字节起, 几个数)。"""
    total = ends[-1]
    start = max(total * p // PARTS, ends[k])
    stop = min(total * (p + 1) // PARTS, ends[k + 1])
    return 4 * (start - ends[k]), max(0, stop - start)


@parallel_kernel
def clip(gradients, ends, most):
    """全部梯度的长度(2-范数);超过 most 时原地缩短到 most。gradients 是各个梯度的地址。"""
    parts = np.zeros(PARTS)
    for p in prange(PARTS):
        for k in range(gradients.size):
            at, size = _overlap(ends, k, p)
            parts[p] += _square_sum(floats(gradients[k] + at, size))
    norm = np.sqrt(parts.sum())
    if norm > most:
        factor = np.float32(most / norm)
        for p in prange(PARTS):
            for k in range(gradients.size):
                at, size = _overlap(ends, k, p)
                _multiply_by(floats(gradients[k] + at, size), factor)
    return norm


@parallel_kernel
def move_towards(averages, targets, ends, share):
    """x = x + share * (target - x)。"""
    for p in prange(PARTS):
        for k in range(averages.size):
            at, size = _overlap(ends, k, p)
            _move_towards(floats(averages[k] + at, size), floats(targets[k] + at, size), np.float32(share))


@part
def _take_power(power_, beta):
    """beta ** t,t 是第几步;存着的换成下一步的。"""
    power = floats(power_, 1)
    now = np.float64(power[0])
    power[0] *= np.float32(beta)
    return now


@parallel_kernel
def adamw(addresses, ends, rates, decays, beta1, beta2, epsilon):
    """AdamW(arXiv 1711.05101 的算法 2)。

    addresses [6, 个数] 是权重、梯度、一阶矩、二阶矩、beta1 ** t、beta2 ** t 的地址;rates、decays 是各个 Tensor 的
    学习率和权重衰减。
    """
    count = ends.size - 1
    steps, epsilons = np.empty(count, np.float32), np.empty(count, np.float32)
    for k in range(count):
        power1, power2 = _take_power(addresses[4, k], beta1), _take_power(addresses[5, k], beta2)
        steps[k] = rates[k] * np.sqrt(1 - power2) / (1 - power1)
        epsilons[k] = epsilon * np.sqrt(1 - power2)
    for p in prange(PARTS):
        for k in range(count):
            at, size = _overlap(ends, k, p)
            _adamw(
                floats(addresses[0, k] + at, size),
                floats(addresses[1, k] + at, size),
                floats(addresses[2, k] + at, size),
                floats(addresses[3, k] + at, size),
                np.float32(beta1),
                np.float32(beta2),
                np.float32(1 - rates[k] * decays[k]),
                steps[k],
                epsilons[k],
            )
