"""README 和 docs/ 里的命令、代码、链接、图片和代码地图都是真的。"""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.documents import DOCS, PAGES, READMES, ROOT, anchors, blocks, commands, links, runnable, spans, text

import paddle_vit
from paddle_vit.system import cli
from paddle_vit.system.cli import ArgumentParser

IN_A_RUN = ("--resume", "--weights", "--teacher")  # 要读真的运行或权重


# 训练的设置怎样读,compare 与 train 是同一个函数
parse_config = runpy.run_path(str(ROOT / "scripts" / "compare.py"))["parse_config"]


class Parsed(Exception):
    """参数都认得;不往下运行。"""


def parse(name, argv):
    """用脚本自己的解析器读参数,不运行脚本;参数有误时以状态码 2 退出。"""
    method = "parse_known_args" if name == "compare" else "parse_args"  # compare 把其余的交给训练的解析器
    real = getattr(ArgumentParser, method)

    def stop(parser, *args):
        raise Parsed(real(parser, *args))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, method, stop)
        patch.setattr(cli, "resolve_latest", Path)  # 这里没有 runs/latest
        patch.setattr(sys, "argv", [f"{name}.py", *argv])
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    if name == "compare":
        argv = parsed.value.args[0][1]
    if name in ("train", "compare") and not set(IN_A_RUN) & set(argv):
        parse_config(argv)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_accepted_by_their_scripts(page):
    for name, argv in commands(page):
        if "--help" not in argv:
            parse(name, argv)


def test_wrong_commands_are_noticed():
    for name, argv in (
        ("train", ["--epoch", "3"]),
        ("predict", ["runs/x"]),
        ("compare", ["--vary", "pool=avg", "--x"]),
    ):
        with pytest.raises((SystemExit, paddle_vit.UserError)):
            parse(name, argv)


def test_enough_is_checked():
    given = [command for page in PAGES for command in commands(page)]
    assert {name for name, _ in given} == {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"ctrl_c"}
    assert sum(name == "train" for name, _ in given) > 30
    assert all(runnable(page) for page in (*READMES, "docs/layers.md", "docs/training.md", "docs/data.md"))


def test_python_examples_run_and_state_their_shapes(tmp_path):
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "support.run_examples", *PAGES]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in PAGES] == list(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        ast.parse(block)


def test_both_readmes_are_in_step():
    for pattern in (r"^## ", r"^```", r"^\|", r"!\[", r"^\*\*", r"^  \w"):
        chinese, english = (re.findall(pattern, text(page), re.M) for page in READMES)
        assert len(chinese) == len(english), pattern
    chinese, english = ([target for target in links(page) if target not in READMES] for page in READMES)
    assert chinese == english
    chinese, english = ([name for name, _ in commands(page)] for page in READMES)
    assert chinese == english


@pytest.mark.parametrize("page", READMES)
def test_readmes_are_short_and_lead_everywhere(page):
    assert len(text(page).splitlines()) <= 200
    assert max(map(len, text(page).splitlines())) <= 260
    found = {target.split("#")[0] for target in links(page)}
    assert set(DOCS) | {"lessons/README.md", "homework/README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= found


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_the_text_exist(page):
    for span in spans(page):
        if re.fullmatch(r"(paddle_vit|tests|scripts|lessons|homework|benchmark|docs)/[A-Za-z0-9_./-]*", span):
            assert (ROOT / span).exists(), span


@pytest.mark.parametrize("page", DOCS)
def test_pages_stand_alone(page):
    assert text(page).startswith("# ")
    assert "](../README.md)" in text(page)
    assert len(anchors(page)) == len(set(anchors(page)))


@pytest.mark.parametrize("page", [*READMES, *DOCS, "CHANGELOG.md", "CITATION.cff"])
def test_nothing_is_unfinished(page):
    assert not re.search(r"@@|TODO|FIXME", text(page))


def test_every_picture_is_shown():
    shown = {
        ((ROOT / page).parent / target).resolve() for page in PAGES for target in links(page) if target.endswith(".png")
    }
    assert shown == set((ROOT / "docs" / "images").iterdir())


def test_the_code_map_names_every_file():
    package = ROOT / "paddle_vit"
    named = re.findall(r"^\| `([\w/]+\.py)` \|", text("docs/code-map.md"), re.M)
    existing = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert len(named) == len(set(named))
    assert sorted(existing - set(named)) == [] and sorted(set(named) - existing) == []
    for path in (ROOT / "scripts").glob("*.py"):
        assert f"`{path.stem}`" in text("docs/code-map.md")
    for room in package.iterdir():
        if (room / "__init__.py").exists():
            assert all(f"  {room.name}/ " in text(page) for page in (*READMES, "docs/code-map.md")), room.name


def test_the_citation_is_that_of_this_version():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "license"} <= set(citation)
    (stated,) = re.findall(r'^    version="(.*)",$', text("setup.py"), re.M)
    assert citation["version"] == stated == paddle_vit.__version__
    assert f"## {stated}\n" in text("CHANGELOG.md")
