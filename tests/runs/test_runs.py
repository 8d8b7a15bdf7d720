import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from support.results import assert_same_end
from support.running import TINY, assert_one_chinese_line, run_here, run_script

from paddle_vit import UserError, make_config
from paddle_vit.deploy.predictor import Predictor
from paddle_vit.runs import train as train_module
from paddle_vit.runs import visualdl_file
from paddle_vit.runs.loading import load_model, load_run
from paddle_vit.runs.train import train
from paddle_vit.weights.checkpoint import read_model, save_model

# 像在笔记本里那样训练:没有脚本,一次调用
PROGRAM = """
import json
import sys
from paddle_vit.system.cli import run_main
from paddle_vit.runs.command_line import parse_config
from paddle_vit.deploy.predictor import Predictor
from paddle_vit.runs.train import train

def main():
    options, picture = sys.argv[1:-1], sys.argv[-1]
    trained = train(parse_config(options))
    prediction = Predictor(trained, engine="eager")(picture, top=2)
    print(json.dumps([trained.model.training, trained.summary, prediction.labels, prediction.probabilities]))

run_main(main)
"""


def train_in_one_call(*args):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def test_one_call_trains_the_same_model_as_the_script(tiny_run, tmp_path, picture_folder):
    run, picture = tmp_path / "run", picture_folder / "train" / "猫" / "1.png"
    done = train_in_one_call(*TINY, "--output", run, picture)
    assert done.returncode == 0, done.stderr
    assert_same_end(run, tiny_run)
    assert (run / "best.safetensors").read_bytes() == (tiny_run / "best.safetensors").read_bytes()
    training, summary, labels, probabilities = json.loads(done.stdout.splitlines()[-1])
    assert not training and summary == json.loads((run / "summary.json").read_text(encoding="utf-8"))
    expected = Predictor(tiny_run, engine="eager")(picture, top=2)  # 返回的模型就是以后读回的模型
    assert tuple(labels) == expected.labels
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-6)


def test_one_call_does_not_start_other_processes(tmp_path):
    done = train_in_one_call(*TINY, "--processes", "2", "--output", tmp_path / "run", "none.png")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "processes=2" in done.stderr and "scripts/train.py" in done.stderr and "Traceback" not in done.stderr


def test_two_trainings_in_two_threads(monkeypatch):
    """第二个马上得到一行说明;第一个完了(即使是出错)又可以训练。"""
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def slow(config, model, task):
        begun.set()
        assert go_on.wait(60)
        raise UserError("第一个出错")

    monkeypatch.setattr(train_module, "_train", slow)

    def first():
        with pytest.raises(UserError, match="第一个出错"):
            train(make_config({}))
        ended.append(True)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    for _ in range(2):
        with pytest.raises(UserError, match="一个进程一次只能训练一个"):
            train(make_config({}))
    go_on.set()
    thread.join(60)
    assert ended == [True]
    monkeypatch.setattr(train_module, "_train", lambda *others: "trained")
    assert train(make_config({})) == train(make_config({})) == "trained"


def test_a_training_within_a_training_is_refused(monkeypatch):
    monkeypatch.setattr(train_module, "_train", lambda config, model, task: train(config))
    with pytest.raises(UserError, match="一个进程一次只能训练一个"):
        train(make_config({}))


@pytest.mark.parametrize("home", ["/dev/null/none", ""])
def test_a_home_that_cannot_be_written(tmp_path, home):
    done = run_script("train", *TINY, "--epochs", "1", "--output", tmp_path / "run", env={"HOME": home}, check=0)
    assert "Traceback" not in done.stderr and "MPLCONFIGDIR" not in done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_visualdl_leaves_nothing_in_the_home(tmp_path):
    program = "import os; from paddle_vit.runs.visualdl_file import import_visualdl; import_visualdl(); "
    program += "import visualdl; print(os.environ['HOME'])"
    (tmp_path / "home").mkdir()
    environ = {**os.environ, "HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, timeout=300)
    assert done.stdout.strip() == str(tmp_path / "home"), done.stderr
    assert not (tmp_path / "home" / ".visualdl").exists()


def test_no_place_for_visualdl_is_one_line(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(visualdl_file.tempfile, "TemporaryDirectory", none)
    monkeypatch.delitem(sys.modules, "visualdl", raising=False)
    home = os.environ.get("HOME")
    with pytest.raises(UserError, match="TMPDIR"):
        visualdl_file.import_visualdl()
    assert os.environ.get("HOME") == home


def test_summary_of_a_loaded_run(tiny_run, tmp_path):
    assert load_run(tiny_run).summary == json.loads((tiny_run / "summary.json").read_text(encoding="utf-8"))
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    loaded = load_run(run)
    (run / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"summary\.json 已损坏"):
        loaded.summary  # noqa: B018
    (run / "summary.json").unlink()
    assert loaded.summary is None  # 还没训练完


def test_a_weight_file_alone_predicts_like_its_run(tiny_run, tmp_path, picture_folder):
    shutil.copy(tiny_run / "best.safetensors", tmp_path / "alone.safetensors")
    alone, run = load_model(tmp_path / "alone.safetensors"), load_model(tiny_run)
    assert alone.info == run.info and not alone.model.training
    pictures = sorted((picture_folder / "train" / "猫").iterdir())
    assert Predictor(alone, "eager")(pictures) == Predictor(run, "eager")(pictures)
    done = run_script("predict", tmp_path / "alone.safetensors", *pictures, check=0)
    assert done.stdout == run_script("predict", tiny_run, *pictures, check=0).stdout


@pytest.mark.parametrize("name, value", [("classes", ["a", "b"]), ("image_size", 16)])
def test_a_description_that_contradicts_itself(tiny_run, tmp_path, name, value):
    tensors, model, info = read_model(tiny_run / "best.safetensors")
    save_model(tmp_path / "x.safetensors", tensors, model, {**info, name: value})
    with pytest.raises(UserError, match="自相矛盾"):
        load_model(tmp_path / "x.safetensors")


def test_weight_files_that_cannot_predict(tiny_run, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors, model, info = read_model(tiny_run / "best.safetensors")
    for description, words in (
        ((model, None), "类别名"),
        (({**model, "embed_dim": 16}, info), "说明不符"),
        (({**model, "colour": 1}, info), "colour"),
        (({**model, "name": "resnet"}, info), "resnet"),
        ((model, {**info, "std": [0.0]}), "损坏"),
        ((model, {**info, "classes": []}), "损坏"),
    ):
        save_model(path, tensors, *description)
        with pytest.raises(UserError, match=words):
            load_model(path)
    with pytest.raises(UserError, match="没有"):
        load_model(tmp_path / "none")
    path.write_bytes(b"text")
    assert_one_chinese_line(run_here("predict", path, path), "损坏")
