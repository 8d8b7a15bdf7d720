import random
import shutil
import signal
import time

import numpy as np
import pytest
from support.results import assert_same_end, final_state
from support.running import TINY, finish, run_script, start_training, wait_for

from paddle_vit import UserError
from paddle_vit.runs.command_line import parse_config
from paddle_vit.runs.train import train
from paddle_vit.weights.checkpoint import read_state, write_state


def test_the_same_seed_gives_the_same_run(tiny_run, tmp_path):
    run_script("train", *TINY, "--output", tmp_path / "again", check=0)
    assert_same_end(tiny_run, tmp_path / "again")
    run_script("train", *TINY, "--seed", "1", "--output", tmp_path / "other", check=0)
    assert final_state(tmp_path / "other")[0] != final_state(tiny_run)[0]


def test_resume_in_the_middle_of_an_epoch(tmp_path):
    settings = [*TINY, "--batch-size", "64", "--checkpoint-minutes", "0.0001", "--epochs", "3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_script("train", *settings, "--output", whole, check=0)
    process = start_training(*settings, "--output", killed)
    wait_for((killed / "last.safetensors").exists, process)
    finish(process, signal.SIGKILL)
    (killed / ".best.safetensors.1.tmp").write_bytes(b"half")
    done = run_script("train", "--resume", killed, check=0)
    assert "续训:从第 1 轮第 " in done.stdout and not list(killed.glob(".*.tmp"))
    assert_same_end(whole, killed)


def test_resume_of_a_finished_run_changes_nothing(tiny_run):
    before = final_state(tiny_run)
    done = run_script("train", "--resume", tiny_run, check=0)
    assert "训练已完成" in done.stdout
    assert final_state(tiny_run) == before


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_at_random_moments_end_the_same(tmp_path):
    settings = [*TINY, "--batch-size", "8", "--epochs", "7", "--checkpoint-minutes", "0.001"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_script("train", *settings, "--output", whole, check=0)
    rng = random.Random(0)
    state = killed / "last.safetensors"
    stamp = lambda: state.stat().st_mtime_ns if state.exists() else None
    while_training = in_the_middle_of_an_epoch = 0
    for kill in range(20):
        before = stamp()
        process = start_training(*(["--resume", killed] if kill else [*settings, "--output", killed]))
        if kill % 4 == 3:  # 四次里有一次在起动途中杀掉
            time.sleep(rng.uniform(0, 3))
        else:
            wait_for(lambda: stamp() != before, process)  # noqa: B023  在这一轮循环里就用完
            time.sleep(rng.uniform(0, 0.2))
            while_training += 1
        assert process.poll() is None, "被杀之前就结束了"
        finish(process, signal.SIGKILL)
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


def _one_setting_less(tensors, metadata):
    del metadata["config"]["ema"]  # 不是默认值


def _text_for_a_number(tensors, metadata):
    metadata["progress"]["epoch"] = "1"


@pytest.mark.parametrize(
    "change",
    [
        _renamed,
        _shorter,
        _without_average,
        _strange_optimizer,
        _another_part,
        _no_progress,
        _one_setting_less,
        _text_for_a_number,
    ],
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
