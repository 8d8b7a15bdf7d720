"""结果表:数字来自 summary.json,命令能再跑出同样的设置。"""

import dataclasses
import json
import shlex

import pytest
from support.running import assert_one_chinese_line, run_here

from paddle_vit import UserError
from paddle_vit.config import make_config, result_settings
from paddle_vit.config_files import save_config
from paddle_vit.runs.command_line import parse_config
from paddle_vit.study.results_table import command_of, find_runs, results_table


def make_run(directory, config, top1, seed=0, **others):
    directory.mkdir(parents=True)
    save_config(dataclasses.replace(config, seed=seed), directory / "config.yaml")
    summary = {"test_top1": top1, "val_top1": top1 / 2, "seed": seed, "epochs": 3, "seconds": 90.0, "parameters": 1234}
    summary["machine"] = "some CPU"
    (directory / "summary.json").write_text(json.dumps({**summary, **others}))
    return directory


def test_seeds_of_one_setting_are_one_row_with_mean_and_range(tmp_path):
    base, other = parse_config([]), parse_config(["--depth", "5"])
    for seed, top1 in enumerate((0.9, 0.95, 0.97)):
        make_run(tmp_path / f"a{seed}", base, top1, seed, seconds=60.0 * (seed + 1))
    make_run(tmp_path / "b", other, 0.5)
    (tmp_path / "unfinished").mkdir()
    _, first, second = results_table(find_runs([tmp_path]))
    assert first[:4] == ["python scripts/train.py", "1,234", "3", "2.0"]
    assert first[4:] == ["47.00(45.00–48.50)", "94.00(90.00–97.00)", "0、1、2", "some CPU"]
    assert second[0] == "python scripts/train.py --depth 5" and second[5] == "50.00"


def test_another_machine_is_another_row(tmp_path):
    make_run(tmp_path / "a", parse_config([]), 0.9)
    make_run(tmp_path / "b", parse_config([]), 0.9, seed=1, machine="another CPU")
    assert len(results_table(find_runs([tmp_path / "a", tmp_path / "b"]))) == 3


COMMANDS = [
    [],
    ["--epochs", "7", "--lr", "0.00025", "--mixup", "0"],
    ["--dataset", "fashion-mnist", "--no-flip"],
    ["--dataset", "cifar10", "--drop-path", "0.2", "--pool", "cls"],
    ["--recipe", "few-shot"],
    ["--recipe", "none", "--embed-dim", "32", "--num-heads", "2"],
    ["--model", "vit_tiny", "--epochs", "2"],
    ["--lr", "0.00012345678", "--weight-decay", "0.0123456789"],
    ["--dataset", "folder", "--data-dir", "pictures", "--image-size", "64x128", "--channels", "1"],
    ["--dataset", "cifar100", "--recipe", "cct-gpu", "--max-minutes", "90"],
    ["--dataset", "cifar10", "--optimizer", "adamw"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_command_gives_the_same_settings_again(arguments):
    config = parse_config(arguments)
    stored = make_config({**dataclasses.asdict(config), "recipe": "auto"})
    python, script, *words = shlex.split(command_of(stored))
    assert (python, script) == ("python", "scripts/train.py")
    assert result_settings(parse_config(words)) == result_settings(config)
    assert len(words) <= len(arguments) + 2


def test_a_size_is_written_as_on_the_command_line():
    arguments = ["--dataset", "folder", "--data-dir", "pictures", "--image-size", "64x128"]
    assert "--image-size 64x128" in command_of(parse_config(arguments))


def test_the_script_prints_the_table_and_writes_markdown(tmp_path):
    make_run(tmp_path / "run", parse_config([]), 0.9)
    done = run_here("results", tmp_path, "--output", tmp_path / "table.md")
    assert done.returncode == 0 and "90.00" in done.stdout
    assert "| python scripts/train.py | 1,234 |" in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_finished_run_is_one_line(tmp_path, name):
    assert_one_chinese_line(run_here("results", tmp_path / name), "没有训练完的运行")
    with pytest.raises(UserError, match=r"scripts|运行目录"):
        find_runs([tmp_path / name])
