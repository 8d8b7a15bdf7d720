"""pickle 要调用的名字:多半是命令,还是权重旁边的普通对象。两种都不执行,都不读,只是怎样说不同。"""

import sys

from .pickles import Name

__all__ = ["is_ordinary", "real_name"]

# Python 3.9 没有这张表;少了的按第三方的库算:它们的函数照样可疑
_STANDARD = set(
    getattr(sys, "stdlib_module_names", "os subprocess builtins io pathlib shutil socket sys types".split())
)
_STANDARD |= {"posix", "nt", "__builtin__", "commands"}
# 标准库里只存数据的模块:其中的类(名字以大写开头)是普通对象
_HARMLESS = set("array collections dataclasses datetime decimal enum fractions logging random re typing uuid".split())
_PARTIAL = "functools.partial"


def _is_class(name):
    return name.rpartition(".")[2][:1].isupper()


def real_name(name, args):
    """说给使用者听的名字:枚举在 pickle 里是 ``getattr(枚举, 成员)``,``partial(函数)`` 里要紧的是那个函数。

    Args:
        name (str): 要调用的名字。
        args (tuple): 参数。
    """
    target = args[0] if args and isinstance(args[0], Name) else None
    if target is not None and name == "builtins.getattr" and is_ordinary(target.text):
        return target.text
    if target is not None and name == _PARTIAL and not (_is_ours(target.text) or is_ordinary(target.text)):
        return target.text
    return name


def _is_ours(name):
    """使用者自己的,或第三方库里的名字;标准库里的可能是命令。"""
    return name.partition(".")[0] not in _STANDARD


def is_ordinary(name):
    """这个名字多半是普通对象:``functools.partial``,标准库里只存数据的类,自己写的或第三方库里的类。

    标准库里其余的名字(``os.system``、``builtins.eval``……)和任何库的函数都可能运行命令,不算。
    """
    root = name.partition(".")[0]
    return name == _PARTIAL or (_is_class(name) and (root in _HARMLESS or root not in _STANDARD))
