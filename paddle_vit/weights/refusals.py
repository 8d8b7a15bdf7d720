"""装不得的权重:架构不同、缺了或多了张量、放得下而结果会不同、内容坏了,都在改动模型之前说清楚。"""

from __future__ import annotations

import math
import zlib

import numpy as np

from ..errors import UserError
from ..family.swin import SwinTransformer
from ..layers import Attention
from ..system.files import first_few
from ..vit import ViT
from .checkpoint import add_to_checksum
from .info import heads_of
from .layouts import BIAS_TABLE, KERNEL, POSITIONS
from .plan import Plan
from .shapes import image_size_of, sizes_of
from .tables import FACTS, MAY_BE_UNKNOWN, UNKNOWN

__all__ = ["check_architecture", "check_complete", "check_contents", "check_meaning", "check_stated"]


def check_stated(table, path, given):
    """名字看不出来的事实,表里是不是都写明了。"""
    blank = [name for name in MAY_BE_UNKNOWN if getattr(table, name) == UNKNOWN]
    if given is not None and table.family != "attention":
        blank += [name for name in FACTS if getattr(table, name) is None]
    if given is not None and table.family == "attention" and table.num_heads is None:
        blank.append("num_heads")
    if blank and given is None:
        raise UserError(
            f"{path} 像是 {table.name},从名字看不出 {'、'.join(blank)}:"
            "请用 scripts/import_weights.py 的 --propose 写一份换名表,填好后用 --table 给出。"
        )
    if blank:
        raise UserError(f"换名表 {given} 里 {'、'.join(blank)} 还没有填:请查原来的代码,填好再用。")


def _settings(model):
    """模型的设置;单独一层 ``Attention`` 没有,是空的。"""
    return getattr(model, "settings", {})


def _family(model):
    for family, kind in (("vit", ViT), ("swin", SwinTransformer), ("attention", Attention)):
        if isinstance(model, kind):
            return family
    raise UserError(f"{type(model).__name__} 不能装权重:应为 ViT、SwinTransformer 或 Attention。")


def _attentions(model):
    return [layer for layer in model.sublayers(include_self=True) if isinstance(layer, Attention)]


def _shown(heads):
    return list(heads) if isinstance(heads, tuple) else heads


def _how_to_set(**values):
    """怎样改模型的设置:在 Python 里、训练时、转换权重时。"""
    stated = " ".join(f"{name}={value}" for name, value in values.items())
    train = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())
    convert = " ".join(f"--set {name}={value}" for name, value in values.items())
    return f"请把模型的设置改成 {stated}(train.py 用 {train},import_weights.py 用 {convert})。"


def _plain(size):
    """(4, 4) 写成 4。"""
    return size[0] if isinstance(size, (tuple, list)) and len({*size}) == 1 else size


def _shapes(plan):
    return {name: tuple(plan.tensors[file_name].shape) for name, file_name in plan.plain.items()}


def _sizes(plan):
    """由形状看得出的文件里的模型的尺寸,与设置同名。"""
    sizes = {name: _plain(size) for name, size in sizes_of(plan.table, _shapes(plan)).items()}
    sizes.pop("num_classes", None)  # 微调时由数据定,转换时由文件定
    return sizes


def check_architecture(model, table, info):
    """名字和形状以外的事实与模型不符时,抛出 ``UserError``。"""
    family, start = _family(model), f"{info.path} 装不进这个模型:"
    if table.family is not None and table.family != family:
        raise UserError(f"{start}它是 {table.family} 的权重(格式 {table.name}),模型是 {family}。请换模型或权重。")
    if info.norm_first is False:
        raise UserError(f"{start}它先算注意力再归一化(post-norm),我们的编码器先归一化(pre-norm),结果会是错的。")
    if info.activation not in (None, "gelu"):
        raise UserError(f"{start}它的激活函数是 {info.activation},我们的是 gelu,结果会是错的。")
    if info.num_heads is not None and info.num_heads != heads_of(model):
        raise UserError(
            f"{start}它的头数是 {_shown(info.num_heads)},模型的是 {_shown(heads_of(model))}:"
            f"形状一样而结果不同。{_how_to_set(num_heads=_shown(info.num_heads))}"
        )
    for layer in _attentions(model):
        scale = layer.attn_head_size**-0.5 if info.scale is None else info.scale
        unknown = info.format == "paddle_vit" and info.model is None
        if not unknown and not math.isclose(layer.scales, scale, rel_tol=1e-5):
            raise UserError(
                f"{start}它的 q k^T 缩放系数是 {scale:g},模型的是 {layer.scales:g}:{_how_to_set(qk_scale=scale)}"
            )
    has_bias = all(layer.qkv.bias is not None for layer in _attentions(model))
    if info.qkv_bias is not None and info.qkv_bias != has_bias:
        raise UserError(f"{start}它的 qkv_bias 是 {info.qkv_bias},模型的是 {has_bias}:请改成相同的。")
    kind = _settings(model).get("position_embedding")
    if info.position_embedding is not None and kind is not None and info.position_embedding != kind:
        raise UserError(
            f"{start}它的位置编码是 {info.position_embedding},模型的是 {kind}:"
            f"{_how_to_set(position_embedding=info.position_embedding)}"
        )


def check_complete(plan: Plan):
    """有缺少、多出或形状不同的就抛出 ``UserError``,两边都列出来。"""
    placed = {*plan.loaded, *plan.resized, *plan.wrong}
    missing = [
        ours for ours in plan.targets if ours not in placed and not (plan.fresh_head and ours in plan.head_names)
    ]
    expected = _expected_unused(plan)
    surplus = [name for name in plan.unused if name not in expected]
    wrong = [f"{ours}:文件 {list(plan.shape(ours))},模型 {list(plan.targets[ours].shape)}" for ours in plan.wrong]
    kinds = (("缺少", missing), ("多出", surplus), ("形状不同", wrong))
    details = ";".join(f"{kind} {len(names)} 个({first_few(names)})" for kind, names in kinds if names)
    if details:
        raise UserError(f"{plan.tensors.path} 的权重(格式 {plan.table.name})放不进这个模型:{details}。{_advice(plan)}")


def check_meaning(plan: Plan):
    """每个张量都放得下而结果会不同的,抛出 ``UserError``;strict=False 也不放过。"""
    if not plan.loaded and not plan.resized:
        raise UserError(f"{plan.tensors.path} 没有一个张量放得进这个模型(格式 {plan.table.name}):请换模型。")
    pool, model = plan.info.pool, plan.model
    if pool is not None and not plan.fresh_head and model.class_token is not None and model.pool != pool:
        raise UserError(f"{plan.tensors.path} 的分类头要求 pool={pool},模型是 pool={model.pool}:请改成相同的。")

    fixed = _settings(model).get("position_embedding") in ("sincos", "sincos1d")
    if fixed and plan.table.name != "paddle_vit" and not plan.names_of(POSITIONS):
        raise UserError(
            f"{plan.tensors.path} 里没有位置编码,而模型有固定的({_settings(model)['position_embedding']}),结果会是错的:"
            f"{_how_to_set(position_embedding='none')}"
        )
    sources = [plan.find(f"stages.{i}.blocks.0.attn.{BIAS_TABLE}") for i in range(20)]
    windows = [plan.tensors[names[0]].shape[0] for names in sources if names]
    if sorted(windows, reverse=True) != windows:
        raise UserError(f"{plan.tensors.path} 的各级窗口不同,后面的反而大(如 Swin-S3):我们的各级相同,装不进来。")


def _expected_unused(plan):
    """没有用到也在意料之中的名字:本来就不需要的,换掉的分类头,形状不同的(另外列出)。"""
    names = {name for ours in plan.wrong for name in plan.sources[ours]}
    for short, name in plan.plain.items():
        if plan.table.is_ignored(short) or 0 in plan.tensors[name].shape:  # 没有元素的,如 [1, 0, D] 的 class token
            names.add(name)
        if plan.fresh_head and plan.table.is_head_extra(short):
            names.add(name)
    if plan.fresh_head:
        names |= _find_any(plan, "head") | _find_any(plan, "distillation_head")
    if isinstance(plan.model, ViT):
        names |= {name for name in plan.names_of(POSITIONS) if _is_fixed_table(plan, name)}
    return names


def _find_any(plan, head):
    """文件里属于一个分类头的全部名字,不管模型的分类头是哪一种。"""
    leaves = [f"{head}.{leaf}" for leaf in ("weight", "bias")]
    leaves += [f"{head}.{index}.{leaf}" for index in range(4) for leaf in ("weight", "bias")]
    return {name for leaf in leaves for name in plan.names_of(leaf)}


def _is_fixed_table(plan, name):
    """文件里存着的位置编码,正好是模型固定的正弦余弦表。"""
    table = plan.model.position_embedding
    if table is None or POSITIONS in plan.targets or tuple(plan.tensors[name].shape) != tuple(table.shape):
        return False
    return np.allclose(plan.tensors[name].read(), table.numpy(), atol=1e-5)


def _advice(plan):
    if plan.table.name == "paddle_vit":
        sizes = {name: size for name, size in _sizes(plan).items() if name in plan.model.settings}
        different = {name: size for name, size in sizes.items() if _plain(plan.model.settings[name]) != size}
        settings = plan.model.settings
        if settings.get("position_embedding") == "none" and plan.find(POSITIONS):
            different["position_embedding"] = "learnable"
            image_size = _plain(image_size_of(plan.table, _shapes(plan)) or settings["image_size"])
            if image_size != _plain(settings["image_size"]):
                different["image_size"] = image_size
        if settings.get("pool") == "avg" and plan.find("class_token") and plan.model.class_token is None:
            different["pool"] = "cls"
        channels = different.pop("in_channels", None)  # 由数据定,不是训练的设置
        change = _how_to_set(**different) if different else "" if channels else "请用原来的设置。"
        change += f"图像的通道数要是 {channels}(in_channels={channels})。" if channels else ""
        return f"除了微调时的分类头,模型要与原来的形状相同。{change}"
    if plan.wrong == [KERNEL] and plan.shape(KERNEL)[:2] == tuple(plan.targets[KERNEL].shape[:2]):
        return "只有图块边长不同:请换一个模型,或要求把卷积核也改大小(resize_patches,--resize-patches)。"
    names = plan.info.candidates
    return f"它像是 {first_few(names)}。" if names else "请检查模型的尺寸,或换一份权重。"


def check_contents(tensors, plan):
    """把要用的张量都读一遍:损坏的文件在改动模型之前就报错,不是数的(NaN、无穷大)也拒绝。"""
    recorded = tensors.metadata.get("crc32")
    checksum = zlib.crc32(tensors.metadata.get("state", "").encode())
    names = (
        sorted(tensors) if recorded else [name for ours in [*plan.loaded, *plan.resized] for name in plan.sources[ours]]
    )
    for name in names:
        value = tensors[name].read()
        if recorded:
            checksum = add_to_checksum(checksum, name, value)
        if not np.isfinite(value).all():
            raise UserError(f"{tensors.path} 的 {name} 里有 NaN 或无穷大:这份权重不能用,请换一份。")
    if recorded and recorded != str(checksum):
        raise UserError(f"{tensors.path} 已损坏(校验和不对):请换一个备份。")
