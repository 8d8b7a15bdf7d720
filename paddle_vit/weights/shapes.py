"""由张量的名字和形状看得出的事实:尺寸、类别数、图像大小,像哪个命名的模型。

``shapes`` 是文件里的 {名字: 形状},``table`` 是换名表。
"""

from __future__ import annotations

from ..checks import conv_stride
from ..family.models import list_models, model_settings

__all__ = [
    "candidates",
    "find_shape",
    "heads_of_flax",
    "image_size_of",
    "in_channels_of",
    "num_classes_of",
    "pool_of_norm",
    "sizes_of",
]


def find_shape(table, shapes, ours):
    """我们的一个张量在文件里的形状;没有时是 ``None``。"""
    for option in table.sources(ours):
        if option[0] in shapes:
            return shapes[option[0]]
    return None


def heads_of_flax(table, shapes):
    """Flax 的 query/kernel 是 [D, h, d],看得出头数。"""
    shape = find_shape(table, shapes, "encoders.0.attn.qkv.weight")
    return shape[1] if table.layout == "flax" and shape is not None and len(shape) == 3 else None


def pool_of_norm(table, shapes):
    """timm 的 fc_norm 在平均之后;没有写明汇聚方式的,有它就是取平均。"""
    if table.family == "vit" and any(name.startswith(("attn_pool.", "MAPHead_0/", "head.probe")) for name in shapes):
        return "map"  # 注意力汇聚,我们没有
    averaged = table.family == "vit" and find_shape(table, shapes, "pool_norm.weight") is not None
    return "avg" if averaged else None


def num_classes_of(table, shapes):
    shape = find_shape(table, shapes, "head.bias")
    return None if shape is None or len(shape) != 1 else shape[0]


def _patch_kernel(table, shapes):
    """图块嵌入的卷积核的形状;由几层卷积得到 token 的,换成同样大小的图块的 [D, C, P, P]。"""
    kernels = []
    while (kernel := find_shape(table, shapes, f"patch_embed.convolutions.{len(kernels)}.weight")) is not None:
        kernels.append(kernel)
    if not kernels or any(len(kernel) != 4 for kernel in kernels):
        return find_shape(table, shapes, "patch_embed.patch_embedding.weight")
    side = (2 * conv_stride(kernels[0][-1])) ** len(kernels)
    return kernels[-1][0], kernels[0][1], side, side


def in_channels_of(table, shapes):
    kernel = _patch_kernel(table, shapes)
    return None if kernel is None or len(kernel) != 4 else kernel[2 if table.layout == "flax" else 1]


def image_size_of(table, shapes):
    """由位置编码的行数和图块边长推出正方形图像的边长。"""
    kernel = _patch_kernel(table, shapes)
    positions = find_shape(table, shapes, "position_embedding")
    if positions is None or kernel is None or len(kernel) != 4 or len(positions) < 2:
        return None
    patch = kernel[:2] if table.layout == "flax" else kernel[2:]
    prefix = sum(find_shape(table, shapes, name) is not None for name in ("class_token", "distillation_token"))
    for count in (prefix, 0):
        side = int(max(positions[-2] - count, 0) ** 0.5 + 0.5)
        if side and side * side == positions[-2] - count:
            return side * patch[0], side * patch[1]
    return None


def sizes_of(table, shapes):
    """由张量的形状看得出的几个数(字典),看不出的不在里面;与 config.json 里的比。"""
    sizes = {"num_classes": num_classes_of(table, shapes), "in_channels": in_channels_of(table, shapes)}
    kernel = _patch_kernel(table, shapes)
    if kernel is not None and len(kernel) == 4:
        kernel = kernel if table.layout != "flax" else (kernel[3], kernel[2], *kernel[:2])
        sizes.update(embed_dim=kernel[0], patch_size=tuple(kernel[2:]))
    depths = [_depth(table, shapes, f"stages.{i}.blocks") for i in range(20)]
    sizes["depths"] = [depth for depth in depths if depth] or None
    sizes["depth"] = _depth(table, shapes, "encoders") or None
    bias_table = find_shape(table, shapes, "stages.0.blocks.0.attn.relative_position_bias_table")
    sizes["window_size"] = None if bias_table is None else (int(bias_table[0] ** 0.5) + 1) // 2
    return {name: value for name, value in sizes.items() if value is not None}


def _depth(table, shapes, stage):
    """文件里这一级有几层。"""
    depth = 0
    while find_shape(table, shapes, f"{stage}.{depth}.attn_norm.weight") is not None:
        depth += 1
    return depth


def candidates(table, shapes):
    """尺寸与文件相同的命名模型;图像大小也相同的在前。"""
    sizes = {name: size for name, size in sizes_of(table, shapes).items() if name not in ("num_classes", "in_channels")}
    if not {"embed_dim", "patch_size"} <= sizes.keys():
        return ()
    distilled, with_class = (
        find_shape(table, shapes, f"{name}_token") is not None for name in ("distillation", "class")
    )
    convolution = find_shape(table, shapes, "patch_embed.convolutions.0.weight")
    sizes["tokenizer_kernel"] = None if convolution is None else convolution[-1]
    names = []
    for name in list_models():
        settings = model_settings(name)
        patch = settings.get("patch_size")
        settings = {**settings, "patch_size": (patch, patch), "depths": list(settings.get("depths", ()))}
        kind = settings.get("distillation_token", False), settings.get("pool") == "cls"
        if kind == (distilled, with_class) and all(settings.get(key) == size for key, size in sizes.items()):
            names.append(name)
    image = (image_size_of(table, shapes) or [None])[0]
    return tuple(sorted(names, key=lambda name: model_settings(name)["image_size"] != image))
