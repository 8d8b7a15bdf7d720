"""装不得的权重:架构不同、缺了或多了张量、放得下而结果会不同、内容坏了,都在改动模型之前说清楚。"""

from __future__ import annotations

import json
import math
import re
import zlib

import numpy as np

from ..activations import ACTIVATIONS
from ..errors import UserError
from ..family.swin import SwinTransformer
from ..layers import Attention
from ..system.files import first_few
from ..vit import ViT
from .checkpoint import add_to_checksum
from .foreign_heads import pretraining_parts
from .info import heads_of
from .layouts import BIAS_TABLE, KERNEL, POSITIONS
from .plan import Plan
from .shapes import image_size_of, sizes_of
from .tables import FACTS, MAY_BE_UNKNOWN, UNKNOWN

__all__ = ["check_architecture", "check_complete", "check_contents", "check_meaning", "check_stated", "check_types"]

FLOATS = ("float16", "bfloat16", "float32", "float64")
# bitsandbytes、GPTQ、AWQ、fp8、torch.ao 给量化过的权重附带的张量
_QUANTISED = re.compile(
    r"(weight_scale|scale_inv|weight_scale_inv|input_scale|\.SCB|absmax|quant_map|quant_state\S*|zero_points?|qzeros|"
    r"qweight|g_idx|weight_format|\.scales|_packed_params\S*)$"
)


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
            "请用 scripts/import_weights.py 的 --propose 写一份换名表,填好后用 --table 给出"
            "(train.py 用 --weights-table)。"
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
    """怎样改模型的设置:在 Python 里、训练时(只有一个数的设置)、转换权重时。"""
    stated = " ".join(f"{name}={value}" for name, value in values.items())
    convert = " ".join(f"--set {name}={json.dumps(value, separators=(',', ':'))}" for name, value in values.items())
    convert = convert.replace('"', "")
    if any(isinstance(value, (list, tuple)) for value in values.values()):
        return f"请把模型的设置改成 {stated}(import_weights.py 用 {convert})。"
    train = " ".join(_train_option(f"--{name.replace('_', '-')}", value) for name, value in values.items())
    return f"请把模型的设置改成 {stated}(train.py 用 {train},import_weights.py 用 {convert})。"


def _train_option(option, value):
    if value is None:
        return f"不给 {option}"
    return f"{option} {value}" if not isinstance(value, bool) else option if value else option.replace("--", "--no-")


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
    if info.trunk_norm not in (None, _settings(model).get("trunk_norm", False)):
        where = "主干上" if info.trunk_norm else "残差分支里"
        raise UserError(
            f"{start}它的第二个层归一化在{where},模型的不是,结果会是错的:{_how_to_set(trunk_norm=info.trunk_norm)}"
        )
    activation = _settings(model).get("activation", "gelu")
    if info.activation not in (None, *ACTIVATIONS):
        raise UserError(f"{start}它的激活函数是 {info.activation},我们的只有 {'、'.join(ACTIVATIONS)},结果会是错的。")
    if info.activation not in (None, activation) and info.format != "paddle_vit":
        raise UserError(
            f"{start}它的激活函数是 {info.activation},模型的是 {activation},结果会是错的:"
            f"{_how_to_set(activation=info.activation)}"
        )
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


def check_types(plan: Plan):
    """要装的张量不是浮点数的(量化过的整数、打包的 4 位、布尔、复数),抛出 ``UserError``:没有缩放系数,数值不是权重。"""
    for ours, names in plan.sources.items():
        for name in names if not (plan.fresh_head and ours in plan.head_names) else ():
            if plan.tensors[name].dtype not in FLOATS:
                raise UserError(
                    f"{plan.tensors.path} 的 {name} 是 {plan.tensors[name].dtype},不是浮点数:多半量化过(8 位、4 位),"
                    "真正的数值还要乘缩放系数。请用原来的库还原(dequantize)成 float32 再存,或下载没有量化的。"
                )
    scales = [name for name in plan.unused if _QUANTISED.search(name)]
    if scales:
        raise UserError(
            f"{plan.tensors.path} 里有量化用的缩放系数({first_few(scales)}):权重要乘上它才是真的数值,这里不会。"
            "请用原来的库还原(dequantize)成 float32 再存,或下载没有量化的。"
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
    if pool == "map" and not plan.fresh_head:
        raise UserError(
            f"{plan.tensors.path} 的分类头要求注意力汇聚(attention pooling),我们没有:"
            "只能当主干用,请换新的分类头(类别数不同,或 num_classes=0)。"
        )
    if pool not in (None, "map") and not plan.fresh_head and model.class_token is not None and model.pool != pool:
        raise UserError(f"{plan.tensors.path} 的分类头要求 pool={pool},模型是 pool={model.pool}:请改成相同的。")

    fixed = _settings(model).get("position_embedding") in ("sincos", "sincos1d")
    if fixed and plan.table.name != "paddle_vit" and not plan.names_of(POSITIONS):
        raise UserError(
            f"{plan.tensors.path} 里没有位置编码,而模型有固定的({_settings(model)['position_embedding']}),结果会是错的:"
            f"{_how_to_set(position_embedding='none')}"
        )
    _check_structure(plan)
    if plan.table.name == "timm_swin" and not plan.fresh_head and model.pads_before_shift:
        raise UserError(
            f"{plan.tensors.path} 是 timm 的 Swin,特征图不是窗口的整数倍时,它先滚动再补零,我们(和 Hugging Face)"
            "先补零再滚动,结果会不同:请换一个图像边长或窗口(window_size),或换新的分类头微调。"
        )
    sources = [plan.find(f"stages.{i}.blocks.0.attn.{BIAS_TABLE}") for i in range(20)]
    windows = [plan.tensors[names[0]].shape[0] for names in sources if names]
    if sorted(windows, reverse=True) != windows:
        raise UserError(f"{plan.tensors.path} 的各级窗口不同,后面的反而大(如 Swin-S3):我们的各级相同,装不进来。")


# 有没有都行的部分:文件与模型不一样,就是两种结构
_NORMS = r"^(norm|pool_norm|embed_norm)\.|\.(attn_norm|mlp_norm|q_norm|k_norm)\.|_scale\.gamma$"
_TOKENS = r"^(class_token|distillation_token|register_tokens|position_embedding|distillation_head\.|sequence_pool\.)"
_TOKENS += "|relative_position"


def _check_structure(plan):
    """strict=False 也不放过的:文件和模型一边有、另一边没有的归一化;分类头取来了(要能预测),token 或层数却不同。"""
    missing = [ours for ours in plan.targets if ours not in {*plan.loaded, *plan.resized, *plan.wrong}]
    whole = {_template(ours) for ours in missing} - {_template(ours) for ours in plan.sources}  # 每一层都缺的
    lost = [ours for ours in missing if re.search(_NORMS, ours) and (not plan.fresh_head or _template(ours) in whole)]
    if not plan.fresh_head:
        lost += [ours for ours in missing if re.search(_TOKENS, ours)]
    expected = {name for ours in plan.sources for name in plan.sources[ours]} | _expected_unused(plan)
    left = {short: name for short, name in plan.plain.items() if name not in expected}
    used = {tuple(sorted(plan.targets[ours].shape)) for ours in missing}  # 缺的和多的形状相同,可能只是改了名字
    extra = [name for short, name in left.items() if _is_structure(plan, short, used)]
    kinds = ";".join(f"{k} {len(n)} 个({first_few(n)})" for k, n in (("文件里没有", lost), ("模型里没有", extra)) if n)
    if kinds:
        raise UserError(
            f"{plan.tensors.path} 与模型的结构不同:{kinds},结果会是错的,--no-strict 也不能装。{_advice(plan)}"
        )


def _is_structure(plan, short, missing):
    """文件里多出的这个张量是不是结构的一部分。"""
    shape = tuple(sorted(plan.tensors[plan.plain[short]].shape))
    if plan.table.knows(short):
        return not plan.fresh_head or re.search(r"norm|gamma|ls\d|lambda", short) is not None
    return shape not in missing and re.search(r"norm|\bln_?\w*\.|^(blocks|layers|encoder)\.", short) is not None


def _template(ours):
    return re.sub(r"\d+", "0", ours)


def _expected_unused(plan):
    """没有用到也在意料之中的名字:本来就不需要的,换掉的分类头,形状不同的(另外列出)。"""
    names = {name for ours in plan.wrong for name in plan.sources[ours]}
    for short, name in plan.plain.items():
        if plan.table.is_ignored(short) or 0 in plan.tensors[name].shape:  # 没有元素的,如 [1, 0, D] 的 class token
            names.add(name)
        if plan.fresh_head and plan.table.is_head_extra(short):
            names.add(name)
    if plan.table.name != "paddle_vit":
        names |= {name for part in pretraining_parts(plan.plain).values() for name in part}
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


def _options(plan):
    """文件里的 ViT 有没有各个可有可无的部分,与模型不同的:{设置: 文件的}。"""
    settings, model = plan.model.settings, plan.model

    def present(ours):
        return bool(plan.find(ours))

    convolution = plan.find("patch_embed.convolutions.0.weight")
    registers, fc1 = plan.find("register_tokens"), plan.find("encoders.0.mlp.fc1.bias")
    stated = {
        "qkv_bias": present("encoders.0.attn.qkv.bias"),
        "qk_norm": present("encoders.0.attn.q_norm.weight"),
        "embed_norm": present("embed_norm.weight"),
        "norm_after_pool": present("pool_norm.weight"),
        "register_tokens": plan.tensors[registers[0]].shape[-2] if registers else 0,
        "distillation_token": present("distillation_token"),
        "tokenizer": "conv" if convolution else "patch",
        "tokenizer_kernel": plan.tensors[convolution[0]].shape[-1] if convolution else 3,
    }
    if fc1:
        ratio = plan.tensors[fc1[0]].shape[0] / model.encoders[0].mlp.fc1.weight.shape[0]
        same = int(ratio * settings["embed_dim"]) == int(settings["mlp_ratio"] * settings["embed_dim"])
        stated["mlp_ratio"] = settings["mlp_ratio"] if same or "embed_dim" in _size_differences(plan) else ratio
    different = {name: value for name, value in stated.items() if settings[name] != value}
    scaled = present("encoders.0.attn_scale.gamma")
    if scaled != (settings["layer_scale"] is not None):
        different["layer_scale"] = 1e-5 if scaled else None
    if present("sequence_pool.attention.weight") and settings["pool"] != "seq":
        different["pool"] = "seq"
    elif settings["pool"] == "seq" and not present("sequence_pool.attention.weight"):
        different["pool"] = "cls" if present("class_token") else "avg"
    elif present("class_token") and model.class_token is None:
        different["pool"] = "cls"
    elif model.class_token is not None and not present("class_token"):
        different.update({"pool": "avg", **({"class_token": False} if settings["class_token"] else {})})
    learnable = settings["position_embedding"] == "learnable"
    if present(POSITIONS) != learnable and settings["position_embedding"] in ("none", "learnable"):
        different["position_embedding"] = "none" if learnable else "learnable"
        image_size = _plain(image_size_of(plan.table, _shapes(plan)) or settings["image_size"])
        if not learnable and image_size != _plain(settings["image_size"]):
            different["image_size"] = image_size
    return different


def _size_differences(plan):
    """由形状看得出的尺寸里,与模型不同的:{设置: 文件的}。"""
    settings = plan.model.settings
    sizes = {name: size for name, size in _sizes(plan).items() if name in settings}
    return {name: size for name, size in sizes.items() if _plain(settings[name]) not in (size, tuple(_as_list(size)))}


def _as_list(size):
    return size if isinstance(size, (list, tuple)) else [size]


def _advice(plan):
    if not _settings(plan.model):
        return "请检查模型的尺寸,或换一份权重。"
    sizes = _size_differences(plan)
    channels = sizes.pop("in_channels", None)  # 由数据定,不是训练的设置
    different = {**sizes, **(_options(plan) if isinstance(plan.model, ViT) else {})}
    if plan.table.name == "paddle_vit":
        change = _how_to_set(**different) if different else "" if channels else "请用原来的设置。"
        change += f"图像的通道数要是 {channels}(in_channels={channels})。" if channels else ""
        return f"除了微调时的分类头,模型要与原来的形状相同。{change}"
    if plan.wrong == [KERNEL] and channels is not None:
        return (
            f"它的图像是 {channels} 个通道的:要换成模型的 {plan.model.settings['in_channels']} 个,"
            "load_weights 用 match_channels=True,import_weights.py 用 --set in_channels=1、3 或 4"
            "(只在灰度和彩色之间,或给彩色加第四个)。"
        )
    if plan.wrong == [KERNEL] and plan.shape(KERNEL)[:2] == tuple(plan.targets[KERNEL].shape[:2]):
        return (
            "只有图块边长不同:请换一个模型,或要求把卷积核也改大小(load_weights 用 resize_patches=True,"
            "import_weights.py 用 --resize-patches,再用转换好的文件训练)。"
        )
    names = plan.info.candidates
    if different and not (sizes and names):
        return _how_to_set(**different)
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
