"""准备编译的内核:numba 用哪个线程池、几个线程,编译好的存在哪里,MKL 的矩阵乘在哪里;用不了时为什么。"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import types
import warnings
from pathlib import Path

from ..system.library import paddle_library

__all__ = ["is_compiled", "load_kernels", "matmul_address", "use_threads", "why_no_kernels"]

_HERE = Path(__file__).parent
_MODULES = "attention", "broadcast", "convolution", "dense", "updates"


def _thread_pool(openmp):
    """numba 的一个线程池,能被几个 Python 线程同时用;都没有时是 ``None``。

    Paddle 的 OpenMP 先以全局的方式载入,numba 的 omp 就用它的线程:否则两个库各有一组线程,在同样的核上互相等。
    """
    if openmp is not None:
        ctypes.CDLL(openmp._name, mode=ctypes.RTLD_GLOBAL)
    for layer in ("omp", "tbb"):
        try:
            importlib.import_module(f"numba.np.ufunc.{layer}pool")
        except ImportError:
            continue
        return layer
    return None


@functools.cache
def _load():
    """(全部内核, 用不了的原因),其中一个是 ``None``。"""
    try:
        import numba  # 重(约 0.3 秒),用到才导入;也可能没有装
    except ImportError as error:
        return None, f"没有能用的 numba({error})"
    # /dev/shm 写不了时,它说拿不到进程之间的锁;线程池只有本进程用
    warnings.filterwarnings("ignore", "Could not obtain multiprocessing lock", numba.errors.NumbaSystemWarning)
    openmp = paddle_library("libs", "libiomp5.so")
    layer = _thread_pool(openmp)
    if layer is None:
        return None, "numba 没有能用的线程池(Linux 上请安装 libgomp1)"
    if numba.config.THREADING_LAYER == "default":  # 使用者没有用 NUMBA_THREADING_LAYER 指定
        numba.config.THREADING_LAYER = layer
    try:
        modules = [importlib.import_module(f"{__package__}.{name}") for name in _MODULES]
    except RuntimeError:
        return None, "编译好的代码没有地方存(包的目录和主目录都写不了):请用环境变量 NUMBA_CACHE_DIR 给出一个目录"
    kernels = {name: getattr(module, name) for module in modules for name in module.__all__}
    _forget_outdated(next(iter(kernels.values())))
    _use(numba, openmp.omp_get_max_threads() if openmp is not None else numba.config.NUMBA_NUM_THREADS)
    return types.SimpleNamespace(**kernels), None


def _stored(kernel, name="*"):
    """名为 name 的内核编译好的代码的目录文件;都在 numba 自己选的一个地方,通常是 __pycache__。"""
    return Path(kernel.stats.cache_path).glob(f"*.{name}-*.nbi")


def _forget_outdated(kernel):
    """numba 只看内核自己的文件有没有改;``base`` 改了,以前编译的也要作废。"""
    newest = max(path.stat().st_mtime for path in _HERE.glob("*.py"))
    for index in _stored(kernel):
        if index.stat().st_mtime < newest:
            index.unlink(missing_ok=True)


def _use(numba, threads):
    numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))


def use_threads(threads: int) -> None:
    """内核用几个线程;不说的话,是载入时 Paddle 的 OpenMP 用的那么多。"""
    if load_kernels() is not None:
        _use(sys.modules["numba"], threads)


def load_kernels() -> types.SimpleNamespace | None:
    """全部内核,名字 -> 函数;用不了时是 ``None``,原因见 ``why_no_kernels``。"""
    return _load()[0]


def why_no_kernels() -> str | None:
    """为什么用不了编译的内核,一句话;能用时是 ``None``。"""
    return _load()[1]


def is_compiled(name: str) -> bool:
    """这个内核在这台机器上有没有编译过;没有的话,用到时要多花一两秒。"""
    return any(_stored(getattr(load_kernels(), name), name))


@functools.cache
def matmul_address() -> int | None:
    """MKL 的 cblas_sgemm 的地址;Paddle 不带 MKL(ARM、macOS)或不在 Linux 上时是 ``None``。"""
    library = paddle_library("libs", "libmklml_intel.so")
    if library is None or not hasattr(library, "cblas_sgemm"):
        return None
    return ctypes.cast(library.cblas_sgemm, ctypes.c_void_p).value
