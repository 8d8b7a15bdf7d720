"""测试用的输入图像:由公式算出,不存文件,也不靠随机数,生成参考结果的脚本和测试得到同样的数。"""

import numpy as np

__all__ = ["image_batch"]


def image_batch(count, channels, height, width):
    """几个不同频率的正弦之和,每张图、每个通道、每行、每列都不同。

    Returns:
        numpy.ndarray: float32,[B, C, H, W],大致在 -2 到 2 之间(相当于归一化之后的图像)。
    """
    b, c, y, x = np.ogrid[1 : count + 1, 1 : channels + 1, 0:height, 0:width]
    waves = np.sin(0.037 * b * x + 1.3 * c) + np.cos(0.051 * c * y + 0.7 * b)
    waves = waves + np.sin(0.9 * x - 0.6 * y + b * c) * np.cos(0.011 * x * b + 0.017 * y * c)  # [B, C, H, W]
    return waves.astype("float32")
