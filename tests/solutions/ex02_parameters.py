import paddle.nn.functional as F
from paddle import nn


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.h = num_heads
        D = embed_dim
        self.Wq, self.Wk, self.Wv, self.Wo = [self.create_parameter([D, D]) for _ in range(4)]
        self.bq, self.bk, self.bv, self.bo = [self.create_parameter([D], is_bias=True) for _ in range(4)]

    def forward(self, x):
        B, N, D = x.shape
        q, k, v = [
            (x @ w + b).reshape([B, N, self.h, -1]).transpose([0, 2, 1, 3])
            for w, b in ((self.Wq, self.bq), (self.Wk, self.bk), (self.Wv, self.bv))
        ]
        a = F.softmax(q @ k.transpose([0, 1, 3, 2]) / q.shape[-1] ** 0.5)
        return (a @ v).transpose([0, 2, 1, 3]).reshape([B, N, D]) @ self.Wo + self.bo, a
