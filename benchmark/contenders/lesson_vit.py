"""参赛者:课程的写法,只用 Paddle 现成的层和默认设置,不用 paddle_vit,不设环境变量。

参数的名字和形状与 ``paddle_vit.ViT(qkv_bias=True, position_embedding='learnable')`` 相同,权重可以互换。
"""

import paddle
from paddle import nn


class PatchEmbedding(nn.Layer):
    def __init__(self, patch_size, in_channels, embed_dim):
        super().__init__()
        self.patch_embedding = nn.Conv2D(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x):
        return self.patch_embedding(x).flatten(2).transpose([0, 2, 1])  # [B, N, D]


class Attention(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.scales = (embed_dim // num_heads) ** -0.5
        self.qkv = nn.Linear(embed_dim, embed_dim * 3)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.softmax = nn.Softmax(axis=-1)

    def transpose_multihead(self, x):
        B, N, D = x.shape
        return x.reshape([B, N, self.num_heads, D // self.num_heads]).transpose([0, 2, 1, 3])  # [B, h, N, d]

    def forward(self, x):
        B, N, D = x.shape
        q, k, v = (self.transpose_multihead(part) for part in self.qkv(x).chunk(3, axis=-1))
        weights = self.softmax(paddle.matmul(q, k, transpose_y=True) * self.scales)  # [B, h, N, N]
        z = paddle.matmul(weights, v)  # [B, h, N, d]
        return self.proj(z.transpose([0, 2, 1, 3]).reshape([B, N, D]))


class Mlp(nn.Layer):
    def __init__(self, embed_dim):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, embed_dim * 4)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(embed_dim * 4, embed_dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class EncoderLayer(nn.Layer):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.attn_norm = nn.LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim)

    def forward(self, x):
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class LessonViT(nn.Layer):
    def __init__(self, image_size, patch_size, in_channels, num_classes, embed_dim, depth, num_heads, pool):
        super().__init__()
        self.patch_embed = PatchEmbedding(patch_size, in_channels, embed_dim)
        tokens = (image_size // patch_size) ** 2 + (pool == "cls")
        normal = nn.initializer.TruncatedNormal(std=0.02)
        self.class_token = None
        if pool == "cls":
            self.class_token = self.create_parameter([1, 1, embed_dim], default_initializer=normal)
        self.position_embedding = self.create_parameter([1, tokens, embed_dim], default_initializer=normal)
        self.encoders = nn.LayerList([EncoderLayer(embed_dim, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x):
        x = self.patch_embed(x)  # [B, N, D]
        if self.class_token is not None:
            x = paddle.concat([self.class_token.expand([x.shape[0], -1, -1]), x], axis=1)  # [B, 1 + N, D]
        x = x + self.position_embedding
        for encoder in self.encoders:
            x = encoder(x)  # [B, N, D]
        x = self.norm(x)
        return self.head(x.mean(axis=1) if self.class_token is None else x[:, 0])


def build(spec):
    paddle.seed(0)
    model = LessonViT(**spec["architecture"])
    parameters = sum(parameter.size for parameter in model.parameters())
    step = make_step(model, *random_batch(spec), spec["task"])
    return step, {"parameters": parameters, "version": f"Paddle {paddle.__version__}"}


if __name__ == "__main__":
    from paddle_step import make_step, random_batch
    from worker import serve

    serve(build)
