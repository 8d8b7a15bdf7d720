import paddle
import paddle.nn.functional as F
from paddle import nn


class PatchEmbedding(nn.Layer):
    def __init__(self, image_size, patch_size, in_channels, embed_dim):
        super().__init__()
        self.patch_size = patch_size
        self.num_patches = (image_size // patch_size) ** 2
        self.weight = self.create_parameter([in_channels * patch_size**2, embed_dim])
        self.bias = self.create_parameter([embed_dim], is_bias=True)

    def forward(self, x):
        cols = F.unfold(x, self.patch_size, strides=self.patch_size)
        return paddle.matmul(cols, self.weight, transpose_x=True) + self.bias
