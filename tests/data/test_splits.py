"""哪张图片在哪一部分:由内容决定;随运行存着,变了什么说得出。"""

import random
import shutil

import numpy as np
import pytest
from PIL import Image

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data.info import DataInfo
from paddle_vit.data.parts import stratified_split
from paddle_vit.data.sources import load_data
from paddle_vit.data.splits import KeptRun, Picture, compare_pictures, load_pictures, save_pictures, split_off


@pytest.fixture
def many(tmp_path):
    """两类各 40 张。"""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 255, (4, 4, 3), "uint8")
            Image.fromarray(pixels).save(tmp_path / "data" / "train" / name / f"{i:02}.png")
    return tmp_path / "data"


def read(root, kept=None):
    return load_data(make_config({"dataset": "folder", "data_dir": str(root), "image_size": 8, "workers": 0}), kept)


def contents(data):
    """各部分里的图片的内容。"""
    return {name: {path.read_bytes() for path in getattr(data, name).paths} for name in ("train", "val", "test")}


def rename_one(folder):
    (folder / "39.png").rename(folder / "000.png")


def rename_all(folder):
    for i, path in enumerate(sorted(folder.iterdir(), key=lambda path: path.read_bytes())):
        path.rename(folder / f"new{i}.png")


def remove_one(folder):
    (folder / "00.png").unlink()


def add_one(folder):
    Image.new("RGB", (4, 4), "red").save(folder / "000.png")


@pytest.mark.parametrize("change, most", [(rename_one, 0), (rename_all, 0), (remove_one, 2), (add_one, 2)])
def test_a_picture_stays_in_its_part(many, change, most):
    before = contents(read(many))
    change(many / "train" / "a")
    after = contents(read(many))
    moved = sum(len(before[name] - after[name]) for name in before)
    assert moved <= most + (change is remove_one)


def test_the_shares_are_exact_and_every_class_is_in_every_part():
    rng, counts = random.Random(0), {"many": 100, "some": 41, "few": 3}
    pictures = [
        Picture("train", name, f"{name}/{i}", f"{rng.random()}") for name, n in counts.items() for i in range(n)
    ]
    tested = split_off(pictures, 0.1, "test")
    both = split_off(tested, 0.1, "val")
    for name, n in counts.items():
        found = [picture.part for picture in both if picture.category == name]
        test = max(1, round(n / 10))
        assert (found.count("test"), found.count("val")) == (test, max(1, round((n - test) / 10)))
    shuffled = rng.sample(pictures, len(pictures))
    assert sorted(split_off(split_off(shuffled, 0.1, "test"), 0.1, "val")) == sorted(both)


def test_pictures_are_saved_and_found_again(tmp_path):
    pictures = (Picture("train", "猫", 'train/猫/a,"b"\n.png', "1f"), Picture("test", "狗", "x\udcb9\udcb7.png", "2e"))
    save_pictures(pictures, tmp_path / "pictures.csv")
    assert load_pictures(tmp_path / "pictures.csv") == pictures
    assert load_pictures(tmp_path / "none.csv") is None
    (tmp_path / "pictures.csv").write_text("part\nx\n", encoding="utf-8")
    with pytest.raises(UserError, match="损坏"):
        load_pictures(tmp_path / "pictures.csv")


def test_what_changed_is_named():
    def pictures(text):
        return [Picture("train", "a", *item.split(":")) for item in text.split()]

    kept = [picture._replace(part="test") for picture in pictures("1:A 2:B 3:C 4:D 5:D")]
    now = compare_pictures(kept, pictures("1:A 2:C 9:D 4:D 6:E"))  # 2 删了,3 改成了 2,5 改成了 9,添了 6
    assert (now.renamed, now.removed, now.added, now.changed) == (["3 → 2", "5 → 9"], ["2"], ["6"], [])
    assert [picture.path for picture in now.pictures] == ["1", "2", "4", "9"]
    assert {picture.part for picture in now.pictures} == {"test"}
    assert "少了 1 张(2)" in now.changes() and "改了名或换了类别 2 张" in now.changes()
    assert compare_pictures(kept, pictures("1:A 2:B 3:Z 4:D 5:D")).changed == ["3"]


def kept_of(data, **options):
    return KeptRun("RUN", data.info, data.pictures, **options)


def test_a_run_is_read_again_as_it_was(many):
    before = read(many)
    found = contents(before)
    order = [path.read_bytes() for path in before.train.paths]
    (many / "train" / "a" / "39.png").rename(many / "train" / "a" / "000.png")
    Image.new("RGB", (4, 4), "red").save(many / "train" / "b" / "zz.png")
    again = read(many, kept_of(before, resuming=True))
    assert again.info == before.info and [path.read_bytes() for path in again.train.paths] == order
    (note,) = again.notes
    assert "000.png" in note and "zz.png" in note
    for path in (many / "train" / "b").glob("0*.png"):
        path.unlink()
    with pytest.raises(UserError, match="少了 10 张"):
        read(many, kept_of(before, resuming=True))
    some = read(many, kept_of(before))
    assert contents(some)["test"] <= found["test"] and contents(some)["train"] <= found["train"]
    assert "少了 10 张" in some.notes[0]


def test_a_run_of_an_older_version_keeps_its_split(many):
    now = read(many)
    old = read(many, KeptRun("RUN", now.info, None, resuming=True))
    paths = sorted((many / "train" / "a").iterdir()) + sorted((many / "train" / "b").iterdir())
    keep, test = stratified_split(np.repeat([0, 1], 40), 0.1)
    rest, val = stratified_split(np.repeat([0, 1], 40)[keep], 0.1)
    assert old.test.paths == [paths[i] for i in test]
    assert old.val.paths == [paths[keep[i]] for i in val]
    assert old.train.paths == [paths[keep[i]] for i in rest]


def test_the_same_picture_in_two_parts_is_named(many):
    (many / "test" / "a").mkdir(parents=True)
    shutil.copy(many / "train" / "a" / "07.png", many / "test" / "a" / "x.png")
    data = read(many)
    assert any("07.png" in note and "偏高" in note for note in data.notes)


def test_pictures_from_elsewhere_are_all_tested(many, tmp_path):
    before = read(many)
    other = tmp_path / "other"
    (other / "b").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(other / "b" / f"{i:02}.png")
    (other / "z").mkdir()
    Image.new("RGB", (4, 4)).save(other / "z" / "0.png")
    shutil.copy(before.train.paths[-1], other / "b" / "again.png")
    data = read(other, kept_of(before, elsewhere=True))
    assert data.info.classes == ("a", "b") and data.test.labels.tolist() == [1] * 4
    assert len(data.train) == len(data.val) == 0
    notes = "".join(data.notes)
    assert "z" in notes and "again.png" in notes
    found = contents(before)
    moved = many.rename(tmp_path / "moved")
    assert contents(read(moved, kept_of(before, elsewhere=True))) == found
    with pytest.raises(UserError, match="都不是模型的"):
        read(other, KeptRun("RUN", INFO, None, elsewhere=True))


INFO = DataInfo("folder", ("x", "y"), 3, 8, (0.5,) * 3, (0.5,) * 3, {})
