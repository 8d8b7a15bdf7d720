import json

import pytest
from conftest import run_script


@pytest.mark.slow
def test_the_default_run_reaches_98_percent(tmp_path):
    """README 的第二步,原样执行:自带的 digits,测试集至少 98 %。"""
    run_script("train", cwd=tmp_path, check=0, timeout=900)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("digits-")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    print(summary)
    assert summary["test_top1"] >= 0.98
    assert len((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == summary["epochs"]
