import paddle
import paddle.nn.functional as F
from paddle import nn


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.h = num_heads
        self.qkv = nn.Linear(embed_dim, embed_dim * 3, bias_attr=False)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x):
        B, N, D = x.shape
        qkv = self.qkv(x).reshape([B, N, 3, self.h, D // self.h])
        q, k, v = qkv.unbind(2)
        weights = F.softmax(paddle.einsum("bnhd,bmhd->bhnm", q, k) * (D // self.h) ** -0.5, axis=-1)
        z = paddle.einsum("bhnm,bmhd->bnhd", weights, v)
        return self.proj(z.flatten(2)), weights
