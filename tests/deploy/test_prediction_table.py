"""predict.py:坏图不耽误别的,预测写成表,按目录的名字算正确率。"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.running import ROOT, assert_one_chinese_line, run_here, run_script

from paddle_vit import UserError
from paddle_vit.deploy.predictor import Prediction
from paddle_vit.deploy.results import PredictionTable, check_table, true_label


def table():
    made = PredictionTable(("a", 'b,"c', "3"), ["x"])
    for folder, guess in (("a", "a"), ("a", "3"), ('b,"c', 'b,"c'), ("a/deep", "a"), ("other", "a")):
        rest = next(name for name in made.classes if name != guess)
        made.add(Path("x", folder, "1.png"), Prediction((guess, rest), (0.75, 0.25)))
    made.bad.append((Path("x", "3", "bad.png"), "不完整"))
    return made


def test_accuracy_and_confusion():
    made = table()
    assert made.accuracy == 3 / 4
    assert made.confusion().tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert "4 张里对了 3 张" in made.summary() and "75.00%" in made.summary()
    assert PredictionTable(("a",)).summary() is None


def test_tables_are_read_back(tmp_path):
    made = table()
    made.save(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # Excel 由它知道是 UTF-8
    with open(tmp_path / "x.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["true"] for row in rows] == ["a", "a", 'b,"c', "a", "", "3"]
    assert rows[0]["label1"] == "a" and float(rows[0]["probability1"]) == 0.75 and rows[-1]["error"] == "不完整"
    made.save(tmp_path / "x.JSON")
    value = json.loads((tmp_path / "x.JSON").read_text(encoding="utf-8"))
    assert value["accuracy"] == 0.75 and value["confusion"][0] == [2, 0, 1]
    assert value["images"][1]["top"][0] == {"label": "3", "probability": 0.75}
    assert value["errors"] == [{"path": str(Path("x", "3", "bad.png")), "error": "不完整"}]
    with pytest.raises(UserError, match=r"\.csv"):
        check_table("x.xlsx")


@pytest.mark.parametrize(
    "path, roots, label",
    [
        ("d/猫/1.png", ["d"], "猫"),
        ("d/猫/室内/1.png", ["d"], "猫"),
        ("d/猫/1.png", ["d/猫"], "猫"),
        ("狗/d/1.png", ["狗/d"], None),  # 上面的目录碰巧同名
        ("猫/1.png", [], "猫"),
        ("猫/室内/1.png", [], None),
        ("d/鸟/1.png", ["d"], None),
    ],
)
def test_the_label_of_a_folder(path, roots, label):
    assert true_label(Path(path), ("猫", "狗"), roots) == label


def test_one_bad_picture_does_not_stop_the_others(tiny_run, tmp_path):
    with np.load(ROOT / "paddle_vit" / "assets" / "digits.npz") as file:
        images, labels = file["images"][file["test"]][:5], file["labels"][file["test"]][:5]
    for i, (image, label) in enumerate(zip(images, labels)):
        path = tmp_path / "d" / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(image * (255 / 16)).astype("uint8")).save(path)
    (tmp_path / "d" / "3" / "bad.png").parent.mkdir(exist_ok=True)
    (tmp_path / "d" / "3" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "d" / "3" / "worse.jpg").write_bytes(b"")
    (tmp_path / "d" / "a.heic").write_bytes(b"x")
    done = run_script("predict", tiny_run, tmp_path / "d", "--output", tmp_path / "out.json")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sum("\t" in line for line in done.stdout.splitlines()) == 5 and "5 张里对了" in done.stdout
    assert "bad.png" in done.stderr and "worse.jpg" in done.stderr and "其余的 5 个" in done.stderr
    assert "a.heic" in done.stderr
    value = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert len(value["images"]) == 5 and len(value["errors"]) == 2
    assert sorted(image["true"] for image in value["images"]) == sorted(map(str, labels))
    assert_one_chinese_line(run_here("predict", tiny_run, tmp_path, "--output", "x.xls"), ".csv")
