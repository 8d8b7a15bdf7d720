"""为速度而写的卷积:与 ``functional`` 同样的道理和写法。

Paddle 在 CPU 上训练卷积只用一个核,ReLU 和最大池化各走一遍内存。
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from .kernels.loading import load_kernels, matmul_address
from .kernels.tensors import address, dense, empty, kernels_for

__all__ = ["conv_tokens"]


class _ConvPool(PyLayer):
    """y = max_pool(relu(conv(x))),像素按 [H, W, C] 存放;x 是图像(planes)时按 [C, H, W] 存放,不求它的梯度。

    卷积是把每个窗口拉直成一行再做矩阵乘;最大池化记下最大的是窗口里的第几个,dy 回到那里,得 dz,
    再由矩阵乘的梯度公式得 dweight 和 dx。
    """

    @staticmethod
    def forward(ctx, x, weight, stride, padding, planes, keep):
        ctx.needed = not x.stop_gradient, not weight.stop_gradient
        x = dense(x)
        B, C, H, W = x.shape if planes else [x.shape[0], x.shape[3], *x.shape[1:3]]
        D, _, k, _ = weight.shape
        matrix = dense(weight.transpose([2, 3, 1, 0]))  # [k, k, C, D]
        grid = (((size + 2 * padding - k) // stride + 2) // 2 for size in (H, W))  # 卷积之后再减半,向上取整
        y = empty([B, *grid, D])  # [B, H', W', D]
        taps = empty(y.shape) if keep else None
        ctx.sizes = B, C, H, W, D, k, stride, padding, planes
        load_kernels().conv_pool_forward(matmul_address(), *map(address, (x, matrix, y, taps)), *ctx.sizes)
        if keep:
            ctx.save_for_backward(x, matrix, taps)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, matrix, taps = ctx.saved_tensor()
        dx, dmatrix = (empty(t.shape) if needed else None for t, needed in zip((x, matrix), ctx.needed))
        pointers = map(address, (x, matrix, dense(dy), taps, dx, dmatrix))
        load_kernels().conv_pool_backward(matmul_address(), *pointers, *ctx.sizes)
        return dx, None if dmatrix is None else dmatrix.transpose([3, 2, 0, 1])  # [D, C, k, k]


def conv_tokens(x: Tensor, weights: Sequence[Tensor], stride: int, padding: int) -> Tensor:
    """几层「卷积 -> ReLU -> 最大池化」,结果排成 token。

    一层是 ``F.max_pool2d(F.relu(F.conv2d(x, weight, stride=stride, padding=padding)), 3, 2, 1)``。
    x 要求梯度时就这样算。

    Args:
        x (Tensor): 图像 [B, C, H, W]。
        weights (Sequence[Tensor]): 各层的卷积核 [D, C, k, k],没有偏置。
        stride, padding (int): 各层卷积的步长和四周补零的宽度,像素。

    Returns:
        Tensor: [B, N, D],D 是最后一层的。
    """
    fixed = x.stop_gradient or not paddle.is_grad_enabled()
    if fixed and matmul_address() and kernels_for(x, *weights):
        for i, weight in enumerate(weights):
            x = _ConvPool.apply(x, weight, stride, padding, int(i == 0), paddle.is_grad_enabled())  # [B, H', W', D]
        return x.flatten(1, 2)  # [B, N, D]
    for weight in weights:
        x = F.conv2d(x, weight, stride=stride, padding=padding)  # [B, D, H', W']
        x = F.max_pool2d(F.relu(x), 3, 2, 1)  # [B, D, H' / 2, W' / 2],向上取整
    return x.flatten(2).transpose([0, 2, 1])  # [B, N, D]
