"""很小的模型和数据。"""

import numpy as np

from paddle_vit import ViT
from paddle_vit.data.info import DataInfo
from paddle_vit.data.parts import ArrayPart

INFO = DataInfo("toy", ("a", "b", "c"), 1, 8, (0.5,), (0.25,), {"train": 40, "val": 10, "test": 10})


def small_model(**options):
    settings = dict(image_size=8, patch_size=4, in_channels=1, num_classes=3, embed_dim=8, depth=1, num_heads=2)
    return ViT(**{**settings, **options})


def toy_part(n=40):
    rng = np.random.default_rng(0)
    return ArrayPart(rng.integers(0, 256, (n, 8, 8, 1), "uint8"), np.arange(n) % 3)


class ToyData:
    info, train, val, test = INFO, toy_part(40), toy_part(10), toy_part(10)
