"""docs/own-model.md 里的模型和损失,本项目从没见过:同样的循环,同样的续训、曲线和几个进程。"""

import json
import signal
import sys

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file
from support.documents import blocks
from support.results import assert_same_end, read_scalars
from support.running import assert_one_chinese_line, finish, run_here, start, wait_for

from paddle_vit import UserError, load_run

(PROGRAM,) = blocks("docs/own-model.md", "python")
SETTINGS = "--recipe none --batch-size 64 --epochs 3 --lr 0.003 --warmup-epochs 1 --checkpoint-minutes 0.0001".split()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def train(own, *args):
    process = start([sys.executable, own, *args])
    out, errors = finish(process)
    assert process.returncode == 0, out + errors
    return out


@pytest.fixture(scope="module")
def whole(own):
    run = own.with_name("whole")
    train(own, *SETTINGS, "--processes", "1", "--output", run)
    return run


def test_the_program_is_short():
    assert len(PROGRAM.strip().splitlines()) <= 33
    assert len([line for line in PROGRAM.splitlines() if line.strip()]) <= 30


def test_it_learns_and_its_measure_picks_the_best_epoch(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] and "val_top1" not in lines[0]
    summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    errors = [line["val_error"] for line in lines]
    assert summary["val_error"] == min(errors) and errors[summary["best_epoch"] - 1] == min(errors)
    assert summary["test_error"] < 0.5


def test_the_measures_equal_numpy(own, whole):
    names = {}
    exec(PROGRAM.split("paddle.seed")[0], names)  # 只要两个类的定义
    loaded = load_run(whole, model=names["Net"]())
    from paddle_vit import load_data  # 重,用到才导入
    from paddle_vit.data.batches import evaluation_batches

    data = load_data(loaded.config)
    images = np.concatenate([x for _, x in evaluation_batches(data.test, loaded.info, 64)])
    scores, labels = loaded.model(paddle.to_tensor(images)).numpy(), data.test.labels
    margins = 1 + scores - scores[np.arange(len(labels)), labels][:, None]
    summary = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(summary["test_loss"], np.maximum(margins, 0).sum(1).mean() - 1, rtol=1e-4)
    np.testing.assert_allclose(summary["test_error"], (scores.argmax(1) != labels).mean(), atol=1e-7)


def test_its_curves_are_in_visualdl(whole):
    assert len(read_scalars(whole, "error/val")) == len(read_scalars(whole, "error/train")) == 3
    assert read_scalars(whole, "error/train_step") and read_scalars(whole, "result/test_error")


def test_killed_and_resumed_it_ends_the_same(own, whole):
    killed = own.with_name("killed")
    process = start([sys.executable, own, *SETTINGS, "--processes", "1", "--output", killed])
    wait_for((killed / "last.safetensors").exists, process)
    finish(process, signal.SIGKILL)
    assert "续训:从第 " in train(own, "--resume", killed)
    assert_same_end(whole, killed)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="几个进程只用在 Linux 上")
def test_two_processes_learn_the_same(own, whole):
    two = own.with_name("two")
    assert "2 个进程" in train(own, *SETTINGS, "--processes", "2", "--output", two)
    first, second = load_file(whole / "best.safetensors"), load_file(two / "best.safetensors")
    for name in first:
        np.testing.assert_allclose(first[name], second[name], atol=2e-4, err_msg=name)


def test_other_scripts_say_how_to_read_it(whole):
    with pytest.raises(UserError, match=r"Net.*load_run"):
        load_run(whole)
    assert_one_chinese_line(run_here("evaluate", whole), "Net", "load_run")
    assert_one_chinese_line(run_here("doctor", whole), "分类")
