"""房子的规矩:import 只往下走,没有圈,文件不长,私有的名字不出门,依赖都写明。图见 docs/code-map.md。"""

import ast
import re
import sys

import pytest
from support.running import ROOT

PACKAGE = ROOT / "paddle_vit"
# 从下往上;一间房可以用它下面的和自己的,不能用上面的
FLOORS = (
    "errors checks system kernels broadcast functional convolution positions activations layers compact vit family "
    "attention weights config_checks config config_files data tasks training runs study deploy"
).split()
MOST_LINES = 400
LOOP_LINES = 250
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
# pip 里的名字与 import 的名字不同的
DISTRIBUTIONS = {"paddle": "paddlepaddle", "PIL": "pillow", "yaml": "pyyaml"}
COMES_WITH = {"fastapi": "gradio", "starlette": "gradio", "uvicorn": "gradio", "werkzeug": "visualdl"}
COMES_WITH |= {"llvmlite": "numba", "flask": "visualdl", "jupyter_client": "nbclient", "nbformat": "nbclient"}
# 导入要花半秒以上、或可以不装的,在函数里导入不必再说理由
HEAVY = {
    "fastapi",
    "starlette",
    "gradio",
    "matplotlib",
    "numba",
    "onnx",
    "onnxruntime",
    "paddle2onnx",
    "uvicorn",
    "visualdl",
}


def dotted(path):
    """文件 -> 模块名,如 weights.files.opening;包的 __init__.py 就是包名。"""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in FILES}


def imported(path):
    """这个文件 import 的本项目的模块:(模块名, 名字, 节点);名字是模块里的,import 整个模块时是 ``None``。"""
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names):
                if name.split(".")[0] == "paddle_vit":
                    yield name.partition(".")[2], None, node
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                source = ".".join([*base, *([node.module] if node.module else [])])
            elif node.module.split(".")[0] == "paddle_vit":
                source = node.module.partition(".")[2]
            else:
                continue
            for alias in node.names:
                whole = f"{source}.{alias.name}".lstrip(".")
                yield (whole, None, node) if whole in MODULES else (source, alias.name, node)


def named(node):
    """import 语句里写的模块名。"""
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]


def room(module):
    return module.split(".")[0]


def test_every_room_is_on_the_map():
    assert {room(dotted(path)) for path in FILES} - {""} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path):
    here = room(dotted(path))
    if not here:  # paddle_vit/__init__.py 是门厅,什么都可以拿
        return
    upwards = [
        f"第 {node.lineno} 行 {module}"
        for module, _, node in imported(path)
        if room(module) != here and FLOORS.index(room(module)) > FLOORS.index(here)
    ]
    assert upwards == []


def test_there_is_no_circle():
    arrows = {
        dotted(path): {module for module, _, _ in imported(path) if module in MODULES} for path in FILES if dotted(path)
    }
    done, walking = set(), []

    def walk(module):
        if module in walking:
            raise AssertionError(" -> ".join([*walking[walking.index(module) :], module]))
        if module in done or module not in arrows:
            return
        walking.append(module)
        for other in sorted(arrows[module] - {module}):
            walk(other)
        done.add(walking.pop())

    for module in arrows:
        walk(module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_an_import_inside_a_function_says_why(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    inside = {
        node
        for function in ast.walk(TREES[path])
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    light = [node for node in inside if not HEAVY & {name.split(".")[0] for name in named(node)}]
    assert [lines[node.lineno - 1].strip() for node in light if "#" not in lines[node.end_lineno - 1]] == []


def test_no_file_is_long():
    lengths = {dotted(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
    assert lengths["training.loop"] <= LOOP_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_private_names_stay_at_home(path):
    names = [f"{module}.{name}" for module, name, _ in imported(path) if name and name.startswith("_")]
    modules = {alias.asname or alias.name for module, name, node in imported(path) if not name for alias in node.names}
    names += [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
        if re.match(r"_[^_]", node.attr)
    ]
    assert names == []


def public_names(tree):
    """模块的 __all__ 里的名字;没有写就是 ``None``。"""
    names = None
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            names = (names or []) + ast.literal_eval(node.value)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_what_others_import_is_in_all(path):
    hidden = []
    for module, name, node in imported(path):
        names = public_names(TREES[MODULES[module]])
        if name is not None and names is not None and name not in names:
            hidden.append(f"第 {node.lineno} 行 {module}.{name}")
    assert hidden == []


def test_every_dependency_is_declared():
    declared = set(re.findall(r'"([A-Za-z0-9_-]+)', (ROOT / "setup.py").read_text(encoding="utf-8")))
    used = set()
    for path in [*FILES, *(ROOT / "tests").glob("**/test_*.py"), *(ROOT / "tests" / "support").glob("*.py")]:
        tree = TREES.get(path) or ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                used.add(node.module.split(".")[0])
    own = {
        "paddle_vit",
        "benchmark",
        "homework",
        "support",
        "images",
        "conftest",
        "torch",
        "__future__",
    }  # torch:有就比,没有就跳过
    outside = {name for name in used if name not in own | set(sys.stdlib_module_names)}
    missing = {DISTRIBUTIONS.get(name, COMES_WITH.get(name, name)) for name in outside} - declared
    assert {name for name in missing if name.replace("_", "-") not in declared} == set()
