"""命名的模型:ViT、DeiT、CCT、Swin 各种尺寸的设置,按名字建模型。"""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import re
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from paddle import nn

from ..checks import as_pair, check_positive, conv_stride
from ..compact import HIDDEN_CHANNELS
from ..errors import UserError
from ..vit import ViT
from .swin import SwinTransformer

__all__ = [
    "check_settings",
    "check_size",
    "count_parameters",
    "create_model",
    "full_name",
    "full_settings",
    "is_head",
    "list_models",
    "model_class",
    "model_settings",
]

# 尺寸 -> (嵌入维度, 层数, 头数):ViT 论文(arXiv 2010.11929)表 1;tiny 和 small 来自 DeiT(arXiv 2012.12877)表 1。
_VIT_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# 尺寸 -> 常用的 (图块, 图像),像素。
_VIT_PATCHES_AND_IMAGES = {
    "tiny": [(16, 224), (16, 384)],
    "small": [(16, 224), (32, 224), (16, 384), (32, 384)],
    "base": [(16, 224), (32, 224), (8, 224), (16, 384), (32, 384)],
    "large": [(16, 224), (32, 224), (16, 384), (32, 384)],
    "huge": [(14, 224)],
}
# DeiT 论文表 1;base 另有一个 384 像素的。
_DEIT_SIZES_AND_IMAGES = [("tiny", 224), ("small", 224), ("base", 224), ("base", 384)]
# 层数 -> (嵌入维度, 头数, mlp_ratio);(层数, 卷积核, 卷积的层数, 图像, 类别数):CCT(arXiv 2104.05704)和作者的代码。
_CCT_SIZES = {2: (128, 2, 1.0), 4: (128, 2, 1.0), 6: (256, 4, 2.0), 7: (256, 4, 2.0), 14: (384, 6, 3.0)}
_CCTS = [(2, 3, 2, 32, 10), (4, 3, 2, 32, 10), (6, 3, 1, 32, 10), (7, 3, 1, 32, 10), (7, 3, 2, 32, 10)]
_CCTS += [(7, 7, 2, 224, 102), (14, 7, 2, 224, 1000)]
# 尺寸 -> (嵌入维度, 各级的层数, 各级的头数):Swin 论文(arXiv 2103.14030)3.3 节。
_SWIN_SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
_SWIN_WINDOWS_AND_IMAGES = [("tiny", 7, 224), ("small", 7, 224), ("base", 7, 224), ("base", 12, 384)]


def _vit(size, patch_size, image_size, pool="cls", **others):
    """一种尺寸的 ``ViT`` 的参数(字典)。"""
    embed_dim, depth, num_heads = _VIT_SIZES[size]
    return dict(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=1000,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        qkv_bias=True,
        pool=pool,
        position_embedding="learnable",
        epsilon=1e-6,
        **others,
    )


def _cct(depth, kernel, layers, image_size, num_classes):
    """一种尺寸的 CCT 的参数(字典)。"""
    embed_dim, num_heads, mlp_ratio = _CCT_SIZES[depth]
    return dict(
        image_size=image_size,
        patch_size=(2 * conv_stride(kernel)) ** layers,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        pool="seq",
        position_embedding="learnable",
        position_std=0.2,
        tokenizer="conv",
        tokenizer_kernel=kernel,
        trunk_norm=True,
    )


def _swin(size, window_size, image_size):
    """一种尺寸的 ``SwinTransformer`` 的参数(字典)。"""
    embed_dim, depths, num_heads = _SWIN_SIZES[size]
    return dict(
        image_size=image_size,
        patch_size=4,
        num_classes=1000,
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=window_size,
    )


def _named_models():
    """名字 -> (类, 与类的默认值不同的参数)。"""
    models = {"vit": (ViT, {})}
    for pool, mark in (("cls", ""), ("avg", "gap_")):
        for size, patches_and_images in _VIT_PATCHES_AND_IMAGES.items():
            for patch, image in patches_and_images:
                models[f"vit_{size}_patch{patch}_{mark}{image}"] = ViT, _vit(size, patch, image, pool)
    for size, image in _DEIT_SIZES_AND_IMAGES:
        models[f"deit_{size}_patch16_{image}"] = ViT, _vit(size, 16, image)
    for size, image in _DEIT_SIZES_AND_IMAGES:
        models[f"deit_{size}_distilled_patch16_{image}"] = ViT, _vit(size, 16, image, distillation_token=True)
    for depth, kernel, layers, image, classes in _CCTS:
        models[f"cct_{depth}_{kernel}x{layers}_{image}"] = ViT, _cct(depth, kernel, layers, image, classes)
    for size, window, image in _SWIN_WINDOWS_AND_IMAGES:
        models[f"swin_{size}_patch4_window{window}_{image}"] = SwinTransformer, _swin(size, window, image)
    return models


_MODELS = _named_models()


def _short_name(name):
    """全名去掉图块、窗口、卷积和图像的大小,如 ``'deit_small_distilled_patch16_224'`` -> ``'deit_small_distilled'``。"""
    return re.sub(r"_\d+x\d+_\d+$|(?<!cct)_(patch|window)?\d+", "", name)


def list_models() -> list[str]:
    """所有命名模型的名字;``'vit'`` 是课程里的模型,其余是论文里的尺寸,``gap`` 是没有 class token、取平均的 ViT。"""
    return list(_MODELS)


def full_name(name: str) -> str:
    """模型的全名:``'vit_base'`` 这样的简写指该尺寸的第一个,即 ``'vit_base_patch16_224'``。

    Raises:
        UserError: 没有这个模型。
    """
    if name in _MODELS:
        return name
    short_names = {_short_name(full): full for full in reversed(list_models())}  # 同一个简写,留下第一个
    if name in short_names:
        return short_names[name]
    close = difflib.get_close_matches(str(name), [*short_names, *_MODELS], n=1)
    hint = f"是不是 {close[0]}?" if close else ""
    known = "、".join(reversed(short_names))
    raise UserError(
        f"没有名为 {name!r} 的模型:{hint}可用的有 {known};全名如 vit_base_patch16_224,见 paddle_vit.list_models()。"
    )


def model_class(name: str) -> type:
    """命名模型的类:``ViT``(DeiT、CCT 也是它)或 ``SwinTransformer``。

    Raises:
        UserError: 没有这个名字。
    """
    return _MODELS[full_name(name)][0]


def model_settings(name: str) -> dict:
    """命名模型与它的类的默认值不同的那些参数(字典);课程里的模型 ``'vit'`` 没有。

    Raises:
        UserError: 没有这个名字。
    """
    return dict(_MODELS[full_name(name)][1])


def full_settings(name: str) -> dict:
    """命名模型的全部参数(字典),没有改的是类的默认值。

    Raises:
        UserError: 没有这个名字。
    """
    defaults = {setting: parameter.default for setting, parameter in _settings_of(model_class(name)).items()}
    return {**defaults, **model_settings(name)}


def create_model(name: str, **overrides: Any) -> ViT | SwinTransformer:
    """按名字建模型,例如 ``create_model('vit_base_patch16_224', num_classes=10)``。

    Args:
        name (str): ``list_models()`` 里的名字,或 ``'vit_base'`` 这样的简写(见 ``full_name``)。
        **overrides: 覆盖模型的类(见 ``model_class``)的任何参数。

    Raises:
        UserError: 没有这个名字,没有这个参数,或它的值不合法。
    """
    check_settings(name, overrides)
    return model_class(name)(**{**model_settings(name), **overrides})


def check_settings(name: str, settings: dict) -> None:
    """不建模型,只检查设置:模型没有这个设置,或值的种类不对时抛出 ``UserError``。

    Args:
        name (str), settings (dict): 见 ``create_model``。
    """
    model = model_class(name)
    known = _settings_of(model)
    for setting, value in settings.items():
        if setting not in known:
            close = difflib.get_close_matches(setting, known, n=1)
            if close and not any(setting in _settings_of(other) for other, _ in _MODELS.values()):
                hint = f"是不是 {close[0]}?"
            else:
                hint = f"请去掉它。{model.__name__} 的设置有 {'、'.join(known)}。"
            raise UserError(f"{full_name(name)} 没有 {setting} 这个设置:{hint}")
        _check_kind(setting, value, known[setting].default)


def _settings_of(model):
    """一个类的全部参数,{名字: inspect.Parameter}。"""
    return dict(inspect.signature(model).parameters)


_MAY_BE_NONE = {"qk_scale": float, "layer_scale": float, "class_token": bool}  # 默认值是 None 的,另一种可以是什么
_PAIRS = ("image_size", "patch_size")


def _is_a(kind, value):
    """NumPy 的数也算;Python 的 ``True`` 也是整数,这里不算。"""
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_kind(setting, value, default):
    """值的种类要与默认值的相同;设置可能来自命令行或一个文件。"""
    kind = _MAY_BE_NONE.get(setting, type(default))
    if kind is int:
        values = value if isinstance(value, (list, tuple)) and setting in _PAIRS else [value]
        good, wanted = all(_is_a(numbers.Integral, item) and abs(item) < 1 << 31 for item in values), "整数"
    elif kind is float:
        good = _is_a(numbers.Real, value) and math.isfinite(value)
        wanted = "数"
    elif kind is tuple:
        good, wanted = isinstance(value, (list, tuple)), "一列整数,如 [2, 2, 6, 2]"
    else:
        good, wanted = isinstance(value, kind), {bool: "true 或 false", str: "文字"}[kind]
    if not good and not (value is None and setting in _MAY_BE_NONE):
        raise UserError(f"{setting}={reprlib.repr(value)} 不合法:应为{wanted},请改 {setting}。")


MAX_PATCHES = 1 << 16  # 一张图像最多切成多少个图块;1024 像素的图像,4 像素的图块
MAX_WINDOW = 32  # 图块


def check_size(arguments: dict, shapes: Collection[tuple[int]], source: str | Path) -> None:
    """文件里写明的模型不可能比文件里的权重还大:建模型之前检查,免得一行字就用完内存和时间。

    Args:
        arguments (dict): ``create_model`` 的全部参数,从文件里读来的。
        shapes (Collection[tuple[int]]): 文件里各个张量的形状。
        source (str | Path): 文件,写进提示。

    Raises:
        UserError: 参数的种类不对,或模型的权重比文件里的多。
    """
    model = model_class(arguments["name"])
    known = _settings_of(model)
    settings = full_settings(arguments["name"])
    settings.update({name: value for name, value in arguments.items() if name in known})
    for name, value in settings.items():
        _check_kind(name, value, known[name].default)
    image, patch = (as_pair(settings[name], name) for name in _PAIRS)
    grid = image[0] // patch[0], image[1] // patch[1]
    depths = settings["depths"] if model is SwinTransformer else [settings["depth"]]
    dim, ratio = settings["embed_dim"], settings["mlp_ratio"]
    size = settings["in_channels"] * patch[0] * patch[1] * dim  # 图块嵌入
    if settings.get("tokenizer") == "conv":
        size = settings["in_channels"] * settings["tokenizer_kernel"] ** 2 * min(dim, HIDDEN_CHANNELS)  # 第一层卷积
    for i, depth in enumerate(depths[:20]):
        check_positive(depth, "depth")
        size += depth * (4 + 2 * max(ratio, 0)) * (dim * 2**i) ** 2  # 各层的线性层;Swin 每级的维度加倍
    size += settings.get("register_tokens", 0) * dim
    size += settings["num_classes"] * (1 if settings.get("head") == "mlp" else dim)
    if (
        size > sum(map(math.prod, shapes))
        or sum(depths[:20]) > len(shapes)
        or len(depths) > 20
        or grid[0] * grid[1] > MAX_PATCHES
        or min(settings.get("window_size", 1), *grid) > MAX_WINDOW
    ):
        raise UserError(
            f"{source} 的权重与说明不符,属于另一个模型:写明的模型(embed_dim={dim},共 {sum(depths)} 层,图像 {image})"
            "比权重还大。请检查模型的设置,或换一个备份。"
        )


def count_parameters(model: nn.Layer) -> int:
    """模型的参数个数(不含缓冲区)。"""
    return sum(parameter.size for parameter in model.parameters())


def is_head(name: str) -> bool:
    """这个参数是不是分类头的(``head`` 或 ``distillation_head``);name 是 ``named_parameters()`` 里的名字。"""
    return name.startswith(("head.", "distillation_head."))
