import paddle.nn.functional as F
from paddle import nn


class PatchEmbedding(nn.Layer):
    def __init__(self, image_size, patch_size, in_channels, embed_dim):
        super().__init__()
        self.patch_size = patch_size
        self.linear = nn.Linear(in_channels * patch_size * patch_size, embed_dim)

    def forward(self, x):
        return self.linear(F.unfold(x, self.patch_size, strides=self.patch_size).transpose([0, 2, 1]))
