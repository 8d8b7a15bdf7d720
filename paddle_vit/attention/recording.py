"""记录注意力权重:钩子在旁边看,``forward`` 照旧走不算权重的快路径。

数组都是 NumPy float32。除了通用的字母,L 是层数;权重的 N 是全部 token 数,图块排在最后,前面是
class token、蒸馏 token 和寄存器 token(共 ``model.num_prefix_tokens`` 个,可以没有)。
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError
from ..family.swin import WindowAttention
from ..layers import Attention

__all__ = [
    "attention_weights",
    "borrowed_gradients",
    "can_show_attention",
    "check_no_windows",
    "evaluating",
    "has_windows",
    "record_attention",
]


def has_windows(model: nn.Layer) -> bool:
    """模型的注意力是不是在小窗口里(Swin):那样就没有全部 token 之间的权重,也就没有注意力图。"""
    return any(isinstance(layer, WindowAttention) for layer in model.sublayers(include_self=True))


def can_show_attention(model: nn.Layer) -> bool:
    """能不能画整张图像的注意力图:模型里有 ``Attention``,不在窗口里,也有图块嵌入。"""
    has_attention = any(isinstance(layer, Attention) for layer in model.sublayers())
    return has_attention and hasattr(model, "patch_embed") and not has_windows(model)


def check_no_windows(model: nn.Layer) -> None:
    """模型的注意力在窗口里时抛出 ``UserError``。"""
    if has_windows(model):
        raise UserError(f"{type(model).__name__} 的注意力在小窗口里,画不成整张图像的注意力图:请换成 ViT 或 DeiT。")


@contextlib.contextmanager
def record_attention(model: nn.Layer) -> Iterator[list]:
    """在 with 里记录每一层的注意力权重;离开以后模型照旧走不算权重的快路径。

    做法是钩子(forward hook):每个 ``Attention`` 算完,用同样的输入再算一遍并要权重,用这一遍的输出代替原来的,
    所以权重在计算图里。要权重的梯度,用 ``weights.retain_grads()`` 和 ``backward()``;CPU 上 ``paddle.grad``
    不能穿过本项目的快速算子。有随机失活的模型请先 ``model.eval()``,不然记录会多用一次随机数。

    Args:
        model (nn.Layer): 含有 ``Attention`` 的模型。

    Yields:
        list[Tensor]: 每次前向之后是 L 个 [B, h, N, N],从第一层到最后一层。

    Raises:
        UserError: 模型里没有 ``Attention``,或它是 Swin。
    """
    check_no_windows(model)
    layers = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, Attention)]
    if not layers:
        raise UserError(f"{type(model).__name__} 里没有 Attention 层:请给 ViT 或含有 Attention 的模型。")
    recorded: list[paddle.Tensor] = []

    def start(layer, inputs):
        recorded.clear()

    def record(layer, inputs, output):
        z, attn_weights = layer.forward(inputs[0], need_weights=True)
        recorded.append(attn_weights)
        return z, attn_weights

    hooks = [model.register_forward_pre_hook(start), *(layer.register_forward_post_hook(record) for layer in layers)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def evaluating(model: nn.Layer) -> Iterator[None]:
    """在 with 里模型处于评估状态;离开时各层还原。"""
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextlib.contextmanager
def borrowed_gradients(model: nn.Layer) -> Iterator[None]:
    """在 with 里所有参数都求梯度;离开时梯度和冻结与否还原。

    冻结着不行:Paddle 3.3.1 在 CPU 上,LayerNorm 的 weight 不求梯度时,对输入的梯度也会漏乘 weight。
    """
    saved = [(p, p.stop_gradient, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    for parameter, _, _ in saved:
        parameter.stop_gradient = False
    try:
        yield
    finally:
        for parameter, stop_gradient, grad in saved:
            parameter.clear_gradient(set_to_zero=False)
            if grad is not None:
                parameter.grad = grad
            parameter.stop_gradient = stop_gradient


def attention_weights(model: nn.Layer, images: np.ndarray | paddle.Tensor) -> np.ndarray:
    """各层各头的注意力权重,每行之和为 1。

    Args:
        model (nn.Layer): ``ViT``;按评估状态计算,之后恢复原来的状态。
        images (ndarray | Tensor): float32,[B, C, H, W],已归一化。

    Returns:
        ndarray: [L, B, h, N, N]。

    Raises:
        UserError: 模型里没有 ``Attention``,或图像的形状与模型不符。
    """
    with evaluating(model), paddle.no_grad(), record_attention(model) as weights:
        model(paddle.to_tensor(images))
    return np.stack([layer.astype("float32").numpy() for layer in weights])
