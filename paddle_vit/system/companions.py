"""本机的几个训练进程:开几个,起动,看着,收尾。它们怎样加入一组、交换数据见 ``processes``。"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from ..errors import UserError
from .processes import PARENT, PeerLost, is_launched

__all__ = ["choose_processes", "companions", "group_environments", "kill_group"]


def choose_processes(processes, device, batch_size):
    """决定用几个进程。

    Args:
        processes (int): 要几个。
        device (str): ``'cpu'`` 或 ``'gpu'``。
        batch_size (int): 每步的图像数。

    Returns:
        int: 进程数。

    Raises:
        UserError: 在 GPU 上、在 Linux 以外,或在已经起动的一组进程里要求多个进程。
    """
    if PARENT in os.environ:  # 本进程就是同伴
        return 1
    possible = device == "cpu" and sys.platform.startswith("linux") and not is_launched()
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
    own, *others = ({**variables, PARENT: str(os.getpid())} for variables in group_environments(count))
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


def kill_group(process):
    """杀掉一个以 ``start_new_session=True`` 起动的进程和它的子进程;已经没有了就算了。"""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
