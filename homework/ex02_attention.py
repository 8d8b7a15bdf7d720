"""作业 2:补全 Attention(多头自注意力,Multi-Head Self-Attention)。课程第 2 课。

softmax(q k^T / √d) v,分成 h 个头,每个头的维度 d = D / h;最后经过一个输出的线性层。
forward 的写法不限(matmul、einsum、einops、循环都可以);参数怎样放有三种,判卷都认:

- 一个线性层 qkv [D, 3D](下面已经建好):前 D 列是 q,中间 D 列是 k,后 D 列是 v;输出层 proj [D, D];
- 三个线性层 [D, D],名字里有 q、k、v(如 W_q、q_proj、to_q),再加一个输出层(如 W_o、proj);
- 每个头三个线性层 [D, d],放在 nn.LayerList 里,名字里也有 q、k、v,再加一个输出层 [D, D]。

无论哪种,D 列里头 0 占前 d 列,头 1 占接着的 d 列,依此类推。不用随机失活(dropout)。
检查:python scripts/homework.py check 2
"""

import paddle
from paddle import nn


class Attention(nn.Layer):
    """多头自注意力。

    Args:
        embed_dim (int): 嵌入维度 D。
        num_heads (int): 头数 h,整除 embed_dim。
    """

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads  # d
        self.qkv = nn.Linear(embed_dim, embed_dim * 3)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x):
        """[B, N, D] -> ``(z [B, N, D], attn_weights [B, h, N, N])``;attn_weights 每行之和为 1。"""
        raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex02_attention.py
    z, attn_weights = Attention(96, 8)(paddle.randn([4, 16, 96]))
    print(z.shape, attn_weights.shape)  # 应为 [4, 16, 96] [4, 8, 16, 16]
