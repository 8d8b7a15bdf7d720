"""只当主干用的图像塔:transformers 的 CLIP、SigLIP、DINOv2、MAE(期望的输出是特征),和 torchvision 的 ViT、Swin。"""

from common import case_folder, input_images, packages
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch_common import CLASSES, make
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTMAEConfig,
    ViTMAEModel,
)

PACKAGES = packages("torch", "transformers", "timm", "torchvision", "safetensors", "numpy")
SIZE = dict(image_size=32, patch_size=8)
SMALL = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
VIT = dict(SIZE, embed_dim=12, depth=2, num_heads=3, qkv_bias=True, position_embedding="learnable")


def record(name, format, model, family="vit", file="model.safetensors"):
    return dict(
        file=f"cases/{name}/{file}",
        format=format,
        family=family,
        model=model,
        made_by="make_towers.py",
        packages=PACKAGES,
    )


def tower(name, network, config, features, wrong_epsilon=None, **model):
    """transformers 的一个图像塔;features 由它的输出得到特征 [B, D]。"""
    arguments = {**VIT, "num_classes": 0, "epsilon": config.layer_norm_eps, **model}
    reference = network(config)
    entry = record(name, "huggingface", arguments)
    images = input_images(32)
    make(name, reference, images, 61, wrong_epsilon, entry, lambda model, x: {"logits": features(model(x))})
    reference.save_pretrained(case_folder(name))


def plain(name, format, reference, arguments, family="vit", wrong_epsilon=None):
    """有分类头的一个模型,存成 state_dict。"""
    image_size = arguments["image_size"]
    make(name, reference, input_images(image_size), 62, wrong_epsilon, record(name, format, arguments, family))
    save_file(reference.state_dict(), case_folder(name) / "model.safetensors")


def towers():
    first = dict(pool="cls")
    clip = dict(first, embed_norm=True)
    config = CLIPVisionConfig(**SIZE, **SMALL)
    tower("hf_clip", CLIPVisionModel, config, lambda y: y.pooler_output, activation="quick_gelu", **clip)
    config = CLIPVisionConfig(**SIZE, **SMALL, hidden_act="gelu")
    tower("hf_clip_gelu", CLIPVisionModel, config, lambda y: y.pooler_output, **clip)
    config = SiglipVisionConfig(**SIZE, **SMALL, vision_use_head=False)
    mean = dict(pool="avg", activation="gelu_tanh")
    tower("hf_siglip", SiglipVisionModel, config, lambda y: y.last_hidden_state.mean(1), **mean)
    scale = dict(first, layer_scale=1e-5)
    config = Dinov2Config(**SIZE, **SMALL)
    tower("hf_dinov2", Dinov2Model, config, lambda y: y.pooler_output, **scale)
    config = Dinov2WithRegistersConfig(**SIZE, **SMALL, num_register_tokens=3)
    tower(
        "hf_dinov2_registers", Dinov2WithRegistersModel, config, lambda y: y.pooler_output, **scale, register_tokens=3
    )
    config = ViTMAEConfig(**SIZE, **SMALL, mask_ratio=0.0)  # 什么也不遮;图块的次序是打乱的,class token 不受影响
    tower("hf_mae", ViTMAEModel, config, lambda y: y.last_hidden_state[:, 0], **first)


def named():
    arguments = dict(VIT, pool="cls", num_classes=len(CLASSES), epsilon=1e-6)
    reference = TorchvisionViT(32, 8, 2, 3, 12, 48, num_classes=len(CLASSES))
    plain("torchvision_vit", "torchvision_vit", reference, arguments)
    swin = dict(patch_size=4, embed_dim=4, depths=[2, 2, 1], num_heads=[1, 2, 4], window_size=4)
    reference = SwinTransformer([4, 4], 4, [2, 2, 1], [1, 2, 4], [4, 4], stochastic_depth_prob=0.0, num_classes=5)
    arguments = dict(swin, image_size=64, num_classes=5, epsilon=1e-5)
    plain("torchvision_swin", "torchvision_swin", reference, arguments, "swin")
    for activation in ("quick_gelu", "gelu_tanh"):
        reference = VisionTransformer(32, 8, num_classes=5, embed_dim=12, depth=2, num_heads=3, act_layer=activation)
        arguments = dict(VIT, pool="cls", num_classes=5, epsilon=1e-6, activation=activation)
        plain(f"timm_vit_{activation}", "timm", reference, arguments)


if __name__ == "__main__":
    towers()
    named()
