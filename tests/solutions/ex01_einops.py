from einops import rearrange
from paddle import nn


class PatchEmbedding(nn.Layer):
    def __init__(self, image_size, patch_size, in_channels, embed_dim):
        super().__init__()
        self.patch_size = patch_size
        self.layers = nn.Sequential(nn.Linear(in_channels * patch_size**2, embed_dim, bias_attr=False))

    def forward(self, x):
        p = self.patch_size
        return self.layers(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))
