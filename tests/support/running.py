"""运行脚本、等待、收尾。每处等待都有尽头,每个进程都会结束。"""

import contextlib
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

from paddle_vit.system.cli import run_main

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # 秒;慢几倍、正忙着的机器也等得到
# 一次几秒钟的训练
TINY = (
    "--recipe none --patch-size 4 --embed-dim 8 --depth 1 --num-heads 2 --epochs 2 --batch-size 128 --lr 0.01 "
    "--crop-padding 1 --ema 0.9 --dropout 0.1 --mixup 0.2 --position-embedding learnable"
).split()

sys.modules["ctrl_c"] = types.ModuleType("ctrl_c")  # 在本进程里运行脚本时,不改测试进程的 Ctrl-C
_started = []  # 还没有收尾的进程,由 conftest 在每个测试之后结束


def script(name):
    return ROOT / "scripts" / f"{name}.py"


def run_script(name, *args, check=None, timeout=PATIENCE, cwd=None, env=None):
    """另开一个 Python 运行 scripts/ 里的脚本;check 是期望的状态码。"""
    done = subprocess.run(
        [sys.executable, str(script(name)), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})},
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def run_here(name, *args, streams=None):
    """在本进程里运行脚本,快得多;只用于马上就出错、还没有开始计算的命令。

    streams 是代替标准输出和标准错误的两个;不给时像终端那样,返回它们的内容。
    """
    spec = importlib.util.spec_from_file_location(f"script_{name}", script(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    captured = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    streams = streams or captured
    before, code = sys.argv, 0
    sys.argv = [str(script(name)), *map(str, args)]
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            run_main(module.main) if hasattr(module, "main") else module.launch()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    texts = [stream.buffer.getvalue().decode() for stream in captured]
    return subprocess.CompletedProcess([name, *args], code, *texts)


def start(command, **options):
    """起动一个进程,不等它;测试结束时它若还在,就连同它起动的进程一起结束。"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(list(map(str, command)), **{**pipes, **options})
    _started.append(process)
    return process


def start_training(*args, **options):
    return start([sys.executable, script("train"), *args], **options)


def end_all():
    """结束 ``start`` 起动的所有进程和它们的子进程。"""
    while _started:
        process = _started.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
        process.wait(PATIENCE)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def finish(process, number=None):
    """给进程发一个信号(可以没有),等它结束,返回它的 (标准输出, 标准错误)。"""
    if number is not None:
        process.send_signal(number)
    return process.communicate(timeout=PATIENCE)


def wait_for(condition, process=None, seconds=PATIENCE):
    """等到条件成立;进程先结束了,或等得太久,就是失败。"""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"等了 {seconds} 秒"
        time.sleep(0.01)


def kill_after(directory, args, delay):
    """起动训练,等到运行目录里有了 config.yaml,再过 delay 秒杀掉。"""
    process = start_training(*args)
    wait_for((directory / "config.yaml").exists, process)
    time.sleep(delay)
    finish(process, signal.SIGKILL)


def first_line(process):
    """进程打印的第一行;它不打印就结束、或一直不打印,都会有尽头(由测试的时限)。"""
    line = process.stdout.readline()
    assert line, process.communicate(timeout=PATIENCE)
    return line


def address_of(process):
    """服务打印的地址,确认它在监听之后才返回。"""
    address = re.search(r"http://[^\s/]+", first_line(process))[0]
    host, port = address[len("http://") :].rsplit(":", 1)
    wait_for(lambda: is_listening(host.strip("[]"), int(port)), process)
    return address


def is_listening(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return probe.connect_ex((host, port)) == 0


def assert_one_chinese_line(done, *words):
    """非零状态,标准错误只有一行中文,没有调用栈。"""
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("错误:"), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
