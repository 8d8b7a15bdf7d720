import paddle
import paddle.nn.functional as F
from paddle import nn

from paddle_vit.compact import SequencePool
from paddle_vit.convolution import conv_tokens


def conv_output_size(size, kernel_size, stride=1, padding=0):
    with paddle.no_grad():
        return F.max_pool2d(paddle.zeros([1, 1, size + 2 * padding, 64]), kernel_size, stride).shape[2]


class ConvTokenizer(nn.Layer):
    def __init__(self, in_channels, embed_dim, kernel_size=3):
        super().__init__()
        self.conv = nn.Conv2D(in_channels, embed_dim, kernel_size, bias_attr=False)
        self.padding = kernel_size // 2

    def forward(self, x):
        return conv_tokens(x, [self.conv.weight], 1, self.padding)  # [B, N, D]


def sequence_pool(x, weight, bias):
    pool = SequencePool(x.shape[2])
    pool.attention.weight.set_value(weight)
    pool.attention.bias.set_value(bias)
    return pool(x), pool.weights(x).squeeze(1)


class Shortcut(nn.Layer):
    def forward(self, x):
        return x


class ResidualBlock(nn.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2D(in_channels, out_channels, 3, stride, 1, bias_attr=False)
        self.conv2 = nn.Conv2D(out_channels, out_channels, 3, 1, 1, bias_attr=False)
        self.bn1, self.bn2 = nn.BatchNorm2D(out_channels), nn.BatchNorm2D(out_channels)
        if stride == 1 and in_channels == out_channels:
            self.shortcut = Shortcut()
        else:
            self.shortcut_conv = nn.Conv2D(in_channels, out_channels, 1, stride, bias_attr=False)
            self.shortcut_bn = nn.BatchNorm2D(out_channels)
            self.shortcut = lambda x: self.shortcut_bn(self.shortcut_conv(x))

    def forward(self, x):
        z = x
        for conv, bn, after in ((self.conv1, self.bn1, F.relu), (self.conv2, self.bn2, lambda z: z)):
            z = after(bn(conv(z)))
        return (z + self.shortcut(x)).clip(min=0)
