"""更新权重:裁剪梯度、AdamW、滑动平均。许多个 Tensor 一次做完(``kernels.updates``);用不了内核时由 Paddle 一个一个做。"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor, nn

from ..kernels.tensors import kernels_for

__all__ = ["AdamW", "clip_gradients", "move_towards"]


def _kernels(tensors):
    """编译的内核;不能用于这些 Tensor(还要连续存放)时是 ``None``。"""
    return kernels_for(*tensors) if tensors and all(t.is_contiguous() for t in tensors) else None


def _addresses(tensors):
    return np.array([tensor.data_ptr() for tensor in tensors])


def _ends(tensors):
    """前 0、1、2…… 个 Tensor 一共有几个数。"""
    return np.cumsum([0, *(math.prod(tensor.shape) for tensor in tensors)])


def clip_gradients(parameters: Sequence[Tensor], most: float) -> float:
    """全部梯度合成一个向量的长度(2-范数);超过 most 时,各个梯度原地按同样的比例缩小。

    同 ``paddle.nn.utils.clip_grad_norm_``。

    Args:
        parameters (Sequence[Tensor]): 没有梯度的跳过。
        most (float): 最长多少;``math.inf`` 只量不缩。

    Returns:
        float: 缩小之前的长度。
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    kernels = _kernels(gradients)
    if kernels is None:
        return float(nn.utils.clip_grad_norm_(parameters, most))
    return kernels.clip(_addresses(gradients), _ends(gradients), most)


def move_towards(averages: Sequence[Tensor], targets: Sequence[Tensor], share: float) -> None:
    """每个 average 原地向它的 target 走 share 那么远:``average.lerp_(target, share)``。

    Args:
        averages, targets (Sequence[Tensor]): 一一对应,形状相同。
        share (float): 0–1。
    """
    kernels = _kernels([*averages, *targets])
    if kernels is not None:
        kernels.move_towards(_addresses(averages), _addresses(targets), _ends(averages), share)
        return
    with paddle.no_grad():
        for average, target in zip(averages, targets):
            average.lerp_(target, share)


class AdamW(paddle.optimizer.AdamW):
    """``paddle.optimizer.AdamW``,参数、状态和结果都与它相同(舍入除外);CPU 上全部参数一次更新完。

    Paddle 的 ``step`` 建立一阶矩、二阶矩,再逐个参数调用 ``_append_optimize_op``,最后调用 ``_finish_update``;
    这里把前者攒起来,到后者一次做完。
    """

    def step(self) -> None:
        self._waiting: list = []
        super().step()

    def _append_optimize_op(self, block, param_and_grad):
        self._waiting.append(param_and_grad)

    def _finish_update(self, block, parameters_and_grads):
        parameters, gradients = [p for p, _ in self._waiting], [gradient for _, gradient in self._waiting]
        kernels = _kernels([*parameters, *gradients])
        if kernels is None:
            for pair in self._waiting:
                super()._append_optimize_op(block, pair)
            return
        lr, decayed = self.get_lr(), self._apply_decay_param_fun or (lambda name: True)
        rates = np.array([lr * p.optimize_attr["learning_rate"] for p in parameters])
        decays = np.array([self._weight_decay * decayed(p.name) for p in parameters])
        names = self._moment1_acc_str, self._moment2_acc_str, self._beta1_pow_acc_str, self._beta2_pow_acc_str
        states = [[self._accumulators[name][p.name] for p in parameters] for name in names]
        addresses = np.stack([_addresses(group) for group in (parameters, gradients, *states)])
        kernels.adamw(addresses, _ends(parameters), rates, decays, self._beta1, self._beta2, self._epsilon)
