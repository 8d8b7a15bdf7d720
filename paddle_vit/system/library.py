"""Paddle 自带的动态库,和它的 C++ 部分打印的话。"""

from __future__ import annotations

import ctypes
import os
import sys

import paddle

__all__ = ["hide_info_lines", "paddle_library"]

_LEVEL = "_ZN3fLI17FLAGS_minloglevelE"  # glog 的变量:低于它的不打印,INFO 是 0


def paddle_library(*names: str) -> ctypes.CDLL | None:
    """Paddle 自带的动态库;没有(或不在 Linux 上)时是 ``None``。"""
    path = os.path.join(os.path.dirname(paddle.__file__), *names)
    return ctypes.CDLL(path) if sys.platform.startswith("linux") and os.path.exists(path) else None


def _levels():
    """两个库里的日志级别;使用者自己用 GLOG_minloglevel 设过时是空的。"""
    if "GLOG_minloglevel" in os.environ:
        return []
    libraries = [paddle_library(*names) for names in (("libs", "libphi_core.so"), ("base", "libpaddle.so"))]
    return [ctypes.c_int.in_dll(library, _LEVEL) for library in libraries if library and hasattr(library, _LEVEL)]


def hide_info_lines() -> None:
    """不显示 Paddle 的 C++ 部分打印的 INFO 行(oneDNN 的版本、连接的端口等);警告和错误照常显示。"""
    for level in _levels():
        level.value = max(level.value, 1)
