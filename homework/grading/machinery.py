"""判卷的机制:一份练习(Exercise)是一串检查(Check),每个检查得出一个结果(Result)。

检查认得常见的错误:参考答案 ``answer(wrong)`` 是用 NumPy 写的函数,``wrong`` 里的每个名字让它故意犯一种错误。
学生的数与正确的答案不同时,逐个(再两两)犯错再比,哪个对上了,就说出那个错误的名字。
"""

import dataclasses
import importlib.util
import itertools
import linecache
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Callable

import numpy as np
import paddle
from paddle import nn

__all__ = [
    "Check",
    "Exercise",
    "Result",
    "Wrong",
    "as_array",
    "compare",
    "expect_gradients",
    "grade",
    "is_bias",
    "is_close",
    "load",
    "tensor",
    "weights_of",
]

PASSED, FAILED, TODO, SKIPPED = "通过", "不对", "没做", "跳过"


class Wrong(Exception):
    """学生的答案不对。

    Args:
        message (str): 一句或几句中文:哪里不对。
        mistakes (tuple): 认出的错误的名字。
    """

    def __init__(self, message, mistakes=()):
        super().__init__(message)
        self.mistakes = tuple(mistakes)


@dataclasses.dataclass(frozen=True)
class Check:
    """一个检查:查 part(文件里的函数或类)的一个方面;hint 是第二次没通过之后才给的提示。"""

    part: str
    title: str
    hint: str
    function: Callable


@dataclasses.dataclass(frozen=True)
class Result:
    """一个检查的结果;mistakes 是认出的错误的名字,给测试看。"""

    title: str
    verdict: str
    message: str = ""
    hint: str = ""
    mistakes: tuple = ()


class Exercise:
    """一份练习。

    Args:
        number (int): 号码,就是课的。
        title (str): 标题。
        mistakes (dict): 认得的错误:名字 -> 一句中文。
    """

    def __init__(self, number, title, mistakes):
        self.number, self.title, self.mistakes = number, title, mistakes
        self.checks = []

    def check(self, part, title, hint):
        """装饰器:把一个函数登记成检查。函数收到学生的 part;没有异常就是通过,不对时抛出 ``Wrong``。"""

        def register(function):
            self.checks.append(Check(part, title, hint, function))
            return function

        return register

    def only(self, names):
        """其中几种错误(字典,同 ``mistakes``),给 ``compare``。"""
        return {name: self.mistakes[name] for name in names}

    def fail(self, name, details=""):
        """抛出认出的错误。"""
        raise Wrong(self.mistakes[name] + details, [name])


# ---- 读学生的文件 ----


def load(path):
    """执行学生的文件,返回它的全部名字。

    Raises:
        Wrong: 读不了、有语法错误,或执行时出错。
    """
    path = Path(path).resolve()
    try:
        source = importlib.util.decode_source(path.read_bytes())  # 认 BOM 和 coding 声明
    except (UnicodeDecodeError, SyntaxError):
        raise Wrong(
            "文件不是 UTF-8 编码(可能存成了 GBK 或 UTF-16):请在编辑器里选“另存为”,编码选 UTF-8。", ["encoding"]
        ) from None
    try:
        code = compile(source, str(path), "exec")
    except SyntaxError as error:  # 缩进错误(IndentationError)也是它
        text = f":{error.text.strip()}" if error.text else ""
        raise Wrong(f"第 {error.lineno} 行有语法错误({error.msg}){text}", ["syntax"]) from None
    except ValueError as error:  # 文件里有空字符
        raise Wrong(f"文件不是 Python 源代码({error})。", ["syntax"]) from None
    module = types.ModuleType(f"homework_{path.stem}")  # 文件叫 paddle.py 也不会顶替真的 paddle
    module.__file__ = str(path)
    linecache.checkcache(str(path))
    sys.modules[module.__name__] = module
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:  # noqa: BLE001  学生的代码可以抛出任何异常
        raise Wrong(describe_exception(error, path), ["exception"]) from None
    return vars(module)


def student_line(error, path):
    """异常经过学生的文件的最后一行:``(行号, 那一行)``;没有经过时是 ``None``。"""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (frames[-1].lineno, frames[-1].line) if frames else None


def describe_exception(error, path):
    """把学生代码里的异常说成一两句话:哪一行,什么异常。"""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("---", "Error Message", "C++ Traceback"))]
    text = (lines[0] if lines else "")[:300]
    if "modified by an inplace operation" in text:
        return (
            "用了原地运算(给张量的一部分赋值 w[i] = …,或名字以 _ 结尾的 add_):反向传播还要用原来的数。"
            "请写成 x = x + … 这样的新变量;循环里的结果放进列表,最后用 paddle.stack 或 paddle.concat 合起来。"
        )
    where = student_line(error, path)
    name = type(error).__name__
    if where is None:
        return f"调用你的代码时出错({name}:{text})。请核对名字和参数表是否与模板相同,各层的形状能不能接上。"
    place = f"第 {where[0]} 行出错:{where[1]}\n"
    if isinstance(error, SystemExit):
        return f"{place}程序在这里自己退出了(sys.exit):请去掉它。"
    if isinstance(error, EOFError):
        return f"{place}程序在等键盘输入(input):判卷时没有人输入,请去掉它。"
    if "super().__init__()" in text:
        return f"{place}忘了在 __init__ 的第一行写 super().__init__()。"
    return f"{place}{name}:{text}"


# ---- 判卷 ----


def grade(exercise, path, announce=lambda title, results: None):
    """判一个文件。同一个函数或类的一项没通过,它后面的几项就跳过。

    Args:
        exercise (Exercise): 练习。
        path (str | Path): 学生的文件。
        announce (Callable): 每项开始之前以它的标题和至今的结果调用,好知道死循环在哪一项。

    Returns:
        list: 每项检查一个 ``Result``;文件读不进来时,前面多一个说明原因的 ``Result``。
    """
    path = Path(path).resolve()
    announce("读文件", [])
    try:
        namespace = load(path)
    except Wrong as wrong:
        skipped = [Result(check.title, SKIPPED) for check in exercise.checks]
        return [Result("读文件", FAILED, str(wrong), mistakes=wrong.mistakes), *skipped]
    results, stopped = [], set()
    for check in exercise.checks:
        if check.part in stopped:
            results.append(Result(check.title, SKIPPED))
            continue
        announce(check.title, results)
        result = run_check(check, namespace, path)
        results.append(result)
        if result.verdict != PASSED:
            stopped.add(check.part)
    return results


def run_check(check, namespace, path):
    """做一项检查。"""
    if check.part not in namespace:
        message = f"文件里没有 {check.part}:名字要与模板相同,请不要改名或删掉。"
        return Result(check.title, FAILED, message, mistakes=("missing_name",))
    try:
        check.function(namespace[check.part])
    except NotImplementedError as error:
        where = student_line(error, path)
        if where is None:
            message = f"{check.part} 没有定义 forward(名字写错了,或缩进不对)。"
            return Result(check.title, FAILED, message, mistakes=("no_forward",))
        return Result(check.title, TODO, f"第 {where[0]} 行的 TODO 还没做。")
    except Wrong as wrong:
        return Result(check.title, FAILED, str(wrong), check.hint, wrong.mistakes)
    except (Exception, SystemExit) as error:  # noqa: BLE001  学生的代码可以抛出任何异常
        return Result(check.title, FAILED, describe_exception(error, path), check.hint, ("exception",))
    return Result(check.title, PASSED)


# ---- 比较 ----


def as_array(name, value):
    """学生返回的数:Tensor 或 ndarray -> float64 的 ndarray。

    Raises:
        Wrong: 什么也没返回,或不是数。
    """
    if value is None or value is ...:
        raise Wrong(f"{name} 是 {value}:还没写完,或忘了 return。", ["no_return"])
    if isinstance(value, paddle.Tensor):
        return value.detach().numpy().astype("float64")
    if isinstance(value, (np.ndarray, np.generic, int, float)):
        return np.asarray(value, "float64")
    advice = ":用 paddle.stack、paddle.concat 或 paddle.to_tensor 合成一个" if isinstance(value, (list, tuple)) else ""
    raise Wrong(f"{name} 的类型是 {type(value).__name__},应为 Tensor{advice}。", ["type"])


def is_close(got, expected):
    """形状相同,每个数在 float32 的误差之内相同。"""
    return got.shape == expected.shape and np.allclose(got, expected, rtol=1e-4, atol=1e-5)


def compare(name, got, answer, mistakes=None):
    """比较学生的数和参考答案。

    Args:
        name (str): 在消息里怎样称呼这个数。
        got: 学生的数,见 ``as_array``。
        answer (Callable): ``answer(wrong) -> ndarray``,wrong 是要犯的错误的集合,空集合是正确答案。
        mistakes (dict | None): 认得的错误:名字 -> 一句中文。

    Raises:
        Wrong: 不同;认出是哪种(或哪两种)错误时,先说它的名字。
    """
    got = as_array(name, got)
    expected = answer(frozenset())
    if is_close(got, expected):
        return
    mistakes = mistakes or {}
    found = ()
    for count in (1, 2):
        for wrong in itertools.combinations(mistakes, count):
            if not found and is_close(got, answer(frozenset(wrong))):
                found = wrong
    lines = [mistakes[key] for key in found]
    if got.shape != expected.shape:
        lines.append(f"{name} 的形状应为 {list(expected.shape)},得到 {list(got.shape)}。")
    else:
        lines.append(first_difference(name, got, expected))
    raise Wrong("\n".join(lines), found)


def first_difference(name, got, expected):
    """说出第一个不同的数:下标、应有的值、得到的值。"""
    different = ~np.isclose(got, expected, rtol=1e-4, atol=1e-5)
    index = tuple(int(i) for i in np.argwhere(different)[0])
    place = f"{name}[{', '.join(map(str, index))}]" if index else name
    share = f";{different.size} 个数里有 {int(different.sum())} 个不同" if index else ""
    return f"{place} 应为 {expected[index]:.4f},得到 {got[index]:.4f}(形状 {list(got.shape)} 对{share})。"


# ---- 学生的层 ----


def weights_of(layer):
    """层里的参数,按所属的子层分组:名字 -> ``(weight, bias)``,没有偏置时 bias 是 ``None``。

    用 ``create_parameter`` 直接建的参数按名字配对,如 W_q 和 b_q。
    把每个参数设成固定种子的随机数(参数的初值可能是 0,看不出错误)。

    Raises:
        Wrong: 子层放在普通的 Python 列表里,Paddle 看不见它的参数。
    """
    expect_no_hidden_layers(layer)
    rng = np.random.default_rng(7)
    groups = {}
    for name, parameter in layer.named_parameters():
        parameter.set_value((rng.standard_normal(parameter.shape) * 0.5).astype("float32"))
        owner, _, last = name.rpartition(".")
        stem = re.sub(r"^(weight|kernel|bias|w|b)_?|_?(weight|kernel|bias|w|b)$", "", last, flags=re.I)
        key = ".".join(filter(None, (owner, stem))) or "weight"
        weight, bias = groups.get(key, (None, None))
        groups[key] = (weight, parameter) if is_bias(parameter) else (parameter, bias)
    return {name: pair for name, pair in groups.items() if pair[0] is not None}


def is_bias(parameter):
    """形状是 [D],或为了广播写成的 [1, 1, D]。"""
    return parameter.size == (parameter.shape or [1])[-1]


def expect_no_hidden_layers(layer):
    for sublayer in layer.sublayers(include_self=True):
        for name, value in vars(sublayer).items():
            values = value.values() if isinstance(value, dict) else value
            if name.startswith("_") or not isinstance(value, (list, tuple, dict)):
                continue
            if any(isinstance(item, nn.Layer) for item in values):
                raise Wrong(
                    f"self.{name} 是普通的 Python 列表或字典,里面的层的参数 Paddle 看不见,不会被训练:"
                    "请用 nn.LayerList 或 nn.Sequential。",
                    ["hidden_layer"],
                )


def expect_gradients(output, parameters):
    """output 对每个参数都有梯度。

    Args:
        output (Tensor): 学生算出的结果。
        parameters (dict): 名字 -> Parameter 或 Tensor。

    Raises:
        Wrong: 有的参数没有梯度:计算图断了,或参数没有用上。
    """
    weights = np.random.default_rng(3).standard_normal(output.shape).astype("float32")
    cut = output.stop_gradient
    if not cut:
        (output * paddle.to_tensor(weights)).sum().backward()
    missing = [name for name, p in parameters.items() if cut or p.grad is None or not np.any(p.grad.numpy())]
    if missing:
        raise Wrong(
            f"{'、'.join(missing)} 没有梯度,不会被训练:它没有用上,"
            "或计算图在半路断了(detach、numpy()、to_tensor、no_grad 都会切断)。",
            ["no_gradient"],
        )


def tensor(array):
    """数组 -> float32 的 Tensor。"""
    return paddle.to_tensor(np.asarray(array, "float32"))
