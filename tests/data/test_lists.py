"""标签写在文件里的数据。"""

import numpy as np
import pytest
from PIL import Image

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data.sources import load_data
from paddle_vit.data.splits import KeptRun


@pytest.fixture
def root(tmp_path):
    """images/ 里 12 张,灰度值是 10 * 序号;序号除以 2 的余数是类别。"""
    for i in range(12):
        path = tmp_path / "d" / "images" / f"图 {i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (10 * i,) * 3).save(path)
    return tmp_path / "d"


def read(data_dir, kept=None):
    settings = {"dataset": "folder", "data_dir": str(data_dir), "image_size": 4, "workers": 0}
    return load_data(make_config(settings), kept)


def check(data, classes=("0", "1"), counts=(10, 1, 1)):
    """标签与像素相符,各部分的张数对。"""
    assert data.info.classes == classes and tuple(data.info.counts.values()) == counts
    seen = []
    for part in (data.train, data.val, data.test):
        for i, label in enumerate(part.labels):
            number = round(part.read(i).mean() / 10)
            assert label == number % 2
            seen.append(number)
    assert sorted(seen) == sorted(set(seen))


FORMS = {
    "spaces": "images/图 {i:02}.png {label}\n",
    "tabs": "images/图 {i:02}.png\t{label}\n",
    "commas": "images/图 {i:02}.png,{label}\n",
    "backslashes": "images\\图 {i:02}.png {label}\r\n",
    "quotes": '"./images/图 {i:02}.png", "{label}"\n',
    "beside": "图 {i:02}.png {label}\n",
    "longer": "D:\\数据\\d\\images\\图 {i:02}.png {label}\n",
    "float": "images/图 {i:02}.png,{label}.0\n",
}


def listed(form, numbers):
    return "".join(form.format(i=i, label=i % 2) for i in numbers)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_lists(root, form, encoding):
    for name, numbers in (("train_list.txt", range(10)), ("val.txt", [10]), ("test_list.txt", [11])):
        (root / name).write_bytes(listed(FORMS[form], numbers).encode(encoding))
    check(read(root))


@pytest.mark.parametrize(
    "labels, classes",
    [("猫\n狗\n", ("猫", "狗")), ("0 猫\n1 狗\n", ("猫", "狗")), ("狗,1\n猫,0\n", ("猫", "狗"))],
)
def test_class_names(root, labels, classes):
    (root / "labels.txt").write_bytes(labels.encode("gbk"))
    (root / "train.txt").write_text(listed(FORMS["spaces"], range(12)), encoding="utf-8")
    check(read(root), classes, (8, 2, 2))


def test_numbers_from_one(root):
    (root / "labels.txt").write_text("猫\n狗\n", encoding="utf-8")
    lines = "".join(f"images/图 {i:02}.png {i % 2 + 1}\n" for i in range(12))
    (root / "train.txt").write_text(lines, encoding="utf-8")
    check(read(root), ("猫", "狗"), (8, 2, 2))


@pytest.mark.parametrize("header", ["path,label", "ID,Image,Class", "文件名;类别", "label\tfilename"])
def test_tables_with_a_header(root, header):
    mark = next(mark for mark in ",;\t" if mark in header)
    names = header.split(mark)
    rows = [header]
    for i in range(12):
        cells = {"ID": str(i), names[-1]: ("a", "b")[i % 2], names[-2]: f"图 {i:02}.png"}
        if header.startswith("label"):
            cells = {"label": ("a", "b")[i % 2], "filename": f"图 {i:02}.png"}
        rows.append(mark.join(cells[name] for name in names))
    (root / "all.csv").write_text("\n".join(rows), encoding="gbk")
    check(read(root) if "ID" not in names else read(root / "all.csv"), ("a", "b"), (8, 2, 2))


def test_a_table_with_a_column_for_the_part(root):
    parts = ["train"] * 10 + ["valid", "test"]
    rows = [f"{i % 2},图 {i:02},{part}" for i, part in enumerate(parts)]
    (root / "data.csv").write_text("\n".join(["label,image_id,split", *rows]), encoding="utf-8")
    check(read(root))


def test_class_folders_without_train(tmp_path):
    for i in range(12):
        path = tmp_path / "d" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (10 * i,) * 3).save(path)
    data = read(tmp_path / "d")
    check(data, ("a", "b"), (8, 2, 2))
    assert "没有 train 目录" in data.notes[0]
    (tmp_path / "d" / "test").mkdir()
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "test" / "a")
    (tmp_path / "d" / "a").mkdir()
    (tmp_path / "d" / "test" / "a" / "0.png").rename(tmp_path / "d" / "a" / "0.png")
    with pytest.raises(UserError, match="太少"):
        read(tmp_path / "d")


WRONG = {
    "missing": ("images/图 00.png 0\nno.png 1\n", "no.png"),
    "two labels": ("images/图 00.png 0\nimages/图 00.png 1\n", "两种标签"),
    "multi label": ("images/图 00.png\t0,1\n", "几个标签"),
    "empty": ("\n", "空的"),
    "no labels": ("images/图 00.png\nimages/图 01.png\n", "没有一行有标签"),
    "one class": ("images/图 00.png 0\nimages/图 01.png 0\n", "1 类"),
    "short row": ("path,label\nimages/图 00.png\n", "第 2 行"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_lists_are_one_line(root, kind):
    text, words = WRONG[kind]
    (root / "train.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        read(root)
    assert "\n" not in str(caught.value)


def test_labels_outside_the_names(root):
    (root / "labels.txt").write_text("猫\n狗\n", encoding="utf-8")
    (root / "train.txt").write_text("images/图 00.png 0\nimages/图 01.png 7\n", encoding="utf-8")
    with pytest.raises(UserError, match="7"):
        read(root)


def test_pictures_that_are_not_listed_are_named(root):
    (root / "train.txt").write_text(listed(FORMS["spaces"], range(10)), encoding="utf-8")
    (root / "test.txt").write_text("images/图 10.png\n", encoding="utf-8")
    data = read(root)
    notes = "".join(data.notes)
    assert "2 个文件没有用到" in notes and "没有标签" in notes


@pytest.mark.parametrize("form", ["list", "numbers", "folders", "test folder"])
def test_an_external_test_set_alone(root, tmp_path, form):
    (root / "labels.txt").write_text("a\nb\n", encoding="utf-8")
    (root / "train.txt").write_text(listed(FORMS["spaces"], range(12)), encoding="utf-8")
    trained = read(root)
    other = tmp_path / "other"
    folder = {"folders": other / "b", "test folder": other / "test" / "b"}.get(form, other)
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (4, 4), (5 + 10 * i, 0, 0)).save(folder / f"{i}.png")
    lines = {"list": "{i}.png b\n", "numbers": "{i}.png 1\n"}.get(form)
    if lines:
        (other / "exam.txt").write_text("".join(lines.format(i=i) for i in range(3)), encoding="utf-8")
    source = other / "exam.txt" if form == "list" else other
    data = read(source, KeptRun("RUN", trained.info, trained.pictures, elsewhere=True))
    assert data.info.classes == ("a", "b") and data.test.labels.tolist() == [1, 1, 1]
    assert np.array_equal(data.info.mean, trained.info.mean) and len(data.train) == 0
