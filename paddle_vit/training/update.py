"""更新权重:裁剪梯度、AdamW、Muon、滑动平均。

许多个 Tensor 一次做完(``kernels.updates``);用不了内核时由 Paddle 一个一个做。
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import paddle
from paddle import Tensor, nn

from ..kernels.tensors import kernels_for

__all__ = ["AdamW", "Muon", "clip_gradients", "move_towards", "orthogonal"]


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


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """与 matrix 方向相同的正交矩阵,近似:奇异向量不变,奇异值都变成 1 左右(0.7–1.2)。

    牛顿-舒尔茨迭代(Newton-Schulz):X <- a X + (b A + c A^2) X,A = X X^T,每个奇异值 s 变成 a s + b s^3 + c s^5,
    只用矩阵乘法。三个系数让小的奇异值几步就长到 1 附近。来源:Muon(arXiv 2502.16982 式 (2)、(3))。

    Args:
        matrix (Tensor): [m, n]。
        steps (int): 迭代几步。
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T  # [m, n],m <= n
    x = x / (x.norm() + 1e-7)  # 奇异值都不超过 1
    for _ in range(steps):
        A = paddle.matmul(x, x, transpose_y=True)  # [m, m]
        x = a * x + paddle.matmul(b * A + c * paddle.matmul(A, A), x)  # [m, n]
    return x if wide else x.T


class Muon(AdamW):
    """编码器里的矩阵用 Muon(arXiv 2502.16982),其余的参数用 AdamW;状态与 AdamW 的放在同样的地方。

    动量 m <- 0.95 m + g,朝 g + 0.95 m(Nesterov)正交化之后的方向走,每个方向上走得一样远;
    步长乘 0.2 sqrt(max(m, n)),大小与 AdamW 的相近,所以学习率和权重衰减通用。

    Args:
        matrices (dict): 用 Muon 的参数:名字(``parameter.name``)-> 沿最后一轴分成几个矩阵各自正交化
            (合在一起的 q、k、v 是 3)。
        momentum (float): 动量,0–1。
        **others: ``AdamW`` 的参数。
    """

    def __init__(self, matrices: dict[str, int], momentum: float = 0.95, **others):
        self._matrices, self._momentum = matrices, momentum
        super().__init__(**others)

    def _finish_update(self, block, parameters_and_grads):
        for parameter, gradient in self._waiting:
            if parameter.name in self._matrices:
                self._move(parameter, gradient)
        self._waiting = [pair for pair in self._waiting if pair[0].name not in self._matrices]
        super()._finish_update(block, parameters_and_grads)

    @paddle.no_grad()
    def _move(self, parameter, gradient):
        rate = self.get_lr() * parameter.optimize_attr["learning_rate"]
        average = self._accumulators[self._moment1_acc_str][parameter.name]
        average.scale_(self._momentum).add_(gradient)
        change = gradient + self._momentum * average
        parts = change.reshape([change.shape[0], -1]).split(self._matrices[parameter.name], axis=-1)
        steps = [orthogonal(part) * (0.2 * max(part.shape) ** 0.5) for part in parts]
        parameter.scale_(1 - rate * self._weight_decay)
        parameter.subtract_(rate * paddle.concat(steps, axis=-1).reshape(parameter.shape))
