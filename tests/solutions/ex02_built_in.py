from paddle import nn


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.attention = nn.MultiHeadAttention(embed_dim, num_heads, need_weights=True)

    def forward(self, x):
        return self.attention(x, x, x)
