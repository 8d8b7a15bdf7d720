"""Hugging Face transformers 的 ViT、DeiT(蒸馏)、Swin,以及由它改名得到的微软原版 Swin 文件。"""

import re

import numpy as np
import torch
from common import case_folder, input_images, packages
from safetensors.torch import load_file
from torch_common import CLASSES, also, class_names, make
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
SMALL = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
SMALLER = dict(hidden_size=6, num_hidden_layers=2, num_attention_heads=3, intermediate_size=24)
# Swin 各阶段的宽度 4、8、16、32:真实的窗口和层次,极小的宽度
SWIN = dict(patch_size=4, embed_dim=4, depths=[2, 2, 2, 1], num_heads=[1, 2, 2, 4])


def configuration(kind, **settings):
    """transformers 的配置,附上 5 个类名。"""
    return kind(id2label=class_names(), label2id={name: i for i, name in class_names().items()}, **settings)


def save(case, network, config, arguments, family, seed, wrong_epsilon):
    """建模型,求参考输出,像 Hugging Face 那样存成一个文件夹;返回 (模型, 清单里的一项)。"""
    model = network(config)
    entry = dict(
        file=f"cases/{case}/model.safetensors",
        format="huggingface",
        family=family,
        model={**arguments, "num_classes": len(CLASSES), "epsilon": config.layer_norm_eps},
        made_by="make_huggingface.py",
        packages=PACKAGES,
    )
    entry = make(case, model, input_images(config.image_size), seed, wrong_epsilon, entry)
    model.save_pretrained(case_folder(case))
    ViTImageProcessor(
        size={"height": config.image_size, "width": config.image_size},
        image_mean=[0.5, 0.5, 0.5] if family == "vit" else [0.485, 0.456, 0.406],
        image_std=[0.5, 0.5, 0.5] if family == "vit" else [0.229, 0.224, 0.225],
    ).save_pretrained(case_folder(case))
    return model, entry


def vit_arguments(config, **more):
    return dict(
        image_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        qkv_bias=True,
        pool="cls",
        position_embedding="learnable",
        **more,
    )


def vit(patch_size, image_size, seed, sizes=SMALL):
    config = configuration(ViTConfig, image_size=image_size, patch_size=patch_size, **sizes)
    case = f"hf_vit_patch{patch_size}_{image_size}"
    return save(case, ViTForImageClassification, config, vit_arguments(config), "vit", seed, 1e-6)


def deit(seed):
    config = configuration(DeiTConfig, image_size=224, patch_size=16, **SMALLER)
    arguments = vit_arguments(config, distillation_token=True)
    return save("hf_deit_distilled", DeiTForImageClassificationWithTeacher, config, arguments, "deit", seed, 1e-6)


def swin(image_size, window_size, seed):
    config = configuration(SwinConfig, image_size=image_size, window_size=window_size, **SWIN)
    arguments = dict(image_size=image_size, window_size=window_size, **SWIN)
    case = f"hf_swin_window{window_size}_{image_size}"
    return save(case, SwinForImageClassification, config, arguments, "swin", seed, 1e-4)


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


def save_renamed(case, model, entry):
    """save_pretrained 写的是多年来真实文件里的名字;transformers 5 内部的名字不同,直接存 state_dict 的人得到它们。"""
    folder = case_folder(f"{case}_renamed")
    model.save_pretrained(folder, save_original_format=False)
    (folder / "preprocessor_config.json").write_bytes((case_folder(case) / "preprocessor_config.json").read_bytes())
    also(f"{case}_renamed", entry, file=f"cases/{case}_renamed/model.safetensors")


def main():
    model, entry = vit(16, 224, seed=1)
    case = "hf_vit_patch16_224"
    folder = case_folder(case)
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    also(f"{case}_bin", entry, file=f"cases/{case}/pytorch_model.bin")
    torch.save(state, folder / "pytorch_model_legacy.bin", _use_new_zipfile_serialization=False)
    also(f"{case}_legacy_bin", entry, file=f"cases/{case}/pytorch_model_legacy.bin")
    save_renamed(case, model, entry)
    vit(32, 224, seed=2, sizes=SMALLER)
    vit(16, 384, seed=3)
    vit(32, 384, seed=4, sizes=SMALLER)

    model, entry = deit(seed=11)
    save_renamed("hf_deit_distilled", model, entry)

    swin(384, 12, seed=22)
    model, entry = swin(224, 7, seed=21)
    case = "hf_swin_window7_224"
    save_renamed(case, model, entry)
    state = microsoft_names(load_file(case_folder(case) / "model.safetensors"), SWIN["depths"], 7, 224 // 4)
    torch.save({"model": state}, case_folder("microsoft_swin_window7_224") / "checkpoint.pth")
    file = "cases/microsoft_swin_window7_224/checkpoint.pth"
    also("microsoft_swin_window7_224", entry, file=file, format="microsoft")


if __name__ == "__main__":
    main()
