"""优化:学习率、权重衰减、哪些参数训练、优化器、权重的滑动平均。"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Iterable, Iterator

import paddle
from paddle import nn

from ..config import Config
from ..family.models import is_head
from .update import AdamW, Muon, move_towards

__all__ = [
    "Ema",
    "choose_trained",
    "is_decayed",
    "layers_of",
    "learning_rate",
    "learning_rate_scales",
    "make_optimizer",
]


def learning_rate(
    step: int, config: Config, steps_per_epoch: int, first_step: int = 0, total_steps: int | None = None
) -> float:
    """第 step 步(从 0 起)的学习率:线性预热到 lr,再余弦退火(arXiv 1608.03983)到 min_lr。

    Args:
        first_step (int): 接着训练的运行从这一步起重新预热到 lr、再退火。
        total_steps (int | None): 在这一步退火到底;``None`` 是训练满 epochs 轮。
    """
    step, total = step - first_step, (total_steps or config.epochs * steps_per_epoch) - first_step
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


# 不是矩阵的多维参数
_NOT_DECAYED = {"class_token", "distillation_token", "register_tokens", "position_embedding"}
_NOT_DECAYED |= {"relative_position_bias_table"}


def is_decayed(name: str, parameter: paddle.Tensor) -> bool:
    """权重衰减只用于矩阵和卷积核:偏置、归一化层(都是一维)、各种 token、位置编码和 Swin 的偏置表不衰减。"""
    return parameter.ndim > 1 and name.split(".")[-1] not in _NOT_DECAYED


_BLOCK = r"encoders\.\d+\.|stages\.\d+\.blocks\.\d+\."  # 一层的参数,名字这样开头


def layers_of(names: Iterable[str]) -> dict[str, int]:
    """每个参数在第几层(字典):图块嵌入、token 和位置编码是 0,第 i 个编码器是 i,最后的归一化、汇聚和头是 L + 1。

    Swin 的块(block)从第一级数到最后一级;一级末尾的图块合并与它前面的块同层。

    Args:
        names (Iterable[str]): 模型的参数名,按 ``named_parameters()`` 的次序(从输入到输出)。
    """
    layers, blocks = {}, []
    for name in names:
        block = re.match(_BLOCK, name)
        if block is not None and block[0] not in blocks:
            blocks.append(block[0])
        layers[name] = len(blocks)
    top = {name for name in layers if is_head(name) or name.startswith(("norm.", "pool_norm.", "sequence_pool."))}
    return {name: len(blocks) + 1 if name in top else layer for name, layer in layers.items()}


def learning_rate_scales(model: nn.Layer, layer_decay: float) -> dict[str, float]:
    """每个参数的学习率要乘的数(字典):第 l 层是 layer_decay ** (L + 1 - l),L 是编码器的层数。

    越靠近输入的层学到的越通用,微调时动得越少越好。来源:ELECTRA(arXiv 2003.10555)、BEiT(arXiv 2106.08254)。
    """
    layers = layers_of(name for name, _ in model.named_parameters())
    return {name: layer_decay ** (max(layers.values()) - layer) for name, layer in layers.items()}


_HIDDEN = rf"{_BLOCK}|patch_embed\.convolutions\.[1-9]"  # 输入和输出都是特征的参数


def _orthogonalized(model):
    """Muon 用于哪些参数(字典,见 ``Muon``):编码器里的矩阵,和第一层以外的卷积核;图块嵌入、头、位置编码等不用。"""
    found = {}
    for name, parameter in model.named_parameters():
        if re.match(_HIDDEN, name) and is_decayed(name, parameter):
            found[parameter.name] = 3 if name.endswith(".qkv.weight") else 1
    return found


def make_optimizer(model: nn.Layer, config: Config) -> AdamW:
    """AdamW(arXiv 1711.05101)或 Muon;学习率由训练循环每步设置,逐层衰减时每个参数再乘自己的那个数(权重衰减也跟着乘)。"""
    decayed = {parameter.name for name, parameter in model.named_parameters() if is_decayed(name, parameter)}
    scales = learning_rate_scales(model, config.layer_decay)
    for name, parameter in model.named_parameters():
        parameter.optimize_attr["learning_rate"] = scales[name]
    kind = AdamW if config.optimizer == "adamw" else functools.partial(Muon, _orthogonalized(model))
    return kind(
        learning_rate=config.lr,
        beta2=config.beta2,
        parameters=model.parameters(),
        weight_decay=config.weight_decay,
        apply_decay_param_fun=lambda name: name in decayed,
    )


def choose_trained(model: nn.Layer, train_only: str) -> list[paddle.Tensor]:
    """选出要训练的参数,其余冻结:不求梯度,优化器也不动它们;调用者自己冻结的照旧。

    Args:
        model (nn.Layer): 模型。
        train_only (str): ``'all'`` 全部没有冻结的;``'head'`` 只有分类头(有蒸馏头时也算)。

    Returns:
        list[paddle.Tensor]: 要训练的参数。
    """
    for name, parameter in model.named_parameters():
        if train_only == "head" and not is_head(name):
            parameter.stop_gradient = True
    return [parameter for parameter in model.parameters() if not parameter.stop_gradient]


class Ema:
    """权重的指数滑动平均(Exponential Moving Average):average = decay * average + (1 - decay) * weight。

    开头几步用较小的系数 (1 + n) / (10 + n),免得随机的初值留得太久。

    Args:
        model (nn.Layer): 被平均的模型。
        decay (float): 系数,0–1;0 表示不平均,平均值就是当前权重。
    """

    def __init__(self, model: nn.Layer, decay: float):
        self.decay, self.updates = decay, 0
        self.parameters = dict(model.named_parameters())
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()} if decay else {}

    def update(self) -> None:
        """每次更新权重之后调用。"""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self.averages:
            move_towards(list(self.averages.values()), [self.parameters[name] for name in self.averages], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """在 with 里,模型用的是平均后的权重。"""
        saved = {name: self.parameters[name].detach().clone() for name in self.averages}
        for name, average in self.averages.items():
            self.parameters[name].set_value(average)
        try:
            yield
        finally:
            for name, value in saved.items():
                self.parameters[name].set_value(value)
