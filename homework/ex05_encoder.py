"""作业 5:补全 Mlp 和 EncoderLayer(编码器层)。课程第 5 课。

EncoderLayer 先归一化(pre-norm),有两条残差:

    x = x + attn(attn_norm(x))
    x = x + mlp(mlp_norm(x))

Attention 用现成的:``z, attn_weights = self.attn(x)``。子层的名字 attn_norm、attn、mlp_norm、mlp 不要改,别的随意。
检查:python scripts/homework.py check 5
"""

import paddle
from paddle import nn

from paddle_vit import Attention


class Mlp(nn.Layer):
    """多层感知机:线性层 D -> D * mlp_ratio,GELU,随机失活,线性层 -> D,随机失活。

    Args:
        embed_dim (int): 嵌入维度 D。
        mlp_ratio (float): 隐藏层宽度与 D 之比。
        dropout (float): 随机失活(dropout)的概率,0–1;只在训练时起作用。
    """

    def __init__(self, embed_dim, mlp_ratio=4.0, dropout=0.0):
        super().__init__()
        raise NotImplementedError("TODO")

    def forward(self, x):
        """[B, N, D] -> [B, N, D]。"""
        raise NotImplementedError("TODO")


class EncoderLayer(nn.Layer):
    """编码器层。

    Args:
        embed_dim (int): 嵌入维度 D。
        num_heads (int): 头数 h。
        mlp_ratio (float): Mlp 隐藏层宽度与 D 之比。
        dropout (float): Attention 输出和 Mlp 里的随机失活概率,0–1。
    """

    def __init__(self, embed_dim, num_heads, mlp_ratio=4.0, dropout=0.0):
        super().__init__()
        self.attn_norm = nn.LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, mlp_ratio, dropout)

    def forward(self, x):
        """[B, N, D] -> [B, N, D]。"""
        raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex05_encoder.py
    print(EncoderLayer(96, 8)(paddle.randn([4, 16, 96])).shape)  # 应为 [4, 16, 96]
