import paddle
import paddle.nn.functional as F
from paddle import nn


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.qkv = nn.Linear(embed_dim, embed_dim * 3)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def split(self, x):
        B, N, _ = x.shape
        x = x.reshape([B, N, self.num_heads, self.head_dim])
        return x.transpose([0, 2, 1, 3])

    def forward(self, x):
        B, N, D = x.shape
        q, k, v = self.qkv(x).chunk(3, axis=-1)
        q, k, v = self.split(q), self.split(k), self.split(v)
        scores = paddle.matmul(q, k, transpose_y=True)
        scores = scores / self.head_dim**0.5
        weights = F.softmax(scores, axis=-1)
        z = paddle.matmul(weights, v)
        z = z.transpose([0, 2, 1, 3])
        z = z.reshape([B, N, D])
        z = self.proj(z)
        return z, weights
