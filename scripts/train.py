"""训练一个视觉 Transformer。不带参数时在自带的 digits 上训练;全部参数见 --help。"""

from paddle_vit.config import parse_config
from paddle_vit.runs.train import patches_per_image, train
from paddle_vit.system.cli import run
from paddle_vit.system.processes import choose_processes, companions
from paddle_vit.system.runtime import pick_device


def main():
    config = parse_config()
    device, patches = pick_device(config.device), patches_per_image(config)
    with companions(choose_processes(config.processes, device, config.batch_size, patches)):
        train(config)


if __name__ == "__main__":
    run(main)
