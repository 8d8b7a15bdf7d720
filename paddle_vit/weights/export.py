"""导出权重(export):把 ViT、DeiT、Swin 的权重写成 timm 的名字和放法,用的就是读 timm 权重的那份换名表。"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..checks import as_pair
from ..errors import UserError
from ..family.swin import SwinTransformer
from ..vit import ViT
from .checkpoint import write_tensors
from .info import heads_of
from .tables import bundled_tables

__all__ = ["export_weights"]


def export_weights(model: ViT | SwinTransformer, path: str | Path) -> str:
    """把模型的权重写成 timm 名字的 safetensors:线性层是 PyTorch 的 [输出, 输入],固定的位置编码也写成 pos_embed。

    Args:
        model (ViT | SwinTransformer): 要导出的模型。
        path (str | Path): 目标文件,.safetensors。

    Returns:
        str: 在 timm 里建出同样的模型的代码(Python)。

    Raises:
        UserError: 文件名不以 .safetensors 结尾,timm 没有同样的结构,磁盘满或没有权限。
    """
    if Path(path).suffix != ".safetensors":
        raise UserError(f"输出文件 {path} 应以 .safetensors 结尾。")
    _check_exportable(model)
    swin = isinstance(model, SwinTransformer)
    (table,) = (table for table in bundled_tables() if table.name == ("timm_swin" if swin else "timm_vit"))
    tensors = model.state_dict()
    if not swin and model.position_embedding is not None:
        tensors["position_embedding"] = model.position_embedding
    sources = {table.sources(ours)[0][0]: ours for ours in tensors}  # timm 的名字 -> 我们的
    # 从名字看不出来的:epsilon(timm 默认的是 1e-6)、头数、汇聚方式
    settings = model.settings
    facts = {"format": "pt", "epsilon": str(settings["epsilon"]), "num_heads": json.dumps(heads_of(model))}
    facts.update({} if swin else {"pool": settings["pool"], "activation": settings["activation"]})
    write_tensors(path, _Converted(model, tensors, sources), facts)
    return _swin_code(model) if swin else _vit_code(model)


class _Converted(Mapping):
    """timm 的名字 -> 换成 timm 的放法的张量;用到一个才换一个。"""

    def __init__(self, model, tensors, sources):
        self.model, self.tensors, self.sources = model, tensors, sources

    def __getitem__(self, name):
        ours = self.sources[name]
        return _to_timm(self.model, self.tensors[ours], ours)

    def __iter__(self):
        return iter(self.sources)

    def __len__(self):
        return len(self.sources)


def _to_timm(model, tensor, ours):
    """我们的一个张量换成 timm 的放法,float32。"""
    value = tensor.numpy().astype("float32", copy=False)
    if value.ndim == 2 and ours.endswith(".weight"):
        return value.T  # [输出, 输入]
    registers = getattr(model, "register_tokens", None)
    if ours == "position_embedding" and registers is not None:  # timm 的寄存器 token 有位置编码,给它零
        count = model.num_prefix_tokens - registers.shape[1]
        return np.insert(value, [count] * registers.shape[1], 0.0, axis=1)  # [1, M + R + N, D]
    return value


def _check_exportable(model):
    """timm 没有同样的结构时,抛出 ``UserError``。"""
    if not isinstance(model, (ViT, SwinTransformer)):
        raise UserError(f"{type(model).__name__} 不能导出成 timm 的权重:应为 ViT 或 SwinTransformer。")
    settings, reasons = model.settings, []
    layers = model.encoders if isinstance(model, ViT) else [block for stage in model.stages for block in stage.blocks]
    if any(not np.isclose(layer.attn.scales, layer.attn.attn_head_size**-0.5) for layer in layers):
        reasons.append("qk_scale 不是 d ** -0.5")
    if settings.get("head") == "mlp":
        reasons.append("分类头是 mlp")
    if settings.get("tokenizer") == "conv" or settings.get("trunk_norm") or settings.get("pool") == "seq":
        reasons.append("它有 CCT 的部件")
    if settings.get("embed_norm"):
        reasons.append("编码器之前有层归一化,图块嵌入又有偏置")
    if isinstance(model, SwinTransformer) and model.pads_before_shift:
        reasons.append("特征图不是窗口的整数倍时,timm 先滚动再补零,我们先补零再滚动")
    if settings.get("distillation_token") and settings["register_tokens"]:
        reasons.append("蒸馏 token 与寄存器 token 一起用")
    if reasons:
        raise UserError(f"timm 里没有这样的模型({'、'.join(reasons)}),不能导出。")


def _arguments(settings, **others):
    """两种模型共同的参数。"""
    values = {
        "img_size": as_pair(settings["image_size"], "image_size"),
        "patch_size": as_pair(settings["patch_size"], "patch_size"),
        "in_chans": settings["in_channels"],
        "num_classes": settings["num_classes"],
        "embed_dim": settings["embed_dim"],
        **others,
        "mlp_ratio": settings["mlp_ratio"],
        "qkv_bias": settings["qkv_bias"],
        "norm_layer": _Code(f"partial(torch.nn.LayerNorm, eps={settings['epsilon']:g})"),
    }
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


class _Code(str):
    """写进代码时不带引号的文字。"""

    __slots__ = ()

    def __repr__(self):
        return str(self)


def _vit_code(model):
    settings = model.settings
    others = dict(depth=settings["depth"], num_heads=settings["num_heads"])
    if settings["qk_norm"]:
        others["qk_norm"] = True
    if settings["activation"] != "gelu":
        others["act_layer"] = settings["activation"]
    if settings["layer_scale"] is not None:
        others["init_values"] = 1.0
    if settings["register_tokens"]:
        others["reg_tokens"] = settings["register_tokens"]
    if settings["position_embedding"] == "none":
        others["pos_embed"] = "none"
    if settings["distillation_token"]:
        return f"timm.models.deit.VisionTransformerDistilled({_arguments(settings, **others)})"
    others.update(class_token=model.class_token is not None)
    others.update(global_pool={"cls": "token", "avg": "avg"}[settings["pool"]], fc_norm=settings["norm_after_pool"])
    return f"timm.models.vision_transformer.VisionTransformer({_arguments(settings, **others)})"


def _swin_code(model):
    settings = model.settings
    others = {name: tuple(settings[name]) for name in ("depths", "num_heads")}
    # 特征图比窗口还小的几级,窗口已经缩到特征图那么大
    others["window_size"] = max(stage.blocks[0].window_size for stage in model.stages)
    return f"timm.models.swin_transformer.SwinTransformer({_arguments(settings, **others)})"
