"""学生会 import 的函数和类,签名都写明类型:编辑器里看得见要给什么、得到什么。"""

import ast
import importlib
import inspect
import json

import pytest
from support.documents import PAGES, ROOT, blocks

import paddle_vit


def taught():
    """README、docs、课程和作业里的代码:(出处, 源码)。"""
    for page in PAGES:
        yield from ((page, block) for block in blocks(page, "python"))
    for path in sorted(ROOT.glob("lessons/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield from ((path.name, cell) for cell in code if not cell.startswith("%"))
    for path in sorted(ROOT.glob("homework/*.py")):
        yield path.name, path.read_text(encoding="utf-8")


def shown():
    """学生会 import 的名字:{(模块, 名字)}。"""
    names = {("paddle_vit", name) for name in paddle_vit.__all__}
    for _, source in taught():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "paddle_vit":
                names |= {(node.module, alias.name) for alias in node.names}
    return sorted(names)


def methods(kind):
    """类里使用者会调用的方法,包括从本项目的类继承的。"""
    for base in kind.__mro__:
        if base.__module__.startswith("paddle_vit") and not issubclass(base, BaseException):
            for name, member in vars(base).items():
                if name in ("__init__", "__call__") or not name.startswith("_"):
                    member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                    if inspect.isfunction(member):
                        yield f"{base.__name__}.{name}", member


def untyped(function):
    """没有写明类型的参数;没有写明返回值的是 return。"""
    signature = inspect.signature(function)
    own = [name for name in signature.parameters if name not in ("self", "cls")]
    missing = [name for name in own if signature.parameters[name].annotation is inspect.Parameter.empty]
    if signature.return_annotation is inspect.Signature.empty and function.__name__ != "__init__":
        missing.append("return")
    return missing


def test_enough_is_shown():
    assert {("paddle_vit", "ViT"), ("paddle_vit", "load_weights"), ("paddle_vit", "train")} <= set(shown())
    assert len(shown()) > 50


@pytest.mark.parametrize(("module", "name"), shown())
def test_what_students_import_is_typed(module, name):
    member = getattr(importlib.import_module(module), name)
    if inspect.isclass(member):
        missing = {title: untyped(method) for title, method in methods(member)}
    else:
        missing = {name: untyped(member)} if inspect.isfunction(member) else {}
    assert {title: names for title, names in missing.items() if names} == {}


def test_the_check_sees_what_is_missing():
    def half(x, y: int = 1):
        return x

    class Whole:
        def __init__(self, x: int):
            self.x = x

    assert untyped(half) == ["x", "return"] and untyped(Whole.__init__) == []


def test_editors_are_told_that_there_are_types():
    assert (ROOT / "paddle_vit" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "setup.py").read_text(encoding="utf-8")
