import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.pictures import bad_folder
from support.running import (
    PATIENCE,
    ROOT,
    TINY,
    assert_one_chinese_line,
    finish,
    kill_after,
    run_here,
    run_script,
    start,
    start_training,
    wait_for,
)

from paddle_vit.data.finding import expand_paths
from paddle_vit.deploy.engines import prediction_model
from paddle_vit.runs.loading import load_run
from paddle_vit.study.attention_pictures import draw_attention, pictures_to_show
from paddle_vit.study.doctor import diagnose, load_records


@pytest.mark.parametrize(
    "args, words",
    [
        (["--dataset", "imagenet"], ["imagenet", "digits"]),
        (["--epochs", "-3"], ["--epochs", "-3"]),
        (["--batch-size", "0"], ["--batch-size", "0"]),
        (["--device", "gpu"], ["gpu", "cpu"]),
        (["--patch-size", "3"], ["3", "8"]),
        (["--embed-dim", "10", "--num-heads", "4"], ["10", "4"]),
        (["--embed-dim", "800000", "--num-heads", "2"], ["内存"]),
        (["--crop-padding", "5000"], ["5000", "8"]),
        (["--dataset", "folder", "--data-dir", "/no/such"], ["/no/such"]),
        (["--output", "/dev/null"], ["/dev/null"]),
        (["--output", "/dev/null/x"], ["/dev/null"]),
    ],
)
def test_bad_settings(tmp_path, args, words):
    given = [*args] if "--output" in args else [*args, "--output", tmp_path / "run"]
    assert_one_chinese_line(run_here("train", *TINY, *given), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "kind, word", [("text", "note.png"), ("truncated", "0.jpg"), ("no image", "c"), ("empty", "train")]
)
def test_bad_folders(tmp_path, kind, word):
    if kind != "empty":
        bad_folder(tmp_path / "data", kind)
    (tmp_path / "data").mkdir(exist_ok=True)
    args = ["--dataset", "folder", "--data-dir", tmp_path / "data", "--output", tmp_path / "run"]
    assert_one_chinese_line(run_here("train", *args), word)
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def small_disk(path, size, options="rw"):
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(path)]
    if os.name != "posix" or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("这里不能挂载 tmpfs(需要 root)")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_read_only_output(tmp_path):
    with small_disk(tmp_path / "disk", "1m", "ro") as disk:
        assert_one_chinese_line(run_script("train", *TINY, "--output", disk / "run"), disk, "--output")


@pytest.mark.parametrize("kilobytes", [40, *(pytest.param(size, marks=pytest.mark.slow) for size in (8, 90, 150, 260))])
def test_full_disk(tmp_path, kilobytes):
    """磁盘在不同的时刻写满;腾出空间(这里是扩大)以后能续训到底。"""
    with small_disk(tmp_path / "disk", f"{kilobytes}k") as disk:
        run = disk / "run"
        done = run_script("train", *TINY, "--epochs", "6", "--output", run)
        assert_one_chinese_line(done, "磁盘已满")
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        if (run / "config.yaml").exists():
            before = (run / "last.safetensors").exists()
            done = run_script("train", "--resume", run, check=0)
            assert ("续训" in done.stdout) == before
        else:
            run_script("train", *TINY, "--epochs", "6", "--output", run, check=0)
        assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["epochs"] == 6


def test_nan_stops_with_one_line_and_keeps_the_checkpoints(tmp_path):
    run = tmp_path / "run"
    args = [*TINY, "--lr", "1e30", "--warmup-epochs", "0", "--clip-grad", "0", "--epochs", "5"]
    assert_one_chinese_line(run_script("train", *args, "--output", run), "NaN", "第 1 轮第", "--lr")


def test_corrupt_checkpoint(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    best = (run / "best.safetensors").read_bytes()
    (run / "last.safetensors").write_bytes(os.urandom(3000))
    assert_one_chinese_line(run_here("train", "--resume", run), "last.safetensors", "损坏")
    assert (run / "best.safetensors").read_bytes() == best
    (run / "best.safetensors").write_bytes(best[: len(best) // 2])
    assert_one_chinese_line(run_here("evaluate", run), "best.safetensors", "损坏")
    (run / "best.safetensors").unlink()
    assert_one_chinese_line(run_here("evaluate", run), "best.safetensors")


def test_checkpoint_of_another_model(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    text = (run / "config.yaml").read_text(encoding="utf-8").replace("embed_dim: 8", "embed_dim: 16")
    (run / "config.yaml").write_text(text, encoding="utf-8")
    assert_one_chinese_line(run_here("evaluate", run), "另一个模型")
    assert_one_chinese_line(run_here("train", "--resume", run), "embed_dim", "16", "8")


def test_edited_settings_do_not_resume(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    for before, after in (("ema: 0.9", "ema: 0.0"), ("batch_size: 128", "batch_size: 64")):
        assert before in text
        (run / "config.yaml").write_text(text.replace(before, after), encoding="utf-8")
        assert_one_chinese_line(run_here("train", "--resume", run), before.split(":")[0])
    (run / "config.yaml").write_text(text + "unknown: 1\n", encoding="utf-8")
    assert_one_chinese_line(run_here("train", "--resume", run), "unknown")


def test_other_data_is_refused_and_nothing_is_lost(picture_folder, tmp_path):
    run = tmp_path / "run"
    args = "--recipe none --image-size 16 --patch-size 8 --embed-dim 8 --depth 1 --epochs 1 --batch-size 4".split()
    run_script("train", *args, "--dataset", "folder", "--data-dir", picture_folder, "--output", run, check=0)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    other = picture_folder.rename(tmp_path / "other")
    (other / "train" / "猫").rename(other / "train" / "虎")
    assert_one_chinese_line(run_here("train", "--resume", run, "--data-dir", other), "虎", "猫")
    assert_one_chinese_line(run_here("evaluate", run, "--data-dir", other), "虎", "猫")
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


def test_an_existing_run_is_not_overwritten(tiny_run):
    before = {path.name: path.read_bytes() for path in tiny_run.iterdir()}
    assert_one_chinese_line(run_script("train", *TINY, "--output", tiny_run), "--resume", tiny_run)
    assert before == {path.name: path.read_bytes() for path in tiny_run.iterdir()}


def test_two_trainings_in_one_directory(tmp_path):
    run = tmp_path / "run"
    first = start_training(*TINY, "--epochs", "400", "--output", run)
    wait_for((run / "config.yaml").exists, first)
    try:
        assert_one_chinese_line(run_script("train", "--resume", run), run, "另一个训练")
    finally:
        first.kill()
        finish(first)


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_starts_over(tmp_path):
    run = tmp_path / "run"
    kill_after(run, [*TINY, "--output", run], 0.0)
    run_script("train", "--resume", run, check=0)
    assert (run / "summary.json").exists()


def test_ctrl_c_is_one_line(tmp_path):
    import signal

    run = tmp_path / "run"
    process = start_training(*TINY, "--epochs", "400", "--output", run)
    wait_for((run / "last.safetensors").exists, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == f"已中断。接着训练:python scripts/train.py --resume {run}"


def test_two_runs_of_the_same_second_get_two_directories(tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "from paddle_vit.runs import directory as runs\nruns.time.strftime = lambda f: '0101-000000'\n"
    code += "print(runs._new_directory('digits'))"
    names = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environ, check=True
        ).stdout.strip()
        for _ in range(3)
    ]
    assert names == ["runs/digits-0101-000000", "runs/digits-0101-000000-2", "runs/digits-0101-000000-3"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows 没有 SIGTERM")
def test_sigterm_is_quiet_and_resumable(tmp_path):
    run = tmp_path / "run"
    process = start_training(*TINY, "--epochs", "60", "--output", run)
    wait_for((run / "last.safetensors").exists, process)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0 and stderr == ""
    run_script("train", "--resume", run, check=0)


def test_quiet_without_a_terminal(tmp_path):
    done = run_script("train", *TINY, "--output", tmp_path / "run", check=0)
    assert done.stderr == ""
    assert "\r" not in done.stdout and done.stdout.count("验证 loss") == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="要用伪终端")
def test_progress_bar_in_a_terminal(tmp_path):
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *TINY, "--epochs", "20"]
    process = start([*command, "--output", tmp_path / "run"], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # 对方关闭以后读会出错
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert process.wait(PATIENCE) == 0
    bars = [text for text in shown.decode().split("\r") if "剩余" in text and "张/秒" in text]
    assert bars and all(word in bars[-1] for word in ("/20 轮", "loss ", "top-1 ", "%", "已用")), shown.decode()


def test_evaluate(tiny_run, tmp_path):
    summary = json.loads((tiny_run / "summary.json").read_text(encoding="utf-8"))
    done = run_script("evaluate", tiny_run, check=0)
    assert f"top-1 {summary['test_top1']:.2%}" in done.stdout
    assert f"损失 {summary['test_loss']:.4f}" in done.stdout
    assert f"top-5 {summary['test_top5']:.2%}" in done.stdout
    rows = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("  ")]
    right, total = np.array([row[1].split("/") for row in rows], int).sum(axis=0)
    assert len(rows) == 10 and total == 360
    assert abs(right / total - summary["test_top1"]) < 1e-9
    assert "142 张" in run_script("evaluate", tiny_run, "--part", "val", check=0).stdout
    assert_one_chinese_line(run_here("evaluate", tiny_run, "--part", "all"), "all", "val")
    drawn = run_here("evaluate", tiny_run, "--pictures", tmp_path / "drawn")
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"confusion_test.png", "mistakes_test.png"}
    assert all(str(path) in drawn.stdout for path in (tmp_path / "drawn").iterdir())
    for name in ("confusion_test.png", "mistakes_test.png"):  # 与训练完时画的相同
        again, before = (np.asarray(Image.open(place / name)) for place in (tmp_path / "drawn", tiny_run))
        np.testing.assert_array_equal(again, before)
    assert_one_chinese_line(run_script("evaluate", tiny_run.parent / "none"), "none", "config.yaml")


def test_predict(tiny_run, tmp_path):
    with np.load(ROOT / "paddle_vit" / "assets" / "digits.npz") as file:
        images = file["images"][file["test"]][:5]
    for i, image in enumerate(images):
        Image.fromarray(np.rint(image * (255 / 16)).astype("uint8")).save(tmp_path / f"{i}.png")
    done = run_script("predict", tiny_run, tmp_path, "--top", "10", check=0)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [os.path.basename(row[0]) for row in rows] == [f"{i}.png" for i in range(5)]
    for row in rows:
        ranking = [item.rsplit(" ", 1) for item in row[1:]]
        probabilities = [float(p.rstrip("%")) for _, p in ranking]
        assert sorted(name for name, _ in ranking) == [str(i) for i in range(10)]
        assert probabilities == sorted(probabilities, reverse=True) and abs(sum(probabilities) - 100) < 0.1
    one = run_script("predict", tiny_run, tmp_path / "3.png", "--top", "1", check=0)
    assert one.stdout.strip() == "\t".join(rows[3][:2])
    shutil.copytree(tmp_path, tmp_path / "nested" / "inner")
    assert len(expand_paths([str(tmp_path / "nested")])) == 5  # 没有直接的图片就找子目录
    assert len(expand_paths([str(tmp_path / "*.png")])) == 5
    assert run_script("predict", tiny_run, tmp_path / "3.png", "--invert", check=0).stdout != one.stdout
    assert "--invert" not in one.stderr
    ImageOps.invert(Image.open(tmp_path / "3.png")).save(tmp_path / "nested" / "white.png")
    light = run_here("predict", tiny_run, tmp_path / "nested" / "white.png")
    assert "--invert" in light.stderr and light.returncode == 0
    some = run_here("predict", tiny_run, tmp_path / "3.png", tmp_path / "nested" / "white.png").stderr
    assert "1 张图片像是白底黑字" in some and "white.png" in some  # 夹在黑底白字的图片里也说
    assert "--invert" not in run_here("predict", tiny_run, tmp_path / "nested" / "white.png", "--invert").stderr
    (tmp_path / "text.png").write_text("x", encoding="utf-8")
    assert_one_chinese_line(run_here("predict", tiny_run, tmp_path / "text.png"), "text.png")
    assert_one_chinese_line(run_here("predict", tiny_run, tmp_path / "no*.png"), "no*.png")
    assert_one_chinese_line(run_here("predict", tiny_run, tmp_path / "3.png", "--top", "0"), "top=0")
    assert_one_chinese_line(run_here("predict", tiny_run, tmp_path / "3.png", "--top", "x"), "--top", "x")
    assert_one_chinese_line(run_script("predict", tiny_run), "IMAGE")


@pytest.mark.slow
def test_own_pictures_from_training_to_prediction(picture_folder, tmp_path):
    run = tmp_path / "run"
    args = (
        "--recipe none --image-size 16 --patch-size 8 --embed-dim 16 --depth 1 --epochs 3 --batch-size 4 --flip".split()
    )
    args += "--crop-scale 0.5 --rand-augment 1 --random-erasing 0.2 --cutmix 1 --pool cls --head mlp".split()
    run_script("train", *args, "--dataset", "folder", "--data-dir", picture_folder, "--output", run, check=0)
    done = run_script("predict", run, picture_folder / "train" / "猫", check=0)
    assert done.stdout.count("\n") == 6 and "猫" in done.stdout
    moved = picture_folder.rename(tmp_path / "moved")
    assert_one_chinese_line(run_here("evaluate", run), picture_folder)
    assert "3 张" in run_script("evaluate", run, "--data-dir", moved, check=0).stdout


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "show_attention", "board"])
def test_help_is_chinese(name):
    text = run_script(name, "--help", check=0).stdout
    assert "用法:" in text and "选项" in text
    for english in ("usage", "options:", "positional", "show this help"):
        assert english not in text


FAMILIES = {
    "swin": "--model swin_tiny --image-size 16 --patch-size 4 --window-size 2 --embed-dim 12",
    "distilled": "--model deit_tiny_distilled --image-size 16 --patch-size 4 --embed-dim 24 --depth 2",
    "options": "--recipe none --patch-size 2 --depth 2 --class-token --register-tokens 2 --norm-after-pool "
    "--layer-scale 0.1 --qk-norm --epsilon 1e-6 --position-embedding learnable",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_other_models_train_and_are_drawn_examined_and_predicted_with(name, tmp_path):
    run = tmp_path / "run"
    run_script(
        "train",
        *FAMILIES[name].split(),
        "--epochs",
        "1",
        "--batch-size",
        "256",
        "--processes",
        "1",
        "--output",
        run,
        check=0,
    )
    loaded = load_run(run)
    assert {type(loaded.model).__name__} == {"SwinTransformer" if name == "swin" else "ViT"}
    findings, _ = diagnose(load_records(run))
    assert not {"有没用到的参数", "有冻结的参数", "没有归一化"} & {finding.name for finding in findings}
    fast, engine, note = prediction_model(loaded.model, {"device": "cpu", "threads": 1}, 1, "inference")
    assert engine != "动态图" and note is None and fast is not loaded.model
    if name == "swin":
        assert_one_chinese_line(run_here("show_attention", run), "SwinTransformer", "ViT")
    else:
        pictures = list(draw_attention(loaded, pictures_to_show(loaded, [], 1), tmp_path / "pictures"))
        assert len(pictures) == 5 and all(path.stat().st_size > 3000 for path in pictures)


def test_what_happens_to_ones_own_pictures_after_training(tmp_path):
    """改名之后续训、评估:每张还在原来的部分;少了的、多了的说得出。"""
    rng = np.random.default_rng(0)
    data = tmp_path / "我的 图片"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), "uint8")).save(data / name / f"{i}.png")
    run = tmp_path / "a run"
    options = "--recipe none --dataset folder --image-size 8 --patch-size 4 --embed-dim 8 --depth 1 --num-heads 2"
    args = [*options.split(), "--epochs", 2, "--batch-size", 8, "--attention-images", 0]
    done = run_script("train", *args, "--data-dir", data.name, "--output", run, check=0, cwd=tmp_path)
    assert f"predict.py '{run}'" in done.stdout
    kept = (run / "pictures.csv").read_bytes()
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (run / "summary.json").unlink()
    (data / "a" / "9.png").rename(data / "a" / "00.png")
    done = run_script("train", "--resume", run, check=0)  # 在别的目录里
    assert "9.png → a/00.png" in done.stderr
    again = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert again["test_top1"] == summary["test_top1"] and (run / "pictures.csv").read_bytes() == kept
    (data / "b" / "0.png").unlink()
    Image.new("RGB", (8, 8)).save(data / "b" / "new.png")
    assert_one_chinese_line(run_here("train", "--resume", run), "b/0.png", "new.png")
    done = run_script("evaluate", run, check=0)
    assert "b/0.png" in done.stderr and "b/new.png" in done.stderr and "a/00.png" in done.stderr
    other = tmp_path / "other" / "b"
    other.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(other / "1.png")
    assert "test 部分(1 张)" in run_script("evaluate", run, "--data-dir", other.parent, check=0).stdout
    done = run_here("evaluate", run, "--data-dir", other.parent, "--part", "val")
    assert done.returncode == 2 and "没有 val 部分" in done.stderr and "Traceback" not in done.stderr
