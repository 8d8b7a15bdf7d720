"""timm 的 ViT(各种选项)、蒸馏 DeiT、Swin,以及由 ViT 改名得到的 Google 原版 .npz。"""

import numpy as np
import timm
import torch
from common import case_folder, input_images, packages
from timm.models import save_for_hf
from torch_common import CLASSES, also, make, to_numpy

PACKAGES = packages("torch", "timm", "safetensors", "numpy")
SWIN = dict(patch_size=4, embed_dim=4, depths=[2, 2, 2, 1], num_heads=[1, 2, 2, 4])


def case(name, architecture, family, seed, settings, arguments, outputs=None, **more):
    """建 timm 的模型,求参考输出,像 timm 上传模型那样存成 config.json 和 model.safetensors。"""
    model = timm.create_model(architecture, num_classes=len(CLASSES), **settings)
    entry = dict(
        file=f"cases/{name}/model.safetensors",
        format="timm",
        family=family,
        model={**arguments, "num_classes": len(CLASSES)},
        made_by="make_timm.py",
        packages=PACKAGES,
        **more,
    )
    image_size = arguments["image_size"]
    wrong_epsilon = 1e-4 if family == "swin" else 1e-5
    kept = {} if outputs is None else {"outputs": outputs}
    entry = make(name, model, input_images(image_size), seed, wrong_epsilon, entry, **kept)
    save_for_hf(model, case_folder(name), model_config=dict(label_names=CLASSES), safe_serialization=True)
    return model, entry


def vit(name, seed, settings, arguments, image_size=224, patch_size=16, embed_dim=12, **more):
    """小的 timm ViT;settings 给 timm,arguments 给我们的 ViT。"""
    settings = dict(img_size=image_size, patch_size=patch_size, embed_dim=embed_dim, depth=2, num_heads=3, **settings)
    arguments = dict(
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=2,
        num_heads=3,
        qkv_bias=True,
        position_embedding="learnable",
        epsilon=1e-6,
        **arguments,
    )
    architecture = f"vit_base_patch{patch_size}_{image_size}"
    return case(f"timm_{name}", architecture, "vit", seed, settings, arguments, **more)


def vits():
    model, entry = vit("vit", 31, {}, dict(pool="cls"))
    google(model, entry)
    no_class = dict(class_token=False, global_pool="avg")
    model, entry = vit("vit_gap", 32, dict(no_class, fc_norm=False), dict(pool="avg"), embed_dim=6)
    checkpoint = {"epoch": 3, "arch": "vit_base_patch16_224", "state_dict": model.state_dict(), "metric": 61.5}
    torch.save(checkpoint, case_folder("timm_vit_gap") / "checkpoint.pth.tar")
    also("timm_vit_gap_checkpoint", entry, file="cases/timm_vit_gap/checkpoint.pth.tar")
    vit("vit_gap_fc_norm", 33, no_class, dict(pool="avg", norm_after_pool=True), embed_dim=6)
    vit("vit_gap_patch32_384", 34, dict(no_class, fc_norm=False), dict(pool="avg"), 384, 32, 6)
    with_class = dict(pool="avg", class_token=True, norm_after_pool=True)
    vit("vit_class_token_avg", 35, dict(global_pool="avg"), with_class, embed_dim=6)
    registers = dict(reg_tokens=3, no_embed_class=True, init_values=0.1)
    vit("vit_registers", 36, registers, dict(pool="cls", register_tokens=3, layer_scale=0.1), embed_dim=6)
    vit(
        "vit_gap_registers",
        37,
        dict(no_class, reg_tokens=3, no_embed_class=True),
        dict(pool="avg", norm_after_pool=True, register_tokens=3),
        embed_dim=6,
    )
    # 位置表也覆盖 class token 和 register:它们的位置向量可以并进 token 自己
    vit("vit_registers_positions", 38, dict(reg_tokens=3), dict(pool="cls", register_tokens=3), embed_dim=6)
    vit("vit_qk_norm", 39, dict(qk_norm=True, init_values=0.1), dict(pool="cls", qk_norm=True, layer_scale=0.1))
    refused = dict(loads=False, reason="norm_pre:编码器之前还有一个层归一化", embed_dim=6)
    vit("vit_pre_norm", 40, dict(pre_norm=True), dict(pool="cls"), **refused)


def distilled_logits(model, x):
    """两个头各自的 logits 和它们的平均(评估时的输出)。"""
    tokens = model.forward_features(x)  # [B, N, D]
    return {
        "logits": model(x),
        "cls_logits": model.head(tokens[:, 0]),
        "distillation_logits": model.head_dist(tokens[:, 1]),
    }


def deit():
    settings = dict(embed_dim=6, depth=2, num_heads=3)
    arguments = dict(
        image_size=224,
        patch_size=16,
        qkv_bias=True,
        pool="cls",
        position_embedding="learnable",
        distillation_token=True,
        epsilon=1e-6,
        **settings,
    )
    architecture = "deit_base_distilled_patch16_224"
    case("timm_deit_distilled", architecture, "deit", 41, settings, arguments, distilled_logits)


def swin(image_size, window_size, seed):
    settings = dict(embed_dim=4, depths=(2, 2, 2, 1), num_heads=(1, 2, 2, 4))
    arguments = dict(image_size=image_size, window_size=window_size, epsilon=1e-5, **SWIN)
    architecture = f"swin_base_patch4_window{window_size}_{image_size}"
    case(f"timm_swin_window{window_size}_{image_size}", architecture, "swin", seed, settings, arguments)


def google_names(state, num_heads, pre_logits=False):
    """timm 的 ViT 权重 -> Google 原版 .npz 的名字和形状(线性层的 kernel 是 [输入, 输出],q、k、v 按头拆开)。"""
    D = state["cls_token"].shape[-1]
    d = D // num_heads
    new = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),  # [P, P, C, D]
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    depth = sum(name.endswith("norm1.weight") for name in state)
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for number, norm in [(0, "norm1"), (2, "norm2")]:
            new[f"{theirs}/LayerNorm_{number}/scale"] = state[f"{ours}.{norm}.weight"]
            new[f"{theirs}/LayerNorm_{number}/bias"] = state[f"{ours}.{norm}.bias"]
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        weights = np.split(state[f"{ours}.attn.qkv.weight"], 3)
        biases = np.split(state[f"{ours}.attn.qkv.bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases):
            new[f"{attention}/{name}/kernel"] = weight.T.reshape(D, num_heads, d)
            new[f"{attention}/{name}/bias"] = bias.reshape(num_heads, d)
        new[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(num_heads, d, D)
        new[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for number, layer in enumerate(("fc1", "fc2")):
            new[f"{theirs}/MlpBlock_3/Dense_{number}/kernel"] = state[f"{ours}.mlp.{layer}.weight"].T
            new[f"{theirs}/MlpBlock_3/Dense_{number}/bias"] = state[f"{ours}.mlp.{layer}.bias"]
    if pre_logits:  # 在 ImageNet-21k 上预训练的文件,头之前多一个线性层和 tanh
        new["pre_logits/kernel"] = np.eye(D, dtype="float32")
        new["pre_logits/bias"] = np.zeros(D, "float32")
    return {name: np.ascontiguousarray(value) for name, value in new.items()}


def google(model, entry):
    """Google 的文件:同样的权重,期望的输出也相同(GELU 用误差函数,不用 tanh 近似)。"""
    np.savez(case_folder("google_vit") / "ViT-tiny.npz", **google_names(to_numpy(model.state_dict()), num_heads=3))
    also("google_vit", entry, file="cases/google_vit/ViT-tiny.npz", format="google")
    torch.manual_seed(0)
    small = timm.create_model("vit_base_patch16_224", embed_dim=6, depth=1, num_heads=3, num_classes=len(CLASSES))
    state = google_names(to_numpy(small.state_dict()), num_heads=3, pre_logits=True)
    np.savez(case_folder("google_vit") / "ViT-tiny_pre_logits.npz", **state)
    also(
        "google_vit_pre_logits",
        entry,
        file="cases/google_vit/ViT-tiny_pre_logits.npz",
        format="google",
        model={**entry["model"], "embed_dim": 6, "depth": 1},
        expected=None,
        outputs=[],
        loads=False,
        reason="pre_logits:头之前多一个线性层和 tanh,换新的头时才可以不要它",
    )


def main():
    vits()
    deit()
    swin(224, 7, seed=51)
    swin(384, 12, seed=52)


if __name__ == "__main__":
    main()
