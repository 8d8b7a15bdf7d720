import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.results import read_scalars
from support.running import (
    ROOT,
    assert_one_chinese_line,
    finish,
    free_port,
    run_script,
    script,
    start,
    start_training,
    wait_for,
)

from paddle_vit import UserError
from paddle_vit.system import companions as module
from paddle_vit.system import processes as joining

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gloo 只在 Linux 上试过")

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


def others_of(process):
    """同一次训练里别的进程(不算导入时起动一下就结束的小程序)。"""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True)
    return [int(pid) for pid in found.stdout.split()]


def wait_for_an_epoch(directory, process):
    metrics = directory / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size, process)


def wait_until_gone(pids, seconds=10):
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "同伴进程没有退出"
        time.sleep(0.05)


def test_two_processes_equal_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for processes, directory in ((1, one), (2, two)):
        run_script("train", *SETTINGS, "--epochs", "3", "--processes", processes, "--output", directory, check=0)
    assert_equal_up_to_rounding(one, two)
    summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in (one, two)]
    assert [summary["processes"] for summary in summaries] == [1, 2]
    np.testing.assert_allclose(summaries[0]["test_loss"], summaries[1]["test_loss"], rtol=1e-4)


@pytest.mark.slow
def test_the_losses_of_every_step_are_those_of_one_process(tmp_path):
    curves = []
    for processes in (1, 3):
        directory = tmp_path / str(processes)
        run_script("train", *SETTINGS, "--accumulate", "1", "--epochs", "2", "--log-every", "1", "--batch-size", "120",
                   "--processes", processes, "--output", directory, check=0)  # fmt: skip
        curves.append(read_scalars(directory, "loss/train_step"))
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]] == list(range(20))
    np.testing.assert_allclose([loss for _, loss in curves[1]], [loss for _, loss in curves[0]], rtol=1e-4)


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_at_the_same_step(tmp_path):
    settings = [*SETTINGS, "--epochs", "24", "--processes", "2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_script("train", *settings, "--output", whole, check=0)
    process = start_training(*settings, "--output", stopped)
    wait_for_an_epoch(stopped, process)
    others = others_of(process)
    assert len(others) == 1
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.startswith("已中断。") and len(errors.splitlines()) == 1
    wait_until_gone(others)
    run_script("train", "--resume", stopped, check=0)
    assert_equal_up_to_rounding(whole, stopped)


@pytest.mark.parametrize("moment", [pytest.param("starting", marks=pytest.mark.slow), "training"])
def test_a_lost_companion_ends_the_training_with_one_line(tmp_path, moment):
    directory = tmp_path / "run"
    process = start_training(*SETTINGS, "--epochs", "5000", "--processes", "2", "--output", directory)
    if moment == "training":
        wait_for(
            lambda: (directory / "metrics.jsonl").exists() and (directory / "metrics.jsonl").stat().st_size, process
        )
    else:
        wait_for(lambda: others_of(process), process)
    (other,) = others_of(process)
    os.kill(other, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith("错误:第 2 个训练进程意外退出,被信号 SIGKILL 终止") and "--processes 1" in line


def test_companions_go_when_the_first_process_is_killed(tmp_path):
    directory = tmp_path / "run"
    process = start_training(*SETTINGS, "--epochs", "5000", "--processes", "3", "--output", directory)
    wait_for(lambda: (directory / "metrics.jsonl").exists(), process)
    others = others_of(process)
    assert len(others) == 2
    finish(process, signal.SIGKILL)
    wait_until_gone(others)


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once(tmp_path):
    done = run_script("train", *SETTINGS, "--processes", "2", "--lr", "1e30", "--clip-grad", "0", "--warmup-epochs",
                      "0", "--output", tmp_path / "run", check=2)  # fmt: skip
    assert_one_chinese_line(done, "NaN")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("{}")
    done = run_script("train", *SETTINGS, "--processes", "2", "--output", tmp_path / "taken", check=2)
    assert_one_chinese_line(done, "已经有一个运行")


@pytest.mark.parametrize("processes", [1, 3])
def test_how_many_processes(processes):
    assert module.choose_processes(processes, "cpu", 64) == processes


def test_where_several_processes_are_impossible(monkeypatch):
    assert module.choose_processes(1, "gpu", 128) == 1
    with pytest.raises(UserError, match="distributed"):
        module.choose_processes(2, "gpu", 128)
    with pytest.raises(UserError, match="--batch-size 2"):
        module.choose_processes(3, "cpu", 2)
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert module.choose_processes(1, "cpu", 128) == 1
    with pytest.raises(UserError, match="Linux"):
        module.choose_processes(2, "cpu", 128)


@pytest.mark.slow
def test_launch_equals_one_process(tmp_path):
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


@pytest.mark.slow
def test_two_processes_agree_on_the_default_directory(tmp_path):
    done = launch(*SETTINGS, "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "summary.json").exists()


@pytest.mark.slow
def test_one_process_resumes_what_two_began(tmp_path):
    settings = [*SETTINGS, "--epochs", "16"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    run_script("train", *settings, "--output", whole, check=0)
    command = [*LAUNCH, script("train"), *settings, "--output", moved]
    process = start(command, cwd=tmp_path, stderr=subprocess.STDOUT)
    for line in process.stdout:
        if line.startswith("第 3/16 轮"):
            break
    # launch 的各个进程自成一组,按命令行里的目录名把它们和 launch 一起杀掉
    subprocess.run(["pkill", "-KILL", "-f", str(moved)], check=True)
    finish(process)
    assert not (moved / "summary.json").exists()
    done = run_script("train", "--resume", moved, check=0)
    assert "续训:从第 " in done.stdout
    assert_equal_up_to_rounding(whole, moved)


def test_waiting_for_a_process_that_never_comes_ends(monkeypatch):
    monkeypatch.setattr(joining, "START_SECONDS", 0.2)
    with pytest.raises(UserError, match="--processes 1"):
        joining._wait_for(f"127.0.0.1:{free_port()}")
