"""测试用的输入图像:由公式算出,不存文件,也不靠随机数,生成参考结果的脚本和测试得到同样的数。"""

import numpy as np

__all__ = ["image_batch", "photo"]


def image_batch(count, channels, height, width):
    """几个不同频率的正弦之和,每张图、每个通道、每行、每列都不同。

    Returns:
        numpy.ndarray: float32,[B, C, H, W],大致在 -2 到 2 之间(相当于归一化之后的图像)。
    """
    b, c, y, x = np.ogrid[1 : count + 1, 1 : channels + 1, 0:height, 0:width]
    waves = np.sin(0.037 * b * x + 1.3 * c) + np.cos(0.051 * c * y + 0.7 * b)
    waves = waves + np.sin(0.9 * x - 0.6 * y + b * c) * np.cos(0.011 * x * b + 0.017 * y * c)  # [B, C, H, W]
    return waves.astype("float32")


def photo(width, height):
    """像照片那样有渐变、纹理和边缘的一张图片,由公式算出。

    Returns:
        numpy.ndarray: uint8,[H, W, 3]。
    """
    y, x, c = np.ogrid[0:height, 0:width, 0:3]
    waves = np.sin(0.021 * x + 0.9 * c) + np.cos(0.033 * y - 0.4 * c) + 0.5 * np.sin(0.7 * x + 0.45 * y * (c + 1))
    edges = ((x // 37 + y // 53) % 2) * 60.0 + ((x - width / 3) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2) * 50
    noise = (x * 7919 + y * 104729 + c * 1299709) * 2654435761 % 2**32 / 2**32 * 30  # 像噪声,而每次相同
    return np.clip(70 + 35 * waves + edges + noise, 0, 255).astype("uint8")
