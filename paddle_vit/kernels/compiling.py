"""第一次训练之前,由几个进程一起编译训练要用的内核;别的内核用到时才编译。"""

from __future__ import annotations

import inspect
import multiprocessing
import signal
from collections.abc import Callable

from .loading import are_compiled, load_kernels

__all__ = ["TRAINING", "compile_for_training", "signature_of"]

# 训练要用的,从编译得最慢的起:依次发给各个进程,快慢才均匀
TRAINING = (
    "mlp_backward",
    "attention_backward",
    "adamw",
    "clip",
    "mlp_forward",
    "attention_forward",
    "linear_backward",
    "layer_norm_backward",
    "layer_norm_forward",
    "move_towards",
    "mean_tokens_forward",
    "linear_forward",
    "cut_patches",
    "add_to_each",
    "mean_tokens_backward",
    "sum_rows",
)
PROCESSES = 4

# 内核的参数是什么类型,由名字看出;其余的是整数(地址和大小)
_TYPES = {
    "float64": ("beta1", "beta2", "epsilon", "most", "scale", "share"),
    "float64[::1]": ("decays", "rates"),
    "int64[::1]": ("averages", "ends", "gradients", "targets"),
    "int64[:, ::1]": ("addresses",),
}


def signature_of(kernel: Callable) -> str:
    """numba 的写法的参数类型,如 ``'(int64, float64)'``。"""
    kinds = {name: kind for kind, names in _TYPES.items() for name in names}
    return f"({', '.join(kinds.get(name, 'int64') for name in inspect.signature(kernel).parameters)})"


def _compile(names):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in names:
        kernel = getattr(load_kernels(), name)
        kernel.compile(signature_of(kernel))


def compile_for_training(cores: int) -> None:
    """编译训练要用的内核,存在硬盘上;已经编译过的话什么也不做。

    Args:
        cores (int): 可用的核数:最多开这么多个进程。
    """
    if are_compiled():
        return
    fork = "fork" in multiprocessing.get_all_start_methods()  # 快得多:不必再导入 Paddle
    context = multiprocessing.get_context("fork" if fork else "spawn")
    count = min(cores, PROCESSES)
    children = [context.Process(target=_compile, args=(TRAINING[i::count],), daemon=True) for i in range(count)]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join()
    finally:
        for child in children:
            child.terminate()
