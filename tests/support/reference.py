"""别的实现算出的参考结果(tests/reference)。"""

import json
from pathlib import Path

import numpy as np
import paddle
from images import image_batch

from paddle_vit.family.swin import SwinTransformer
from paddle_vit.layers import Attention
from paddle_vit.vit import ViT

REFERENCE = Path(__file__).parents[1] / "reference"


CASES = json.loads((REFERENCE / "cases.json").read_text("utf-8"))


MODELS = {"vit": ViT, "deit": ViT, "swin": SwinTransformer, "attention": Attention}


CASES = {name: case for name, case in CASES.items() if "file" in case}


# 名字看不出来的事实
FACTS = {"norm_first": True, "activation": "gelu", "epsilon": 1e-5, "num_heads": 3, "normalization": "half"}


def build(name, **changes):
    case = CASES[name]
    model = MODELS[case["family"]](**{**case["model"], **changes})
    model.eval()
    return model


def file_of(name):
    return REFERENCE / CASES[name]["file"]


def outputs(name, model):
    """模型对这个例子的输入的各个输出。"""
    case = CASES[name]
    count, *shape = case["input"]
    expected = np.load(REFERENCE / case["expected"])
    with paddle.no_grad():
        if case["family"] == "attention":
            z, attn_weights = model(paddle.to_tensor(image_batch(count, 1, *shape)[:, 0]))  # [B, N, D]
            given = {"z": z, "attn_weights": attn_weights}
        else:
            images = paddle.to_tensor(image_batch(count, *shape))
            given = {"logits": model(images)}
            if "distillation_logits" in case["outputs"]:
                given["cls_logits"], given["distillation_logits"] = model.forward_heads(images)
    return {key: given[key].numpy() for key in case["outputs"]}, expected
