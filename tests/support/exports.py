"""导出的测试共用的模型和图像。"""

import numpy as np

from paddle_vit import ViT
from paddle_vit.data.info import DataInfo
from paddle_vit.family.swin import SwinTransformer
from paddle_vit.runs.loading import LoadedModel
from support.engines import SMALL, SWIN, perturbed

FAMILIES = {
    "average": lambda: ViT(**SMALL, position_embedding="learnable"),
    "class token": lambda: ViT(**SMALL, pool="cls", qkv_bias=True, register_tokens=2),
    "distilled": lambda: ViT(**SMALL, pool="cls", distillation_token=True, layer_scale=0.5, qk_norm=True),
    "cct": lambda: ViT(**SMALL, tokenizer="conv", pool="seq", trunk_norm=True, position_embedding="learnable"),
    "swin": lambda: SwinTransformer(**SWIN, window_size=3),
}
INFO = DataInfo("test", tuple("甲乙丙丁戊己庚"), 3, 16, (0.5,) * 3, (0.25,) * 3, {})
IMAGES = np.random.default_rng(1).standard_normal((20, 3, 16, 16)).astype("float32")


def loaded(name):
    return LoadedModel(f"{name}.safetensors", INFO, perturbed(FAMILIES[name]()), {"name": "vit"})
