"""找图片:各种格式、子目录;没有用到的都说出来。"""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data import finding, images
from paddle_vit.data.finding import Unused, expand_paths, find_images
from paddle_vit.data.sources import load_data


def save(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), tuple(os.urandom(3))).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        for i in range(4):
            save(tmp_path / "data" / "train" / name / f"{i}.png")
    return tmp_path / "data"


def read(root, **settings):
    return load_data(make_config({"dataset": "folder", "data_dir": str(root), "image_size": 8, **settings}))


@pytest.mark.parametrize(
    "suffix, form",
    [(".jfif", "jpeg"), (".JPE", "jpeg"), (".tga", "tga"), (".jp2", "jpeg2000"), (".pcx", "pcx"), (".dib", "dib")],
)
def test_formats_that_pillow_opens_are_read(folder, suffix, form):
    save(folder / "train" / "cat" / f"more{suffix}", format=form)
    data = read(folder)
    assert sum(data.info.counts.values()) == 9 and data.notes == ()


def test_pictures_in_folders_of_a_class_belong_to_it(folder):
    for i in range(3):
        save(folder / "train" / "cat" / "indoor" / "deep" / f"{i}.png")
    os.symlink(folder / "train" / "cat", folder / "train" / "cat" / "indoor" / "loop")
    data = read(folder)
    assert sum(data.info.counts.values()) == 11 and data.train.labels.tolist().count(0) == 5
    (note,) = data.notes
    assert "3 张" in note and "train/cat/indoor/deep" in note


def test_what_is_not_used_is_named_in_one_line(folder, capfd):
    (folder / "train" / "cat" / "1.heic").write_bytes(b"x")
    (folder / "train" / "cat" / "2.heic").write_bytes(b"x")
    (folder / "train" / "dog" / "notes.txt").write_text("x", encoding="utf-8")
    (folder / "train" / "dog" / "0007").write_bytes(b"x")
    (folder / "train" / "dog" / ".DS_Store").write_bytes(b"x")
    (folder / "train" / "dog" / "._0.png").write_bytes(b"x")
    save(folder / "train" / "stray.png")
    save(folder / "valid" / "cat" / "a.png")
    save(folder / "train" / "cat" / ".cache" / "b.png")
    note = read(folder).notes[0]
    for word in ("7 个文件没有用到", ".heic 2 个", "pillow-heif", "notes.txt", "0007", "stray.png", "valid", ".cache"):
        assert word in note
    assert "DS_Store" not in note and "._0" not in note
    assert capfd.readouterr().err.count("没有用到") == 1


def test_nothing_is_said_when_everything_is_used(folder):
    assert read(folder).notes == ()


def test_a_broken_link_is_no_silent_loss(folder):
    (folder / "train" / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png 是断开的链接"):
        read(folder)


def test_a_plugin_is_used_when_it_is_installed(folder, tmp_path, monkeypatch):
    code = "from PIL import Image, PpmImagePlugin\ndef register_heif_opener():\n"
    code += "    Image.register_extension('PPM', '.heic')\n"
    (tmp_path / "pillow_heif.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    save(folder / "train" / "cat" / "a.ppm")
    (folder / "train" / "cat" / "a.ppm").rename(folder / "train" / "cat" / "a.heic")
    for function in (images.image_formats, images.image_suffixes):
        function.cache_clear()
    try:
        assert sum(read(folder).info.counts.values()) == 9
    finally:
        sys.modules.pop("pillow_heif", None)
        Image.EXTENSION.pop(".heic", None)
        for function in (images.image_formats, images.image_suffixes):
            function.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="别的系统上没有这样的文件名")
@pytest.mark.parametrize("where", ["train", "flat"])
def test_a_folder_named_in_gbk_is_one_line(folder, where):
    root = folder if where == "train" else folder / "train"
    if where == "flat":
        root = root.rename(folder / "all")
    directory = os.fsencode(root / "train" if where == "train" else root)
    os.rename(directory + b"/cat", directory + b"/" + "狗".encode("gbk"))
    with pytest.raises(UserError, match=r"狗.*UTF-8") as caught:
        read(root)
    str(caught.value).encode()


@pytest.mark.skipif(sys.platform != "linux", reason="别的系统上没有这样的文件名")
def test_a_picture_named_in_gbk_is_read(folder):
    directory = os.fsencode(folder / "train" / "cat")
    os.rename(directory + b"/0.png", directory + b"/" + "张".encode("gbk") + b".png")
    assert sum(read(folder).info.counts.values()) == 8
    assert finding.readable_name(Path(os.fsdecode("张".encode("gbk")))) == "张"


def test_predicting_a_folder_names_what_it_leaves_out(folder):
    save(folder / "top.png")
    unused = Unused()
    assert expand_paths([str(folder)], unused) == [folder / "top.png"]
    assert "8 个文件没有用到" in unused.line() and "子目录" in unused.line()
    assert len(expand_paths([str(folder / "train")])) == 8
    assert len(find_images(folder / "train" / "cat")) == 4
    (folder / "empty").mkdir()
    (folder / "empty" / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match="heic"):
        expand_paths([str(folder / "empty")])


@pytest.mark.parametrize(
    "words, expected",
    [("0,2", ("1", "11")), ("2,10", ("2", "10")), ("1,3", ("1", "3")), ("12,7", ("12", "7"))],
)
def test_classes_are_names_or_numbers(tmp_path, words, expected):
    for name in range(1, 13):
        for i in range(3):
            save(tmp_path / "train" / str(name) / f"{i}.png")
    data = read(tmp_path, classes=words)
    assert data.info.classes == expected
    assert {path.parent.name for path in data.train.paths} == set(expected)
    assert "、".join(expected) in data.notes[-1]


@pytest.mark.parametrize("words", ["cat,1", "1,cat", "cat,dog,0", "cat,9"])
def test_names_and_numbers_are_not_mixed(folder, words):
    with pytest.raises(UserError, match="--classes"):
        read(folder, classes=words)
