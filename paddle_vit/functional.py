"""为速度而写的少数几个运算。每一个都等于一条普通的 Paddle 公式,注释里写明是哪一条。

只在「动态图 + CPU + float32」时走自己的实现,其余情况(GPU、混合精度、``to_static``)退回 Paddle 原来的运算。
写法里的共同道理:Paddle 在 CPU 上的矩阵乘用满所有的核,而沿某一轴求和、按行广播的运算只用一个核,还慢几十倍。
所以求和写成乘以全 1 的向量:``ones[1, M] @ x`` 是对 M 行求和,``x @ ones[D, 1]`` 是对 D 列求和;
``v[M, 1] @ ones[1, D]`` 把一列广播成 D 列。
"""

from __future__ import annotations

import functools

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from .system.library import info_lines_hidden

__all__ = ["attention", "gelu", "layer_norm", "linear", "softmax"]


def _is_eager_cpu(*tensors):
    """是否「动态图 + CPU + float32」。"""
    return paddle.in_dynamic_mode() and all(x.place.is_cpu_place() and x.dtype == paddle.float32 for x in tensors)


def _all_need_gradients(*parameters):
    """是否要为这些参数求梯度:不求梯度时 Paddle 自己的前向已经够快。"""
    return paddle.is_grad_enabled() and not any(p.stop_gradient for p in parameters)


def _needs_gradient(*tensors):
    """是否至少要为其中一个求梯度。"""
    return paddle.is_grad_enabled() and not all(x.stop_gradient for x in tensors)


def _linear_on_cpu(x, weight, bias):
    """``addmm`` 在矩阵乘里顺便加上偏置;``F.linear`` 先乘后加,加法的时间是乘法的一半。"""
    x_2d = x.reshape([-1, x.shape[-1]])  # [M, D_in],M = B * N
    return paddle.addmm(bias.unsqueeze(0), x_2d, weight).reshape([*x.shape[:-1], -1])  # [..., D_out]


class _LinearOnCPU(PyLayer):
    """线性层;偏置的梯度 sum(dY) 写成矩阵乘,不然它占去一步训练三分之一的时间。"""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _linear_on_cpu(x, weight, bias)

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensor()
        x_2d = x.reshape([-1, x.shape[-1]])  # [M, D_in],M = B * N
        grad_2d = grad_output.reshape([-1, grad_output.shape[-1]])  # [M, D_out]
        grad_x = None
        if not x.stop_gradient:
            grad_x = paddle.matmul(grad_output, weight, transpose_y=True)  # [..., D_in]
        grad_weight = paddle.matmul(x_2d, grad_2d, transpose_x=True)  # [D_in, D_out]
        grad_bias = paddle.matmul(paddle.ones([1, grad_2d.shape[0]]), grad_2d).squeeze(0)  # [D_out]
        return grad_x, grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """线性变换 ``x @ weight + bias``,与 ``paddle.nn.functional.linear`` 数值和梯度都相同。

    Args:
        x (Tensor): [..., D_in]。
        weight (Tensor): [D_in, D_out]。
        bias (Tensor | None): [D_out];``None`` 表示没有偏置。

    Returns:
        Tensor: [..., D_out]。
    """
    if bias is not None and _is_eager_cpu(x, weight, bias):
        return (_LinearOnCPU.apply if _all_need_gradients(weight, bias) else _linear_on_cpu)(x, weight, bias)
    return F.linear(x, weight, bias)


class _LayerNormOnCPU(PyLayer):
    """层归一化 y = (x - mean) * r * weight + bias,r = 1 / sqrt(var + epsilon)。

    前向用 Paddle 的(很快);反向里的求和与广播写成矩阵乘。记 g = dY * weight,c = x - mean,则
    dX = r * (g - mean(g) - c * r^2 * mean(g * c)),均值都沿 D 轴。
    """

    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        ctx.save_for_backward(x, weight)
        ctx.epsilon, ctx.needed = epsilon, [not tensor.stop_gradient for tensor in (x, weight, bias)]
        return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensor()
        shape, D = x.shape, x.shape[-1]
        needs_x, needs_weight, needs_bias = ctx.needed
        x, grad = x.reshape([-1, D]), grad_output.reshape([-1, D])  # [M, D],M = B * N
        average, spread = paddle.full([D, 1], 1 / D), paddle.ones([1, D])
        c = x - paddle.matmul(paddle.matmul(x, average), spread)  # [M, D]
        r = paddle.rsqrt(paddle.matmul(c * c, average) + ctx.epsilon)  # [M, 1]
        grad_c = grad * c  # [M, D]
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            weighted_average = weight.unsqueeze(1) / D  # [D, 1]
            mean_g = paddle.matmul(grad, weighted_average)  # [M, 1]
            mean_gc = paddle.matmul(grad_c, weighted_average)  # [M, 1]
            grad_x = grad * paddle.matmul(r, weight.unsqueeze(0))  # r * g
            grad_x = grad_x - paddle.matmul(r * mean_g, spread) - c * paddle.matmul(r**3 * mean_gc, spread)
            grad_x = grad_x.reshape(shape)
        if needs_weight:
            grad_weight = paddle.matmul(r, grad_c, transpose_x=True).squeeze(0)  # [D]
        if needs_bias:
            grad_bias = paddle.matmul(paddle.ones([1, x.shape[0]]), grad).squeeze(0)  # [D]
        return grad_x, grad_weight, grad_bias


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
    if _is_eager_cpu(x, weight) and _needs_gradient(x, weight, bias):
        return _LayerNormOnCPU.apply(x, weight, bias, epsilon)
    return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)


@functools.cache
def _onednn():
    """Paddle 自带的 oneDNN 算子;这个版本的 Paddle 没有时是 ``None``。

    动态图自己不会选用它们,只有旧的算子接口能点名要。
    """
    operators = getattr(paddle, "_legacy_C_ops", None)
    if paddle.base.core.is_compiled_with_mkldnn() and hasattr(operators, "gelu") and hasattr(operators, "softmax"):
        with info_lines_hidden():  # 第一次用 oneDNN 时,Paddle 打印它的版本
            operators.gelu(paddle.to_tensor([0.0], place=paddle.CPUPlace()), "approximate", False, "use_mkldnn", True)
        return operators
    return None


def _plain(x):
    """oneDNN 的输出带着自己的内存布局标记,别的算子遇到会出错;经 DLPack 换成普通的 Tensor(不复制数据)。"""
    return paddle.from_dlpack(paddle.to_dlpack(x.detach()))


class _GeluOnCPU(PyLayer):
    """oneDNN 的 GELU 和它的反向:前向在里面单独建一张小计算图,反向时对它求梯度。"""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        ctx.x.stop_gradient = False
        with paddle.enable_grad():
            ctx.y = _onednn().gelu(ctx.x, "approximate", False, "use_mkldnn", True)
        return _plain(ctx.y)

    @staticmethod
    def backward(ctx, grad_output):
        return _plain(paddle.grad(ctx.y, ctx.x, grad_output)[0])


def gelu(x: Tensor) -> Tensor:
    """GELU(高斯误差线性单元),与 ``paddle.nn.functional.gelu`` 数值和梯度都相同。

    Args:
        x (Tensor): 任意形状。

    Returns:
        Tensor: 与 x 同形状。
    """
    if _is_eager_cpu(x) and _onednn():
        if _all_need_gradients(x):
            return _GeluOnCPU.apply(x)
        return _plain(_onednn().gelu(x, "approximate", False, "use_mkldnn", True))
    return F.gelu(x)


def softmax(x: Tensor) -> Tensor:
    """沿最后一轴的 softmax,与 ``paddle.nn.functional.softmax(x)`` 数值相同;CPU 上不求梯度时用快几倍的 oneDNN 算子。

    Args:
        x (Tensor): [..., N]。

    Returns:
        Tensor: [..., N],每行之和为 1。
    """
    if _is_eager_cpu(x) and not _all_need_gradients(x) and _onednn():
        return _plain(_onednn().softmax(x, "axis", -1, "use_mkldnn", True))
    return F.softmax(x, axis=-1)


def _scores(q, k, scale, bias):
    scores = paddle.matmul(q * scale, k, transpose_y=True)  # [B, h, N, N]
    return scores if bias is None else scores + bias


class _AttentionOnCPU(PyLayer):
    """注意力 z = w v,w = softmax(s),s = scale * q k^T + bias;bias 不求梯度时可以有。

    softmax 的梯度是 dS = w * (dW - sum(dW * w)),沿最后一轴求和;这个和也等于 sum(dZ * z),
    后者短得多(d 个数而不是 N 个)。
    """

    @staticmethod
    def forward(ctx, q, k, v, scale, bias):
        weights = softmax(_scores(q, k, scale, bias))  # [B, h, N, N]
        z = paddle.matmul(weights, v)  # [B, h, N, d]
        ctx.save_for_backward(q, k, v, weights, z)
        ctx.scale = scale
        return z

    @staticmethod
    def backward(ctx, grad_z):
        q, k, v, weights, z = ctx.saved_tensor()
        grad_v = paddle.matmul(weights, grad_z, transpose_x=True)  # [B, h, N, d]
        grad_s = paddle.matmul(grad_z, v, transpose_y=True)  # dW,[B, h, N, N]
        total = paddle.matmul(grad_z * z, paddle.ones([v.shape[-1], v.shape[-2]]))  # sum(dZ * z),广播成 [B, h, N, N]
        grad_s = grad_s.subtract_(total).multiply_(weights)
        grad_q = paddle.matmul(grad_s, k).scale_(ctx.scale)  # [B, h, N, d]
        grad_k = paddle.matmul(grad_s, q, transpose_x=True).scale_(ctx.scale)  # [B, h, N, d]
        return grad_q, grad_k, grad_v


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
    的权重;它不给 bias 求梯度,学不会相对位置偏置);CPU 上用公式本身,只是反向自己写。

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
    fixed_bias = bias is None or bias.stop_gradient
    if _is_eager_cpu(q, k, v) and dropout == 0 and fixed_bias and _all_need_gradients(q, k, v):
        return _AttentionOnCPU.apply(q, k, v, scale, bias)
    weights = softmax(_scores(q, k, scale, bias))  # [B, h, N, N]
    return paddle.matmul(F.dropout(weights, dropout, training=dropout > 0), v)  # [B, h, N, d]
