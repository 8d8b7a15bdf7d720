"""参赛者和它们的进程:谁参加,怎样起动,怎样问答,怎样收尾。"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paddle_vit import UserError
from paddle_vit.system.companions import group_environments, kill_group
from paddle_vit.system.processes import usable_cores

__all__ = ["Contender", "Options", "Team", "contenders", "missing_packages", "peak_team"]

_PAUSE = 0.3  # 秒;Intel OpenMP 的线程跑完后空转 0.2 秒才睡,等它们睡了再轮到下一个


@dataclasses.dataclass(frozen=True)
class Options:
    """一次性能对比的设置。

    Attributes:
        output (Path): 结果的目录。
        tasks (tuple[str, ...]): ``'train'``、``'predict'`` 或两者。
        rounds (int): 轮流几轮。
        block_seconds (float): 每轮每个参赛者大约跑几秒(至少一步)。
        peer_python (str): 装着 PyTorch、ONNX Runtime 的 Python。
        quick (bool): 用很小的模型,几十秒跑完,只为检查能不能跑。
    """

    output: Path
    tasks: tuple = ("train", "predict")
    rounds: int = 5
    block_seconds: float = 2.0
    peer_python: str = sys.executable
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Contender:
    """一个参赛者。

    Attributes:
        key (str): 在 JSON 里的名字。
        name (str): 在表里的名字。
        file (str): ``contenders/`` 里的文件。
        mode (str): 交给它的 ``mode``。
        tasks (tuple[str, ...]): 参加哪些项目。
        packages (tuple[str, ...]): 需要的包;有的话由 ``--peer-python`` 运行。
        processes (int): 几个进程平分一批。
    """

    key: str
    name: str
    file: str
    mode: str
    tasks: tuple = ("train", "predict")
    packages: tuple = ()
    processes: int = 1


def contenders(cores):
    """全部参赛者;cores 是可以用的核数。"""
    torch, onnx = ("torch",), ("onnxruntime", "torch", "onnx", "onnxscript")
    several = [Contender(f"ours-{cores}-processes", f"本项目,{cores} 个进程", "our_vit.py", "processes", ("train",))]
    several = [dataclasses.replace(contender, processes=cores) for contender in several if cores > 1]
    return [
        Contender("lesson", "课程写法,默认设置", "lesson_vit.py", "float32"),
        Contender("ours", "本项目", "our_vit.py", "eager"),
        *several,
        Contender("ours-inference-float32", "本项目,推理引擎 float32", "our_vit.py", "float32", ("predict",)),
        Contender("ours-inference-bfloat16", "本项目,推理引擎 bfloat16", "our_vit.py", "bfloat16", ("predict",)),
        Contender("torch-float32", "PyTorch float32", "torch_vit.py", "float32", packages=torch),
        Contender("torch-bfloat16", "PyTorch bfloat16 autocast", "torch_vit.py", "bfloat16", packages=torch),
        Contender("torch-compile", "torch.compile float32", "torch_vit.py", "compile", packages=torch),
        Contender("onnx", "ONNX Runtime float32", "onnx_vit.py", "float32", ("predict",), packages=onnx),
    ]


_PEAK = Contender("peak", "矩阵乘", "our_vit.py", "matmul")


def _clean_environment():
    """去掉一切性能变量;Paddle 导入时会把 OMP_NUM_THREADS=1 写进环境,所以主进程里也有它们。"""
    prefixes = ("OMP_", "KMP_", "GOMP_", "MKL_", "FLAGS_", "PADDLE_", "MALLOC_", "TORCH", "DNNL_", "ONEDNN_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    # 编译也只用本进程,免得留下别的进程
    return {**environment, "PYTHONIOENCODING": "utf-8", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class Team:
    """一个参赛者的进程(一个或几个),用作上下文管理器:离开时进程一定已经结束。"""

    def __init__(self, contender, python=sys.executable):
        self.contender, self.python = contender, python
        self.processes, self.errors = [], []

    def __enter__(self):
        file = Path(__file__).parent / "contenders" / self.contender.file
        count = self.contender.processes
        for extra in group_environments(count) if count > 1 else [{}]:
            self.errors.append(tempfile.TemporaryFile())
            self.processes.append(
                subprocess.Popen(
                    [self.python, str(file)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.errors[-1],
                    env={**_clean_environment(), **extra},
                    start_new_session=True,  # Ctrl-C 只到主进程,由它来收拾
                )
            )
        return self

    def __exit__(self, *exception):
        self._kill()
        for process, error in zip(self.processes, self.errors):
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            error.close()

    def _kill(self):
        for process in self.processes:
            kill_group(process)

    def send(self, command, argument):
        line = json.dumps([command, argument]).encode() + b"\n"
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):  # 已经退出;receive 会说明原因
                process.stdin.write(line)
                process.stdin.flush()

    def receive(self):
        """各进程的回答;有一个中途退出就报错。"""
        with concurrent.futures.ThreadPoolExecutor(len(self.processes)) as pool:
            waiting = [pool.submit(process.stdout.readline) for process in self.processes]
            try:
                for done in concurrent.futures.as_completed(waiting):
                    if not done.result():
                        raise UserError(self._obituary(waiting.index(done)))
            except BaseException:
                self._kill()  # 其余的线程这才读得到结尾
                raise
        return [json.loads(one.result()) for one in waiting]

    def _obituary(self, index):
        status = self.processes[index].wait()
        self.errors[index].seek(0)
        lines = self.errors[index].read().decode(errors="replace").strip().splitlines()
        reason = lines[-1].strip() if lines else "没有留下原因"
        return f"参赛者「{self.contender.name}」的进程中途退出(状态码 {status}):{reason}"

    def ask(self, command, argument):
        self.send(command, argument)
        return self.receive()

    def take_steps(self, steps):
        """跑几步,返回 (每步的秒数, 峰值内存之和(字节))。"""
        replies = self.ask("run", steps)
        time.sleep(_PAUSE)
        return replies[0]["seconds"], sum(reply["peak_memory"] for reply in replies)


def peak_team(stack, quick):
    """算矩阵乘的一队(离开 stack 时结束),和它一步的浮点运算次数:机器的上限由它量。"""
    size = 256 if quick else 2048
    team = stack.enter_context(Team(_PEAK))
    team.ask("build", {"mode": "matmul", "size": size, "threads": usable_cores()})
    return team, 2 * size**3


def missing_packages(python, packages):
    """这个 Python 里哪些包没有装。"""
    if not packages:
        return []
    code = "import sys, importlib.util as u; print(*[p for p in sys.argv[1:] if u.find_spec(p) is None])"
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, env=_clean_environment())
    except OSError as error:
        raise UserError(f"--peer-python {python} 不能运行({error.strerror}):请给出一个 Python 的路径。") from None
    if done.returncode:
        raise UserError(f"--peer-python {python} 不是能用的 Python:请给出一个 Python 的路径。")
    return done.stdout.split()
