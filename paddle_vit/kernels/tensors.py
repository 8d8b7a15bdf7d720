"""把 Paddle 的 Tensor 交给内核:能不能用,数据在哪里,几行几列。"""

from __future__ import annotations

import math
import types

import paddle
from paddle import Tensor, _C_ops
from paddle.base.dygraph.base import in_sot_simulation_mode

from .loading import load_kernels

__all__ = ["address", "dense", "empty", "empty_like", "kernels_for", "rows"]

_CPU = paddle.CPUPlace()


def kernels_for(*tensors: Tensor) -> types.SimpleNamespace | None:
    """编译的内核;不是「动态图 + CPU + float32」、没有数据、或用不了内核时是 ``None``。"""
    if not paddle.in_dynamic_mode() or in_sot_simulation_mode() or 0 in tensors[0].shape:  # SOT 是 to_static 的一种
        return None
    float32 = paddle.float32
    for x in tensors:
        if x.dtype is not float32 or not x.place.is_cpu_place():  # 每种类型只有一个对象;== 慢四倍
            return None
    return load_kernels()


def empty(shape: list[int]) -> Tensor:
    """还没有填的 float32 Tensor,在 CPU 上;``paddle.empty`` 的检查比分配内存还慢两倍,一步要几百次。"""
    return _C_ops.empty(shape, paddle.float32, _CPU)


def empty_like(x: Tensor) -> Tensor:
    """与 x 同形状的、还没有填的 float32 Tensor。"""
    return empty(x.shape)


def dense(x: Tensor) -> Tensor:
    """数据连续、按行存放的 x(``None`` 照旧):内核按地址读,不认得别的放法。"""
    return x if x is None or x.is_contiguous() else x.contiguous()


def address(x: Tensor | None) -> int:
    """数据的地址;``None`` 是 0。"""
    return 0 if x is None else x.data_ptr()


def rows(x: Tensor) -> tuple[int, int]:
    """把 [..., D] 看作 [M, D]:(M, D)。"""
    return math.prod(x.shape[:-1]), x.shape[-1]
