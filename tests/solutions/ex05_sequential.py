import paddle.nn.functional as F
from paddle import nn


class Mlp(nn.Layer):
    def __init__(self, embed_dim, mlp_ratio=4.0, dropout=0.0):
        super().__init__()
        hidden = round(embed_dim * mlp_ratio)
        self.p = dropout
        self.layers = nn.Sequential(nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))

    def forward(self, x):
        return F.dropout(self.layers(x), self.p, training=self.training)


class EncoderLayer(nn.Layer):
    def __init__(self, embed_dim, num_heads, mlp_ratio=4.0, dropout=0.0):
        super().__init__()
        self.attn_norm = nn.LayerNorm(embed_dim)
        self.attn = nn.MultiHeadAttention(embed_dim, num_heads, dropout=dropout)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, mlp_ratio, dropout)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        return self.mlp(self.mlp_norm(x)) + x
