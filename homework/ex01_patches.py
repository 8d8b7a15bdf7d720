"""作业 1:补全 PatchEmbedding。课程第 1 课。

把图像切成 P x P 的图块,每块线性映射成一个 D 维的 token:[B, C, H, W] -> [B, N, D],N = (H/P) * (W/P)。
写法不限:卷积(Conv2D,核和步长都是 P)、reshape + transpose + Linear、einops + Linear 都可以。约定:

- 图块按行优先排列:先是第一行的图块,从左到右,再是第二行;
- 用 Linear 时,一个图块展平的顺序是 (C, P, P),与卷积核相同。

检查:python scripts/homework.py check 1
"""

import paddle
from paddle import nn


class PatchEmbedding(nn.Layer):
    """图块嵌入。

    Args:
        image_size (int): 图像边长 H = W,像素。
        patch_size (int): 图块边长 P,像素,整除 image_size。
        in_channels (int): 通道数 C。
        embed_dim (int): 嵌入维度 D。
    """

    def __init__(self, image_size, patch_size, in_channels, embed_dim):
        super().__init__()
        self.patch_size = patch_size
        self.num_patches = (image_size // patch_size) ** 2  # N
        raise NotImplementedError("TODO")  # 建立一个线性映射:一个卷积或一个 Linear

    def forward(self, x):
        """[B, C, H, W] -> [B, N, D]。"""
        raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex01_patches.py
    print(PatchEmbedding(224, 7, 3, 96)(paddle.randn([4, 3, 224, 224])).shape)  # 应为 [4, 1024, 96]
