import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_script
from safetensors.numpy import load_file

SETTINGS = (
    "--recipe none --patch-size 4 --embed-dim 8 --depth 1 --num-heads 2 --batch-size 128 --lr 0.01 --crop-padding 1 "
    "--ema 0.9 --mixup 0.2 --accumulate 2 --position-embedding sincos"
).split()
LAUNCH = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]


def launch(*args, cwd, timeout=200):
    return subprocess.run(
        [*LAUNCH, str(ROOT / "scripts" / "train.py"), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def assert_equal_up_to_rounding(one, two):
    first, second = (load_file(directory / "last.safetensors") for directory in (one, two))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=1e-5, err_msg=name)
    lines = [(directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for directory in (one, two)]
    assert len(lines[0]) == len(lines[1])
    for mine, theirs in zip(*(map(json.loads, part) for part in lines)):
        for name in ("train_loss", "train_top1", "val_loss", "val_top1"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gloo 只在 Linux 上试过")
def test_two_processes_equal_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run_script("train", *SETTINGS, "--epochs", "3", "--output", one, check=0)
    done = launch(*SETTINGS, "--epochs", "3", "--output", two, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_equal_up_to_rounding(one, two)
    summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in (one, two)]
    assert [summary["processes"] for summary in summaries] == [1, 2]
    np.testing.assert_allclose(summaries[0]["test_loss"], summaries[1]["test_loss"], rtol=1e-4)
    cores = len(os.sched_getaffinity(0))
    assert f"线程 {max(1, cores // 2)}," in done.stdout
    other = (tmp_path / "log" / "workerlog.1").read_text(encoding="utf-8")
    assert "验证 loss" not in other and "运行目录" not in other  # 只有 0 号进程记录


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gloo 只在 Linux 上试过")
def test_two_processes_agree_on_the_default_directory(tmp_path):
    done = launch(*SETTINGS, "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "summary.json").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gloo 只在 Linux 上试过")
def test_one_process_resumes_what_two_began(tmp_path):
    settings = [*SETTINGS, "--epochs", "40"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    run_script("train", *settings, "--output", whole, check=0)
    process = subprocess.Popen(
        [*LAUNCH, str(ROOT / "scripts" / "train.py"), *settings, "--output", str(moved)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("第 3/40 轮"):
            break
    # launch 的各个进程自成一组,按命令行里的目录名把它们和 launch 一起杀掉
    subprocess.run(["pkill", "-KILL", "-f", str(moved)], check=True)
    process.communicate()
    assert not (moved / "summary.json").exists()
    done = run_script("train", "--resume", moved, check=0)
    assert "续训:从第 " in done.stdout
    assert_equal_up_to_rounding(whole, moved)
