import re
import shlex

import pytest
from conftest import ROOT

from paddle_vit.config import parse_config

READMES = ["README.md", "README_en.md"]


def blocks(name, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("name", READMES)
def test_python_examples_run_and_state_their_shapes(name):
    layers, *others = blocks(name, "python")
    values = {}
    for line in layers.splitlines():
        exec(line, values)
        if "# [4" in line:
            result = values[line.split("=")[0].split(",")[0].strip()]
            assert str(list(result.shape)) in line, line
    assert values["model"].head.weight.shape == [768, 1000]
    for program in others:
        compile(program, name, "exec")


@pytest.mark.parametrize("name", READMES)
def test_training_commands_are_valid(name):
    commands = re.findall(r"scripts/train\.py([^\n#`(]*)", "".join(blocks(name, "bash")))
    assert len(commands) >= 8
    for command in commands:
        argv = shlex.split(command.replace("…", ""))
        if "--resume" not in argv and "--weights" not in argv:  # 这两个要有真的运行目录
            parse_config(argv)


def test_both_readmes_are_in_step():
    chinese, english = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    for pattern in (r"^## ", r"^```", r"^\|", r"!\[", r"^\*\*"):
        assert len(re.findall(pattern, chinese, re.M)) == len(re.findall(pattern, english, re.M)), pattern
    assert re.findall(r"\(docs/images/(.*?)\)", chinese) == re.findall(r"\(docs/images/(.*?)\)", english)


@pytest.mark.parametrize("name", READMES)
def test_links_and_map_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)", text, re.M)
    headings = {"#" + title.lower().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\((?!http)(.*?)\)", text):
        assert target in headings or (ROOT / target).exists(), target
    assert "@@" not in text
