import paddle
import paddle.nn.functional as F
from paddle import nn


def conv_output_size(size, kernel_size, stride=1, padding=0):
    return len(range(0, size + 2 * padding - kernel_size + 1, stride))


class ConvTokenizer(nn.Layer):
    def __init__(self, in_channels, embed_dim, kernel_size=3):
        super().__init__()
        self.kernel_size = kernel_size
        self.linear = nn.Linear(in_channels * kernel_size**2, embed_dim, bias_attr=False)

    def forward(self, x):
        B, _, H, W = x.shape
        windows = F.unfold(x, self.kernel_size, paddings=self.kernel_size // 2)  # [B, C * k * k, H * W]
        maps = F.relu(self.linear(windows.transpose([0, 2, 1])))  # [B, H * W, D]
        maps = maps.transpose([0, 2, 1]).reshape([B, -1, H, W])  # [B, D, H, W]
        return F.max_pool2d(maps, 3, 2, 1).flatten(2).transpose([0, 2, 1])  # [B, N, D]


def sequence_pool(x, weight, bias):
    a = F.softmax(paddle.einsum("bnd,de->bn", x, weight) + bias, axis=1)  # [B, N]
    return paddle.einsum("bn,bnd->bd", a, x), a


class ResidualBlock(nn.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        no_bias = {"bias_attr": False}
        self.conv1 = nn.Conv2D(in_channels, out_channels, 3, stride=stride, padding=1, **no_bias)
        self.conv2 = nn.Conv2D(out_channels, out_channels, 3, padding=1, **no_bias)
        self.bn1, self.bn2 = (nn.BatchNorm2D(out_channels) for _ in range(2))
        self.shortcut_conv = self.shortcut_bn = None
        if stride > 1 or out_channels != in_channels:
            self.shortcut_conv = nn.Conv2D(in_channels, out_channels, 1, stride=stride, **no_bias)
            self.shortcut_bn = nn.BatchNorm2D(out_channels)

    def forward(self, x):
        shortcut = x if self.shortcut_conv is None else self.shortcut_bn(self.shortcut_conv(x))
        x = paddle.maximum(self.bn1(self.conv1(x)), paddle.zeros([1]))
        x = self.bn2(self.conv2(x)) + shortcut
        return paddle.maximum(x, paddle.zeros([1]))
