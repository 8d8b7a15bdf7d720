"""权重旁边的 config.json 和 preprocessor_config.json(Hugging Face、timm)里的事实。"""

from __future__ import annotations

import re

from ..checks import as_pair
from ..errors import UserError
from ..system.files import matches, read_json
from .preprocessing import processor_facts, timm_preprocessing
from .shapes import sizes_of

__all__ = ["neighbour_facts"]

# timm 里张量名字相同、算法不同的那些:旋转位置编码,别的激活,归一化在后的(rpn)
_OTHER_BLOCKS = re.compile("rope|rpn|so400m|giantopt")
# 换名表 -> 它的 config.json 里可以有的 model_type;别的表按自己的结构(family)
_KINDS = {
    "huggingface_vit": ("vit", "deit", "vit_mae", "vit_msn"),
    "huggingface_clip": ("clip", "clip_vision_model"),
    "huggingface_siglip": ("siglip", "siglip_vision_model"),
    "huggingface_dinov2": ("dinov2", "dinov2_with_registers"),
    "vit": ("vit", "deit", "vit_mae", "vit_msn"),
    "swin": ("swin",),
}


def neighbour_facts(path, table, info, shapes):
    """config.json 和 preprocessor_config.json 里的事实(字典),写了的才有。"""
    advice = "请重新下载,或把它移走"
    config = read_json(path.parent / "config.json", advice=advice) or {}
    facts = {}
    if "model_type" in config:
        facts = _huggingface_facts(config, path, table, shapes)
    elif "architecture" in config:
        facts = _timm_facts(config, path, table, shapes)
    elif table.name.startswith("huggingface"):
        facts["notes"] = (f"旁边没有 config.json:epsilon 按 {info.epsilon:g},激活按 {info.activation}",)
    preprocessor = path.parent / "preprocessor_config.json"
    images = read_json(preprocessor, advice=advice)
    if images is not None:
        facts = _merged(facts, processor_facts(images, preprocessor, info.in_channels))
    return facts


def _merged(facts, preprocessing):
    """把预处理的事实并进来:以预处理自己的为准;图像大小 config.json 里写了的不变。"""
    notes = (*facts.get("notes", ()), *preprocessing.get("notes", ()))
    size = {"image_size": facts["image_size"]} if "image_size" in facts else {}
    return {**facts, **preprocessing, **size, **({"notes": notes} if notes else {})}


def _checked(config, pattern, path):
    """config 里 pattern 说到的各项,类型不对时抛出 ``UserError``。"""
    present = {name: config[name] for name in pattern if config.get(name) is not None}
    for name, value in present.items():
        if not matches(value, pattern[name]):
            raise UserError(f"{path} 里的 {name} 不合法:{value!r}。请重新下载。")
    return present


def _check_sizes(stated, sizes, path):
    """config.json 里的数与张量的形状不同时,抛出 ``UserError``;stated 是 {名字: (sizes 里的名字, 值)}。"""
    for name, (key, value) in stated.items():
        if value is not None and value != sizes.get(key, value):
            raise UserError(
                f"{path} 里的 {name} 是 {value},而权重的是 {sizes[key]}:请换成与权重配套的 config.json,或把它移走。"
            )


def _refuse_family(path, kind, table):
    raise UserError(f"{path} 说这是 {kind},而张量的名字像 {table.name}:请换成与权重配套的 config.json。")


def _huggingface_facts(config, path, table, shapes):
    path = path.with_name("config.json")
    kind = config["model_type"]
    if table.family is not None and kind not in _KINDS.get(table.name, _KINDS.get(table.family, (kind,))):
        _refuse_family(path, kind, table)
    if matches(config, {"vision_config": {}}):  # CLIP 和 SigLIP:图像塔和文本塔各一份
        config = {**config, **config["vision_config"]}
    pattern = {"layer_norm_eps": float, "num_attention_heads": int, "num_heads": [int], "hidden_act": str}
    pattern.update(qkv_bias=bool, image_size=(int, list), id2label={None: str}, problem_type=str)
    values = _checked(config, pattern, path)
    sizes = {"num_channels": int, "patch_size": (int, list), "window_size": int, "embed_dim": int, "hidden_size": int}
    sizes = _checked(config, {**sizes, "num_hidden_layers": int, "depths": [int]}, path)
    if "patch_size" in sizes:
        sizes["patch_size"] = tuple(as_pair(sizes["patch_size"], f"{path} 里的 patch_size"))
    keys = {"num_channels": "in_channels", "num_hidden_layers": "depth"}
    if kind == "swin":  # 它的 hidden_size 是最后一级的,num_hidden_layers 是级数
        sizes = {name: value for name, value in sizes.items() if name not in ("hidden_size", "num_hidden_layers")}
    stated = {name: (keys.get(name, name).replace("hidden_size", "embed_dim"), value) for name, value in sizes.items()}
    stated["id2label"] = "num_classes", len(values["id2label"]) if "id2label" in values else None
    _check_sizes(stated, sizes_of(table, shapes), path)
    names = {"layer_norm_eps": "epsilon", "num_attention_heads": "num_heads", "hidden_act": "activation"}
    names["problem_type"] = "problem"
    facts = {names.get(name, name): value for name, value in values.items() if name not in ("image_size", "id2label")}
    if isinstance(facts.get("num_heads"), list):
        facts["num_heads"] = tuple(facts["num_heads"])
    facts.update(_image_side(values.get("image_size"), path))
    labels = values.get("id2label", {})
    names = tuple(labels.get(str(index)) for index in range(len(labels)))
    if names and None not in names and not all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        facts["classes"] = names
    return facts


def _image_side(size, path):
    """config.json 里的 image_size:整数或 [高, 宽] -> {"image_size": (高, 宽)}。"""
    if size is None:
        return {}
    return {"image_size": tuple(as_pair(tuple(size) if isinstance(size, list) else size, f"{path} 里的 image_size"))}


def _timm_facts(config, path, table, shapes):
    path = path.with_name("config.json")
    kind = config["architecture"]
    starts = {"vit": ("vit_", "deit_", "deit3_"), "swin": ("swin_",)}.get(table.family, ("",))
    if not isinstance(kind, str) or not kind.startswith(starts) or _OTHER_BLOCKS.search(kind):
        _refuse_family(path, kind, table)
    pattern = {"global_pool": str, "label_names": [str], "pretrained_cfg": dict, "model_args": dict, "num_classes": int}
    values = _checked(config, pattern, path)
    pixels = values.get("pretrained_cfg", config)  # 旧的 config.json 直接写在外面
    facts = timm_preprocessing(pixels, path)
    patch, window = (re.search(rf"_{name}(\d+)", kind) for name in ("patch", "window"))
    stated = {
        "num_classes": ("num_classes", values.get("num_classes")),
        "label_names": ("num_classes", len(values["label_names"]) if "label_names" in values else None),
        "input_size": ("in_channels", next(iter(pixels.get("input_size") or []), None)),
        f"architecture({kind})的图块": ("patch_size", patch and (int(patch[1]),) * 2),
        f"architecture({kind})的窗口": ("window_size", window and int(window[1])),
    }
    _check_sizes(stated, sizes_of(table, shapes), path)
    activation = values.get("model_args", {}).get("act_layer")
    if activation is not None or "quickgelu" in kind:
        facts["activation"] = str(activation or "quick_gelu")
    if "label_names" in values:
        facts["classes"] = tuple(values["label_names"])
    pool = values.get("global_pool")
    if pool not in (None, "", "avg", "token", "map")[: 5 if table.family == "vit" else 3]:
        raise UserError(f"{path} 里的 global_pool 是 {pool!r}:我们只有 token(cls)和 avg,Swin 只有 avg,装不进来。")
    if table.family == "vit" and pool in ("token", "avg", "map"):  # map 是注意力汇聚:只能当主干
        facts["pool"] = {"token": "cls"}.get(pool, pool)
    facts.update(_image_side(pixels.get("input_size", [None])[1:] or None, path))
    return facts
