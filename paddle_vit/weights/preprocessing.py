"""权重旁边写着的预处理:图片怎样摆、像素怎样归一化。照办,办不到的拒绝,没有写的按惯例并说出来。

``preprocessor_config.json`` 是 Hugging Face 的,``config.json`` 里的 ``pretrained_cfg`` 是 timm 的。
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from ..errors import UserError
from ..system.files import matches
from ..system.fitting import INTERPOLATIONS, Fit, plain_size, size_text

__all__ = ["NORMALIZATION", "normalization_of_name", "processor_facts", "timm_preprocessing"]

NORMALIZATION = {  # (均值, 标准差),像素值在 0–1
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
HOW_TO_STATE = "请把它移走,再写明:import_weights.py 用 --mean、--std、--fit,train.py 用 --normalization、--fit。"


class _Processor(NamedTuple):
    """Hugging Face 的一种图像处理器,文件里没有写的按它的默认值。"""

    square: bool  # size 是一个整数时:True 是压成正方形,False 是短边的长度
    interpolation: str
    size: object
    crop: int | None
    normalization: str


_PROCESSORS = {
    "ViT": _Processor(True, "bilinear", 224, None, "half"),
    "DeiT": _Processor(True, "bicubic", 256, 224, "half"),
    "Beit": _Processor(True, "bicubic", 224, None, "half"),
    "Siglip": _Processor(True, "bicubic", 224, None, "half"),
    "CLIP": _Processor(False, "bicubic", 224, 224, "clip"),
    "Bit": _Processor(False, "bicubic", 224, 224, "clip"),
    "ConvNext": _Processor(False, "bilinear", 384, None, "half"),
}
_KNOWN = {"do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale", "rescale_factor"}
_KNOWN |= {"do_normalize", "image_mean", "image_std", "image_processor_type", "feature_extractor_type"}
# 下面的不改这里的像素
_KNOWN |= {"do_convert_rgb", "do_reduce_labels", "reduce_labels", "default_to_square"}
_KNOWN |= {"processor_class", "_valid_processor_keys", "data_format", "input_data_format", "return_tensors", "device"}
_CHANGES_PIXELS = re.compile("^do_|divis|offset|aspect|multiple|pixels|pad|margin|include_top|gray|thumbnail|flip")


def processor_facts(values: dict, path, channels: int | None) -> dict:
    """``preprocessor_config.json`` 的内容 -> 归一化、摆法、图像大小(字典),没有写明而按默认的在 ``assumed`` 里。

    Args:
        values (dict): 文件的内容。
        path (Path): 文件,写进提示。
        channels (int | None): 权重的图像通道数。

    Raises:
        UserError: 有不合法的值,或有我们做不到的处理。
    """
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    short = re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    if short == "TimmWrapper":  # 它用的是 config.json 里的 pretrained_cfg
        return {}
    if kind and short not in _PROCESSORS:
        raise UserError(f"{path} 写的是 {kind},我们没有它的算法:{HOW_TO_STATE}")
    for name, value in values.items():
        if name not in _KNOWN and value and _CHANGES_PIXELS.search(name):
            raise UserError(f"{path} 里的 {name} 是 {value!r},这种处理我们没有:{HOW_TO_STATE}")
    processor = _PROCESSORS.get(short, _PROCESSORS["ViT"])
    assumed = [] if kind else [("fit", f"{path.name} 没有写是哪一种处理器,按 ViTImageProcessor")]
    facts = _pixels(values, path, channels, processor, assumed)
    fit, size = _placing(values, path, processor, assumed)
    facts.update(fit=fit, **({} if size is None else {"image_size": size}))
    unknown = [name for name in values if name not in _KNOWN and values[name] and not name.startswith("_")]
    if unknown:
        facts["notes"] = (f"{path.name} 里不认识、没有用到的:{'、'.join(unknown)}",)
    return {**facts, "assumed": tuple(assumed)}


def _bad(path, name, value, wanted):
    return UserError(f"{path} 里的 {name} 不合法:{value!r},应为{wanted}。请重新下载,或改正。")


def _flag(values, path, name, default):
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise _bad(path, name, value, " true 或 false")
    return default if value is None else value


def _pixels(values, path, channels, processor, assumed):
    """{"mean", "std"}:把 rescale 和 normalize 合成对 0–1 像素的一次。"""
    scale = values.get("rescale_factor")
    if scale is not None and (not matches(scale, float) or not 0 < scale < math.inf):
        raise _bad(path, "rescale_factor", scale, "正数")
    scale = 255.0 * (1 / 255 if scale is None else scale)  # 0–1 的像素先乘它
    if not _flag(values, path, "do_rescale", True):
        scale = 255.0
    elif math.isclose(scale, 1, rel_tol=1e-6):
        scale = 1.0
    given = []
    for name, plain, default in zip(("image_mean", "image_std"), (0.0, 1.0), NORMALIZATION[processor.normalization]):
        value = values.get(name)
        if not _flag(values, path, "do_normalize", True):
            value = plain
        elif value is None:
            value = list(default)
            assumed.append(("normalization", f"{path.name} 没有写 {name},按 {'、'.join(map(str, default))}"))
        value = [value] * (channels or 3) if matches(value, float) else value
        if not matches(value, [float]):
            raise _bad(path, name, value, "每个通道一个数")
        given.append(tuple(number / scale for number in value))
    return {"mean": given[0], "std": given[1]}


def _placing(values, path, processor, assumed):
    """(``Fit``, 模型的图像 (高, 宽));没有写怎样缩放的,大小是 ``None``。"""
    code = values.get("resample")
    known = matches(code, int) and 0 <= code < len(INTERPOLATIONS)
    if code is not None and not known:
        raise _bad(path, "resample", code, f" 0–5 的整数({'、'.join(INTERPOLATIONS)})")
    method = processor.interpolation if code is None else INTERPOLATIONS[code]
    crops = _flag(values, path, "do_center_crop", processor.crop is not None)
    crop = _sides(values.get("crop_size"), path, "crop_size", True)[1] if crops and values.get("crop_size") else None
    if crops and crop is None:
        crop = (processor.crop or 224,) * 2
        assumed.append(("fit", f"{path.name} 没有写 crop_size,按 {crop[0]}"))
    if not _flag(values, path, "do_resize", True):
        if crops:
            raise UserError(f"{path} 要不缩放就裁出 {size_text(crop)} 像素,这种处理我们没有:{HOW_TO_STATE}")
        assumed.append(("fit", f"{path.name} 的 do_resize 是 false,没有写图片怎样变成模型的大小,按居中裁剪"))
        return Fit("crop", method), None
    if values.get("size") is None:
        assumed.append(("fit", f"{path.name} 没有写 size,按 {processor.size}"))
    kind, size = _sides(values.get("size") or processor.size, path, "size", processor.square)
    if values.get("crop_pct") is not None or processor is _PROCESSORS["ConvNext"]:
        return _convnext(values, path, processor, method, size, assumed)
    if crop is None:
        if kind == "crop":
            raise UserError(f"{path} 只写了短边的长度 {size[0]},不裁剪,图片的大小不一,模型收不了:{HOW_TO_STATE}")
        return Fit(kind, method), size
    if any(inner > outer for inner, outer in zip(crop, size)) or (kind == "crop" and crop[0] != crop[1]):
        raise UserError(f"{path} 要从 {size_text(size)} 里裁出 {size_text(crop)} 像素,做不到:{HOW_TO_STATE}")
    share = crop[0] / size[0]
    if not math.isclose(share, crop[1] / size[1]):
        raise UserError(f"{path} 裁剪的高和宽比例不同,这种处理我们没有:{HOW_TO_STATE}")
    return Fit(kind, method, share, "floor"), crop


def _convnext(values, path, processor, method, size, assumed):
    """ConvNext 的:小于 384 像素时按 crop_pct 先放大再裁,否则压成正方形。"""
    if processor is not _PROCESSORS["ConvNext"]:
        raise UserError(f"{path} 里的 crop_pct 只有 ConvNextImageProcessor 才有:{HOW_TO_STATE}")
    share = values.get("crop_pct")
    if share is None:
        share = 224 / 256
        assumed.append(("fit", f"{path.name} 没有写 crop_pct,按 {share}"))
    if not matches(share, float) or not 0 < share <= 1:
        raise _bad(path, "crop_pct", share, " 0 到 1 的比例")
    return (Fit("crop", method, float(share), "floor") if size[0] < 384 else Fit("squash", method)), size


def _sides(value, path, name, square):
    """``size`` 的几种写法 -> (``'squash'`` 或 ``'crop'``, (高, 宽))。"""
    if isinstance(value, dict):
        stated = {key: side for key, side in value.items() if side is not None}
        if set(stated) == {"height", "width"}:
            square, value = True, [stated["height"], stated["width"]]
        elif set(stated) == {"shortest_edge"}:
            square, value = False, stated["shortest_edge"]
        else:
            raise UserError(f"{path} 里的 {name} 是 {value!r},这种大小我们没有:{HOW_TO_STATE}")
    elif isinstance(value, list):
        square = True
    sides = value if isinstance(value, list) else [value, value]
    if not matches(sides, [int]) or len(sides) != 2 or min(sides) < 1:
        raise _bad(path, name, value, "正整数(像素)")
    return ("squash" if square else "crop"), tuple(sides)


def timm_preprocessing(config: dict, path) -> dict:
    """timm 的 ``pretrained_cfg`` -> 归一化、摆法、图像大小(字典),没有写明而按默认的在 ``assumed`` 里。

    Args:
        config (dict): ``pretrained_cfg``。
        path (Path): config.json,写进提示。

    Raises:
        UserError: 有不合法的值,或有我们做不到的处理。
    """
    assumed: list[tuple[str, str]] = []
    facts: dict[str, Any] = {}
    values = {name: value for name, value in config.items() if value is not None}
    for name, default in zip(("mean", "std"), NORMALIZATION["imagenet"]):
        value = values.get(name)
        if value is not None and not matches(value, [float]):
            raise _bad(path, name, value, "每个通道一个数")
        if value is not None:
            facts[name] = tuple(value)
        elif values.keys() & {"mean", "std"}:
            facts[name] = default
            assumed.append(("normalization", f"{path.name} 没有写 {name},按 {'、'.join(map(str, default))}"))
    for name in ("input_size", "test_input_size"):
        if name in values and not (matches(values[name], [int]) and len(values[name]) == 3 and min(values[name]) > 0):
            raise _bad(path, name, values[name], "[通道, 高, 宽]")
    if "input_size" in values:
        facts["image_size"] = tuple(values["input_size"][1:])
    if not values.keys() & {"crop_pct", "crop_mode", "interpolation"}:
        return {**facts, "assumed": tuple(assumed)}
    assumed += [
        ("fit", f"{path.name} 没有写 {name},按 {default}")
        for name, default in (("crop_pct", 0.875), ("interpolation", "bicubic"))
        if name not in values
    ]
    share, method = values.get("crop_pct", 0.875), values.get("interpolation", "bicubic")
    if not matches(share, float) or not 0 < share <= 1:
        raise _bad(path, "crop_pct", share, " 0 到 1 的比例")
    if method not in INTERPOLATIONS:
        raise _bad(path, "interpolation", method, f" {'、'.join(INTERPOLATIONS)} 之一")
    kinds = {"center": "crop", "squash": "squash", "border": "pad"}
    mode = values.get("crop_mode", "center")
    if mode not in kinds:
        raise _bad(path, "crop_mode", mode, f" {'、'.join(kinds)} 之一")
    if values.get("crop_border_pixels"):
        raise UserError(f"{path} 里的 crop_border_pixels 要先去掉图片的边,这种处理我们没有:{HOW_TO_STATE}")
    mean = facts.get("mean", NORMALIZATION["imagenet"][0])
    fill = tuple(round(255 * value) for value in mean) if mode == "border" else ()
    facts["fit"] = Fit(kinds[mode], method, float(share), "round", fill)
    test = values.get("test_input_size"), values.get("test_crop_pct")
    if test != (None, None):
        side = size_text(plain_size(*(test[0] or values.get("input_size", [3, 224, 224]))[1:]))
        note = f"timm 评估时用 {side} 像素、crop_pct {test[1] or share},这里按训练时的(--image-size 改大小)"
        facts["notes"] = (note,)
    return {**facts, "assumed": tuple(assumed)}


# 名字里写着训练方法的:这些项目自己的代码都用这种归一化
_BY_NAME = {
    "clip": ("clip",),
    "imagenet": ("deit", "deit3", "mae", "dino", "dinov2", "moco", "mocov3", "ibot", "msn", "data2vec"),
}
_BY_TENSOR = {"decoder_embed.weight": "MAE", "mask_token": "MAE", "head.last_layer.weight_v": "DINO"}


def normalization_of_name(names, tensors) -> tuple[str, str] | None:
    """由文件、目录、模型的名字和张量的名字猜归一化:(``NORMALIZATION`` 里的名字, 凭什么);看不出来是 ``None``。

    Args:
        names (Iterable[str]): 文件、目录、模型的名字。
        tensors (Collection[str]): 张量的名字。
    """
    words = {word for name in names for word in re.split("[^a-z0-9]+", name.lower())}
    for normalization, known in _BY_NAME.items():
        for word in known:
            if any(re.fullmatch(rf"{word}(v?\d+)?", given) or (word == "deit" and word in given) for given in words):
                return normalization, f"名字里有 {word}"
    for tensor, method in _BY_TENSOR.items():
        if tensor in tensors:
            return "imagenet", f"张量里有 {method} 的 {tensor}"
    return None
