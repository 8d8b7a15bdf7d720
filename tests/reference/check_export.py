"""反方向的检查:我们的模型用 export_weights 存成 timm 的名字,timm 要能严格载入,并且输出相同。

两步在两个环境里运行:``python check_export.py export 文件夹`` 在有 Paddle 的环境里把 cases.json 中能载入的例子
导出;``python check_export.py compare 文件夹`` 在有 timm 的环境里载入它们,比较输出。
"""

import json
import sys
from pathlib import Path

import numpy as np
from common import FOLDER, MANIFEST, TOLERANCE
from images import image_batch


def export(folder):
    """导出每个 ViT、DeiT、Swin 的例子和我们的模型的输出。"""
    import paddle

    from paddle_vit.family.swin import SwinTransformer
    from paddle_vit.vit import ViT
    from paddle_vit.weights import export_weights, load_weights

    folder.mkdir(exist_ok=True)
    for name, case in json.loads(MANIFEST.read_text("utf-8")).items():
        if case.get("format") not in ("huggingface", "timm", "microsoft", "google", "paddleclas", "paddlevit"):
            continue
        if not case["loads"]:
            continue
        model = (SwinTransformer if case["family"] == "swin" else ViT)(**case["model"])
        load_weights(model, FOLDER / case["file"])
        model.eval()
        with paddle.no_grad():
            logits = model(paddle.to_tensor(image_batch(*case["input"]))).numpy()
        code = export_weights(model, folder / f"{name}.safetensors")
        np.save(folder / f"{name}.npy", logits)
        (folder / f"{name}.json").write_text(json.dumps({"code": code, "input": case["input"]}), "utf-8")


def compare(folder):
    """用 export_weights 给出的代码建 timm 的模型,严格载入导出的文件,输出相差超过容差时以非零状态结束。"""
    from functools import partial

    import timm
    import torch
    from safetensors.torch import load_file

    worst = 0.0
    for path in sorted(folder.glob("*.safetensors")):
        case = json.loads(path.with_suffix(".json").read_text("utf-8"))
        model = eval(case["code"], {"timm": timm, "torch": torch, "partial": partial})
        model.load_state_dict(load_file(path), strict=True)
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(image_batch(*case["input"]))).numpy()
        difference = float(np.abs(logits - np.load(path.with_suffix(".npy"))).max())
        print(f"{path.stem}: {difference:.1e}")
        worst = max(worst, difference)
    sys.exit(int(worst > TOLERANCE))


if __name__ == "__main__":
    {"export": export, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
