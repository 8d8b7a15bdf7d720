"""为速度而写的少数几个运算。每一个都等于一条普通的 Paddle 公式,注释里写明是哪一条。

只在「动态图 + CPU + float32」时走自己的实现:循环在 ``kernels`` 里,由 numba 编译,这里写明它算的是什么、
梯度是什么。其余情况(GPU、混合精度、``to_static``、没有 numba)退回 Paddle 原来的运算。
"""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from .broadcast import add_to_each
from .kernels.loading import load_kernels, matmul_address
from .kernels.tensors import address, dense, empty, empty_like, kernels_for, rows

__all__ = [
    "attention",
    "gelu",
    "layer_norm",
    "linear",
    "mlp",
    "patch_embedding",
    "self_attention",
    "softmax",
]


def _empty_if(needed, like):
    """needed 时是与 like 同形状的、还没有填的 Tensor,否则是 ``None``。"""
    return empty_like(like) if needed else None


class _Linear(PyLayer):
    """y = x W + b;dx = dy W^T,dW = x^T dy,db = sum(dy)。

    ``F.linear`` 先乘后加,加法的时间是乘法的一半;它求 db 更慢,占去一步训练的三分之一。
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.needed = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        ctx.has_bias = bias is not None
        x, weight, bias = dense(x), dense(weight), dense(bias)
        ctx.save_for_backward(x, weight)
        D_out = weight.shape[1]
        y = empty([*x.shape[:-1], D_out])  # [..., D_out]
        pointers = [address(t) for t in (x, weight, bias, y)]
        load_kernels().linear_forward(matmul_address(), *pointers, *rows(x), D_out)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensor()
        dy = dense(dy)
        D_out = weight.shape[1]
        dx, dweight = _empty_if(ctx.needed[0], x), _empty_if(ctx.needed[1], weight)  # [..., D_in],[D_in, D_out]
        dbias = empty([D_out]) if ctx.needed[2] else None  # [D_out]
        pointers = [address(t) for t in (x, weight, dy, dx, dweight, dbias)]
        load_kernels().linear_backward(matmul_address(), *pointers, *rows(x), D_out)
        return (dx, dweight, dbias) if ctx.has_bias else (dx, dweight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """线性变换 ``x @ weight + bias``,与 ``paddle.nn.functional.linear`` 数值和梯度都相同。

    Args:
        x (Tensor): [..., D_in]。
        weight (Tensor): [D_in, D_out]。
        bias (Tensor | None): [D_out];``None`` 表示没有偏置。

    Returns:
        Tensor: [..., D_out]。
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if kernels_for(*tensors) and matmul_address() and x.shape[-1] == weight.shape[0]:
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _LayerNorm(PyLayer):
    """y = h * weight + bias,h = (x - mean) * r,r = 1 / sqrt(var + epsilon)。

    记 g = dy * weight,则 dx = r * (g - mean(g) - h * mean(g * h)),均值都沿 D 轴;
    dweight = sum(dy * h),dbias = sum(dy),沿其余的轴求和。
    """

    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        ctx.needed = [not t.stop_gradient for t in (x, weight, bias)]
        x, weight, bias = dense(x), dense(weight), dense(bias)
        M, D = rows(x)
        y, mean, r = empty_like(x), empty([M]), empty([M])  # [..., D],[M],[M]
        load_kernels().layer_norm_forward(*map(address, (x, weight, bias, y, mean, r)), M, D, epsilon)
        ctx.save_for_backward(x, weight, mean, r)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, r = ctx.saved_tensor()
        dx, dweight, dbias = empty_like(x), empty_like(weight), empty_like(weight)
        pointers = map(address, (x, weight, mean, r, dense(dy), dx, dweight, dbias))
        load_kernels().layer_norm_backward(*pointers, mean.shape[0], weight.shape[0])
        return tuple(t if needed else None for t, needed in zip((dx, dweight, dbias), ctx.needed))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float = 1e-5) -> Tensor:
    """沿最后一轴的层归一化,数值与 ``paddle.nn.functional.layer_norm`` 相同。

    梯度也相同,只有一处例外:weight 冻结时,Paddle 3.3 在 CPU 上求 dX 漏乘了 weight,这里是对的。

    Args:
        x (Tensor): [..., D]。
        weight, bias (Tensor): [D]。
        epsilon (float): 加在方差上的小数。

    Returns:
        Tensor: [..., D]。
    """
    if kernels_for(x, weight, bias) and weight.shape == bias.shape == x.shape[-1:]:
        return _LayerNorm.apply(x, weight, bias, epsilon)
    return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


def patch_embedding(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """步长等于卷积核的卷积,结果排成 token:``F.conv2d(x, weight, bias, stride=P).flatten(2)`` 再转置。

    图块互不重叠,所以它就是把每个图块拉直成一行,再过一个线性层。x 要求梯度时仍用卷积。

    Args:
        x (Tensor): [B, C, H, W],P 整除 H、W。
        weight (Tensor): [D, C, P, P],高和宽可以不同。
        bias (Tensor): [D]。

    Returns:
        Tensor: [B, N, D],N = H/P * W/P。
    """
    height, width = weight.shape[2:]
    fixed = x.stop_gradient or not paddle.is_grad_enabled()
    kernels = kernels_for(x, weight, bias) if fixed and matmul_address() else None
    if kernels is None:
        x = F.conv2d(x, weight, bias, stride=(height, width))  # [B, D, H/P, W/P]
        return x.flatten(2).transpose([0, 2, 1])  # [B, N, D]
    x, (B, C, H, W) = dense(x), x.shape
    patches = empty([B, H // height * (W // width), C * height * width])  # [B, N, C*P*P]
    kernels.cut_patches(address(x), address(patches), B, C, H // height, height, W // width, width)
    return linear(patches, weight.flatten(1).t(), bias)


class _Gelu(PyLayer):
    """y = x Phi(x),dy/dx = Phi(x) + x phi(x);Phi、phi 是标准正态分布的分布函数和密度。

    两者的指数函数是同一个,所以前向时一起算好,反向只剩一次乘法。
    """

    @staticmethod
    def forward(ctx, x):
        needed, x = not x.stop_gradient, dense(x)
        y, slope = empty_like(x), _empty_if(needed, x)
        load_kernels().gelu_forward(*map(address, (x, y, slope)), math.prod(x.shape))
        if slope is not None:
            ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx, dy):
        (slope,) = ctx.saved_tensor()
        dx = empty_like(slope)
        load_kernels().multiply(*map(address, (slope, dense(dy), dx)), math.prod(dx.shape))
        return dx


def gelu(x: Tensor) -> Tensor:
    """GELU(高斯误差线性单元),与 ``paddle.nn.functional.gelu`` 数值和梯度都相同。

    Args:
        x (Tensor): 任意形状。

    Returns:
        Tensor: 与 x 同形状。
    """
    return _Gelu.apply(x) if kernels_for(x) else F.gelu(x)


class _Mlp(PyLayer):
    """y = gelu(h) W2 + b2,h = x W1 + b1,一次算若干行;只留下 h,gelu(h) 反向时再算一遍。

    dW2 = gelu(h)^T dy,db2 = sum(dy);dh = gelu'(h) * (dy W2^T),dW1 = x^T dh,db1 = sum(dh),dx = dh W1^T。
    """

    @staticmethod
    def forward(ctx, x, weight1, bias1, weight2, bias2, keep):
        tensors = x, weight1, bias1, weight2, bias2
        ctx.needed = [not t.stop_gradient for t in tensors]
        x, weight1, bias1, weight2, bias2 = map(dense, tensors)
        ctx.sizes = *rows(x), *weight2.shape  # M,D,H,D_out
        hidden = empty([ctx.sizes[0], ctx.sizes[2]]) if keep else None  # [M, H]
        y = empty([*x.shape[:-1], weight2.shape[1]])  # [..., D_out]
        pointers = map(address, (x, weight1, bias1, hidden, weight2, bias2, y))
        load_kernels().mlp_forward(matmul_address(), *pointers, *ctx.sizes)
        if keep:
            ctx.save_for_backward(x, weight1, bias1, hidden, weight2, bias2)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight1, bias1, hidden, weight2, bias2 = ctx.saved_tensor()
        gradients = [_empty_if(needed, t) for needed, t in zip(ctx.needed, (x, weight1, bias1, weight2, bias2))]
        pointers = map(address, (x, weight1, hidden, weight2, dense(dy), *gradients))
        load_kernels().mlp_backward(matmul_address(), *pointers, *ctx.sizes)
        return tuple(gradients)


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """两个线性层,中间是 GELU:``linear(gelu(linear(x, weight1, bias1)), weight2, bias2)``。

    Args:
        x (Tensor): [..., D]。
        weight1, bias1 (Tensor): [D, H] 和 [H]。
        weight2, bias2 (Tensor): [H, D_out] 和 [D_out]。

    Returns:
        Tensor: [..., D_out]。
    """
    tensors = x, weight1, bias1, weight2, bias2
    if kernels_for(*tensors) and matmul_address() and x.shape[-1] == weight1.shape[0]:
        return _Mlp.apply(*tensors, paddle.is_grad_enabled())  # forward 里总是 False
    return linear(gelu(linear(x, weight1, bias1)), weight2, bias2)


class _Softmax(PyLayer):
    """y = exp(x) / sum(exp(x)),dx = y * (dy - sum(dy * y)),都沿最后一轴。"""

    @staticmethod
    def forward(ctx, x):
        x = dense(x)
        y = empty_like(x)
        load_kernels().softmax_forward(address(x), address(y), *rows(x))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensor()
        dx = empty_like(y)
        pointers = map(address, (y, dense(dy), dx))
        load_kernels().softmax_backward(*pointers, *rows(y))
        return dx


def softmax(x: Tensor) -> Tensor:
    """沿最后一轴的 softmax,与 ``paddle.nn.functional.softmax(x)`` 数值和梯度都相同。

    Args:
        x (Tensor): [..., N]。

    Returns:
        Tensor: [..., N],每行之和为 1。
    """
    return _Softmax.apply(x) if x.ndim and kernels_for(x) else F.softmax(x, axis=-1)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """不返回权重的注意力 ``softmax(q k^T * scale + bias) v``。

    GPU 上没有 bias 时用 ``paddle.nn.functional.scaled_dot_product_attention``(flash attention 不在显存里展开 N x N
    的权重;它不给 bias 求梯度,学不会相对位置偏置);CPU 上用公式本身。

    Args:
        q, k, v (Tensor): [B, h, N, d]。
        scale (float): q k^T 的缩放系数。
        dropout (float): 注意力权重的随机失活概率,0–1。
        bias (Tensor | None): 能广播成 [B, h, N, N];``None`` 表示没有。

    Returns:
        Tensor: [B, h, N, d]。
    """
    half = (paddle.float16, paddle.bfloat16)
    if paddle.in_dynamic_mode() and q.place.is_gpu_place() and q.dtype in half and bias is None:
        q = q * (scale * q.shape[-1] ** 0.5)  # 该算子自己乘 d ** -0.5,这里补上比值
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))  # 该算子要 [B, N, h, d]
        z = F.scaled_dot_product_attention(q, k, v, None, dropout, training=dropout > 0)
        return z.transpose([0, 2, 1, 3])  # [B, h, N, d]
    scores = paddle.matmul(q * scale, k, transpose_y=True)  # [B, h, N, N]
    weights = softmax(scores if bias is None else add_to_each(scores, bias))  # [B, h, N, N]
    return paddle.matmul(F.dropout(weights, dropout, training=dropout > 0), v)  # [B, h, N, d]


class _SelfAttention(PyLayer):
    """z = w v,w = softmax(s),s = scale * q k^T,一次算一张图的一个头,N x N 的 w 不写进内存。

    反向时由 q、k 再算一遍 w(只存了各行的 log(sum(exp(s)))):dv = w^T dz,ds = w * (dz v^T - sum(dz * z)),
    dq = scale * ds k,dk = scale * ds^T q。来源:FlashAttention(arXiv 2205.14135)。
    """

    @staticmethod
    def forward(ctx, qkv, num_heads, scale):
        qkv = dense(qkv)
        B, N, width = qkv.shape
        D = width // 3
        z, log_sums = empty([B, N, D]), empty([B, num_heads, N])
        ctx.sizes = B, N, num_heads, D // num_heads, scale
        load_kernels().attention_forward(matmul_address(), *map(address, (qkv, z, log_sums)), *ctx.sizes)
        ctx.save_for_backward(qkv, z, log_sums)
        return z

    @staticmethod
    def backward(ctx, dz):
        qkv, z, log_sums = ctx.saved_tensor()
        dqkv = empty_like(qkv)
        pointers = map(address, (qkv, z, log_sums, dense(dz), dqkv))
        load_kernels().attention_backward(matmul_address(), *pointers, *ctx.sizes)
        return dqkv


def self_attention(qkv: Tensor, num_heads: int, scale: float, dropout: float = 0.0) -> Tensor:
    """``attention`` 的一种写法:q、k、v 还没有拆开,各个头的结果已经合好。

    Args:
        qkv (Tensor): [B, N, 3 * h * d],q、k、v 依次排列,每个里面各个头依次排列。
        num_heads (int): 头数 h。
        scale (float), dropout (float): 见 ``attention``。

    Returns:
        Tensor: [B, N, h * d]。
    """
    if kernels_for(qkv) and matmul_address() and dropout == 0:
        return _SelfAttention.apply(qkv, num_heads, scale)
    B, N, width = qkv.shape
    heads = qkv.reshape([B, N, 3 * num_heads, -1]).transpose([0, 2, 1, 3])  # [B, 3h, N, d]
    q, k, v = heads.chunk(3, axis=1)  # 各 [B, h, N, d]
    z = attention(q, k, v, scale, dropout)  # [B, h, N, d]
    return z.transpose([0, 2, 1, 3]).reshape([B, N, width // 3])  # [B, N, h*d]
