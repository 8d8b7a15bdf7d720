"""训练一个视觉 Transformer。不带参数时在自带的 digits 上训练;全部参数见 --help。"""

from paddle_vit import launch

if __name__ == "__main__":
    launch()
