"""命令行的共同部分:中文的参数解析器,和把错误变成一行中文的入口。"""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import re
import signal
import socket
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import paddle

from ..errors import UserError
from .files import describe_os_error
from .run_files import resolve_latest

__all__ = ["ArgumentParser", "check_port", "numbers", "pair_of_numbers", "run_main"]


_ARGPARSE_MESSAGES = {  # argparse 自带的英文短语 -> 中文
    "expected one argument": "后面要跟一个值",
    "expected at least one argument": "后面至少要跟一个值",
    "ignored explicit argument": "是开关,不带值;多给了",
    "the following arguments are required": "缺少参数",
    "invalid choice": "不合法的取值",
    "invalid int value": "应为整数,得到",
    "invalid float value": "应为数字,得到",
    "choose from": "可选",
}


class _HelpFormatter(argparse.HelpFormatter):
    """按终端的宽度折行,一个汉字占两格;含义另起一行,对齐就不受汉字影响。"""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=6)

    def _split_lines(self, text, width):
        return [line for paragraph in text.splitlines() for line in _wrap(paragraph, width)]

    def _fill_text(self, text, width, indent):
        return "\n".join(indent + line for line in self._split_lines(text, width - len(indent)))


class ArgumentParser(argparse.ArgumentParser):
    """中文的 ``argparse.ArgumentParser``:用法、帮助和错误都是中文,``--image_size`` 与 ``--image-size`` 等价。"""

    def __init__(self, description: str, usage: str | None = None):
        super().__init__(
            usage=usage,
            description=description,
            add_help=False,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self._positionals.title = "位置参数"
        self._optionals.title = "选项"
        self.add_argument("-h", "--help", action="help", help="显示这份帮助")

    def format_help(self) -> str:
        return super().format_help().replace("usage: ", "用法:", 1)

    def error(self, message: str) -> NoReturn:
        for english, chinese in _ARGPARSE_MESSAGES.items():
            message = message.replace(english, chinese)
        message = message.replace("argument ", "参数 ", 1)
        raise UserError(f"{message};运行 --help 查看每个参数的含义。")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = [_spelled_out(arg) for arg in (sys.argv[1:] if args is None else args)]
        namespace, unknown = self.parse_known_intermixed_args(args, namespace)  # 选项可以夹在图片中间
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            name = unknown[0].split("=")[0]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"是不是 {close[0]}?" if close else ""
            raise UserError(f"不认识的参数 {' '.join(unknown)}:{hint}运行 --help 查看全部参数。")
        return namespace


def _columns(text):
    """在终端里占几格。"""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _wrap(text, width):
    """折成不超过 width 格的几行:西文的词不断开,标点不单独在行首,开括号不在行末。"""
    lines = [""]
    for piece in re.findall(r"[((「《]*(?:[!-~]+|.)[,。;:、))」》]*", text):
        if lines[-1] and _columns(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
    return lines


def _spelled_out(arg):
    """选项名里的下划线换成横线;``runs/latest`` 换成最近的那个运行。"""
    if not arg.startswith("--"):
        return str(resolve_latest(arg)) if Path(arg).name == "latest" else arg
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + (str(resolve_latest(value)) if Path(value).name == "latest" else value)


def pair_of_numbers(text: str) -> tuple[int, int]:
    """命令行上的 ``行,列`` -> (行, 列);供 ``add_argument(type=…)`` 用。"""
    try:
        row, column = text.replace("，", ",").split(",")
        return int(row), int(column)
    except ValueError:
        raise argparse.ArgumentTypeError(f"应为 行,列 两个整数,如 1,2,得到 {text!r}") from None


def numbers(text: str) -> list[float]:
    """``'0.5,0.5'`` -> ``[0.5, 0.5]``,给 ``add_argument`` 的 type;全角的逗号也行。"""
    try:
        return [float(part) for part in text.replace("\uff0c", ",").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"应为数,几个之间用逗号,如 0.5,0.5,0.5,得到 {text!r}") from None


def check_port(host: str, port: int) -> None:
    """确认能在这个地址和端口上监听。

    Raises:
        UserError: 端口不合法、被占用,或地址不是本机的。
    """
    if not 0 < port < 65536:
        raise UserError(f"--port {port} 不合法:端口应在 1 到 65535 之间。")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name == "posix":  # 刚关掉的端口可以马上再用;在 Windows 上它的意思是可以抢别人的
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError):  # 后者是不合法的主机名
            raise UserError(
                f"{host}:{port} 不能监听(端口被占用,或地址不是本机的):请用 --port 换一个端口,或检查 --host。"
            ) from None


def _writable(stream: TextIO | None) -> TextIO:
    """写中文也不会中断的标准输出或标准错误;没有控制台(``pythonw``)时写到空处,笔记本里的不是文件,原样用。"""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # 终端的编码写不出中文时,宁可显示问号也不要中断
    return stream


def run_main(main: Callable[[], object]) -> None:
    """脚本的入口:执行 ``main()``,把使用者能改正的错误打印成一行中文并以状态码 2 退出;Ctrl-C 以 130 退出。"""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # scripts/ctrl_c.py;从这里起由我们说明怎样继续
        signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # 主目录写不了时,它说缓存放在临时目录里
    paddle.disable_signal_handler()  # 否则关掉终端、被 SIGTERM 终止时,Paddle 打印一屏 C++ 调用栈
    sys.stdout, sys.stderr = _writable(sys.stdout), _writable(sys.stderr)
    try:
        main()
    except MemoryError:
        print("错误:内存(或显存)不够:请减小 --batch-size、--image-size 或模型的尺寸。", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"错误:{error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # 输出接到 head 之类的程序,对方先退出
        if isinstance(sys.stdout, io.TextIOWrapper):  # 退出时还会冲一次缓冲区
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:  # Paddle 把反向传播里的任何异常都变成没有错误号的 OSError,那是程序的错,要看调用栈
            raise
        print(f"错误:{describe_os_error(error, error.filename or '文件')}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"已中断。{interrupt}", file=sys.stderr)
        sys.exit(130)
