"""几个进程一起训练(数据并行,Data Parallel):加入一组、交换数据。

Paddle 在 CPU 上的逐元素运算只用一个线程,所以每个核一个进程比一个进程多线程快。每个进程算一批图像里自己的那份,
损失除以进程数,每步把梯度加起来,于是各进程的权重始终相同,结果与一个进程只差 float32 的舍入。
本机的进程由 ``companions`` 起动,多台机器或多张 GPU 的由 ``paddle.distributed.launch`` 起动,之后走同一条路。
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

import paddle
import paddle.distributed as dist
from paddle import nn

from ..errors import UserError

__all__ = [
    "PARENT",
    "PeerLost",
    "all_reduce",
    "is_launched",
    "join_processes",
    "local_processes",
    "meet",
    "one_after_another",
    "share_weights",
    "sum_gradients",
    "sum_over_processes",
    "tell_others",
    "usable_cores",
]

START_SECONDS = 600  # 别的进程导入 Paddle、准备好,最多等这么久
PARENT = "PADDLE_VIT_PARENT"  # 环境变量:起动本进程的进程号


class PeerLost(UserError):
    """与别的训练进程的连接断了。"""


def usable_cores() -> int:
    """本进程可以用的 CPU 核数。"""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_launched() -> bool:
    """本进程是否已经是一组进程中的一个(由 ``companions`` 或 ``paddle.distributed.launch`` 起动)。"""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


def local_processes() -> int:
    """同一组里有几个进程在本机:地址与本进程同主机的有几个。"""
    host = os.environ.get("PADDLE_CURRENT_ENDPOINT", "").rsplit(":", 1)[0]
    endpoints = os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")
    return max(1, sum(endpoint.rsplit(":", 1)[0] == host for endpoint in endpoints if endpoint))


def join_processes() -> tuple[int, int]:
    """加入所在的一组进程。

    Returns:
        tuple[int, int]: 本进程的序号和进程总数;不在一组进程里时是 (0, 1)。
    """
    if not is_launched():
        return 0, 1
    if PARENT not in os.environ:
        _join()
    elif os.environ["PADDLE_TRAINER_ID"] == "0":
        # Paddle 会一直等到大家都来,其间别的线程也动不了;先确认每个同伴都活着
        for endpoint in os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[1:]:
            _wait_for(endpoint)
        _join()
    else:
        _die_with(int(os.environ[PARENT]))
        host, port = os.environ["PADDLE_CURRENT_ENDPOINT"].rsplit(":", 1)
        with socket.create_server((host, int(port))):  # 告诉 0 号进程:我准备好了
            _wait_for(os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0])  # Paddle 自己连不上时要等 3 秒才再试
            _join()
    return dist.get_rank(), dist.get_world_size()


def _join():
    with _with_peers(), contextlib.redirect_stderr(io.StringIO()):  # 它会列出所有改过的 FLAGS
        dist.init_parallel_env()


def _die_with(parent):
    """让操作系统在 0 号进程结束时也结束本进程。"""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # 在这之前它已经没了
        sys.exit(1)


def _wait_for(endpoint):
    """等这个地址开始监听;对方没有起来就退出了(或脚本走了别的路),等下去也不会有结果。"""
    host, port = endpoint.rsplit(":", 1)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    raise PeerLost(f"等了 {START_SECONDS} 秒,另一个训练进程还没有准备好:请用 --processes 1 只开一个进程。")


@contextlib.contextmanager
def _with_peers():
    """在 with 里与别的进程通信;它们退出了就抛出 ``PeerLost``。"""
    try:
        yield
    except RuntimeError:  # gloo 或 store 读写失败
        raise PeerLost("与另一个训练进程的连接断了:已经保存的检查点不受影响,请重新起动并加上 --resume。") from None


def all_reduce(tensor: paddle.Tensor) -> None:
    """把各进程的 tensor 原地换成它们的和。

    Raises:
        UserError: 有别的进程退出了。
    """
    with _with_peers():
        dist.all_reduce(tensor)


def sum_over_processes(values: list[float]) -> list[float]:
    """把几个数在各进程上加起来。"""
    total = paddle.to_tensor(values, dtype="float64")
    all_reduce(total)
    return total.numpy().tolist()


def sum_gradients(parameters: list[paddle.Tensor], values: list[float]) -> list[float]:
    """把各进程的梯度换成它们的和,顺便把几个数加起来;所有的数拼成一个长向量,只通信一次。

    Args:
        parameters (list[paddle.Tensor]): 冻结的、没有用到的没有梯度,跳过;各进程跳过的相同。
        values (list[float]): 每个进程自己的几个数。

    Returns:
        list[float]: values 各项在各进程上的和。
    """
    used = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    gradients = [gradient.reshape([-1]) for _, gradient in used]
    flat = paddle.concat([*gradients, paddle.to_tensor(values, dtype=gradients[0].dtype)])
    all_reduce(flat)
    *gradients, sums = flat.split([parameter.size for parameter, _ in used] + [len(values)])
    for (parameter, _), gradient in zip(used, gradients):
        parameter.grad = gradient.reshape(parameter.shape)
    return sums.numpy().tolist()


def share_weights(model: nn.Layer) -> None:
    """把各进程的权重都换成 0 号进程的。"""
    with _with_peers():
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


def tell_others(text: str | None, world: int) -> str | None:
    """把 0 号进程的 text 告诉所有进程,返回它。"""
    shared = [text]
    if world > 1:
        with _with_peers():
            dist.broadcast_object_list(shared, src=0)
    return shared[0]


def meet(name: str, world: int) -> None:
    """等所有进程都走到这里,多久都等。

    通信函数自己只等 30 秒;凡是 0 号进程独自做的、可能很慢的事(下载、写检查点)之后,都要先用它会合。

    Args:
        name (str): 这次会合的名字,不能重复。
        world (int): 进程总数。
    """
    if world > 1:
        _arrive(name)
        _wait_for_arrivals(name, world)


@contextlib.contextmanager
def one_after_another(rank: int, world: int) -> Iterator[None]:
    """在 with 里,0 号进程先做完,其余进程才开始:下载和解压只该由一个进程做。"""
    if rank:
        _wait_for_arrivals("first", 1)
    yield
    if rank == 0 and world > 1:
        _arrive("first")
    meet("all", world)


def _arrive(name):
    with _with_peers():
        paddle.base.core.create_or_get_global_tcp_store().add(name, 1)


def _wait_for_arrivals(name, count):
    with _with_peers():
        store = paddle.base.core.create_or_get_global_tcp_store()
        while store.add(name, 0) < count:
            time.sleep(0.02)
