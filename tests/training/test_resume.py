import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY, run_script
from safetensors.numpy import load_file

from paddle_vit import UserError
from paddle_vit.config import parse_config
from paddle_vit.runs.train import train
from paddle_vit.weights.checkpoint import read_state, write_state

TIMES = ("seconds", "images_per_second", "data_wait")


def final_state(directory):
    """训练结束时的一切,去掉与时间有关的数字。"""
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in TIMES} for line in metrics]
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return metrics, {name: value for name, value in summary.items() if name not in TIMES}


def assert_same_end(first, second):
    assert final_state(first) == final_state(second)
    tensors, others = load_file(first / "last.safetensors"), load_file(second / "last.safetensors")
    assert tensors.keys() == others.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], others[name], err_msg=name)
    curves = [visualdl_scalars(directory) for directory in (first, second)]
    assert curves[0] == curves[1]


def visualdl_scalars(directory):
    from visualdl import LogReader

    reader = LogReader(file_path=str(directory / "vdlrecords.log"))
    tags = sorted(tag for tag in reader.get_tags()["scalar"] if not tag.startswith("speed") and "seconds" not in tag)
    return {tag: [(item.id, item.value) for item in reader.get_data("scalar", tag)] for tag in tags}


def start(*args):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    """等到条件成立;进程先结束了就是失败。"""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def kill_after(directory, args, delay):
    """起动训练,等到运行目录里有了 config.yaml,再过 delay 秒杀掉。"""
    process = start(*args)
    wait_for((directory / "config.yaml").exists, process)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_the_same_seed_gives_the_same_run(tiny_run, tmp_path):
    run_script("train", *TINY, "--output", tmp_path / "again", check=0)
    assert_same_end(tiny_run, tmp_path / "again")
    run_script("train", *TINY, "--seed", "1", "--output", tmp_path / "other", check=0)
    assert final_state(tmp_path / "other")[0] != final_state(tiny_run)[0]


def test_resume_in_the_middle_of_an_epoch(tmp_path):
    settings = [*TINY, "--batch-size", "64", "--checkpoint-minutes", "0.0001", "--epochs", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_script("train", *settings, "--output", whole, check=0)
    process = start(*settings, "--output", killed)
    wait_for((killed / "last.safetensors").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (killed / ".best.safetensors.1.tmp").write_bytes(b"half")
    done = run_script("train", "--resume", killed, check=0)
    assert "续训:从第 1 轮第 " in done.stdout and not list(killed.glob(".*.tmp"))
    assert_same_end(whole, killed)


def test_resume_of_a_finished_run_changes_nothing(tiny_run):
    before = final_state(tiny_run)
    done = run_script("train", "--resume", tiny_run, check=0)
    assert "训练已完成" in done.stdout
    assert final_state(tiny_run) == before


def test_a_checkpoint_without_the_newest_settings_resumes(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    tensors, metadata = read_state(run / "last.safetensors")
    del metadata["config"]["weights"], metadata["config"]["train_only"]
    write_state(run / "last.safetensors", tensors, metadata)
    assert "训练已完成" in run_script("train", "--resume", run, check=0).stdout


@pytest.mark.slow
def test_twenty_kills_at_random_moments_end_the_same(tmp_path):
    settings = [*TINY, "--batch-size", "8", "--epochs", "50", "--checkpoint-minutes", "0.001"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_script("train", *settings, "--output", whole, check=0)
    rng = random.Random(0)
    state = killed / "last.safetensors"
    stamp = lambda: state.stat().st_mtime_ns if state.exists() else None
    while_training = in_the_middle_of_an_epoch = 0
    for kill in range(20):
        before = stamp()
        process = start(*(["--resume", killed] if kill else [*settings, "--output", killed]))
        if kill % 4 == 3:  # 四次里有一次在起动途中杀掉
            time.sleep(rng.uniform(0, 3))
        else:
            wait_for(lambda: stamp() != before, process)  # noqa: B023  在这一轮循环里就用完
            time.sleep(rng.uniform(0, 0.5))
            while_training += 1
        assert process.poll() is None, "被杀之前就结束了"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if state.exists():
            in_the_middle_of_an_epoch += read_state(state)[1]["progress"]["step"] > 0
    assert while_training == 15 and in_the_middle_of_an_epoch >= 5
    assert not (killed / "summary.json").exists()
    run_script("train", "--resume", killed, check=0)
    assert_same_end(whole, killed)


def _renamed(tensors, metadata):
    tensors["model/other"] = tensors.pop("model/head.bias")


def _shorter(tensors, metadata):
    tensors["model/head.bias"] = tensors["model/head.bias"][:3]


def _without_average(tensors, metadata):
    del tensors["ema/head.bias"]


def _strange_optimizer(tensors, metadata):
    tensors["optimizer/head.bias/moment1"] = np.zeros((7, 7), "float32")


def _another_part(tensors, metadata):
    tensors["x"] = np.zeros(1, "float32")


def _no_progress(tensors, metadata):
    del metadata["progress"]


def _text_for_a_number(tensors, metadata):
    metadata["progress"]["epoch"] = "1"


@pytest.mark.parametrize(
    "change",
    [_renamed, _shorter, _without_average, _strange_optimizer, _another_part, _no_progress, _text_for_a_number],
)
def test_a_changed_checkpoint_is_refused(tiny_run, tmp_path, change):
    """校验和是对的,内容与运行对不上。"""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    tensors, metadata = read_state(run / "last.safetensors")
    change(tensors, metadata)
    write_state(run / "last.safetensors", tensors, metadata)
    with pytest.raises(UserError, match=r"last\.safetensors 与这个运行对不上"):
        train(parse_config(["--resume", str(run)]))
