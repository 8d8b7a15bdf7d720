import math

import paddle
import paddle.nn.functional as F
from paddle import nn


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim)
        self.W_k = nn.Linear(embed_dim, embed_dim)
        self.W_v = nn.Linear(embed_dim, embed_dim)
        self.W_o = nn.Linear(embed_dim, embed_dim)

    def forward(self, x):
        heads, maps = [], []
        d = x.shape[-1] // self.num_heads
        q, k, v = self.W_q(x), self.W_k(x), self.W_v(x)
        for i in range(self.num_heads):
            part = slice(i * d, (i + 1) * d)
            scores = paddle.matmul(q[..., part], k[..., part], transpose_y=True) / math.sqrt(d)
            maps.append(F.softmax(scores, axis=-1))
            heads.append(maps[-1] @ v[..., part])
        return self.W_o(paddle.concat(heads, axis=-1)), paddle.stack(maps, axis=1)
