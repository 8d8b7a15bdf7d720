"""导出权重(export):把 ViT、DeiT、Swin 的权重写成 timm 的名字和放法,用的就是读 timm 权重的那份换名表。"""

import itertools
import json
import struct
from pathlib import Path

import numpy as np
from paddle import nn

from ..errors import UserError
from ..family.swin import SwinTransformer
from ..system.files import atomic_write
from ..vit import ViT
from .loading import heads_of
from .tables import bundled_tables

__all__ = ["export_weights"]


def export_weights(model, path):
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
    entries, offset = {}, 0
    for name, ours in sources.items():
        value = _to_timm(model, tensors[ours], ours)
        place = [offset, offset + value.nbytes]
        entries[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": place}
        offset += value.nbytes
    norm = model.norm if hasattr(model.norm, "weight") else model.pool_norm
    # 从名字看不出来的:epsilon(timm 默认的是 1e-6)、头数、汇聚方式
    facts = {"format": "pt", "epsilon": str(norm._epsilon), "num_heads": json.dumps(heads_of(model))}
    facts.update({} if swin else {"pool": model.pool})
    header = json.dumps({"__metadata__": facts, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    data = (_to_timm(model, tensors[ours], ours).tobytes() for ours in sources.values())  # 一次一个张量
    atomic_write(path, itertools.chain([struct.pack("<Q", len(header)), header], data))
    return _swin_code(model) if swin else _vit_code(model)


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
    layers = model.encoders if isinstance(model, ViT) else [block for stage in model.stages for block in stage.blocks]
    reasons = []
    if any(not np.isclose(layer.attn.scales, layer.attn.attn_head_size**-0.5) for layer in layers):
        reasons.append("qk_scale 不是 d ** -0.5")
    if isinstance(model.head, nn.Sequential):
        reasons.append("分类头是 mlp")
    if isinstance(model, ViT) and model.distillation_token is not None and model.register_tokens is not None:
        reasons.append("蒸馏 token 与寄存器 token 一起用")
    if reasons:
        raise UserError(f"timm 里没有这样的模型({'、'.join(reasons)}),不能导出。")


def _arguments(model, layer, **others):
    """两种模型共同的参数。"""
    classes = 0 if not hasattr(model.head, "weight") else model.head.weight.shape[1]
    embed = model.patch_embed
    values = {
        "img_size": tuple(embed.image_size),
        "patch_size": tuple(embed.patch_size),
        "in_chans": embed.in_channels,
        "num_classes": classes,
        **others,
        "mlp_ratio": layer.mlp.fc1.weight.shape[1] / layer.mlp.fc1.weight.shape[0],
        "qkv_bias": layer.attn.qkv.bias is not None,
        "norm_layer": _Code(f"partial(torch.nn.LayerNorm, eps={layer.attn_norm._epsilon:g})"),
    }
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


class _Code(str):
    """写进代码时不带引号的文字。"""

    __slots__ = ()

    def __repr__(self):
        return str(self)


def _vit_code(model):
    layer, has_class = model.encoders[0], model.class_token is not None
    others = dict(embed_dim=layer.attn_norm.weight.shape[0], depth=len(model.encoders), num_heads=layer.attn.num_heads)
    if hasattr(layer.attn, "q_norm"):
        others["qk_norm"] = True
    if hasattr(layer.attn_scale, "gamma"):
        others["init_values"] = 1.0
    if model.register_tokens is not None:
        others["reg_tokens"] = model.register_tokens.shape[1]
    if model.position_embedding is None:
        others["pos_embed"] = "none"
    if model.distillation_token is not None:
        arguments = _arguments(model, layer, **others)
        return f"timm.models.deit.VisionTransformerDistilled({arguments})"
    others.update(class_token=has_class, global_pool={"cls": "token", "avg": "avg"}[model.pool])
    others["fc_norm"] = hasattr(model.pool_norm, "weight")
    return f"timm.models.vision_transformer.VisionTransformer({_arguments(model, layer, **others)})"


def _swin_code(model):
    blocks = [stage.blocks for stage in model.stages]
    others = dict(
        embed_dim=model.embed_norm.weight.shape[0],
        depths=tuple(map(len, blocks)),
        num_heads=tuple(stage[0].attn.num_heads for stage in blocks),
        window_size=max(stage[0].window_size for stage in blocks),
    )
    return f"timm.models.swin_transformer.SwinTransformer({_arguments(model, blocks[0][0], **others)})"
