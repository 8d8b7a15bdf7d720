"""Hugging Face transformers 的 ViT、DeiT(蒸馏)、Swin,以及由它改名得到的微软原版 Swin 文件。"""

import re
import sys

import numpy as np
import torch
from common import add_case, case_folder, check_sensitivity, input_images, packages, random_values
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

PACKAGES = packages("torch", "transformers", "safetensors", "numpy")
CLASSES = ["斑马", "tiger cat", "n02084071", "dog, canine", "鸟"]
# Swin 各阶段的宽度 4、8、16、32:真实的窗口和层次,极小的宽度
SWIN = dict(patch_size=4, embed_dim=4, depths=[2, 2, 2, 1], num_heads=[1, 2, 2, 4])


def configuration(kind, image_size, **settings):
    """transformers 的配置,附上 5 个类名。"""
    names = dict(enumerate(CLASSES))
    return kind(image_size=image_size, id2label=names, label2id={v: k for k, v in names.items()}, **settings)


def evaluate(model, x):
    """{输出名: 数组}:蒸馏模型有 logits、cls_logits、distillation_logits,其余只有 logits。"""
    with torch.no_grad():
        output = model(torch.from_numpy(x))
    return {name: output[name].numpy() for name in output if name.endswith("logits")}


def set_epsilon(model, epsilon):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = epsilon


def make(case, network, config, arguments, family, seed, wrong_epsilon):
    """建模型、换上随机权重、检查敏感度、保存,返回 (模型, 清单里的一项)。"""
    torch.manual_seed(0)
    model = network(config).eval()
    model.load_state_dict(
        {k: torch.from_numpy(v) for k, v in random_values(numpy_state(model.state_dict()), seed).items()}
    )
    x = input_images(config.image_size)
    expected = evaluate(model, x)

    def run(state):
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}
        with torch.no_grad():
            output = torch.func.functional_call(model, tensors, torch.from_numpy(x))
        return np.concatenate([output[name].numpy() for name in output if name.endswith("logits")])

    set_epsilon(model, wrong_epsilon)
    wrong = run(numpy_state(model.state_dict()))
    set_epsilon(model, config.layer_norm_eps)
    sensitivity = check_sensitivity(
        run, numpy_state(model.state_dict()), [(f"epsilon {wrong_epsilon} instead of {config.layer_norm_eps}", wrong)]
    )
    folder = case_folder(case)
    model.save_pretrained(folder)
    ViTImageProcessor(
        size={"height": config.image_size, "width": config.image_size},
        image_mean=[0.5, 0.5, 0.5] if family == "vit" else [0.485, 0.456, 0.406],
        image_std=[0.5, 0.5, 0.5] if family == "vit" else [0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    np.savez(folder / "expected.npz", **expected)
    entry = dict(
        file=f"cases/{case}/model.safetensors",
        format="huggingface",
        family=family,
        model={**arguments, "epsilon": config.layer_norm_eps},
        input=list(x.shape),
        expected=f"cases/{case}/expected.npz",
        outputs=sorted(expected),
        loads=True,
        sensitivity=sensitivity,
        made_by="make_huggingface.py",
        packages=PACKAGES,
    )
    add_case(case, **entry)
    return model, entry


def numpy_state(state):
    return {name: value.numpy() for name, value in state.items()}


def also(case, entry, name, **changes):
    """同样的权重存成的另一个文件。"""
    add_case(case, **{**entry, "file": f"{entry['file'].rsplit('/', 1)[0]}/{name}", "sensitivity": "", **changes})


def saved_names(folder):
    """save_pretrained 写出的(也就是多年来真实文件里的)名字 -> 张量。"""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def vit(patch_size, image_size, seed):
    case = f"hf_vit_patch{patch_size}_{image_size}"
    config = configuration(
        ViTConfig,
        image_size,
        patch_size=patch_size,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
    )
    return case, *make(case, ViTForImageClassification, config, vit_arguments(config), "vit", seed, 1e-6)


def vit_arguments(config, **more):
    return dict(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=5,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        qkv_bias=True,
        pool="cls",
        position_embedding="learnable",
        **more,
    )


def deit():
    config = configuration(
        DeiTConfig, 224, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48
    )
    return make(
        "hf_deit_distilled",
        DeiTForImageClassificationWithTeacher,
        config,
        vit_arguments(config, distillation=True),
        "deit",
        11,
        1e-6,
    )


def swin(image_size, window_size, seed):
    case = f"hf_swin_window{window_size}_{image_size}"
    config = configuration(SwinConfig, image_size, window_size=window_size, **SWIN)
    arguments = dict(image_size=image_size, window_size=window_size, num_classes=5, **SWIN)
    return case, *make(case, SwinForImageClassification, config, arguments, "swin", seed, 1e-4)


MICROSOFT = [
    (r"^swin\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^swin\.embeddings\.norm\.", "patch_embed.norm."),
    (r"^swin\.encoder\.layers\.", "layers."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"attention\.self\.relative_position_bias_table", "attn.relative_position_bias_table"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"^swin\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]


def relative_position_index(window):
    """微软的文件里还存着这个整数索引表,[w*w, w*w]。"""
    y, x = np.divmod(np.arange(window * window), window)
    rows, columns = y[:, None] - y[None] + window - 1, x[:, None] - x[None] + window - 1
    return torch.from_numpy(rows * (2 * window - 1) + columns)


def shift_mask(side, window):
    """微软的文件里还存着移位窗口的掩码,[窗口数, w*w, w*w],0 或 -100。"""
    region = np.zeros((side, side), dtype=int)
    band = np.digitize(np.arange(side), [side - window, side - window // 2])
    region = band[:, None] * 3 + band[None]
    parts = region.reshape(side // window, window, side // window, window).transpose(0, 2, 1, 3)
    parts = parts.reshape(-1, window * window)
    return torch.from_numpy(np.where(parts[:, :, None] == parts[:, None], 0.0, -100.0).astype("float32"))


def microsoft_names(state, depths, window, side):
    """Hugging Face 的 Swin 权重 -> 微软原版的名字:q、k、v 合成 qkv,加上两种缓冲区。

    前两个阶段的掩码有几百 KB,不存;各层的索引表共用一块存储。
    """
    new, index = {}, relative_position_index(window)
    for name, value in state.items():
        if "self.key" in name or "self.value" in name:
            continue
        if "self.query" in name:
            value = torch.cat([state[name.replace("query", part)] for part in ("query", "key", "value")])
            name = name.replace("attention.self.query", "attn.qkv")
        for pattern, replacement in MICROSOFT:
            name = re.sub(pattern, replacement, name)
        new[name] = value
    for stage, depth in enumerate(depths):
        here = side >> stage
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}."
            new[prefix + "attn.relative_position_index"] = index
            if stage == 2 and block % 2:
                new[prefix + "attn_mask"] = shift_mask(here, window)
    return new


def main():
    case, model, entry = vit(16, 224, seed=1)
    folder = case_folder(case)
    names = saved_names(folder)
    torch.save(names, folder / "pytorch_model.bin")
    also(f"{case}_bin", entry, "pytorch_model.bin")
    torch.save(names, folder / "pytorch_model_legacy.bin", _use_new_zipfile_serialization=False)
    also(f"{case}_legacy_bin", entry, "pytorch_model_legacy.bin")
    for patch_size, image_size, seed in [(32, 224, 2), (16, 384, 3), (32, 384, 4)]:
        vit(patch_size, image_size, seed)
    # transformers 5 内部的名字:直接存 state_dict 的人会得到这样的文件
    renamed = case_folder(f"{case}_renamed")
    model.save_pretrained(renamed, save_original_format=False)
    (renamed / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    add_case(f"{case}_renamed", **{**entry, "file": f"cases/{case}_renamed/model.safetensors", "sensitivity": ""})

    model, entry = deit()
    torch.save(model.state_dict(), case_folder("hf_deit_distilled") / "state_dict.bin")
    also("hf_deit_distilled_renamed", entry, "state_dict.bin")

    for image_size, window_size, seed in [(224, 7, 21), (384, 12, 22)]:
        case, model, entry = swin(image_size, window_size, seed)
        folder = case_folder(case)
        if window_size == 7:
            torch.save(model.state_dict(), folder / "state_dict.bin")
            also(f"{case}_renamed", entry, "state_dict.bin")
            state = microsoft_names(saved_names(folder), SWIN["depths"], window_size, image_size // 4)
            torch.save({"model": state}, folder / "microsoft.pth")
            also(f"microsoft_swin_window{window_size}_{image_size}", entry, "microsoft.pth", format="microsoft")


if __name__ == "__main__":
    sys.exit(main())
