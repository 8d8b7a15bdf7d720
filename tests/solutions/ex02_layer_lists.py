import paddle
import paddle.nn.functional as F
from paddle import nn


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.q = nn.LayerList([nn.Linear(embed_dim, self.head_dim) for _ in range(num_heads)])
        self.k = nn.LayerList([nn.Linear(embed_dim, self.head_dim) for _ in range(num_heads)])
        self.v = nn.LayerList([nn.Linear(embed_dim, self.head_dim) for _ in range(num_heads)])
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x):
        zs, ws = [], []
        for q, k, v in zip(self.q, self.k, self.v):
            a = F.softmax(q(x) @ k(x).transpose([0, 2, 1]) / self.head_dim**0.5, -1)
            ws.append(a)
            zs.append(a @ v(x))
        return self.proj(paddle.concat(zs, -1)), paddle.stack(ws, 1)
