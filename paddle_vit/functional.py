"""为速度而写的少数几个运算。每一个都等于一条普通的 Paddle 公式,注释里写明是哪一条。

只在「动态图 + CPU + float32」时走自己的实现,其余情况(GPU、混合精度、``to_static``)退回 Paddle 原来的运算。
"""

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

__all__ = ["attention", "linear"]


class _LinearOnCPU(PyLayer):
    """线性层;偏置的梯度写成矩阵乘。

    Paddle 在 CPU 上把 dY 沿 token 轴逐个相加来求偏置梯度,占去一步训练三分之一的时间;
    ``ones[1, M] @ dY`` 的结果相同,而矩阵乘快几十倍。
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad_output):
        x, weight = ctx.saved_tensor()
        x_2d = x.reshape([-1, x.shape[-1]])  # [M, D_in],M = B * N
        grad_2d = grad_output.reshape([-1, grad_output.shape[-1]])  # [M, D_out]
        grad_x = None
        if not x.stop_gradient:
            grad_x = paddle.matmul(grad_output, weight, transpose_y=True)  # [..., D_in]
        grad_weight = paddle.matmul(x_2d, grad_2d, transpose_x=True)  # [D_in, D_out]
        grad_bias = paddle.matmul(paddle.ones([1, grad_2d.shape[0]], grad_2d.dtype), grad_2d).squeeze(0)  # [D_out]
        return grad_x, grad_weight, grad_bias


def linear(x, weight, bias=None):
    """线性变换 ``x @ weight + bias``,与 ``paddle.nn.functional.linear`` 数值和梯度都相同。

    Args:
        x (Tensor): [..., D_in]。
        weight (Tensor): [D_in, D_out]。
        bias (Tensor | None): [D_out];``None`` 表示没有偏置。

    Returns:
        Tensor: [..., D_out]。
    """
    use_own = (
        bias is not None
        and paddle.in_dynamic_mode()
        and x.place.is_cpu_place()
        and x.dtype == weight.dtype == paddle.float32
        and paddle.is_grad_enabled()
        and not (weight.stop_gradient or bias.stop_gradient)
    )
    if use_own:
        return _LinearOnCPU.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def attention(q, k, v, scale, dropout=0.0):
    """不返回权重的注意力 ``softmax(q k^T * scale) v``。

    GPU 上用 ``paddle.nn.functional.scaled_dot_product_attention``(flash attention 不在显存里展开 N x N 的权重);
    CPU 上没有更快的融合算子,就用公式本身。

    Args:
        q, k, v (Tensor): [B, h, N, d]。
        scale (float): q k^T 的缩放系数。
        dropout (float): 注意力权重的随机失活概率,0–1。

    Returns:
        Tensor: [B, h, N, d]。
    """
    if paddle.in_dynamic_mode() and q.place.is_gpu_place() and q.dtype in (paddle.float16, paddle.bfloat16):
        q = q * (scale * q.shape[-1] ** 0.5)  # 该算子自己乘 d ** -0.5,这里补上比值
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))  # 该算子要 [B, N, h, d]
        z = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, training=dropout > 0)
        return z.transpose([0, 2, 1, 3])  # [B, h, N, d]
    weights = F.softmax(paddle.matmul(q * scale, k, transpose_y=True), axis=-1)  # [B, h, N, N]
    return paddle.matmul(F.dropout(weights, dropout, training=dropout > 0), v)  # [B, h, N, d]
