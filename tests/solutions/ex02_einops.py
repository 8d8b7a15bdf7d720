import paddle
import paddle.nn.functional as F
from einops import rearrange
from paddle import nn


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.h = num_heads
        self.to_qkv = nn.Linear(embed_dim, embed_dim * 3)
        self.to_out = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.Dropout(0.0))

    def forward(self, x):
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.h)
        weights = F.softmax(q @ rearrange(k, "b h n d -> b h d n") / q.shape[-1] ** 0.5, axis=-1)
        return self.to_out(rearrange(paddle.matmul(weights, v), "b h n d -> b n (h d)")), weights
