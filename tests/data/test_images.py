import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.toys import small_model

from paddle_vit import Predictor, UserError
from paddle_vit.config import make_config
from paddle_vit.data import images
from paddle_vit.data.batches import evaluation_batches
from paddle_vit.data.images import check_image_files, pixel_range, read_image, to_input
from paddle_vit.data.info import load_info, save_info
from paddle_vit.data.sources import load_data
from paddle_vit.system.pictures import to_array


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("RGBA", (255, 0, 0, 0), 255),  # 透明处是白
        ("RGBA", (0, 0, 0, 255), 0),
        ("LA", (0, 0), 255),
        ("1", 1, 255),
        ("I;16", 65535, 255),
        ("I;16", 255, 0),
        ("I;16", 32896, 128),
        ("F", 128.0, 128),
        ("F", 0.5, 128),
        ("CMYK", (0, 0, 0, 0), 255),
        ("HSV", (0, 0, 255), 255),
        ("LAB", (255, 128, 128), 255),
    ],
)
def test_modes_become_the_right_grey(tmp_path, mode, value, expected):
    path = tmp_path / ("x.tif" if mode in ("I;16", "F", "CMYK", "LAB") else "x.png")
    image = Image.new(mode, (4, 4), value)
    (image.convert("RGB") if mode == "HSV" else image).save(path)
    for channels in (1, 3):
        image = read_image(path, channels)
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert np.abs(np.asarray(image, int) - expected).max() <= 2


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg", 3).size == (4, 8)


def test_prediction_input_equals_evaluation_input():
    data = load_data(make_config({}))
    image = Image.fromarray(data.test.images[0, ..., 0])
    _, inputs = next(evaluation_batches(data.test, data.info, 1))
    np.testing.assert_array_equal(to_input([image], data.info), inputs)


# ---- 读不出来的,说出真正的原因 ----


@pytest.mark.parametrize("exif", [b"broken", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_a_broken_exif_does_not_matter(tmp_path, suffix, exif):
    path = tmp_path / f"x{suffix}"
    Image.new("RGB", (8, 4), "red").save(path, exif=b"Exif\0\0" + exif)
    check_image_files([path])
    assert read_image(path, 3).size == (8, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_once(tmp_path, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (3, 5, 3), "uint8"))
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as file:
        expected = ImageOps.exif_transpose(file)
    found = read_image(tmp_path / "x.png", 3)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(found)), np.asarray(found))


STARTS = {
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(100),
    "AVIF": b"\0\0\0\x18ftypavif" + bytes(100),
    "视频": b"\0\0\0\x18ftypisom" + bytes(100),
    "网页": b"\n<!DOCTYPE html><html>404</html>",
    "空文件": b"",
    "PDF": b"%PDF-1.7\n",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
    "SVG": b"<svg xmlns='x'/>",
    "不是图片": b"hello",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
}


@pytest.mark.parametrize("what", STARTS)
def test_the_file_is_called_what_it_is(tmp_path, what):
    (tmp_path / "照片.jpg").write_bytes(STARTS[what])
    for read in (lambda path: read_image(path, 3), lambda path: check_image_files([path])):
        with pytest.raises(UserError, match=f"照片.jpg.*{what}"):
            read(tmp_path / "照片.jpg")


def test_the_reason_is_the_true_one(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("L", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (lambda: read_image(path, 3), lambda: check_image_files([path])):
        with pytest.raises(UserError, match="像素太多"):
            read()
    monkeypatch.undo()

    def denied(path, quick=False):
        raise PermissionError(13, "denied")

    monkeypatch.setattr(images, "_decode", denied)
    for read in (lambda: read_image(path, 3), lambda: check_image_files([path])):
        with pytest.raises(UserError, match="没有权限"):
            read()


def test_all_bad_files_are_named_at_once(tmp_path):
    for i in range(13):
        (tmp_path / f"bad{i:02}.png").write_bytes(b"x")
    Image.new("L", (4, 4)).save(tmp_path / "good.png")
    with pytest.raises(UserError) as caught:
        check_image_files(sorted(tmp_path.iterdir()))
    text = str(caught.value)
    assert "13 个文件" in text and "bad00" in text and "bad09" in text and "另有 3 个" in text
    assert "bad10" not in text and "good" not in text and "\n" not in text


def test_large_pictures_that_do_not_fit_together_are_tried_alone(tmp_path, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    decode, tries = images._decode, []

    def first_fails(*args, **options):
        tries.append(1)
        if len(tries) == 1:
            raise MemoryError
        return decode(*args, **options)

    monkeypatch.setattr(images, "_decode", first_fails)
    assert len(check_image_files([tmp_path / "x.png"])) == 1


# ---- 超过 8 位的灰度:整个数据集一个范围 ----


def save_values(path, values, kind):
    """灰度值存成 PNG 或 TIFF。"""
    values = np.asarray(values)
    if kind == "I;16B":
        Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values.astype({"I;16": "uint16", "I": "int32", "F": "float32"}[kind])).save(path)


@pytest.mark.parametrize(
    "kind, suffix", [("I;16", ".png"), ("I;16", ".tif"), ("I;16B", ".tif"), ("I", ".tif"), ("F", ".tif")]
)
@pytest.mark.parametrize("top, full", [(200, 255), (1000, 1023), (4095, 4095), (4096, 16383), (60000, 65535)])
def test_one_scale_for_all_files(tmp_path, kind, suffix, top, full):
    dark, light = np.full((4, 4), top // 4), np.full((4, 4), top)
    for name, values in (("dark", dark), ("light", light)):
        save_values(tmp_path / f"{name}{suffix}", values, kind)
    paths = [tmp_path / f"dark{suffix}", tmp_path / f"light{suffix}"]
    scale, notes = pixel_range(check_image_files(paths))
    assert scale == {kind[0]: full} and f"0–{full}" in notes[0]
    for path, values in zip(paths, (dark, light)):
        found = np.asarray(read_image(path, 1, scale), int)
        assert np.abs(found - values * 255 / full).max() <= 1


def test_floats_from_0_to_1(tmp_path):
    save_values(tmp_path / "a.tif", np.full((4, 4), 0.1), "F")
    save_values(tmp_path / "b.tif", np.full((4, 4), 0.9), "F")
    scale, _ = pixel_range(check_image_files([tmp_path / "a.tif", tmp_path / "b.tif"]))
    assert scale == {"F": 1} and np.asarray(read_image(tmp_path / "b.tif", 1, scale))[0, 0] == 229
    Image.new("L", (4, 4)).save(tmp_path / "c.png")
    assert pixel_range(check_image_files([tmp_path / "c.png"]))[0] is None
    values = np.full((4, 4), 0.5)
    values[0, 0] = np.inf
    save_values(tmp_path / "d.tif", values, "F")
    assert pixel_range(check_image_files([tmp_path / "d.tif"]))[0] == {"F": 1}


def test_the_scale_belongs_to_the_run(tmp_path):
    for label, name in enumerate("ab"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(4):
            save_values(tmp_path / "train" / name / f"{i}.png", np.full((8, 8), 400 * (i + 1 + 5 * label)), "I;16")
    settings = {"dataset": "folder", "data_dir": str(tmp_path), "image_size": 8, "workers": 0, "channels": 1}
    data = load_data(make_config(settings))
    assert data.info.pixel_max == {"I": 4095} and "4095" in data.notes[0]
    found = {int(part.read(i)[0, 0, 0]) for part in (data.train, data.val, data.test) for i in range(len(part))}
    assert found == {400 * (i + 1 + 5 * label) * 255 // 4095 for label in range(2) for i in range(4)}
    save_info(data.info, tmp_path / "data.json")
    assert load_info(tmp_path / "data.json") == data.info
    predictor = Predictor(small_model(num_classes=2), classes=("a", "b"), mean=[0.5], std=[0.5])
    predictor.info = data.info
    path = data.test.paths[0]
    np.testing.assert_array_equal(to_array(predictor._prepare(path, False)), data.test.read(0))


@pytest.mark.parametrize("value, said", [(4095, "12 位"), (65535, "高 8 位"), (None, None)])
def test_colours_of_16_bits_are_named(tmp_path, value, said):
    path = tmp_path / "x.png"
    if value is None:
        Image.new("RGB", (2, 2)).save(path)
    else:
        path.write_bytes(png_of_16_bits(value))
    scale, notes = pixel_range(check_image_files([path]))
    assert scale is None and (said in notes[0] if said else notes == [])
    assert read_image(path, 3).size == (2, 2)


def png_of_16_bits(value):
    """2 x 2 的彩色 PNG,每个通道 16 位;Pillow 自己写不出来。"""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + struct.pack(">H", value) * 6) * 2
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
