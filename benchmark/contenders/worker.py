"""参赛者与主进程的对话:从标准输入读一行 JSON ``[命令, 参数]``,在标准输出回一行 JSON。

主进程轮流让各个参赛者跑几步;没轮到的在等输入,不占 CPU。输入关闭(主进程结束)时退出。
"""

import json
import os
import sys
import time

__all__ = ["Unavailable", "peak_memory", "serve"]


class Unavailable(Exception):
    """这台机器上缺少参赛需要的东西,文字是原因。"""


def peak_memory():
    """本进程至今占用物理内存的最大值,字节。

    Linux 的 ``ru_maxrss`` 会从父进程那里继承一个下限,所以读 /proc 里的 VmHWM。
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except OSError:
        import resource

        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def serve(build, **commands):
    """处理命令直到输入关闭。

    Args:
        build (Callable): 参数 -> (一步的函数, 要报告的字典);命令 ``build`` 调用它。
        **commands (Callable): 其他命令,参数 -> 要报告的字典。
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # 各个库打印的东西不要混进对话
    step = None
    for line in sys.stdin:
        command, argument = json.loads(line)
        if command == "build":
            step = None  # 先放掉上一个模型
            try:
                step, reply = build(argument)
            except Unavailable as reason:
                reply = {"unavailable": str(reason)}
        elif command == "run":
            seconds = []
            for _ in range(argument):
                start = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - start)
            reply = {"seconds": seconds, "peak_memory": peak_memory()}
        else:
            reply = commands[command](argument)
        print(json.dumps(reply), file=channel, flush=True)
