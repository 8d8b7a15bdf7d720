"""第一次训练之前,由几个进程一起编译训练要用的内核;别的内核用到时才编译。"""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import signal
from collections.abc import Callable

from .loading import is_compiled, load_kernels

__all__ = ["CONVOLUTION", "TRAINING", "are_compiled", "compile_for_training", "signature_of"]

# 训练要用的,从编译得最慢的起,各个进程才差不多同时做完
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
CONVOLUTION = ("conv_pool_backward", "conv_pool_forward")  # 由卷积得到 token 的模型还要用的
PROCESSES = 4

# 内核的参数是什么类型,由名字看出;其余的是整数(地址和大小)
_TYPES = {
    "float64": ("beta1", "beta2", "epsilon", "most", "scale", "share"),
    "float64[::1]": ("decays", "rates"),
    "int64[::1]": ("averages", "ends", "gradients", "targets"),
    "int64[:, ::1]": ("addresses",),
}


def signature_of(kernel: Callable) -> tuple:
    """各个参数的 numba 类型。"""
    from numba.core.sigutils import normalize_signature  # 可能没有装

    kinds = {name: kind for kind, names in _TYPES.items() for name in names}
    names = inspect.signature(kernel).parameters
    return normalize_signature(f"({', '.join(kinds.get(name, 'int64') for name in names)})")[0]


def _needed(convolution):
    return (*CONVOLUTION, *TRAINING) if convolution else TRAINING


def are_compiled(convolution: bool = False) -> bool:
    """训练要用的内核在这台机器上是不是都编译过;convolution 见 ``compile_for_training``。"""
    return all(map(is_compiled, _needed(convolution)))


def _start():
    for number in (signal.SIGINT, signal.SIGTERM):  # 停就停,不打印 Python 和 Paddle 的调用栈
        signal.signal(number, signal.SIG_DFL)
    gc.disable()  # 不然每次都要走遍 Paddle 的全部对象


def _compile(name):
    kernel = getattr(load_kernels(), name)
    kernel.compile(signature_of(kernel))


def compile_for_training(cores: int, convolution: bool = False) -> None:
    """编译训练要用的内核,存在硬盘上。

    Args:
        cores (int): 可用的核数:最多开这么多个进程。
        convolution (bool): 模型由卷积得到 token(``tokenizer='conv'``),还要编译卷积的。
    """
    fork = "fork" in multiprocessing.get_all_start_methods()  # 快得多:不必再导入 Paddle
    context = multiprocessing.get_context("fork" if fork else "spawn")
    try:
        pool = context.Pool(min(cores, PROCESSES), _start)
    except OSError:  # 进程之间的锁要写 /dev/shm;写不了时,用到哪个内核再编译哪个
        return
    with pool:
        pool.map(_compile, _needed(convolution), chunksize=1)
