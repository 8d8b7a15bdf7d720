"""设备、线程、CPU 调优和随机种子。只有脚本和笔记本调用这里的函数,导入本身什么也不改。"""

import contextlib
import ctypes
import os
import platform
import random
import sys

import numpy as np
import paddle

from .errors import UserError

__all__ = ["autocast_dtype", "describe_runtime", "one_after_another", "seed_everything", "setup_runtime"]


def _cpu_flags():
    """/proc/cpuinfo 里的 (厂商, 指令集标志);没有这个文件(macOS、Windows)时是 ("", 空集)。"""
    vendor, flags = "", set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "vendor_id":
                    vendor = value.strip()
                elif key.strip() == "flags":
                    flags = set(value.split())
                    break
    except OSError:
        pass
    return vendor, flags


def _usable_cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def _local_processes():
    """``paddle.distributed.launch`` 在本机起动了几个进程:地址与本进程同主机的有几个。"""
    host = os.environ.get("PADDLE_CURRENT_ENDPOINT", "").rsplit(":", 1)[0]
    endpoints = os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")
    return max(1, sum(endpoint.rsplit(":", 1)[0] == host for endpoint in endpoints if endpoint))


def _set_threads(threads):
    """OMP_NUM_THREADS 在导入 Paddle 时已经读过,之后只能调它自带的 OpenMP 库。"""
    if not sys.platform.startswith("linux"):
        return False
    library = os.path.join(os.path.dirname(paddle.__file__), "libs", "libiomp5.so")
    if not os.path.exists(library):
        return False
    ctypes.CDLL(library).omp_set_num_threads(threads)
    return True


def _set_mkl_path():
    """Paddle 自带的 MKL 2019 在 AMD 上走慢路径;第一次矩阵乘之前设这个变量能换成快的。返回所设的值。"""
    if "MKL_DEBUG_CPU_TYPE" in os.environ:
        return os.environ["MKL_DEBUG_CPU_TYPE"]
    vendor, flags = _cpu_flags()
    if vendor != "AuthenticAMD" or platform.machine() != "x86_64":
        return None
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        value = "7"  # AVX-512
    elif {"avx2", "fma"} <= flags:
        value = "5"  # AVX2
    else:
        return None
    os.environ["MKL_DEBUG_CPU_TYPE"] = value
    return value


def _keep_malloc_pages():
    """让 glibc 不把大块内存还给系统,省去每一步重新缺页。"""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    results = [
        libc.mallopt(m_mmap_max, 0),
        libc.mallopt(m_trim_threshold, 2**31 - 1),
        libc.mallopt(m_top_pad, 64 << 20),
    ]
    return all(results)


def _pick_device(device):
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if device == "auto":
        device = "gpu" if gpus else "cpu"
    if device == "gpu" and not gpus:
        reason = "没有找到可用的 GPU" if paddle.is_compiled_with_cuda() else "安装的 Paddle 是 CPU 版"
        raise UserError(f"--device gpu:{reason};请改用 --device cpu(或 auto),或按 README 安装 GPU 版 Paddle。")
    if device not in ("cpu", "gpu"):
        raise UserError(f"--device {device!r} 不合法:只能是 auto、cpu 或 gpu。")
    return device


def setup_runtime(device="auto", threads=None):
    """选设备,并让 Paddle 在 CPU 上用足机器。脚本和笔记本在做第一次计算之前调用一次。

    数值结果只有 float32 舍入上的差别。使用者自己设过的环境变量(``OMP_NUM_THREADS``、``MKL_DEBUG_CPU_TYPE``、
    ``FLAGS_use_stride_kernel``)优先。

    Args:
        device (str): ``'auto'``(有 GPU 就用)、``'cpu'`` 或 ``'gpu'``。
        threads (int | None): CPU 线程数;``None`` 表示大于 1 的 ``OMP_NUM_THREADS``,没有就由本机各进程平分可用的核。

    Returns:
        dict: 实际生效的设置:``device threads mkl_path malloc stride_kernel rank processes``;不适用的项为 ``None``。

    Raises:
        UserError: 要求 GPU 而没有 GPU,或设备名不合法。
    """
    device = _pick_device(device)
    paddle.disable_signal_handler()  # 否则被 SIGTERM 终止时 Paddle 打印一屏 C++ 调用栈
    settings = dict(device=device, threads=None, mkl_path=None, malloc=None, stride_kernel=None, rank=0, processes=1)
    if device == "gpu":
        # launch 给每个进程一张可见的卡(FLAGS_selected_gpus);单进程时就是第 0 张
        index = os.environ.get("FLAGS_selected_gpus", "0").split(",")[0]  # noqa: SIM112  Paddle 起的名字
        paddle.set_device(f"gpu:{index}")
        return _join_processes(settings)
    paddle.set_device("cpu")
    if threads is None:
        threads = _omp_threads_of_user() or max(1, _usable_cores() // _local_processes())
    if _set_threads(threads):
        settings["threads"] = threads
    settings["mkl_path"] = _set_mkl_path()
    settings["malloc"] = _keep_malloc_pages() or None
    if "FLAGS_use_stride_kernel" not in os.environ:
        paddle.set_flags({"FLAGS_use_stride_kernel": False})
    settings["stride_kernel"] = paddle.get_flags("FLAGS_use_stride_kernel")["FLAGS_use_stride_kernel"]
    return _join_processes(settings)


def _join_processes(settings):
    """由 ``python -m paddle.distributed.launch`` 启动时,加入进程组。"""
    processes = paddle.distributed.get_world_size()
    if processes > 1:
        paddle.distributed.init_parallel_env()
        settings.update(rank=paddle.distributed.get_rank(), processes=processes)
    return settings


@contextlib.contextmanager
def one_after_another(rank, world):
    """在 with 里,0 号进程先做完,其余进程才开始:下载和解压只该由一个进程做。"""
    if world > 1 and rank:
        paddle.distributed.barrier()
    yield
    if world > 1 and rank == 0:
        paddle.distributed.barrier()


def describe_runtime(settings):
    """把 ``setup_runtime`` 的结果说成一行。"""
    if settings["device"] == "gpu":
        text = f"设备 {paddle.device.get_device()}"
    else:
        mkl = {"7": "AVX-512", "5": "AVX2", None: "默认"}.get(settings["mkl_path"], settings["mkl_path"])
        malloc, stride = "开" if settings["malloc"] else "不适用", "开" if settings["stride_kernel"] else "关"
        threads = settings["threads"] or "默认"
        text = f"设备 CPU,线程 {threads},MKL 路径 {mkl},保留内存页 {malloc},stride kernel {stride}"
    return text + (f",{settings['processes']} 个进程" if settings["processes"] > 1 else "")


def seed_everything(seed):
    """设定 Python、NumPy 和 Paddle 的随机种子。"""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)


def autocast_dtype(precision, device):
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
