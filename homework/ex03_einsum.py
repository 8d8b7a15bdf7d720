"""作业 3:用 einsum 或 einops 写切图块和注意力。课程第 3 课。

``paddle.einsum('bnd,bmd->bnm', a, b)`` 按下标的字母相乘求和(Paddle 的不分大小写,
D 和 d 要用不同的字母);``einops.rearrange(x, 'b n (h d) -> b h n d', h=8)``
按名字拆开、合并、交换各轴。两处都要用到 einsum 或 einops。检查:python scripts/homework.py check 3
"""

import paddle
import paddle.nn.functional as F


def cut_patches(x, patch_size):
    """把图像切成图块并展平,不做线性映射。

    Args:
        x (Tensor): [B, C, H, W]。
        patch_size (int): 图块边长 P,像素,整除 H 和 W(H 和 W 可以不同)。

    Returns:
        Tensor: [B, N, C*P*P],图块按行优先排列,每块按 (C, P, P) 的顺序展平。
    """
    raise NotImplementedError("TODO")


def attention(x, w_q, w_k, w_v, w_o):
    """多头自注意力,与作业 2 相同,没有偏置;权重按头分好了。

    Args:
        x (Tensor): [B, N, D]。
        w_q, w_k, w_v (Tensor): [D, h, d],每个头的 q、k、v 的权重。
        w_o (Tensor): [h, d, D],输出的权重。

    Returns:
        tuple: ``(z [B, N, D], attn_weights [B, h, N, N])``。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex03_einsum.py
    print(cut_patches(paddle.randn([2, 3, 8, 12]), 4).shape)  # 应为 [2, 6, 48]
    w = paddle.randn([3, 16, 4, 4])
    z, attn_weights = attention(paddle.randn([2, 5, 16]), *w, paddle.randn([4, 4, 16]))
    print(z.shape, F.relu(attn_weights).shape)  # 应为 [2, 5, 16] [2, 4, 5, 5]
