"""Ctrl-C:推迟到两步之间再停。"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

__all__ = ["deferred_interrupt"]


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """在 with 里,第一次 Ctrl-C 只做个记号,由循环在两步之间停下;第二次照常立即中断。

    反向传播途中的 ``KeyboardInterrupt`` 会被 Paddle 的 C++ 部分变成别的异常,所以要推迟。
    给出一个函数,返回是否按过 Ctrl-C。
    """
    pressed = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous):  # 后台任务里 Ctrl-C 本来就被忽略
        yield lambda: False
        return

    def remember(number, frame):
        pressed.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)
