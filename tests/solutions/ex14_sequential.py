import math

import paddle
from paddle import nn


def conv_output_size(size, kernel_size, stride=1, padding=0):
    return math.floor((size + 2 * padding - kernel_size) / stride + 1)


class ConvTokenizer(nn.Layer):
    def __init__(self, in_channels, embed_dim, kernel_size=3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2D(in_channels, embed_dim, kernel_size, padding="SAME", bias_attr=False),
            nn.MaxPool2D(3, 2, 1),  # ReLU 放在池化之后也一样
            nn.ReLU(),
            nn.Flatten(2),
        )

    def forward(self, x):
        return paddle.transpose(self.layers(x), [0, 2, 1])  # [B, N, D]


def sequence_pool(x, weight, bias):
    a = nn.functional.softmax(nn.functional.linear(x, weight, bias).squeeze(-1), axis=-1)  # [B, N]
    return paddle.bmm(a.unsqueeze(1), x).squeeze(1), a


class ResidualBlock(nn.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2D(in_channels, out_channels, 3, stride, 1, bias_attr=False)
        self.bn1 = nn.BatchNorm2D(out_channels)
        self.conv2 = nn.Conv2D(out_channels, out_channels, 3, 1, 1, bias_attr=False)
        self.bn2 = nn.BatchNorm2D(out_channels)
        self.residual = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.conv2, self.bn2)
        self.shortcut = nn.Identity()
        if (in_channels, stride) != (out_channels, 1):
            self.shortcut_conv = nn.Conv2D(in_channels, out_channels, 1, stride, bias_attr=False)
            self.shortcut_bn = nn.BatchNorm2D(out_channels)
            self.shortcut = nn.Sequential(self.shortcut_conv, self.shortcut_bn)

    def forward(self, x):
        return nn.functional.relu(self.residual(x) + self.shortcut(x))
