"""读取进程:几个进程轮流读各批图像,经管道按次序交给主进程。

一个进程读不了(内存不够被杀掉、解码器崩溃)时,主进程马上知道;不用共享内存。
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["ReaderDied", "can_start_readers", "read_batches"]


class ReaderDied(Exception):
    """一个读取进程意外结束了。

    Attributes:
        batch (int): 它正在读第几批。
        signal (int | None): 被哪个信号终止的。
    """

    def __init__(self, batch: int, code: int | None):
        super().__init__(f"第 {batch} 批,状态码 {code}")
        self.batch, self.signal = batch, -code if code is not None and code < 0 else None


def can_start_readers() -> bool:
    """能不能另开读取进程:要能复制(fork)本进程,即在 Linux 上。"""
    return sys.platform.startswith("linux")


def read_batches(read: Callable[[Any], Any], batches: Sequence[Any], workers: int) -> Iterator[Any]:
    """依次给出 ``read(batch)``,由 workers 个进程各自提前读。

    Args:
        read (Callable): 读一批;结果要能 pickle。它自己处理错误,不抛出异常。
        batches (Sequence): 各批。
        workers (int): 进程数。

    Yields:
        Any: ``read`` 的结果,次序与 batches 相同。

    Raises:
        ReaderDied: 一个进程意外结束了。
    """
    context: Any = multiprocessing.get_context("fork")
    pipes, processes = [], []
    try:
        for i in range(min(workers, len(batches))):
            reader, writer = context.Pipe(duplex=False)
            pipes.append(reader)
            process = context.Process(target=_serve, args=(read, batches[i::workers], writer, pipes), daemon=True)
            process.start()
            processes.append(process)
            writer.close()  # 只有那个进程还拿着写的一头:它一结束,这一头就读到末尾
        for i in range(len(batches)):
            try:
                result = pipes[i % workers].recv()
            except (EOFError, OSError):
                processes[i % workers].join()
                raise ReaderDied(i, processes[i % workers].exitcode) from None
            yield result
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()


def _serve(read, batches, writer, pipes):
    """读取进程:把自己的各批读好,一批一批交出去;交出一批才读下一批之后的,不会越积越多。"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C 由主进程处理
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Paddle 的会打印一屏 C++ 调用栈
    for pipe in pipes:
        pipe.close()  # 读的一头只留在主进程里:它不在了,写就会失败
    with contextlib.suppress(OSError):  # 主进程不在了
        for batch in batches:
            writer.send(read(batch))
