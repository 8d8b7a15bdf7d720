"""参数的检查:不合法时抛出一行中文的 ``UserError``。各层和模型都用它们。"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn
from PIL import Image

from .errors import UserError

__all__ = [
    "as_pair",
    "check_choice",
    "check_count",
    "check_drop_path",
    "check_features",
    "check_flag",
    "check_heads",
    "check_images",
    "check_layer_norm",
    "check_normalization",
    "check_number",
    "check_positive",
    "check_probability",
    "check_tokens",
    "check_type",
    "check_vit",
    "conv_layers",
    "conv_stride",
    "hidden_width",
    "is_plain",
    "patch_grid",
    "per_channel",
    "settings_of",
]

_NOT_TENSORS = (np.ndarray, np.generic, Image.Image)
_FLOATS = (paddle.float32, paddle.float16, paddle.bfloat16)


def _is_positive(value):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0


def check_heads(embed_dim: int, num_heads: int) -> None:
    """头数整除嵌入维度,否则抛出 ``UserError``。"""
    check_positive(embed_dim, "embed_dim")
    check_positive(num_heads, "num_heads")
    if embed_dim % num_heads:
        raise UserError(
            f"embed_dim={embed_dim} 不能被 num_heads={num_heads} 整除:"
            "每个头分到 embed_dim / num_heads 维,请改其中一个。"
        )


def check_positive(value: Any, name: str) -> None:
    """不是正整数时抛出 ``UserError``。"""
    if not _is_positive(value):
        raise UserError(f"{name}={value!r} 不合法:应为正整数,请改 {name}。")


def check_count(value: Any, name: str) -> None:
    """不是 0 或正整数时抛出 ``UserError``。"""
    if not _is_positive(value) and (value != 0 or isinstance(value, (bool, float))):
        raise UserError(f"{name}={value!r} 不合法:应为不小于 0 的整数,请改 {name}。")


def check_choice(value: Any, name: str, known: Iterable[str]) -> None:
    """不是 known 之一时抛出 ``UserError``。"""
    if value not in tuple(known):
        raise UserError(f"{name}={value!r} 不合法:只能是 {'、'.join(known)} 之一。")


def check_number(value: Any, name: str) -> None:
    """不是正数时抛出 ``UserError``。"""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UserError(f"{name}={value!r} 不合法:应为大于 0 的数,请改 {name}。")


def check_flag(value: Any, name: str) -> None:
    """不是 ``True`` 或 ``False`` 时抛出 ``UserError``。"""
    if value is not True and value is not False:
        raise UserError(f"{name} 是 {type(value).__name__},应为 True 或 False:请检查参数的次序(这一层没有 mask)。")


def hidden_width(embed_dim: int, mlp_ratio: float) -> int:
    """多层感知机隐藏层的宽度 int(embed_dim * mlp_ratio);参数不合法时抛出 ``UserError``。"""
    check_positive(embed_dim, "embed_dim")
    check_number(mlp_ratio, "mlp_ratio")
    width = int(embed_dim * mlp_ratio)
    if width < 1:
        raise UserError(f"mlp_ratio={mlp_ratio} 太小:embed_dim={embed_dim} 时隐藏层宽度不足 1,请调大 mlp_ratio。")
    return width


def check_layer_norm(embed_dim: int, epsilon: float) -> None:
    """``LayerNorm`` 的参数不合法时抛出 ``UserError``。"""
    check_positive(embed_dim, "embed_dim")
    if not isinstance(epsilon, (int, float, np.number)) or not 0 < epsilon <= 1e-3:
        raise UserError(f"epsilon={epsilon!r} 不合法:应大于 0,不超过 0.001(Paddle 的 layer_norm 只接受这么大)。")


def as_pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """把 ``size`` 或 ``(高, 宽)`` 统一成 ``(高, 宽)``,单位像素;不是正整数时抛出 ``UserError``。"""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(_is_positive(v) for v in pair):
        raise UserError(f"{name}={value!r} 不合法:应为正整数或 (高, 宽) 两个正整数,请改 {name}。")
    return pair


def patch_grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """图块网格的 (行数, 列数);两个参数都是 (高, 宽),像素;图块不能整除图像时抛出 ``UserError``。"""
    if any(image % patch for image, patch in zip(image_size, patch_size)):
        raise UserError(
            f"patch_size={patch_size} 不能整除 image_size={image_size}:图像的高和宽都要是图块的整数倍,请改其中一个。"
        )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def conv_stride(kernel_size: int) -> int:
    """``ConvTokenizer`` 里卷积的步长,像素,同 CCT 作者的代码:卷积核 3 是 1,7 是 2。一层连同池化缩小它的 2 倍。"""
    return max(1, kernel_size // 2 - 1)


def conv_layers(image_size: tuple[int, int], patch_size: tuple[int, int], kernel_size: int) -> tuple[int, int]:
    """``ConvTokenizer`` 的 (层数, 每层卷积的步长);参数不合法时抛出 ``UserError``。

    Args:
        image_size, patch_size ((int, int)): (高, 宽),像素。
        kernel_size (int): 卷积核边长,像素。
    """
    if not _is_positive(kernel_size) or kernel_size < 3 or kernel_size % 2 == 0:
        raise UserError(f"tokenizer_kernel={kernel_size!r} 不合法:卷积核边长应为不小于 3 的奇数,如 3 或 7。")
    stride = conv_stride(kernel_size)
    sizes = [(2 * stride) ** layers for layers in range(1, 32)]  # 一层之后缩小 2 * stride 倍:卷积和池化各缩小一次
    possible = [size for size in sizes if all(side % size == 0 for side in image_size)]
    if patch_size[0] != patch_size[1] or patch_size[0] not in possible:
        hint = "、".join(map(str, possible)) or "一个也没有,请改图像的大小"
        raise UserError(
            f"patch_size={patch_size} 不能用于 tokenizer='conv':卷积核是 {kernel_size}、图像是 {image_size} 时,"
            f"可用的是 {hint}。"
        )
    return possible.index(patch_size[0]) + 1, stride


def check_probability(value: float, name: str) -> None:
    """不是 0 到 1 的概率时抛出 ``UserError``。"""
    if not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
        raise UserError(f"{name}={value!r} 不合法:应为 0 到 1 的概率,请改 {name}。")


def check_drop_path(value: float) -> None:
    """随机深度的概率不在 [0, 1) 内时抛出 ``UserError``。"""
    if not isinstance(value, (int, float, np.number)) or not 0 <= value < 1:
        raise UserError(f"drop_path={value!r} 不合法:丢弃概率应满足 0 <= drop_path < 1。")


def check_type(x: Any, weight: paddle.Tensor, what: str) -> None:
    """不是 Tensor,或数值类型与权重不能一起算时抛出 ``UserError``;混合精度里两者可以不同。"""
    if isinstance(x, tuple) and len(x) == 2:
        raise UserError(f"{what}是两样东西的 tuple,应为 Tensor:Attention 返回 (z, attn_weights),往下传的是 z。")
    if isinstance(x, _NOT_TENSORS) or not hasattr(x, "dtype"):
        raise UserError(f"{what}是 {type(x).__name__},应为 Tensor:请先用 paddle.to_tensor(…, 'float32')。")
    if x.dtype != weight.dtype and x.dtype not in _FLOATS:
        given, wanted = (str(kind).split(".")[-1] for kind in (x.dtype, weight.dtype))
        raise UserError(f"{what}的数值类型是 {given},应为 {wanted}:请用 x.astype('{wanted}')(uint8 的像素先除以 255)。")


def check_images(x: paddle.Tensor, weight: paddle.Tensor, in_channels: int, image_size: tuple[int, int]) -> None:
    """输入不是形状 [B, in_channels, 高, 宽]、与 weight 类型相配的 Tensor 时抛出 ``UserError``。"""
    check_type(x, weight, "输入图像")
    if len(x.shape) != 4 or tuple(x.shape[1:]) != (in_channels, *image_size):
        if len(x.shape) == 4 and tuple(x.shape[1:]) == (*image_size, in_channels):
            raise UserError(f"输入图像的形状是 {list(x.shape)},通道应在第二轴:请先用 x.transpose([0, 3, 1, 2])。")
        raise UserError(
            f"输入图像的形状是 {list(x.shape)},应为 [B, {in_channels}, {image_size[0]}, {image_size[1]}];"
            "请缩放图像,或建模型时改 image_size / in_channels;一张图像先用 x.unsqueeze(0) 变成一批。"
        )


def check_features(x: paddle.Tensor, weight: paddle.Tensor, embed_dim: int) -> None:
    """输入不是最后一轴长 embed_dim、与 weight 类型相配的 Tensor 时抛出 ``UserError``。"""
    check_type(x, weight, "输入")
    if x.shape[-1] != embed_dim:
        raise UserError(f"输入的形状是 {list(x.shape)},最后一轴应为 {embed_dim}:请改 embed_dim,或检查输入。")


def check_tokens(x: paddle.Tensor, weight: paddle.Tensor, embed_dim: int, name: str = "输入") -> None:
    """输入不是形状 [B, N, embed_dim]、与 weight 类型相配的 Tensor 时抛出 ``UserError``。"""
    check_type(x, weight, name)
    if len(x.shape) != 3 or x.shape[-1] != embed_dim:
        raise UserError(
            f"{name}的形状是 {list(x.shape)},应为 [B, N, {embed_dim}](一批、token 数、嵌入维度):"
            "[N, D] 请先用 x.unsqueeze(0) 变成一批;嵌入维度不同请改 embed_dim。"
        )


def is_plain(*parts: tuple[nn.Layer, type]) -> bool:
    """各层都没有换成别的类,也没有装钩子(hook):可以不逐层调用,一起算。

    Args:
        *parts (tuple): (层, 它原来的类)。
    """
    return all(type(x) is kind and not (x._forward_pre_hooks or x._forward_post_hooks) for x, kind in parts)


def check_normalization(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """像素(0–1)的均值和标准差不是每个通道一个合法的数时抛出 ``UserError``。"""
    for name, values in (("mean", mean), ("std", std)):
        if values is None or isinstance(values, (int, float)) or len(values) != channels:
            given = values if values is None or isinstance(values, (int, float)) else list(values)
            raise UserError(f"{name}={given} 不合法:图像有 {channels} 个通道,mean 和 std 都要每个通道一个数,请改正。")
        if not all(math.isfinite(value) for value in values) or (name == "std" and min(values) <= 0):
            raise UserError(f"{name}={list(values)} 不合法:均值应是数,标准差应大于 0,请改正。")
        if max(map(abs, values)) > 2:
            raise UserError(f"{name}={list(values)} 太大:像素是按 0–1 算的,按 0–255 得到的请除以 255。")


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """每个通道一个数;只给一个就是各通道相同。个数对不对由 ``check_normalization`` 检查。"""
    return tuple(map(float, values)) * (channels if len(values) == 1 else 1)


def settings_of(arguments: dict) -> dict:
    """构造函数的全部参数(字典),在它的开头用 ``settings_of(locals())`` 得到;读回、导出模型时都看它。"""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


def check_vit(settings: dict) -> None:
    """``ViT`` 的设置不合法,或几个设置互相矛盾时,抛出 ``UserError``。

    Args:
        settings (dict): 构造函数的全部参数。
    """
    choices = {"pool": ("avg", "cls", "seq"), "position_embedding": ("none", "learnable", "sincos", "sincos1d")}
    for name, known in {**choices, "head": ("linear", "mlp"), "tokenizer": ("patch", "conv")}.items():
        check_choice(settings[name], name, known)
    check_drop_path(settings["drop_path"])
    pool, class_token, registers = (settings[name] for name in ("pool", "class_token", "register_tokens"))
    check_positive(settings["depth"], "depth")
    check_count(settings["num_classes"], "num_classes")
    if pool == "cls" and class_token is not None and not class_token:
        raise UserError("pool='cls' 要取 class token,而 class_token=False:请用 pool='avg',或去掉 class_token。")
    if settings["distillation_token"] and pool != "cls":
        raise UserError(f"distillation_token=True 要与 class token 一起用,而 pool={pool!r}:请改用 pool='cls'。")
    check_count(registers, "register_tokens")
    if settings["tokenizer"] == "patch" and settings["tokenizer_kernel"] != 3:
        raise UserError("tokenizer_kernel 是 tokenizer='conv' 的卷积核,而 tokenizer='patch':请改 tokenizer,或去掉它。")
