"""训练一个视觉 Transformer。不带参数时在自带的 digits 上训练;全部参数见 --help。"""

import ctrl_c  # noqa: F401

from paddle_vit import launch

if __name__ == "__main__":
    launch()
