from paddle import nn


class PatchEmbedding(nn.Layer):
    def __init__(self, image_size, patch_size, in_channels, embed_dim):
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(patch_size)
        self.projection = nn.Conv2D(in_channels * patch_size**2, embed_dim, 1)

    def forward(self, x):
        return self.projection(self.unshuffle(x)).flatten(2).transpose([0, 2, 1])
