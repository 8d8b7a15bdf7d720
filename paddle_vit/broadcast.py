"""为速度而写的、沿一轴广播或求和的运算:与 ``functional`` 同样的道理和写法。

Paddle 在 CPU 上广播时逐个元素地算下标,比同样大小的普通加法慢十几倍。
"""

from __future__ import annotations

import math

from paddle import Tensor
from paddle.autograd import PyLayer

from .kernels.loading import load_kernels
from .kernels.tensors import address, dense, empty, empty_like, kernels_for, rows

__all__ = ["add_to_each", "mean_tokens", "scale_channels", "scale_each"]


class _AddToEach(PyLayer):
    """y = x + row;dx = dy,drow = sum(dy),沿第一轴。"""

    @staticmethod
    def forward(ctx, x, row):
        ctx.shape, ctx.needed = row.shape, [not t.stop_gradient for t in (x, row)]
        x, row = dense(x), dense(row)
        y = empty_like(x)
        load_kernels().add_to_each(*map(address, (x, row, y)), x.shape[0], math.prod(row.shape))
        return y

    @staticmethod
    def backward(ctx, dy):
        drow = None
        if ctx.needed[1]:
            dy, drow = dense(dy), empty(ctx.shape)
            load_kernels().sum_rows(address(dy), address(drow), dy.shape[0], math.prod(ctx.shape))
        return dy.clone() if ctx.needed[0] else None, drow  # 交出 dy 本身,Paddle 累加时会改了 y 的梯度


def add_to_each(x: Tensor, row: Tensor) -> Tensor:
    """``x + row``,row 广播到第一轴:每张图像加上同样的位置编码。

    Args:
        x (Tensor): [B, ...]。
        row (Tensor): [1, ...],其余的轴与 x 相同。

    Returns:
        Tensor: 与 x 同形状。
    """
    if kernels_for(x, row) and row.shape == [1, *x.shape[1:]]:
        return _AddToEach.apply(x, row)
    return x + row


class _ScaleEach(PyLayer):
    """y = x * factors,dx = dy * factors;factors 不求梯度。"""

    @staticmethod
    def forward(ctx, x, factors):
        ctx.save_for_backward(factors)
        return _scaled(x, factors)

    @staticmethod
    def backward(ctx, dy):
        (factors,) = ctx.saved_tensor()
        return _scaled(dy, factors), None


def _scaled(x, factors):
    x, factors = dense(x), dense(factors)
    y = empty_like(x)
    load_kernels().scale_each(*map(address, (x, factors, y)), x.shape[0], math.prod(x.shape[1:]))
    return y


def scale_each(x: Tensor, factors: Tensor) -> Tensor:
    """每张图像乘以自己的一个数(不求它的梯度):``x * factors``。

    Args:
        x (Tensor): [B, ...]。
        factors (Tensor): [B],与 x 同类型。

    Returns:
        Tensor: 与 x 同形状。
    """
    if factors.stop_gradient and kernels_for(x, factors):
        return _ScaleEach.apply(x, factors)
    return x * factors.reshape([-1] + [1] * (x.ndim - 1))


class _ScaleChannels(PyLayer):
    """y = x * gamma,dx = dy * gamma,dgamma = sum(dy * x)。"""

    @staticmethod
    def forward(ctx, x, gamma):
        ctx.needed = [not t.stop_gradient for t in (x, gamma)]
        x, gamma = dense(x), dense(gamma)
        ctx.save_for_backward(x, gamma)
        y = empty_like(x)
        load_kernels().scale_channels_forward(*map(address, (x, gamma, y)), *rows(x))
        return y

    @staticmethod
    def backward(ctx, dy):
        x, gamma = ctx.saved_tensor()
        dx, dgamma = empty_like(x), empty_like(gamma)
        dy = dense(dy)
        load_kernels().scale_channels_backward(*map(address, (x, gamma, dy, dx, dgamma)), *rows(x))
        return tuple(t if needed else None for t, needed in zip((dx, dgamma), ctx.needed))


def scale_channels(x: Tensor, gamma: Tensor) -> Tensor:
    """每个通道乘以自己的一个数,``x * gamma``。

    Args:
        x (Tensor): [..., D]。
        gamma (Tensor): [D]。

    Returns:
        Tensor: 与 x 同形状。
    """
    if kernels_for(x, gamma) and gamma.shape == x.shape[-1:]:
        return _ScaleChannels.apply(x, gamma)
    return x * gamma


class _MeanTokens(PyLayer):
    """y = sum(x) / N,dx = dy / N,沿 token 的轴。"""

    @staticmethod
    def forward(ctx, x):
        x = dense(x)
        ctx.shape = B, _, D = x.shape
        y = empty([B, D])
        load_kernels().mean_tokens_forward(address(x), address(y), *ctx.shape)
        return y

    @staticmethod
    def backward(ctx, dy):
        dy, dx = dense(dy), empty(ctx.shape)
        load_kernels().mean_tokens_backward(address(dy), address(dx), *ctx.shape)
        return dx


def mean_tokens(x: Tensor) -> Tensor:
    """全部 token 的平均,``x.mean(axis=1)``。

    Args:
        x (Tensor): [B, N, D]。

    Returns:
        Tensor: [B, D]。
    """
    return _MeanTokens.apply(x) if kernels_for(x) else x.mean(axis=1)
