"""读写文件:写要么成要么不动旧文件,读有大小的上限、什么也不执行,出错时一行中文。"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError

__all__ = [
    "LISTED",
    "atomic_write",
    "describe_os_error",
    "first_few",
    "matches",
    "parse_json",
    "quoted",
    "read_json",
    "read_text",
    "read_yaml",
]

MAX_TEXT_FILE = 4 << 20  # 字节;两万多个类别名的 config.json 是 1 MB
MAX_YAML = 128 << 10  # 字节;读一秒钟


def atomic_write(path: str | Path, data: bytes | Iterable[bytes]) -> None:
    """把字节写进文件:要么完整地换成新内容,要么旧文件原样。

    Args:
        path (str | Path): 目标文件。
        data (bytes | Iterable[bytes]): 内容;可以一段一段地给。

    Raises:
        UserError: 磁盘满、没有权限等。
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # 几个程序同时写同一个文件,互不相扰
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(describe_os_error(error, path)) from None
    finally:
        with contextlib.suppress(OSError):  # 写成了,或目录不可写时,临时文件已经没有了;被 Ctrl-C 打断时还在
            temporary.unlink()


def describe_os_error(error: OSError, path: str | Path) -> str:
    """把读写文件时的 ``OSError`` 说成一句中文。"""
    path = error.filename or path
    reasons = {
        errno.ENOSPC: f"磁盘已满,写不下 {path}:请腾出空间或用 --output 换一个磁盘,已经保存的内容不受影响。",
        errno.EDQUOT: f"磁盘配额用完,写不下 {path}:请腾出空间,已经保存的内容不受影响。",
        errno.EACCES: f"没有权限访问 {path}:请换一个有权限的目录,或修改它的权限。",
        errno.EPERM: f"没有权限访问 {path}:请换一个有权限的目录,或修改它的权限。",
        errno.EROFS: f"{path} 在只读的文件系统上:请用 --output 换一个可写的目录。",
        errno.ENOENT: f"没有 {path}:请检查路径。",
        errno.EISDIR: f"{path} 是目录,这里需要文件:请检查路径。",
        errno.ENOTDIR: f"{path} 的上级不是目录:请检查路径。",
        errno.EEXIST: f"{path} 已经存在而且不是目录:请换一个路径。",
        errno.ENAMETOOLONG: "文件名太长:请换一个短一些的路径。",
    }
    return reasons.get(error.errno or 0, f"读写 {path} 时出错({error.strerror}):请检查磁盘和路径。")


def read_text(path: str | Path, limit: int = MAX_TEXT_FILE) -> str:
    """读一个小的文本文件(设置、说明、换名表、类别名)。

    Args:
        path (str | Path): UTF-8 的文件。
        limit (int): 最多多少字节。

    Raises:
        UserError: 没有这个文件,不是普通文件(管道、设备会一直读不完),太大,或不是 UTF-8。
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise UserError(f"{path} 不是普通文件(是管道或设备):请换一个文本文件。")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(describe_os_error(error, path)) from None
    if len(data) > limit:
        raise UserError(f"{path} 超过 {limit >> 10} KB,不像是设置或说明:请检查路径。")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} 不是 UTF-8 编码的文字:请用 UTF-8 另存。") from None


def read_yaml(path: str | Path) -> Any:
    """读一个 YAML 文件;什么也不执行,也不许用 ``&``、``*`` 引用(几行引用能展开成几 GB)。

    Args:
        path (str | Path): UTF-8 的文件,最多 ``MAX_YAML`` 字节。

    Returns:
        Any: 文件里的值;空文件是 ``None``。

    Raises:
        UserError: 见 ``read_text``;或不是合法的 YAML。
    """
    import yaml  # 导入各层时用不到

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(problem_mark=self.peek_event().start_mark)
            return super().compose_node(parent, index)

    text = read_text(path, MAX_YAML)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"第 {mark.line + 1} 行附近" if mark else "内容"
        raise UserError(f"{path} 不是合法的 YAML:{where}有误,请按 名字: 值 一行一个来写,检查缩进和引号。") from None


def read_json(path: Path, pattern: dict | None = None, advice: str = "请换一个备份,或重新训练") -> Any:
    """读一个 JSON 文件(字典);没有这个文件时是 ``None``。

    Args:
        path (Path): 文件。
        pattern (dict | None): 应有的样子,见 ``matches``;``None`` 是任意的字典。
        advice (str): 文件损坏时怎么办,写进提示。

    Raises:
        UserError: 文件已损坏,或不是应有的样子。
    """
    if not path.exists():
        return None
    value = parse_json(read_text(path))
    if not matches(value, pattern or {}):
        raise UserError(f"{path} 已损坏:{advice}。")
    return value


def parse_json(text: str) -> Any:
    """JSON 文字的值;不是 JSON、嵌套得太深时是 ``None``。"""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def matches(value: Any, pattern: Any) -> bool:
    """读回的 JSON 是不是应有的样子。

    Args:
        value (Any): ``json.loads`` 的结果。
        pattern (Any): 类型(``float`` 也收整数);``[样子]`` 是列表,每一项都是它;``{名字: 样子}`` 是字典,这些名字都要有;
            ``{None: 样子}`` 是名字任意的字典。

    Returns:
        bool
    """
    if isinstance(pattern, list):
        return isinstance(value, list) and all(matches(item, pattern[0]) for item in value)
    if isinstance(pattern, dict):
        wanted = pattern if None not in pattern or not isinstance(value, dict) else dict.fromkeys(value, pattern[None])
        return isinstance(value, dict) and all(k in value and matches(value[k], wanted[k]) for k in wanted)
    if isinstance(value, bool):
        return pattern is bool
    if isinstance(value, int) and value.bit_length() > 63:  # 太大的整数不能当小数来算
        return False
    return isinstance(value, (int, float) if pattern is float else pattern)


def quoted(path: str | Path) -> str:
    """打印的命令里的路径:有空格、引号等时加引号,复制过去就能用。"""
    text = str(path)
    if os.name == "nt":
        return subprocess.list2cmdline([text])
    return text if re.fullmatch(r"[\w@%+=:,./~-]+", text) else shlex.quote(text)


LISTED = 10  # 要使用者一个一个去改的,列出这么多个名字


def first_few(names: Sequence[str], most: int = 3) -> str:
    """提示里列出的名字:只写前几个。"""
    return "、".join(names[:most]) + ("…" if len(names) > most else "")
