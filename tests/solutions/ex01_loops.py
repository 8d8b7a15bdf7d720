import paddle
from paddle import nn


class PatchEmbedding(nn.Layer):
    def __init__(self, image_size, patch_size, in_channels, embed_dim):
        super().__init__()
        self.patch_size = patch_size
        self.weight = self.create_parameter([in_channels * patch_size**2, embed_dim])

    def forward(self, x):
        P, tokens = self.patch_size, []
        for top in range(0, x.shape[2], P):
            for left in range(0, x.shape[3], P):
                patch = x[:, :, top : top + P, left : left + P]
                tokens.append(paddle.matmul(patch.flatten(1), self.weight))
        return paddle.stack(tokens, axis=1)
