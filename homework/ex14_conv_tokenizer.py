"""作业 14:卷积的输出大小,卷积的 tokenizer,序列汇聚,ResNet 的残差块。课程第 14 课。

检查:python scripts/homework.py check 14
"""

import paddle
from paddle import nn


def conv_output_size(size, kernel_size, stride=1, padding=0):
    """卷积(或池化)的输出边长。

    Args:
        size (int): 输入边长,像素。
        kernel_size (int): 核的边长,像素,不大于 size + 2 * padding。
        stride (int): 步长,像素。
        padding (int): 每一边补几圈零,像素。

    Returns:
        int: 输出边长,像素。
    """
    raise NotImplementedError("TODO")


class ConvTokenizer(nn.Layer):
    """由卷积得到 token:卷积(步长 1,没有偏置,补零使大小不变)-> ReLU -> 3 x 3 的最大池化(步长 2,补 1)。

    token 按行优先排:先从左到右,再从上到下。

    Args:
        in_channels (int): 图像通道数 C。
        embed_dim (int): 嵌入维度 D。
        kernel_size (int): 卷积核边长,像素,奇数。
    """

    def __init__(self, in_channels, embed_dim, kernel_size=3):
        super().__init__()
        raise NotImplementedError("TODO")

    def forward(self, x):
        """[B, C, H, W] -> [B, N, D],N = ceil(H / 2) * ceil(W / 2)。"""
        raise NotImplementedError("TODO")


def sequence_pool(x, weight, bias):
    """序列汇聚(sequence pooling):按学到的权重平均,a = softmax(x w + b),z = a^T x。

    Args:
        x (Tensor): N 个 token,[B, N, D]。
        weight (Tensor): w,[D, 1]。
        bias (Tensor): b,[1]。

    Returns:
        tuple: ``(z [B, D], a [B, N])``;a 是各个 token 的权重,每行之和是 1。
    """
    raise NotImplementedError("TODO")


class ResidualBlock(nn.Layer):
    """ResNet 的残差块:y = ReLU(F(x) + S(x))。

    F 是 conv1 -> bn1 -> ReLU -> conv2 -> bn2:两个 3 x 3 的卷积,没有偏置,补 1;conv1 的步长是 stride,conv2 的是 1。
    形状不变时 S(x) = x;通道数或步长变了时 S 是 shortcut_conv(1 x 1,步长 stride,没有偏置)-> shortcut_bn。
    各层的名字 conv1、bn1、conv2、bn2、shortcut_conv、shortcut_bn 不要改,形状不变时后两个不建。批归一化用
    nn.BatchNorm2D。

    Args:
        in_channels (int): 输入的通道数 C。
        out_channels (int): 输出的通道数 C'。
        stride (int): 步长 s。
    """

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        raise NotImplementedError("TODO")

    def forward(self, x):
        """[B, C, H, W] -> [B, C', H / s, W / s],向上取整。"""
        raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex14_conv_tokenizer.py
    print(conv_output_size(224, 7, stride=2, padding=3))  # 应为 112
    print(ConvTokenizer(3, 16)(paddle.randn([2, 3, 8, 8])).shape)  # 应为 [2, 16, 16]
    print(sequence_pool(paddle.randn([2, 5, 4]), paddle.randn([4, 1]), paddle.zeros([1]))[1].sum(axis=1))
    print(ResidualBlock(3, 6, stride=2)(paddle.randn([2, 3, 8, 8])).shape)  # 应为 [2, 6, 4, 4]
