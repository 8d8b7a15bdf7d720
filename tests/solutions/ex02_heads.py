import paddle
import paddle.nn.functional as F
from paddle import nn


class Head(nn.Layer):
    def __init__(self, D, d):
        super().__init__()
        self.w_q = self.create_parameter([D, d])
        self.w_k = self.create_parameter([D, d])
        self.w_v = self.create_parameter([D, d])

    def forward(self, x):
        q = x @ self.w_q
        a = F.softmax(q @ (x @ self.w_k).transpose([0, 2, 1]) / q.shape[-1] ** 0.5)
        return a @ (x @ self.w_v), a


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.heads = nn.LayerList(Head(embed_dim, embed_dim // num_heads) for _ in range(num_heads))
        self.linear = nn.Linear(embed_dim, embed_dim)

    def forward(self, x):
        z, a = zip(*[head(x) for head in self.heads])
        return self.linear(paddle.concat(z, -1)), paddle.stack(a, 1)
