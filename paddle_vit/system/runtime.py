"""设备、线程、CPU 调优和随机种子。只有脚本和笔记本调用这里的函数,导入本身什么也不改。"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import random
from typing import Any

import numpy as np
import paddle

from ..errors import UserError
from .library import hide_info_lines, paddle_library
from .processes import join_processes, local_processes, usable_cores

__all__ = [
    "autocast",
    "autocast_dtype",
    "cpu_name",
    "describe_machine",
    "describe_runtime",
    "pick_device",
    "seed_everything",
    "seed_step",
    "setup_runtime",
    "vector_instructions",
]


@functools.cache
def _cpu():
    """/proc/cpuinfo 里第一个核的各项(字典);没有这个文件(macOS、Windows)时是空的。"""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            pairs = [line.partition(":") for line in file.read().partition("\n\n")[0].splitlines()]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_flags():
    """(厂商, 指令集标志);不知道时是 ("", 空集)。"""
    return _cpu().get("vendor_id", ""), set(_cpu().get("flags", "").split())


def cpu_name() -> str:
    """CPU 的型号,如 ``'AMD EPYC'``;不知道时是架构的名字。"""
    return _cpu().get("model name") or platform.processor() or platform.machine()


def has_bfloat16():
    """CPU 有没有 bfloat16 的矩阵乘指令(avx512_bf16 或 amx_bf16)。"""
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags()[1])


def vector_instructions() -> str:
    """CPU 最宽的几种向量指令,例如 ``'AVX-512、BF16'``;不知道时是空的。"""
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "BF16", "amx_tile": "AMX"}
    found = [name for flag, name in names.items() if flag in _cpu_flags()[1]]
    return "、".join(found[1:] if "AVX-512" in found else found)


def _omp_threads_of_user():
    """使用者启动 Python 时给的 OMP_NUM_THREADS;没给是 None。

    Paddle 在导入时会自己把这个变量设成 1,所以要看进程启动时的环境;1 也可能是从另一个导入过 Paddle 的进程
    (笔记本、launch)继承来的,当作没给。要单线程请用 ``setup_runtime(threads=1)``。
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            environ = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
    except OSError:
        return None
    value = environ.get(b"OMP_NUM_THREADS", b"").decode()
    return int(value) if value.isdigit() and int(value) > 1 else None


def _set_threads(threads):
    """OMP_NUM_THREADS 在导入 Paddle 时已经读过,之后只能调它自带的 OpenMP 库。"""
    library = paddle_library("libs", "libiomp5.so")
    if library is None:
        return None, "这个系统的 Paddle 不带 libiomp5.so,请在启动前设 OMP_NUM_THREADS"
    library.omp_set_num_threads(threads)
    return threads, None


def _set_mkl_path():
    """Paddle 自带的 MKL 2019 在 AMD 上走慢路径;第一次矩阵乘之前设这个变量能换成快的。"""
    if "MKL_DEBUG_CPU_TYPE" in os.environ:
        return os.environ["MKL_DEBUG_CPU_TYPE"], None
    vendor, flags = _cpu_flags()
    if platform.machine() not in ("x86_64", "AMD64") or not paddle.base.core.is_compiled_with_mkldnn():
        return None, "不是 x86-64 的 CPU,不用 MKL"
    if not vendor:
        return None, "看不到 CPU 的型号"
    if vendor != "AuthenticAMD":
        return None, "不是 AMD 的 CPU,MKL 自己会选对"
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        value = "7"  # AVX-512
    elif {"avx2", "fma"} <= flags:
        value = "5"  # AVX2
    else:
        return None, "CPU 没有 AVX2"
    os.environ["MKL_DEBUG_CPU_TYPE"] = value
    return value, None


def _keep_malloc_pages():
    """让 glibc 不把大块内存还给系统,省去每一步重新缺页。"""
    if any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ):
        return None, "使用者自己设了 MALLOC_ 变量"
    if platform.libc_ver()[0] != "glibc":
        return None, "不是 glibc"
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    results = [
        libc.mallopt(m_mmap_max, 0),
        libc.mallopt(m_trim_threshold, 2**31 - 1),
        libc.mallopt(m_top_pad, 64 << 20),
    ]
    return (True, None) if all(results) else (None, "mallopt 不成功")


def _set_stride_kernel():
    """关掉 stride kernel:它让 transpose 之后的每个运算都先用很慢的办法复制一遍。"""
    if "FLAGS_use_stride_kernel" not in os.environ:
        paddle.set_flags({"FLAGS_use_stride_kernel": False})
    return paddle.get_flags("FLAGS_use_stride_kernel")["FLAGS_use_stride_kernel"]


def pick_device(device: str) -> str:
    """把 ``'auto'`` 换成 ``'gpu'``(有就用)或 ``'cpu'``。

    Raises:
        UserError: 要求 GPU 而没有 GPU,或设备名不合法。
    """
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if device == "auto":
        device = "gpu" if gpus else "cpu"
    if device == "gpu" and not gpus:
        reason = "没有找到可用的 GPU" if paddle.is_compiled_with_cuda() else "安装的 Paddle 是 CPU 版"
        raise UserError(f"--device gpu:{reason};请改用 --device cpu(或 auto),或按 README 安装 GPU 版 Paddle。")
    if device not in ("cpu", "gpu"):
        raise UserError(f"--device {device!r} 不合法:只能是 auto、cpu 或 gpu。")
    return device


def setup_runtime(device: str = "auto", threads: int | None = None) -> dict:
    """选设备,让 Paddle 在 CPU 上用足机器,并加入所在的一组训练进程。脚本和笔记本在做第一次计算之前调用一次。

    数值结果只有 float32 舍入上的差别。使用者自己设过的环境变量(``OMP_NUM_THREADS``、``MKL_DEBUG_CPU_TYPE``、
    ``MALLOC_*_``、``FLAGS_use_stride_kernel``、``GLOG_minloglevel``)优先。

    Args:
        device (str): ``'auto'``(有 GPU 就用)、``'cpu'`` 或 ``'gpu'``。
        threads (int | None): CPU 线程数;``None`` 表示大于 1 的 ``OMP_NUM_THREADS``,没有就由本机各进程平分可用的核。

    Returns:
        dict: 实际生效的设置:``device threads mkl_path malloc stride_kernel rank processes``,没做的项为 ``None``;
        ``skipped`` 是没做的项和原因(字典)。

    Raises:
        UserError: 要求 GPU 而没有 GPU,或设备名不合法。
    """
    device = pick_device(device)
    paddle.disable_signal_handler()  # 否则被 SIGTERM 终止时 Paddle 打印一屏 C++ 调用栈
    hide_info_lines()
    settings: dict = dict(device=device, threads=None, mkl_path=None, malloc=None, stride_kernel=None, skipped={})
    if device == "gpu":
        # launch 给每个进程一张可见的卡(FLAGS_selected_gpus);单进程时就是第 0 张
        index = os.environ.get("FLAGS_selected_gpus", "0").split(",")[0]  # noqa: SIM112  Paddle 起的名字
        paddle.set_device(f"gpu:{index}")
    else:
        paddle.set_device("cpu")
        threads = threads or _omp_threads_of_user() or max(1, usable_cores() // local_processes())
        results = {"threads": _set_threads(threads), "mkl_path": _set_mkl_path(), "malloc": _keep_malloc_pages()}
        for name, (value, reason) in results.items():
            settings[name] = value
            if reason is not None:
                settings["skipped"][name] = reason
        settings["stride_kernel"] = _set_stride_kernel()
    settings["rank"], settings["processes"] = join_processes()
    return settings


def describe_machine(device: str) -> str:
    """算的机器,一行,如 ``'AMD EPYC(AVX2),2 核'``;GPU 写它的型号。"""
    if device.startswith("gpu"):
        return paddle.device.cuda.get_device_name()
    instructions = vector_instructions()
    return f"{cpu_name()}{f'({instructions})' if instructions else ''},{usable_cores()} 核"


def describe_runtime(settings: dict) -> str:
    """把 ``setup_runtime`` 的结果说成一行。"""
    if settings["device"] == "gpu":
        text = f"设备 {paddle.device.get_device()}"
    else:
        mkl = {"7": "AVX-512", "5": "AVX2", None: "默认"}.get(settings["mkl_path"], settings["mkl_path"])
        malloc, stride = "开" if settings["malloc"] else "关", "开" if settings["stride_kernel"] else "关"
        threads = settings["threads"] or "默认"
        text = f"设备 CPU,线程 {threads},MKL 路径 {mkl},保留内存页 {malloc},stride kernel {stride}"
    text += f",{settings['processes']} 个进程" if settings["processes"] > 1 else ""
    names = {"threads": "线程", "mkl_path": "MKL 路径", "malloc": "保留内存页"}
    reasons = ";".join(f"{names[name]}:{reason}" for name, reason in settings["skipped"].items())
    return text + (f"(没有改的 {reasons})" if reasons else "")


def seed_everything(seed: int) -> None:
    """设定 Python、NumPy 和 Paddle 的随机种子。"""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)


def seed_step(seed, epoch, step, rank):
    """每一步重设 Paddle 的随机数:dropout 只由 (seed, epoch, step, rank) 决定,从任何一步续训都一样。"""
    paddle.seed(int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0]))


def autocast_dtype(precision: str, device: str) -> str | None:
    """由 ``--precision`` 得到混合精度的类型;``None`` 表示全用 float32。

    Args:
        precision (str): ``'auto'``、``'float32'``、``'bfloat16'`` 或 ``'float16'``。
        device (str): ``'cpu'`` 或 ``'gpu'``。

    Raises:
        UserError: 在 CPU 上要求混合精度(Paddle 的动态图在 CPU 上不支持,设了也没有效果)。
    """
    if device == "cpu":
        if precision in ("bfloat16", "float16"):
            raise UserError(f"--precision {precision} 只能用在 GPU 上:CPU 上请用 float32(或 auto)。")
        return None
    if precision == "auto":
        return "bfloat16" if paddle.amp.is_bfloat16_supported() else "float16"
    return None if precision == "float32" else precision


def autocast(precision: str | None) -> Any:
    """在 with 里用混合精度(mixed precision)计算;``autocast_dtype`` 给出 ``None`` 时照常用 float32。"""
    if precision is None:
        return contextlib.nullcontext()
    return paddle.amp.auto_cast(dtype=precision, level="O1")  # type: ignore[arg-type]
