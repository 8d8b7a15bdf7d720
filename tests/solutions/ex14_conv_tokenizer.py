import paddle
import paddle.nn.functional as F
from paddle import nn


def conv_output_size(size, kernel_size, stride=1, padding=0):
    return (size + 2 * padding - kernel_size) // stride + 1


class ConvTokenizer(nn.Layer):
    def __init__(self, in_channels, embed_dim, kernel_size=3):
        super().__init__()
        self.conv = nn.Conv2D(in_channels, embed_dim, kernel_size, stride=1, padding=kernel_size // 2, bias_attr=False)
        self.pool = nn.MaxPool2D(3, stride=2, padding=1)

    def forward(self, x):
        x = self.conv(x)
        x = F.relu(x)
        x = self.pool(x)  # [B, D, H', W']
        x = x.flatten(2)  # [B, D, N]
        x = x.transpose([0, 2, 1])  # [B, N, D]
        return x


def sequence_pool(x, weight, bias):
    scores = paddle.matmul(x, weight) + bias  # [B, N, 1]
    a = F.softmax(scores, axis=1)
    z = (a * x).sum(axis=1)  # [B, D]
    return z, a.squeeze(2)


class ResidualBlock(nn.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2D(in_channels, out_channels, 3, stride=stride, padding=1, bias_attr=False)
        self.bn1 = nn.BatchNorm2D(out_channels)
        self.conv2 = nn.Conv2D(out_channels, out_channels, 3, stride=1, padding=1, bias_attr=False)
        self.bn2 = nn.BatchNorm2D(out_channels)
        self.changed = stride != 1 or in_channels != out_channels
        if self.changed:
            self.shortcut_conv = nn.Conv2D(in_channels, out_channels, 1, stride=stride, bias_attr=False)
            self.shortcut_bn = nn.BatchNorm2D(out_channels)

    def forward(self, x):
        z = F.relu(self.bn1(self.conv1(x)))
        z = self.bn2(self.conv2(z))
        if self.changed:
            x = self.shortcut_bn(self.shortcut_conv(x))
        return F.relu(z + x)
