"""PaddleClas 和 PaddleViT 的 ViT、DeiT(蒸馏)、Swin:用它们自己的代码求参考输出。

需要 Paddle。``python make_paddle.py paddleclas`` 用装好的 paddleclas 包;
``python make_paddle.py paddlevit 路径`` 用 PaddleViT 仓库的 image_classification 文件夹。
"""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import paddle
from common import add_case, case_folder, check_sensitivity, input_images, packages, random_values

SMALL = dict(embed_dim=6, depth=2, num_heads=3)
SWIN = dict(embed_dim=4, depths=[2, 2, 2, 1], num_heads=[1, 2, 2, 4], window_size=7)
VIT_ARGUMENTS = dict(
    image_size=224,
    patch_size=16,
    num_classes=5,
    qkv_bias=True,
    pool="cls",
    position_embedding="learnable",
    epsilon=1e-6,
    **SMALL,
)
SWIN_ARGUMENTS = dict(image_size=224, patch_size=4, num_classes=5, epsilon=1e-5, **SWIN)


def numpy_state(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def is_kept(name):
    """Swin 的索引表和掩码很大,只留第三个阶段的。"""
    return ".2.blocks." in name or not name.endswith(("relative_position_index", "attn_mask"))


def make(case, model, heads, wrong_epsilon, seed, entry):
    """换上随机权重,检查敏感度,存成 .pdparams。

    Args:
        heads: model -> {输出名: 由输入求它的函数},除 logits 之外的输出。
    """
    x = paddle.to_tensor(input_images(224))
    model.eval()
    model.set_state_dict(random_values(numpy_state(model), seed))
    state = numpy_state(model)

    @paddle.no_grad()
    def outputs():
        return {"logits": model(x).numpy(), **{name: head(x).numpy() for name, head in heads(model).items()}}

    def run(changed):
        model.set_state_dict(changed)
        return np.concatenate(list(outputs().values()))

    norms = [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.LayerNorm)]
    before = [norm._epsilon for norm in norms]
    for norm in norms:
        norm._epsilon = wrong_epsilon
    wrong = run(state)
    for norm, epsilon in zip(norms, before):
        norm._epsilon = epsilon
    sensitivity = check_sensitivity(run, state, [(f"epsilon {wrong_epsilon}", wrong)])
    model.set_state_dict(state)
    expected = outputs()
    folder = case_folder(case)
    np.savez(folder / "expected.npz", **expected)
    saved = {name: value for name, value in model.state_dict().items() if is_kept(name)}
    paddle.save(saved, str(folder / "model.pdparams"))
    add_case(
        case,
        file=f"cases/{case}/model.pdparams",
        input=list(x.shape),
        expected=f"cases/{case}/expected.npz",
        outputs=sorted(expected),
        loads=True,
        sensitivity=sensitivity,
        made_by="make_paddle.py",
        **entry,
    )


def no_heads(model):
    return {}


def paddleclas_heads(model):
    """PaddleClas 只输出两个头的平均;各自的输出由它的特征求。"""
    return {
        "cls_logits": lambda x: model.head(model.forward_features(x)[0]),
        "distillation_logits": lambda x: model.head_dist(model.forward_features(x)[1]),
    }


def paddlevit_heads(model):
    return {
        "cls_logits": lambda x: model.classifier(model.forward_features(x)[0]),
        "distillation_logits": lambda x: model.classifier_dist(model.forward_features(x)[1]),
    }


def paddleclas():
    backbone = "paddleclas.ppcls.arch.backbone"
    # 只要这几个文件:不执行各级 __init__.py,它们会导入全部模型和数据增强的依赖
    root = Path(importlib.util.find_spec("paddleclas").submodule_search_locations[0])
    packages_above = ["paddleclas", "paddleclas.ppcls", "paddleclas.ppcls.utils", "paddleclas.ppcls.arch", backbone]
    for name in [*packages_above, *(f"{backbone}.{part}" for part in ("base", "model_zoo", "legendary_models"))]:
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    vit = importlib.import_module(f"{backbone}.model_zoo.vision_transformer")
    deit = importlib.import_module(f"{backbone}.model_zoo.distilled_vision_transformer")
    swin = importlib.import_module(f"{backbone}.legendary_models.swin_transformer")
    entry = dict(format="paddleclas", packages=packages("paddlepaddle", "paddleclas", "numpy"))
    settings = dict(class_num=5, qkv_bias=True, epsilon=1e-6, **SMALL)
    model = vit.VisionTransformer(**settings)
    make("paddleclas_vit", model, no_heads, 1e-5, 81, dict(entry, family="vit", model=VIT_ARGUMENTS))
    model = deit.DistilledVisionTransformer(**settings)
    arguments = dict(VIT_ARGUMENTS, distillation_token=True)
    make("paddleclas_deit_distilled", model, paddleclas_heads, 1e-5, 82, dict(entry, family="deit", model=arguments))
    model = swin.SwinTransformer(class_num=5, **SWIN)
    make("paddleclas_swin", model, no_heads, 1e-4, 83, dict(entry, family="swin", model=SWIN_ARGUMENTS))


def paddlevit(folder):
    entry = dict(format="paddlevit", packages=packages("paddlepaddle", "numpy"))
    modules = {}
    for name, file in [("ViT", "vit"), ("DeiT", "deit"), ("SwinTransformer", "swin")]:
        sys.path.insert(0, str(Path(folder) / name))
        modules[file] = importlib.import_module(file)
    model = modules["vit"].VisionTransformer(num_classes=5, **SMALL)
    make("paddlevit_vit", model, no_heads, 1e-5, 91, dict(entry, family="vit", model=VIT_ARGUMENTS))
    model = modules["deit"].DistilledVisionTransformer(num_classes=5, **SMALL)
    arguments = dict(VIT_ARGUMENTS, distillation_token=True)
    make("paddlevit_deit_distilled", model, paddlevit_heads, 1e-5, 92, dict(entry, family="deit", model=arguments))
    model = modules["swin"].SwinTransformer(num_classes=5, **SWIN)
    make("paddlevit_swin", model, no_heads, 1e-4, 93, dict(entry, family="swin", model=SWIN_ARGUMENTS))


def main():
    if sys.argv[1:2] == ["paddleclas"]:
        paddleclas()
    else:
        paddlevit(sys.argv[2])


if __name__ == "__main__":
    main()
