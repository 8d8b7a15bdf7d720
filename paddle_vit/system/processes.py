"""几个进程一起训练(数据并行,Data Parallel):起动、加入、交换数据。

Paddle 在 CPU 上的逐元素运算只用一个线程,所以每个核一个进程比一个进程多线程快。每个进程算一批图像里自己的那份,
损失除以进程数,每步把梯度加起来,于是各进程的权重始终相同,结果与一个进程只差 float32 的舍入。
本机的进程由 ``companions`` 起动;多台机器或多张 GPU 由 ``paddle.distributed.launch`` 起动,之后走的是同一条路。
"""

import contextlib
import ctypes
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import paddle
import paddle.distributed as dist

from ..errors import UserError

__all__ = [
    "all_reduce",
    "choose_processes",
    "companions",
    "group_environments",
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

TOKENS_PER_PROCESS = 1000  # 每个进程每步至少分到这么多 token,再少就不如少开进程(2 核上量出来的)
_PARENT = "PADDLE_VIT_PARENT"  # 起动本进程的进程号


class PeerLost(UserError):
    """与别的训练进程的连接断了。"""


def usable_cores():
    """本进程可以用的 CPU 核数。"""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_launched():
    """本进程是否已经是一组进程中的一个(由 ``companions`` 或 ``paddle.distributed.launch`` 起动)。"""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


def local_processes():
    """同一组里有几个进程在本机:地址与本进程同主机的有几个。"""
    host = os.environ.get("PADDLE_CURRENT_ENDPOINT", "").rsplit(":", 1)[0]
    endpoints = os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")
    return max(1, sum(endpoint.rsplit(":", 1)[0] == host for endpoint in endpoints if endpoint))


def choose_processes(processes, device, batch_size, tokens):
    """决定用几个进程。

    Args:
        processes (int | str): 要几个;``'auto'`` 表示在 CPU 上每核一个,但每个进程每步至少分到 1000 个 token。
        device (str): ``'cpu'`` 或 ``'gpu'``。
        batch_size (int): 每步的图像数。
        tokens (int): 一张图像切成多少个图块。

    Returns:
        int: 进程数。

    Raises:
        UserError: 在 GPU 上、在 Linux 以外,或在已经起动的一组进程里要求多个进程。
    """
    if _PARENT in os.environ:  # 本进程就是同伴
        return 1
    possible = device == "cpu" and sys.platform.startswith("linux") and not is_launched()
    if processes == "auto":
        return max(1, min(usable_cores(), batch_size, batch_size * tokens // TOKENS_PER_PROCESS)) if possible else 1
    if processes > 1 and not possible:
        raise UserError(
            f"--processes {processes} 只能用在 Linux 的 CPU 上,也不能与 paddle.distributed.launch 同用:"
            "请去掉它;多张 GPU 或多台机器请按 README 用 paddle.distributed.launch。"
        )
    if processes > batch_size:
        raise UserError(f"--processes {processes} 超过了 --batch-size {batch_size}:每个进程每步至少要有一张图像。")
    return processes


@contextlib.contextmanager
def companions(count):
    """在 with 里,本进程是 0 号,另有 count - 1 个同伴用相同的命令行执行同一个脚本。

    同伴什么也不显示;离开 with 时它们都结束。同伴意外退出时,本进程报告一行错误并退出;本进程被杀时,同伴也随之退出。

    Args:
        count (int): 进程总数;1 表示不起动同伴。

    Raises:
        UserError: 有同伴意外退出。
    """
    if count == 1:
        yield
        return
    own, *others = ({**variables, _PARENT: str(os.getpid())} for variables in group_environments(count))
    started, closing = [], threading.Event()
    before = {name: os.environ.get(name) for name in own}
    try:
        for rank, variables in enumerate(others, 1):
            companion = _Companion(rank, {**os.environ, **variables})
            started.append(companion)
            threading.Thread(target=_watch, args=(companion, started, closing), daemon=True).start()
        os.environ.update(own)
        yield
    except PeerLost as lost:
        time.sleep(0.5)  # 等操作系统把退出的进程登记好
        raise UserError(_obituary(started) or str(lost)) from None
    finally:
        closing.set()
        for companion in started:
            companion.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Companion:
    """一个同伴进程;它的输出存在临时文件里,出错时才看。"""

    def __init__(self, rank, environment):
        self.rank = rank
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  由 stop 关闭
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # 终端里的 Ctrl-C 只发给 0 号进程,由它通知大家
        )

    def last_line(self):
        self._output.seek(0)
        lines = [line.strip() for line in self._output.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1] if lines else "没有输出"

    def stop(self):
        self.process.kill()
        self.process.wait()
        self._output.close()


def _obituary(started):
    """意外退出的同伴的讣告;没有这样的同伴时是 ``None``。"""
    for companion in started:
        code = companion.process.poll()
        if code:
            how = f"被信号 {signal.Signals(-code).name} 终止(内存不够时系统会这样做)" if code < 0 else f"状态 {code}"
            return (
                f"第 {companion.rank + 1} 个训练进程意外退出,{how},它最后说:{companion.last_line()};"
                "已经保存的检查点不受影响,可以用 --resume 接着训练,或用 --processes 1 只开一个进程。"
            )
    return None


def _watch(companion, started, closing):
    """同伴意外退出后,给 0 号进程几秒钟自己报错;它若卡在等同伴的地方,就替它报告并退出。"""
    code = companion.process.wait()
    if code == 0 or closing.wait(5):
        return
    print(f"错误:{_obituary(started)}", file=sys.stderr, flush=True)
    for other in started:
        other.process.kill()
    os._exit(2)


def group_environments(count):
    """本机 count 个进程组成一组(gloo,只走本机回环,没有网络也能用)时,每个进程的环境变量。

    Returns:
        list[dict]: 第 i 项给第 i 个进程。
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        endpoints = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    return [
        {
            "PADDLE_TRAINERS_NUM": str(count),
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            "PADDLE_CURRENT_ENDPOINT": endpoint,
            "PADDLE_DISTRI_BACKEND": "gloo",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        for rank, endpoint in enumerate(endpoints)
    ]


def join_processes():
    """加入所在的一组进程。

    Returns:
        tuple[int, int]: 本进程的序号和进程总数;不在一组进程里时是 (0, 1)。
    """
    if not is_launched():
        return 0, 1
    if _PARENT not in os.environ:
        _join()
    elif os.environ["PADDLE_TRAINER_ID"] == "0":
        # Paddle 会一直等到大家都来,其间别的线程也动不了;先确认每个同伴都活着
        for endpoint in os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[1:]:
            _wait_for(endpoint)
        _join()
    else:
        _die_with(int(os.environ[_PARENT]))
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
    """等这个地址开始监听。"""
    host, port = endpoint.rsplit(":", 1)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)


@contextlib.contextmanager
def _with_peers():
    """在 with 里与别的进程通信;它们退出了就抛出 ``PeerLost``。"""
    try:
        yield
    except RuntimeError:  # gloo 或 store 读写失败
        raise PeerLost("与另一个训练进程的连接断了:已经保存的检查点不受影响,请重新起动并加上 --resume。") from None


def all_reduce(tensor):
    """把各进程的 tensor 原地换成它们的和。

    Raises:
        UserError: 有别的进程退出了。
    """
    with _with_peers():
        dist.all_reduce(tensor)


def sum_over_processes(values):
    """把几个数在各进程上加起来。"""
    total = paddle.to_tensor(values, dtype="float64")
    all_reduce(total)
    return total.tolist()


def sum_gradients(parameters, values):
    """把各进程的梯度换成它们的和,顺便把几个数加起来;所有的数拼成一个长向量,只通信一次。

    Args:
        parameters (list[Parameter]): 冻结的、没有用到的没有梯度,跳过;各进程跳过的相同。
        values (list[float]): 每个进程自己的几个数。

    Returns:
        list[float]: values 各项在各进程上的和。
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad.reshape([-1]) for parameter in parameters]
    flat = paddle.concat([*gradients, paddle.to_tensor(values, dtype=gradients[0].dtype)])
    all_reduce(flat)
    *gradients, sums = flat.split([parameter.size for parameter in parameters] + [len(values)])
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.reshape(parameter.shape)
    return sums.tolist()


def share_weights(model):
    """把各进程的权重都换成 0 号进程的。"""
    with _with_peers():
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


def tell_others(text, world):
    """把 0 号进程的 text 告诉所有进程,返回它。"""
    shared = [text]
    if world > 1:
        with _with_peers():
            dist.broadcast_object_list(shared, src=0)
    return shared[0]


def meet(name, world):
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
def one_after_another(rank, world):
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
