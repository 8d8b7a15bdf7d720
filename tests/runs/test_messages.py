"""训练时打印的话:用了哪个配方,中断以后怎样继续,训练完以后做什么。"""

import os
import signal
import subprocess
import sys
import types

import pytest
from support.running import PATIENCE, ROOT, TINY, finish, run_script, start, start_training

from paddle_vit.config import make_config
from paddle_vit.tasks.classification import Classification
from paddle_vit.weights.checkpoint import read_state

ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def run_code(code, *args):
    """在另一个进程里运行一段代码,命令行上是 args。"""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRON, timeout=PATIENCE)


INTERRUPTED = """
from paddle_vit import Task, launch
from paddle_vit.training import loop
def interrupted(*_):
    raise KeyboardInterrupt
loop.Trainer.{method} = interrupted
launch({arguments})
"""


@pytest.mark.parametrize("method", ["validate", "save", "keep_best", "evaluate"])
def test_an_interrupt_anywhere_tells_how_to_go_on(tmp_path, method):
    done = run_code(INTERRUPTED.format(method=method, arguments=""), *TINY, "--output", tmp_path / "run")
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == f"已中断。接着训练:python scripts/train.py --resume {tmp_path / 'run'}"


def test_an_interrupted_model_of_ones_own_goes_on_with_its_own_command(tmp_path):
    own = "__import__('paddle').nn.Sequential(*[getattr(__import__('paddle').nn, n)(*a) for n, a in "
    own += "(('Flatten', ()), ('Linear', (64, 10)))])"
    done = run_code(INTERRUPTED.format(method="validate", arguments=own), *TINY, "--output", tmp_path / "run")
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == f"已中断。接着训练:在同样的命令后面加上 --resume {tmp_path / 'run'}"


def test_the_line_of_an_epoch_means_that_it_is_saved(tmp_path):
    process = start_training(*TINY, "--epochs", "400", "--output", tmp_path / "run")
    for line in process.stdout:
        if line.startswith("第 3/400 轮"):
            break
    finish(process, signal.SIGKILL)
    assert read_state(tmp_path / "run" / "last.safetensors")[1]["progress"]["epoch"] >= 3


@pytest.mark.skipif(os.name != "posix", reason="Windows 没有这样的信号")
@pytest.mark.parametrize("name", ["train", "predict"])
def test_an_interrupt_while_importing_is_quiet(name):
    script = ROOT / "scripts" / f"{name}.py"
    process = start([sys.executable, "-X", "importtime", script, "--output", os.devnull], env=ENVIRON)
    for line in process.stderr:
        if line.split()[-1:] == ["ctrl_c"]:
            break
    stdout, stderr = finish(process, signal.SIGINT)
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in stderr and stdout == ""


def test_the_recipe_and_the_next_steps_are_told(tmp_path):
    run = tmp_path / "runs" / "a"
    lines = run_script("train", *TINY, "--output", run, check=0).stdout.splitlines()
    assert any(line.startswith("没有用配方") for line in lines)
    assert lines[-2:] == [
        f"给图片分类:python scripts/predict.py {run} 图片.png",
        f"看曲线:python scripts/board.py {run.parent}",
    ]
    small = ["--epochs", "1", "--depth", "1", "--train-per-class", "20", "--mixup", "0"]
    lines = run_script(
        "train", *small, "--lr", "1e-6", "--min-lr", "0", "--output", tmp_path / "b", check=0
    ).stdout.splitlines()
    assert any(line.startswith("配方 digits") and "--recipe none" in line for line in lines)
    assert lines[-3].startswith("给图片分类")
    assert lines[-1] == f"正确率和猜差不多。找原因:python scripts/doctor.py {tmp_path / 'b'}"


def test_the_latest_run_needs_no_name(tmp_path):
    for name in ("b", "a"):
        run_script("train", *TINY, "--epochs", "1", "--output", tmp_path / "runs" / name, check=0)
    said = run_script("evaluate", tmp_path / "runs" / "latest", check=0).stdout
    assert said.startswith(str(tmp_path / "runs" / "a"))


def test_a_few_test_images_do_not_make_it_a_guess(tmp_path):
    """三类、12 张测试图对 8 张,单看像是猜的;连同 45 张验证图就不是。"""
    info = types.SimpleNamespace(classes=("猫", "船", "飞机"))
    data = types.SimpleNamespace(info=info, val=range(45), test=range(12))
    task = Classification(data, make_config({}))
    lasts = [
        task.next_steps(tmp_path, {"val_top1": a / 45, "test_top1": b / 12}, False)[-1] for a, b in ((25, 8), (17, 5))
    ]
    assert ["猜" in last for last in lasts] == [False, True]
