import json
import os
import signal
import sys

import numpy as np
import pytest
from support.running import TINY, assert_one_chinese_line, finish, run_here, run_script, script, start, wait_for

from paddle_vit import UserError
from paddle_vit.runs.command_line import parse_config
from paddle_vit.study.comparison import comparison_figure, comparison_table, parse_seeds, parse_vary, variants
from paddle_vit.study.curves import curves_figure


def row(switch, value, val_top1, is_base=False):
    return {
        "switch": switch,
        "value": value,
        "is_base": is_base,
        "val_top1": val_top1,
        "best_val_top1": [0.99] * len(val_top1),
        "parameters": 1234,
        "images_per_second": 1000.4,
    }


ROWS = [
    row("pool", "avg", [0.90, 0.92, 0.94], is_base=True),
    row("pool", "cls", [0.95, 0.96, 0.97]),
    row("head", "mlp", [0.94, 0.95, 0.96]),
    row("head", "big", [0.80, 0.81, 0.82]),
]


def test_each_variant_changes_one_setting():
    base = parse_config(["--position-embedding", "sincos"])
    found = variants(base, {"pool": ["avg", "cls"], "drop_path": ["0.1", "0"], "position_embedding": ["none"]})
    assert [(v.switch, v.value, v.is_base) for v in found] == [
        ("pool", "avg", True),
        ("pool", "cls", False),
        ("drop_path", "0", True),
        ("drop_path", "0.1", False),
        ("position_embedding", "sincos", True),
        ("position_embedding", "none", False),
    ]
    for variant in found:
        changed = [name for name in vars(base) if getattr(variant.config, name) != getattr(base, name)]
        assert changed == ([] if variant.is_base else [variant.switch])
    directories = {variant.directory("runs", 3).name for variant in found}
    assert directories == {"base-seed3", "pool-cls-seed3", "drop_path-0.1-seed3", "position_embedding-none-seed3"}


def test_the_base_of_a_named_model():
    found = variants(parse_config(["--model", "vit_tiny"]), {"pool": ["avg", "cls"], "num_heads": ["3"]})
    assert [(v.switch, v.value) for v in found] == [("pool", "cls"), ("pool", "avg"), ("num_heads", "3")]


@pytest.mark.parametrize(
    "vary, words",
    [
        (["pool"], ("pool", "pool=avg,cls")),
        (["pool="], ("pool=",)),
        (["pool=avg", "pool=cls"], ("pool=cls", "重复")),
        (["pol=avg"], ("pol", "pool")),
        (["pool=mean"], ("--pool", "mean", "avg")),
        (["threads=1,2"], ("threads", "不影响结果")),
        (["seed=1,2"], ("seed", "--seeds")),
    ],
)
def test_bad_switches(vary, words):
    with pytest.raises(UserError) as error:
        variants(parse_config([]), parse_vary(vary))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("text", ["", "a", "0,", "1,1", "-1", "0;1"])
def test_bad_seeds(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)
    assert parse_seeds("0,12") == [0, 12]


def test_only_ranges_apart_are_called_different():
    header, *table = comparison_table(ROWS)
    assert [line[0] for line in table] == ["pool=avg", "pool=cls", "head=mlp", "head=big"]
    verdicts = [line[header.index("判断")] for line in table]
    assert verdicts == ["基准", "高于基准", "波动之内", "低于基准"]
    assert table[1][1:4] == ["96.00%", "95.00%–97.00%", "+4.00"]
    header, *table = comparison_table([{**row, "val_top1": row["val_top1"][:1]} for row in ROWS])
    assert [line[header.index("判断")] for line in table] == ["基准", "看不出", "看不出", "看不出"]


def test_the_figure_shows_every_seed():
    figure = comparison_figure(ROWS)
    (panel,) = figure.axes
    assert [label.get_text().split("=")[0] for label in panel.get_yticklabels()] == ["pool", "pool", "head", "head"]
    dots = [sorted(line.get_xdata()) for line in panel.lines if line.get_marker() == "o"]
    assert dots == [pytest.approx([100 * value for value in row["val_top1"]]) for row in ROWS]
    means = [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "D"]
    assert means == pytest.approx([92, 96, 95, 81])


@pytest.mark.slow
def test_a_comparison_is_continued(tmp_path):
    output = tmp_path / "compare"
    args = ["--vary", "pool=avg,cls", "--seeds", "0", "--output", output, *TINY, "--epochs", "16"]
    process = start([sys.executable, script("compare"), *args])
    wait_for((output / "pool-cls-seed0" / "last.safetensors").exists, process)

    os.killpg(process.pid, signal.SIGINT)  # 终端里的 Ctrl-C
    _, errors = finish(process)
    assert process.returncode == 130 and errors.startswith("已中断。接着比较"), errors
    assert not (output / "pool-cls-seed0" / "summary.json").exists()
    before = (output / "base-seed0" / "summary.json").stat().st_mtime_ns
    done = run_script("compare", *args, check=0)
    assert "[2/2] pool-cls-seed0" in done.stdout and "[1/2]" not in done.stdout
    assert "续训" in (output / "pool-cls-seed0.log").read_text(encoding="utf-8")
    assert (output / "base-seed0" / "summary.json").stat().st_mtime_ns == before
    rows = json.loads((output / "compare.json").read_text(encoding="utf-8"))
    for found, name in zip(rows, ("base-seed0", "pool-cls-seed0")):
        lines = (output / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert found["val_top1"] == [json.loads(lines[-1])["val_top1"]] and len(lines) == 16
        assert found["best_val_top1"] == [max(json.loads(line)["val_top1"] for line in lines)]
    assert rows[1]["parameters"] == rows[0]["parameters"] + 8 + 8  # class token 和它的位置编码
    assert "pool=cls" in (output / "compare.md").read_text(encoding="utf-8")
    assert (output / "compare.png").stat().st_size > 5000
    assert_one_chinese_line(run_script("compare", *args, "--lr", "0.02"), "base-seed0", "lr", "--output")


@pytest.mark.slow
def test_a_failing_run_is_named(tmp_path):
    args = ["--vary", "patch_size=3", "--seeds", "0", "--output", tmp_path / "compare", *TINY, "--epochs", "1"]
    done = run_script("compare", *args)
    assert_one_chinese_line(done, "patch_size-3-seed0", "整除")
    assert (tmp_path / "compare" / "base-seed0" / "summary.json").exists()


def finished_run(directory, tops, test_top1):
    directory.mkdir(parents=True)
    line = dict.fromkeys(("epoch", "train_loss", "train_top1", "val_loss", "lr", "images_per_second", "data_wait"), 0.5)
    lines = [json.dumps({**line, "val_top1": top}) for top in tops]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "summary.json").write_text(json.dumps({"test_top1": test_top1}), encoding="utf-8")
    return directory


def test_curves_of_groups(tmp_path):
    for seed, top in enumerate((0.5, 0.7)):
        finished_run(tmp_path / f"a-seed{seed}", [0.1, top], top - 0.1)
        finished_run(tmp_path / f"b-seed{seed}", [0.3, top + 0.2], top)
    args = [f"从零={tmp_path}/a-seed*", f"微调={tmp_path}/b-seed*"]
    done = run_script("curves", *args, "--output", tmp_path / "figures" / "curves.png", check=0)
    rows = [line.split() for line in done.stdout.splitlines() if "%" in line]
    assert rows[0] == ["从零", "2", "60.00%", "50.00%–70.00%", "50.00%", "40.00%–60.00%"]
    assert rows[1] == ["微调", "2", "80.00%", "70.00%–90.00%", "60.00%", "50.00%–70.00%"]
    assert (tmp_path / "figures" / "curves.png").stat().st_size > 5000
    figure = curves_figure({"a": np.array([[0.1, 0.5], [0.1, 0.7]]), "b": np.array([[0.3, 0.7], [0.3, 0.9]])})
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"a": pytest.approx([10, 60]), "b": pytest.approx([30, 80])}


def test_bad_groups(tmp_path):
    finished_run(tmp_path / "a-seed0", [0.1, 0.2], 0.1)
    finished_run(tmp_path / "a-seed1", [0.1], 0.1)
    (tmp_path / "unfinished").mkdir()
    for group, word in (
        ("a", "a"),
        (f"={tmp_path}", "名字"),
        (f"a={tmp_path}/none*", "none"),
        (f"a={tmp_path}/a-*", "轮数"),
        (f"a={tmp_path}/unfinished", "没有训练完"),
    ):
        assert_one_chinese_line(run_here("curves", group, "--output", tmp_path / "x.png"), word)
