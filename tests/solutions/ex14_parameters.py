import paddle
import paddle.nn.functional as F
from paddle import nn


def conv_output_size(size, kernel_size, stride=1, padding=0):
    count, start = 0, -padding
    while start + kernel_size <= size + padding:
        count += 1
        start += stride
    return count


class ConvTokenizer(nn.Layer):
    def __init__(self, in_channels, embed_dim, kernel_size=3):
        super().__init__()
        self.padding = (kernel_size - 1) // 2
        self.weight = self.create_parameter([embed_dim, in_channels, kernel_size, kernel_size])

    def forward(self, x):
        maps = F.max_pool2d(F.conv2d(x, self.weight, padding=self.padding).clip(min=0), 3, stride=2, padding=1)
        tokens = [maps[:, :, i, j] for i in range(maps.shape[2]) for j in range(maps.shape[3])]  # 各 [B, D]
        return paddle.stack(tokens, axis=1)  # [B, N, D]


def sequence_pool(x, weight, bias):
    scores = [(x[:, n] * weight[:, 0]).sum(axis=1) + bias for n in range(x.shape[1])]  # 各 [B]
    e = paddle.exp(paddle.stack(scores, axis=1))  # [B, N]
    a = e / e.sum(axis=1, keepdim=True)  # [B, N]
    return sum(a[:, n : n + 1] * x[:, n] for n in range(x.shape[1])), a


class ResidualBlock(nn.Layer):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.needs_shortcut = not (stride == 1 and in_channels == out_channels)
        shapes = {"conv1": (in_channels, 3, stride, 1), "conv2": (out_channels, 3, 1, 1)}
        if self.needs_shortcut:
            shapes["shortcut_conv"] = (in_channels, 1, stride, 0)
        for name, (channels, *sizes) in shapes.items():
            self.add_sublayer(name, nn.Conv2D(channels, out_channels, *sizes, bias_attr=False))
            self.add_sublayer(name.replace("conv", "bn"), nn.BatchNorm2D(out_channels))

    def forward(self, x):
        z = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(z.add(self.shortcut_bn(self.shortcut_conv(x)) if self.needs_shortcut else x))
