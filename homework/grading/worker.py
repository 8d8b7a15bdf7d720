"""在单独的进程里判一个文件:学生的死循环、崩溃、sys.exit 都伤不到判卷的程序。

由 ``grade_in_subprocess`` 启动;结果一行一个 JSON 写进文件,因为标准输出归学生的 print 用。
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from . import exercise
from .machinery import FAILED, SKIPPED, Result, grade

__all__ = ["grade_in_subprocess"]

LOADING_SECONDS = 120  # 给启动 Python、导入 Paddle 的时间,不算在学生的时限里
ROOT = Path(__file__).resolve().parents[2]
# 检出的目录放在当前目录之前:学生那里也可以有叫 homework 的文件
_START = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
_START += "runpy.run_module('homework.grading.worker', run_name='__main__', alter_sys=True)"
TAIL_BYTES = 1 << 16  # 学生打印的文字只留末尾这么多字节


def grade_in_subprocess(number, path, seconds=60):
    """在单独的进程里判一个文件。

    Args:
        number (int): 练习的号码。
        path (str | Path): 学生的文件。
        seconds (int): 学生的代码一共可以用多少秒。

    Returns:
        tuple: ``(results, printed)``:``Result`` 的列表和学生的程序打印的文字。
    """
    with tempfile.TemporaryDirectory() as directory:
        report, stack = Path(directory, "report"), Path(directory, "stack")
        command = [
            sys.executable,
            "-u",
            "-c",
            _START,
            str(ROOT),
            str(number),
            str(Path(path).resolve()),
            str(report),
            str(stack),
            str(seconds),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONIOENCODING": "utf-8:replace",
            "GLOG_minloglevel": "2",  # 不要 Paddle 的 C++ 部分打印的 oneDNN 版本号之类
        }
        printed, status = run_command(command, environment, seconds + LOADING_SECONDS)
        lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
        records = [json.loads(line) for line in lines]
        doing, results = "启动", []
        if records:
            doing, results = records[-1]["doing"], [Result(**fields) for fields in records[-1]["results"]]
        if doing is None:
            return results, printed
        where = stack.read_text(encoding="utf-8", errors="replace") if stack.exists() else ""
        message = describe_end(where, path, status, seconds)
        stopped = Result(doing, FAILED, message, mistakes=("endless" if where else "crash",))
        return [*results, stopped, *(Result(title, SKIPPED) for title in titles_after(doing, number))], printed


def titles_after(title, number):
    """这一项之后的各项检查;读文件时停下的,是全部。"""
    titles = [check.title for check in exercise(number).checks]
    return titles[titles.index(title) + 1 :] if title in titles else titles


def run_command(command, environment, seconds):
    """运行命令,返回 ``(打印的文字的末尾, 状态码)``;结束、到时间或 Ctrl-C 时,连它启动的进程一起杀掉。"""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, **options)
    tail = bytearray()

    def read():
        with process.stdout as output:
            while chunk := output.read1():  # 死循环里不停地打印也不会占光内存
                tail.extend(chunk)
                del tail[:-TAIL_BYTES]

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    finally:
        kill_group(process)
        process.wait()
        reader.join(1)  # 脱离了进程组的子进程会让标准输出一直开着,不等它
    return tail.decode("utf-8", "replace"), process.returncode


def kill_group(process):
    """杀掉进程和它启动的进程;Windows 没有进程组,只杀它自己。"""
    if not hasattr(os, "killpg"):
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # 已经没有了
        os.killpg(process.pid, signal.SIGKILL)


def describe_end(stack, path, status, seconds):
    """进程没有交出结果的原因;stack 是超时那一刻的调用栈,最内层在前。"""
    if not stack:
        return f"判卷的进程意外结束(状态 {status}):代码里可能有 os._exit、极深的递归,或用光了内存。"
    name = str(Path(path).resolve()).encode("ascii", "backslashreplace").decode()  # faulthandler 这样写中文的路径
    inside = re.search(rf'File "{re.escape(name)}", line (\d+)', stack)
    place = f",停在第 {inside[1]} 行" if inside else ""
    return f"超过 {seconds} 秒还没有算完{place}:多半是死循环,请检查循环的条件。"


def main():
    number, path, report, stack, seconds = sys.argv[1:]
    sys.path[0] = str(Path(path).parent)  # 学生的文件可以导入同一目录里的文件
    os.chdir(sys.path[0])  # 启动时不在这里:目录里若有 random.py,不能让 Paddle 导入它
    task = exercise(int(number))
    with open(report, "w", encoding="utf-8") as output, open(stack, "w", encoding="utf-8") as trace:

        def announce(title, results):
            record = {"doing": title, "results": [dataclasses.asdict(result) for result in results]}
            print(json.dumps(record), file=output, flush=True)

        faulthandler.dump_traceback_later(int(seconds), exit=True, file=trace)
        results = grade(task, path, announce)
        faulthandler.cancel_dump_traceback_later()
        announce(None, results)
    os._exit(0)  # 不等学生留下的线程


if __name__ == "__main__":
    main()
