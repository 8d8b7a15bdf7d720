from paddle import nn


class PatchEmbedding(nn.Layer):
    def __init__(self, image_size, patch_size, in_channels, embed_dim):
        super().__init__()
        self.P = patch_size
        self.linear = nn.Linear(in_channels * patch_size**2, embed_dim)

    def forward(self, x):
        B, C, H, W = x.shape
        P = self.P
        x = x.reshape([B, C, H // P, P, W // P, P])
        x = x.transpose([0, 2, 4, 1, 3, 5])
        x = x.reshape([B, -1, C * P * P])
        return self.linear(x)
