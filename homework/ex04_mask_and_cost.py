"""作业 4:因果掩码(causal mask),以及循环、卷积、自注意力三种层的参数量和计算量。课程第 4 课。

检查:python scripts/homework.py check 4
"""

import paddle


def causal_mask(num_tokens):
    """因果掩码:第 i 个 token 只能看第 0 … i 个(包括自己)。

    Args:
        num_tokens (int): N。

    Returns:
        Tensor: bool,[N, N],True 表示可以看;行是看的,列是被看的。
    """
    raise NotImplementedError("TODO")


def masked_attention(q, k, v, mask):
    """带掩码的注意力 softmax(q k^T / √d) v:不许看的位置,权重是 0,每行之和仍为 1。

    Args:
        q, k, v (Tensor): [B, h, N, d]。
        mask (Tensor): bool,[N, N],True 表示可以看;不一定是因果掩码,但每行至少有一个 True。

    Returns:
        tuple: ``(z [B, h, N, d], attn_weights [B, h, N, N])``。
    """
    raise NotImplementedError("TODO")


def layer_cost(kind, num_tokens, dim, kernel_size=3):
    """一层的参数量和乘加次数(一个样本,输入和输出都是 [N, D])。

    乘加次数(multiply-adds)只数矩阵乘法里的乘法,不数偏置、激活和 softmax;所有线性映射都有偏置。

    - 'rnn':h_t = tanh(x_t W + h_{t-1} U + b),W、U 都是 [D, D],一个偏置 b [D];
    - 'conv':一维卷积,核宽 kernel_size = K,D 个通道进、D 个通道出,补零使长度不变(补的零也照算);
    - 'attention':q、k、v、输出四个线性层 [D, D],加上 q k^T 和 attn_weights v 两次矩阵乘法;头数不影响结果。

    Args:
        kind (str): 'rnn'、'conv' 或 'attention'。
        num_tokens (int): N。
        dim (int): D。
        kernel_size (int): K,只有 'conv' 用。

    Returns:
        tuple: ``(参数量, 乘加次数)``,两个整数。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex04_mask_and_cost.py
    print(causal_mask(4).astype("int32"))
    print(masked_attention(*paddle.randn([3, 1, 1, 4, 8]), causal_mask(4))[1])
    for kind in ("rnn", "conv", "attention"):
        print(kind, [layer_cost(kind, num_tokens, 512) for num_tokens in (64, 1024)])
