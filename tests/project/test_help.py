"""每个脚本的 --help:80 格以内,没有英文,例子像真的。"""

import re
import unicodedata

import pytest
from support.running import ROOT, run_here, run_script

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "ctrl_c")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_a_narrow_terminal(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = run_script if name in ("benchmark", "homework") else run_here  # 这两个与目录同名
    done = run(name, "--help")
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        columns = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)
        assert columns <= 80, line
        assert not re.match(r"\s*[,。;:、)]", line), line
    for run in re.findall(r"runs/digits-(\S+)", done.stdout):
        assert re.match(r"\d{4}-\d{6}|…", run), run  # 与真的运行目录同名
