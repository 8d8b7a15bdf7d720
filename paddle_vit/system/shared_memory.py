"""共享内存(``/dev/shm``):读取进程用它把图像交给主进程。Docker 里默认只有 64 MB,写满了进程就被 SIGBUS 终止。"""

from __future__ import annotations

import math
import os
import sys

from .processes import local_processes

__all__ = ["shared_memory_room", "workers_can_start"]

PLACE = "/dev/shm"


def shared_memory_room() -> float:
    """本进程可以放多少字节:空着的由本机同一组的训练进程平分;不在 Linux 上时没有这个限制,是无穷大。"""
    if not sys.platform.startswith("linux"):
        return math.inf
    try:
        place = os.statvfs(PLACE)
    except OSError:  # 没有这个目录
        return 0
    return place.f_bavail * place.f_frsize / local_processes()


def workers_can_start() -> bool:
    """能不能起动读取进程:它们的队列也要在 ``/dev/shm`` 里放几个很小的锁。"""
    return not sys.platform.startswith("linux") or os.access(PLACE, os.W_OK)
