import importlib.util
import json
import os
import re
import signal
import sys

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image
from support.running import assert_one_chinese_line, finish, run_script, script, start, wait_for

from benchmark import race, teams
from benchmark.contenders.lesson_vit import LessonViT
from paddle_vit import UserError, ViT, count_parameters

ARCHITECTURES = {name: architecture for name, (architecture, _) in race.MODELS.items()}
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="只在 Linux 上试过")


def our_model(architecture):
    return ViT(**architecture, qkv_bias=True, position_embedding="learnable")


def counted_flops(architecture):
    """由真的前向数出来:每个线性层、卷积和注意力乘积的输出个数乘以求和的长度。"""
    model, macs = our_model(architecture), []

    def count(layer, inputs, output):
        if isinstance(layer, nn.Linear):
            macs.append(output.size * layer.weight.shape[0])
        elif isinstance(layer, nn.Conv2D):
            macs.append(output.size * np.prod(layer.weight.shape[1:]))
        elif hasattr(layer, "attn_head_size"):
            tokens = inputs[0].shape[1]
            macs.extend([layer.num_heads * tokens * tokens * layer.attn_head_size] * 2)  # q k^T 和 w v

    for layer in model.sublayers():
        layer.register_forward_post_hook(count)
    size = architecture["image_size"]
    with paddle.no_grad():
        model(paddle.zeros([1, architecture["in_channels"], size, size]))
    return 2 * sum(map(int, macs))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flops_equal_an_independent_count(name):
    assert race.forward_flops(**ARCHITECTURES[name]) == counted_flops(ARCHITECTURES[name])


def test_flops_by_hand():
    # 2x2 个图块,图块 3x3x1,D=4,1 层,5 类,4 个 token:4*4*9 + 4*12*16 + 2*4*4*4 + 4*5 = 1060 次乘加
    assert race.forward_flops(6, 3, 1, 5, 4, 1, 2, "avg") == 2 * 1060
    published = 1.26e9  # ViT-Ti/16 前向的乘加次数
    assert race.forward_flops(**ARCHITECTURES["ViT-Ti/16"]) / 2 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_lesson_is_the_same_model(name):
    architecture = ARCHITECTURES[name]
    lesson, ours = LessonViT(**architecture), our_model(architecture)
    assert count_parameters(lesson) == count_parameters(ours)
    missing, unexpected = ours.set_state_dict(lesson.state_dict())
    assert not missing and not unexpected
    images = paddle.randn([2, architecture["in_channels"], architecture["image_size"], architecture["image_size"]])
    with paddle.no_grad():
        np.testing.assert_allclose(ours(images).numpy(), lesson(images).numpy(), rtol=1e-3, atol=1e-4)


@pytest.fixture
def python_without_packages(tmp_path):
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    path.chmod(0o755)
    return path


@linux_only
@pytest.mark.slow
def test_quick_race_writes_everything(tmp_path, python_without_packages):
    output = tmp_path / "race"
    peer = ["--peer-python", python_without_packages]
    done = run_script("benchmark", "--quick", "--rounds", "1", "--output", output, *peer, check=0)
    result = json.loads((output / "race.json").read_text(encoding="utf-8"))
    rows = {(row["task"], row["contender"]): row for row in result["rows"]}
    cores = len(os.sched_getaffinity(0))
    expected = {("train", "lesson"), ("predict", "lesson"), ("train", "ours"), ("predict", "ours")}
    expected |= {("train", f"ours-{cores}-processes")} if cores > 1 else set()
    assert expected <= {key for key, row in rows.items() if "unavailable" not in row}
    assert len({rows[key]["parameters"] for key in expected}) == 1
    architecture, batch = race.QUICK_MODELS["tiny"]
    for task, contender in expected:
        row = rows[task, contender]
        assert row["slowest"] <= row["images_per_second"] <= row["fastest"]
        assert row["seconds_per_step"] * row["images_per_second"] == pytest.approx(batch)
        work = counted_flops(architecture) * (3 if task == "train" else 1)
        assert row["gflops"] == pytest.approx(work * row["images_per_second"] / 1e9)
        assert 50 << 20 < row["peak_memory_bytes"] < 4 << 30
    assert rows["train", "lesson"]["ratio_to_lesson"] == 1
    for key in ("torch-float32", "torch-bfloat16", "torch-compile"):
        assert rows["train", key]["unavailable"] == "未安装" and rows["train", key]["reason"] == "没有 torch"
    assert "没有 onnxruntime、torch" in done.stdout and "| 本项目 |" in (output / "race.md").read_text(encoding="utf-8")
    assert result["machine"]["cpu"] in done.stdout
    assert Image.open(output / "race.png").size[0] > 500


@pytest.mark.slow
@linux_only
def test_quick_growth(tmp_path):
    run_script("benchmark", "--quick", "--growth", "--only", "prediction", "--output", tmp_path, check=0)
    rows = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))["rows"]
    assert {row["axis"] for row in rows} == {"tokens", "batch", "depth", "dim"}
    assert {row["task"] for row in rows} == {"predict"}
    for row in rows:
        assert row["seconds_per_image"] * row["batch"] == pytest.approx(row["seconds_per_step"])
        size, heads = 4 * round(row["tokens"] ** 0.5), row["dim"] // 32
        work = row["batch"] * race.forward_flops(size, 4, 3, 10, row["dim"], row["depth"], heads, "avg")
        assert row["gflops"] == pytest.approx(work / row["seconds_per_step"] / 1e9)
        assert 0 < row["share_of_peak"] < 1
    assert Image.open(tmp_path / "growth.png").size[0] > 500


@linux_only
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="没有安装 PyTorch")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pytorch_is_the_same_size(name):
    contender = next(one for one in teams.contenders(1) if one.key == "torch-float32")
    spec = {"architecture": ARCHITECTURES[name], "batch": 1, "task": "predict", "mode": "float32", "threads": 1}
    with teams.Team(contender) as team:
        (reply,) = team.ask("build", spec)
    assert reply["parameters"] == count_parameters(our_model(ARCHITECTURES[name]))


@pytest.mark.parametrize(
    "args, words",
    [
        (["--round", "3"], ["--round", "--rounds"]),
        (["--only", "both"], ["both", "training"]),
        (["--rounds", "0"], ["--rounds", "0"]),
        (["--peer-python", "/no/such/python", "--quick"], ["--peer-python", "/no/such/python"]),
        (["--peer-python", "/bin/false", "--quick"], ["--peer-python", "/bin/false"]),
        (["--output", "/dev/null/x", "--quick"], ["/dev/null"]),
    ],
)
def test_bad_arguments(tmp_path, args, words):
    given = args if "--output" in args else [*args, "--output", tmp_path / "out"]
    assert_one_chinese_line(run_script("benchmark", *given), *words)


def test_a_crashed_contender_is_one_line():
    crashing = teams.Contender("crash", "坏的", "no_such_file.py", "")
    with teams.Team(crashing) as team, pytest.raises(UserError) as error:
        team.ask("build", {})
    assert re.search(r"坏的.*状态码 2.*no_such_file", str(error.value)) and "\n" not in str(error.value)


def marked_processes(mark):
    """环境里有这个记号的进程。"""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark.encode() in file.read():
                    found.append(int(pid))
        except OSError:
            continue
    return found


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(tmp_path, number):
    mark = f"BENCHMARK_TEST={tmp_path}"
    process = start(
        [sys.executable, script("benchmark"), "--quick", "--only", "training", "--rounds", "1000"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "BENCHMARK_TEST": str(tmp_path)},
    )
    text = ""
    while "2/1000" not in text:
        letter = process.stdout.read(1)
        assert letter, process.stderr.read()
        text += letter
    assert len(marked_processes(mark)) >= 4
    _, errors = finish(process, number)
    wait_for(lambda: not marked_processes(mark))
    if number == signal.SIGINT:
        assert process.returncode == 130 and errors.startswith("已中断。") and errors.count("\n") == 1
