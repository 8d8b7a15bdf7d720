import paddle
from paddle import nn


class PatchEmbedding(nn.Layer):
    def __init__(self, image_size, patch_size, in_channels, embed_dim):
        super().__init__()
        self.p = patch_size
        self.kernel = self.create_parameter([embed_dim, in_channels, patch_size, patch_size])
        self.bias = self.create_parameter([1, 1, embed_dim])

    def forward(self, x):
        y = paddle.nn.functional.conv2d(x, self.kernel, stride=self.p)
        return y.flatten(2).transpose([0, 2, 1]) + self.bias
