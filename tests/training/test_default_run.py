import json

import pytest
from support.running import run_script


@pytest.mark.slow
def test_the_default_run_reaches_98_percent(default_run):
    """README 的第二步:自带的 digits,测试集至少 98 %。"""
    assert default_run.name.startswith("digits-")
    summary = json.loads((default_run / "summary.json").read_text(encoding="utf-8"))
    print(summary)
    assert summary["test_top1"] >= 0.98
    assert len((default_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == summary["epochs"]


@pytest.mark.slow
def test_the_default_run_is_healthy(default_run):
    assert "没有发现问题" in run_script("doctor", default_run, check=0).stdout
