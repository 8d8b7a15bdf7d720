import ast
import re
import time

import nbformat
import pytest
from support.running import ROOT

from paddle_vit.system.pictures import use_chinese_font

LESSONS = ROOT / "lessons"
NAMES = sorted(path.stem for path in LESSONS.glob("*.ipynb"))
HEADINGS = ["想法", "公式", "代码", "图", "检查", "练习"]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CHINESE = re.compile("[\u4e00-\u9fff]")
# 文件或目录
TAUGHT = (
    "layers.py",
    "positions.py",
    "vit.py",
    "equivalents.py",
    "functional.py",
    "windows.py",
    "swin.py",
    "attention",
    "weights",
)
LIMIT = 120  # 秒


def read(name):
    return nbformat.read(LESSONS / f"{name}.ipynb", as_version=4)


def sections(notebook):
    """二级标题 -> 它下面的格子。"""
    found, title = {}, None
    for cell in notebook.cells:
        headings = re.findall(r"^## (.*)", cell.source, re.M) if cell.cell_type == "markdown" else []
        for title in headings:
            assert title not in found, title
            found[title] = []
        found.setdefault(title, []).append(cell)
    return found


def statements(tree, length=3):
    """代码里每连续 length 条语句(不算 import 和文档字符串)。"""
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [
                ast.unparse(item)
                for item in body
                if not isinstance(item, (ast.Import, ast.ImportFrom))
                and not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ]
            found |= {tuple(kept[i : i + length]) for i in range(len(kept) - length + 1)}
    return found


def definitions(tree):
    return {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


@pytest.fixture(scope="module")
def library():
    """库里的全部连续语句,和课程里那几个模块的公开名字。"""
    package = ROOT / "paddle_vit"
    paths = sorted(package.rglob("*.py"))
    trees = {path.relative_to(package): ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    taught = [tree for path, tree in trees.items() if set(TAUGHT) & {path.name, *path.parts}]
    assert len(taught) >= len(TAUGHT)
    names = set().union(*map(definitions, taught))
    return set().union(*map(statements, trees.values())), {name for name in names if not name.startswith("_")}


def test_numbers_have_no_gaps_and_the_table_lists_every_lesson_with_its_homework_and_files():
    assert [int(name[:2]) for name in NAMES] == list(range(len(NAMES)))
    text = (LESSONS / "README.md").read_text(encoding="utf-8")
    lessons = [(str(int(name[:2])), name) for name in NAMES]
    assert re.findall(r"^\| (\d+) \| \[.*?\]\((.*?)\.ipynb\)", text, re.M) == lessons
    taught = re.findall(r"^\| [\d、]+ \| .*? \| (.*?) \| (.*?) \| (.*?) \|$", text, re.M)  # 讲 -> 课、作业、文件
    taught_lessons = [int(number) for cell, _, _ in taught for number in cell.split("、")]
    assert sorted(taught_lessons) == list(range(len(NAMES)))
    for numbers, exercises, files in taught:
        assert re.findall(r"\[ex(\d\d)_", exercises) == [f"{int(number):02d}" for number in numbers.split("、")]
        assert re.findall(r"\]\(\.\./\S+?\)", files), files  # 链接本身由 test_readme 检查


@pytest.mark.parametrize("name", NAMES)
def test_files_are_clean_and_stable(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata == METADATA
    for cell in notebook.cells:
        assert cell.source.strip() and not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    text = (LESSONS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert text.rstrip("\n") == nbformat.writes(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_skeleton(name):
    notebook = read(name)
    number = int(name[:2])
    assert re.match(rf"# 第 {number} 课 \S", notebook.cells[0].source)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert CHINESE.search(cell.source), cell.source
    parts = sections(notebook)
    assert [title for title in parts if title] == HEADINGS
    code = {title: "\n".join(c.source for c in cells if c.cell_type == "code") for title, cells in parts.items()}
    assert "use_chinese_font()" in code[None]
    assert "assert" in code["检查"] and "print(" in code["检查"]
    assert re.search(rf"title.*{CHINESE.pattern}|_figure\(", code["图"]), "图要有中文标题,或用库里的图(它们自带)"
    assert "$" in parts["公式"][0].source and "\\" in parts["公式"][0].source
    assert f"python scripts/homework.py start {number} --into my/" in notebook.cells[-1].source
    questions = re.findall(r"^\d\. ", parts["练习"][-1].source, re.M)
    assert 2 <= len(questions) <= 3


@pytest.mark.parametrize("name", NAMES)
def test_code_uses_the_library_and_does_not_copy_it(name, library):
    sources = [cell.source for cell in read(name).cells if cell.cell_type == "code"]
    cells = [
        ast.parse(re.sub(r"^%.*", "", source, flags=re.M)) for source in sources
    ]  # %matplotlib 这样的行不是 Python
    imports = [node for tree in cells for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = {alias.name for node in imports if node.module.split(".")[0] == "paddle_vit" for alias in node.names}
    assert ours - {
        "describe_runtime",
        "load_data",
        "make_config",
        "seed_everything",
        "setup_runtime",
        "use_chinese_font",
    }
    copied, names = library
    for cell in cells:
        assert not statements(cell) & copied
        assert not definitions(cell) & names


@pytest.mark.parametrize("name", NAMES)
def test_the_exercise_exists(name):
    assert len(list((ROOT / "homework").glob(f"ex{name[:2]}_*.py"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_from_top_to_bottom(name, tmp_path):
    """用正在运行的解释器作内核,在空目录里执行;不出错,有图,中文画得出来,也不在目录里留下文件。"""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    notebook = read(name)
    # 不看系统里装的内核,只用 ipykernel 自己的:它的解释器就是 sys.executable
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    start = time.monotonic()
    client = NotebookClient(notebook, km=kernel, timeout=LIMIT, resources={"metadata": {"path": str(tmp_path)}})
    client.owns_km = True  # 执行完由它关掉内核
    client.execute()
    seconds = time.monotonic() - start
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    print(f"{name}:{seconds:.0f} 秒,{len(pictures)} 张图")
    assert seconds < LIMIT
    assert pictures
    font = use_chinese_font()
    warnings = [line for line in printed.splitlines() if "Warning" in line and (font or "Glyph" not in line)]
    assert warnings == []  # 有中文字体时,缺字(Glyph … missing)也算
    assert list(tmp_path.iterdir()) == []
