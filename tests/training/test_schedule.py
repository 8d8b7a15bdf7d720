"""训练到什么时候为止:接着训练、--patience、--max-minutes。"""

import json
import re
import shlex
import shutil
import signal
import types

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.results import assert_same_end, final_state, read_metrics, read_scalars
from support.running import TINY, assert_one_chinese_line, finish, run_here, run_script, start_training, wait_for

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.config_files import load_config
from paddle_vit.runs.command_line import parse_config
from paddle_vit.runs.train import train
from paddle_vit.training.optimizer import learning_rate
from paddle_vit.training.progress import Progress
from paddle_vit.training.schedule import Schedule
from paddle_vit.weights.checkpoint import read_state, write_state

QUICK = ["--attention-images", "0"]


# ---- 接着训练 ----


@pytest.fixture(scope="module")
def longer(tiny_run, tmp_path_factory):
    """tiny_run 训练了两轮,接着到第四轮;给出打印的和目录。"""
    run = tmp_path_factory.mktemp("longer") / "run"
    before = {path.name: path.read_bytes() for path in tiny_run.iterdir() if path.is_file()}
    done = run_script("train", "--resume", tiny_run, "--epochs", "4", "--output", run, check=0)
    assert {path.name: path.read_bytes() for path in tiny_run.iterdir() if path.is_file()} == before  # 原来的没有动
    return done.stdout, run


def test_the_curve_goes_on_in_a_new_run(longer, tiny_run):
    out, run = longer
    assert "接着训练:第 3 到 4 轮,学习率重新升到" in out and "训练已完成" not in out
    lines = read_metrics(run)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4] and lines[:2] == read_metrics(tiny_run)
    assert read_scalars(run, "loss/val") == [(line["epoch"], pytest.approx(line["val_loss"])) for line in lines]
    assert len(read_scalars(run, "result/test_top1")) == 1
    assert load_config(run).epochs == 4 and load_config(tiny_run).epochs == 2
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["val_top1"] == max(line["val_top1"] for line in lines) and summary["epochs"] == 4
    assert "训练已完成" in run_script("train", "--resume", run, check=0).stdout


def test_the_old_best_stays_best(tiny_run, tmp_path):
    """接着训练的每一轮都不如原来:最好的权重还是原来的。"""
    source, run = tmp_path / "source", tmp_path / "run"
    shutil.copytree(tiny_run, source)
    tensors, metadata = read_state(source / "last.safetensors")
    metadata["progress"]["best"]["top1"] = 1.0
    write_state(source / "last.safetensors", tensors, metadata)
    train(parse_config(["--resume", str(source), "--epochs", "3", "--output", str(run)]))
    assert (run / "best.safetensors").read_bytes() == (source / "best.safetensors").read_bytes()


def test_a_killed_longer_run_ends_the_same(longer, tiny_run, tmp_path):
    run = tmp_path / "run"
    process = start_training("--resume", tiny_run, "--epochs", "4", "--output", run)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(read_metrics(run)) == 3, process)
    finish(process, signal.SIGKILL)
    run_script("train", "--resume", run, check=0)
    assert_same_end(longer[1], run)


def test_an_unfinished_run_may_also_be_longer(tmp_path):
    """在一轮的中间被杀掉。"""
    source, run = tmp_path / "source", tmp_path / "run"
    process = start_training(*TINY, "--batch-size", "32", "--checkpoint-minutes", "0.0001", "--output", source)
    wait_for((source / "last.safetensors").exists, process)
    finish(process, signal.SIGKILL)
    done = run_script("train", "--resume", source, "--epochs", "3", "--output", run, check=0)
    assert [line["epoch"] for line in read_metrics(run)] == [1, 2, 3] and "第 1 轮第" in done.stdout
    assert not (source / "summary.json").exists()


def test_the_learning_rate_starts_again():
    config = make_config({"lr": 1.0, "min_lr": 0.1, "epochs": 10, "warmup_epochs": 2})
    rates = [learning_rate(step, config, 5, 20) for step in range(20, 51)]
    assert max(rates) == 1.0 and rates[0] < rates[5]
    np.testing.assert_allclose(rates[-1], 0.1)
    np.testing.assert_allclose(learning_rate(19, config, 5), learning_rate(19, config, 5, 0, 50))


@pytest.mark.parametrize(
    "args, words",
    [
        (["--epochs", "1"], ["--epochs 1", "已经训练了 2 轮"]),
        (["--batch-size", "64"], ["--batch-size 64", "--weights", "config.yaml"]),
        (["--lr", "0.1"], ["--lr 0.1", "--weights"]),
        (["--epochs", "4", "--mixup", "0"], ["--mixup", "--weights"]),
        (["--output", "elsewhere"], ["--output", "--epochs"]),
    ],
)
def test_what_cannot_be_changed_names_the_way(tiny_run, args, words):
    assert_one_chinese_line(run_here("train", "--resume", tiny_run, *args), *words)


def test_the_way_it_names_works(tiny_run, tmp_path):
    """从这个运行的权重开始、换一个批大小:照着提示里写的做;目录名里有空格。"""
    source = tmp_path / "my run"
    shutil.copytree(tiny_run, source)
    with pytest.raises(UserError) as refused:
        parse_config(["--resume", str(source), "--batch-size", "64"])
    command = re.search(r"--recipe .*(?=。)", str(refused.value))[0]
    config = parse_config([*shlex.split(command), "--output", str(tmp_path / "run"), *QUICK, "--epochs", "1"])
    assert (config.batch_size, config.lr, config.embed_dim) == (64, 0.01, 8)
    run = train(config)
    assert read_metrics(run.directory)[0]["val_loss"] < read_metrics(tiny_run)[0]["val_loss"]  # 不是从头开始


def test_a_run_in_use_or_without_a_checkpoint_cannot_be_longer(tiny_run, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_run, source)
    (source / "last.safetensors").unlink()
    assert_one_chinese_line(run_here("train", "--resume", source, "--epochs", "9"), "还没有存过检查点")
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_the_first_version_is_still_resumed(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    tensors, metadata = read_state(run / "last.safetensors")
    for name in ("improved_epoch", "first_epoch", "first_seconds", "total_steps"):
        del metadata["progress"][name]
    for name in ("class_weights", "balanced_sampling", "patience", "max_minutes"):
        del metadata["config"][name]
    write_state(run / "last.safetensors", tensors, metadata)
    lines = [{k: v for k, v in line.items() if k != "val_top1_balanced"} for line in read_metrics(run)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    metadata["log"]["metrics"] = len(text)
    write_state(run / "last.safetensors", tensors, metadata)
    train(parse_config(["--resume", str(run)]))
    longer = train(parse_config(["--resume", str(run), "--epochs", "3", "--output", str(tmp_path / "longer")]))
    assert len(read_metrics(longer.directory)) == 3
    assert_one_chinese_line(run_here("train", "--resume", run, "--epochs", "1"), "已经训练了 2 轮")  # 曲线读得回来


# ---- --patience ----


def planned(progress=None, world=1, counts=None, **settings):
    """每轮 100 步的训练;打印的在 said 里。"""
    config = make_config(settings)
    info = types.SimpleNamespace(counts=counts or {"train": 6400, "val": 640, "test": 640})
    made = types.SimpleNamespace(
        config=config, progress=progress or Progress(), steps_per_epoch=100, world=world, rank=0,
        task=types.SimpleNamespace(info=info),
    )  # fmt: skip
    said = []
    log = types.SimpleNamespace(plan=lambda text, schedule: said.append(text))
    return Schedule(made), made.progress, log, said


@pytest.mark.parametrize(
    "tops, patience, stops_after",
    [
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.3], 2, 5),  # 相同不算变好
        ([0.1, 0.2, 0.1, 0.3, 0.1, 0.1, 0.1], 3, 7),
        ([0.5, 0.4, 0.4], 1, 2),
        ([0.1, 0.2, 0.3, 0.4], 1, None),
    ],
)
def test_patience(tops, patience, stops_after):
    schedule, p, _, _ = planned(patience=patience, epochs=50)
    for epoch, top1 in enumerate(tops, 1):
        if p.best_epoch == 0 or top1 >= p.best["top1"]:
            p.remember_best({"top1": top1}, "top1")
        p.start_epoch(epoch)
        assert schedule.is_over == (epoch == stops_after)
        if schedule.is_over:
            return
    assert stops_after is None


def test_a_run_that_stops_getting_better_stops(tmp_path):
    """学习率是零:第一轮之后不再变好。中断过的与没有中断过的一样。"""
    settings = [*TINY, "--ema", "0", "--lr", "1e-30", "--min-lr", "0", "--patience", "2", "--epochs", "40"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run_script("train", *settings, "--output", whole, check=0)
    assert "验证连续 2 轮没有变好,在第 3 轮停下" in done.stdout and len(read_metrics(whole)) == 3
    assert json.loads((whole / "summary.json").read_text(encoding="utf-8"))["epochs"] == 3
    process = start_training(*settings, "--output", killed)
    wait_for(lambda: (killed / "last.safetensors").exists(), process)
    finish(process, signal.SIGKILL)
    run_script("train", "--resume", killed, check=0)
    assert_same_end(whole, killed)
    assert "训练已完成" in run_script("train", "--resume", whole, check=0).stdout
    longer = train(parse_config(["--resume", str(whole), "--epochs", "5", "--output", str(tmp_path / "longer")]))
    assert len(read_metrics(longer.directory)) == 5  # 接着训练时重新给 --patience


# ---- --max-minutes ----


def run_plan(schedule, p, log, step=0.1, evaluation=0.35, drawing=0.0, slower=1.0):
    """照着计划走完,每步 step 秒、每次验证 evaluation 秒;第三轮起慢 slower 倍。返回用的秒数。"""
    while not schedule.is_over:
        factor = slower if p.epoch >= 3 else 1
        while p.step < schedule.steps_this_epoch:
            p.step, p.count = p.step + 1, p.count + 64
            p.spend(step * factor, 0)
            schedule.after_step(step * factor, log)
        now = drawing if schedule.is_now_and_then() else 0
        p.seconds += evaluation * factor + now
        schedule.after_epoch(evaluation * factor, now, log)
        p.start_epoch(p.epoch + 1)
    return p.seconds


@pytest.mark.parametrize(
    "minutes, options",
    [
        (10, {}),
        (1, {}),  # 五轮多
        (0.3, {}),  # 一轮多
        (0.05, {}),  # 不到一轮
        (5, {"drawing": 3.0}),
        (5, {"slower": 1.5}),
        (3, {"slower": 3.0}),
    ],
)
def test_the_schedule_fits_the_time(minutes, options):
    schedule, p, log, said = planned(max_minutes=minutes, epochs=10000)
    seconds = run_plan(schedule, p, log, **options)
    test = 0.35 * options.get("slower", 1) + options.get("drawing", 0)
    assert seconds + test <= 60 * minutes * 1.02 + 0.2
    assert seconds > 60 * minutes * (0.7 if minutes > 0.1 else 0.2), seconds
    assert said[0].startswith(f"限时 {minutes:g} 分钟:每步 0.1 秒")
    assert schedule.rate(p.total_steps) == pytest.approx(schedule.config.min_lr)  # 退火到底


def test_a_limit_that_is_wide_enough_changes_nothing():
    schedule, p, log, _ = planned(max_minutes=100, epochs=3)
    run_plan(schedule, p, log)
    assert p.epoch == 3 and p.total_steps == 300
    free, *_ = planned(epochs=3)
    assert [schedule.rate(step) for step in range(300)] == [free.rate(step) for step in range(300)]


def test_all_processes_follow_the_first(monkeypatch):
    monkeypatch.setattr("paddle_vit.training.schedule.sum_over_processes", lambda values: [1234.0])
    schedule, p, log, _ = planned(max_minutes=10, epochs=100, world=2)
    p.step = 100
    schedule._steps.append(0.1)
    schedule.after_epoch(1.0, 0.0, log)
    assert schedule.total_steps == 1234 and schedule.epochs == 13


def test_a_longer_run_has_the_whole_time_again():
    old = Progress(epoch=20, seconds=1000.0, first_epoch=20, first_seconds=1000.0)
    schedule, p, log, _ = planned(old, max_minutes=1, epochs=10000)
    assert 45 < run_plan(schedule, p, log) - 1000 <= 61


def test_training_ends_in_time(tiny_run, tmp_path):
    limited, wide = tmp_path / "limited", tmp_path / "wide"
    done = run_script(
        "train", *TINY, *QUICK, "--epochs", "100000", "--max-minutes", "0.15", "--output", limited, check=0
    )
    assert len(re.findall("限时 0.15 分钟:.*学习率在那时退火到底", done.stdout)) >= 1
    summary, lines = json.loads((limited / "summary.json").read_text(encoding="utf-8")), read_metrics(limited)
    assert summary["seconds"] < 9.5 and summary["epochs"] == len(lines) < 100000
    assert lines[-1]["lr"] < 0.01 * 0.2
    run_script("train", *TINY, "--max-minutes", "60", "--output", wide, check=0)
    assert final_state(wide) == final_state(tiny_run)
    first, second = load_file(wide / "best.safetensors"), load_file(tiny_run / "best.safetensors")
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
