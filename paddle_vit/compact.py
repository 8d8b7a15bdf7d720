"""紧凑卷积 Transformer(Compact Convolutional Transformer, CCT)的两个部件:ConvTokenizer 和 SequencePool。

CCT 就是 ViT,只是由卷积得到 token(小图像上学得快得多),汇聚时按学到的权重平均。来源:arXiv 2104.05704。
"""

from __future__ import annotations

import paddle
from paddle import Tensor, nn

from . import convolution
from .checks import as_pair, check_images, check_positive, check_tokens, conv_layers, patch_grid
from .layers import Linear

__all__ = ["HIDDEN_CHANNELS", "ConvTokenizer", "SequencePool"]

HIDDEN_CHANNELS = 64  # 最后一层之前的各层卷积的通道数,同作者的代码


class ConvTokenizer(nn.Layer):
    """由卷积得到 token(convolutional tokenizer):[B, C, H, W] -> [B, H/P * W/P, D],属性同 ``PatchEmbedding``。

    每层是卷积(没有偏置)、ReLU、3 x 3 步长 2 的最大池化:相邻的 token 看到重叠的像素,图块之间没有接缝。来源:CCT
    论文 3.3 节;步长 s = max(1, k // 2 - 1) 同作者的代码。

    Args:
        image_size (int | (int, int)): 图像边长或 (高, 宽),像素;``forward`` 收到别的尺寸会报错。
        patch_size (int | (int, int)): 每个 token 对应的像素边长 P,必须是 2s 的几次方,并整除 image_size;几次方就有几层。
        in_channels (int): 图像通道数 C。
        embed_dim (int): 嵌入维度 D。
        kernel_size (int): 卷积核边长 k,像素,奇数。

    Raises:
        UserError: 图块或卷积核的大小不合法,或输入的形状与 image_size、in_channels 不符。
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        in_channels: int,
        embed_dim: int,
        kernel_size: int = 3,
    ):
        super().__init__()
        check_positive(in_channels, "in_channels")
        check_positive(embed_dim, "embed_dim")
        self.image_size = as_pair(image_size, "image_size")
        self.patch_size = as_pair(patch_size, "patch_size")
        layers, self.stride = conv_layers(self.image_size, self.patch_size, kernel_size)
        self.grid_size = patch_grid(self.image_size, self.patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.in_channels = in_channels
        self.padding = kernel_size // 2
        channels = [in_channels, *[HIDDEN_CHANNELS] * (layers - 1), embed_dim]
        sizes = kernel_size, self.stride, self.padding
        normal = nn.initializer.KaimingNormal()
        self.convolutions = nn.LayerList(
            [nn.Conv2D(*pair, *sizes, weight_attr=normal, bias_attr=False) for pair in zip(channels, channels[1:])]
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = [layer.weight for layer in self.convolutions]
        check_images(x, weights[0], self.in_channels, self.image_size)
        return convolution.conv_tokens(x, weights, self.stride, self.padding)  # [B, N, D],N = H/P * W/P


class SequencePool(nn.Layer):
    """按学到的权重平均(sequence pooling):softmax(x w + b)^T x,softmax 沿 token,[B, N, D] -> [B, D]。

    来源:CCT 论文 3.2 节。
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.attention = Linear(embed_dim, 1)

    def weights(self, x: Tensor) -> Tensor:
        """各个 token 的权重,加起来是 1:[B, N, D] -> [B, 1, N]。"""
        check_tokens(x, self.attention.weight, self.attention.weight.shape[0])
        scores = self.attention(x).transpose([0, 2, 1])  # [B, 1, N]
        return nn.functional.softmax(scores, axis=-1)

    def forward(self, x: Tensor) -> Tensor:
        return paddle.matmul(self.weights(x), x).squeeze(1)  # [B, D]
