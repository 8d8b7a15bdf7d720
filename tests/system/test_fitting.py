"""图片怎样摆成模型的大小:与 Pillow 自己的函数比,长方形、压扁、补边,训练时的随机裁剪也一致。"""

import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from paddle_vit.config import make_config
from paddle_vit.config_files import load_config, save_config
from paddle_vit.data.augment import random_resized_crop
from paddle_vit.data.finding import far_from_square
from paddle_vit.data.images import to_input
from paddle_vit.data.info import DataInfo, load_info, save_info
from paddle_vit.data.sources import image_size_of
from paddle_vit.errors import UserError
from paddle_vit.system.fitting import Fit, fit_image, fit_named, kept_share, parse_size, size_setting

RNG = np.random.default_rng(0)
BICUBIC = Image.Resampling.BICUBIC


def picture(width, height, mode="RGB"):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), "uint8")).convert(mode)


@pytest.mark.parametrize("have", [(40, 30), (30, 40), (17, 17), (100, 9)])
@pytest.mark.parametrize("want", [16, (16, 32), (20, 10)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_crop_squash_and_pad_equal_pillow(have, want, mode):
    image = picture(*have, mode)
    size = (want, want) if isinstance(want, int) else want[::-1]  # Pillow 的是 (宽, 高)
    gray = 128 if mode == "L" else (128,) * 3
    expected = {
        "crop": ImageOps.fit(image, size, method=BICUBIC),
        "squash": image.resize(size, BICUBIC),
        "pad": ImageOps.pad(image, size, method=BICUBIC, color=gray),
    }
    for kind in ("crop", "squash"):
        np.testing.assert_array_equal(fit_image(image, want, fit_named(kind)), expected[kind])
    found = np.asarray(fit_image(image, want, fit_named("pad")))
    moved = [np.roll(expected["pad"], shift, axis) for axis in (0, 1) for shift in (0, -1, 1)]  # 奇数时偏半个像素
    assert found.shape == np.asarray(expected["pad"]).shape and any((found == other).all() for other in moved)


def test_a_picture_of_the_right_size_is_left_alone_unless_it_is_to_be_cropped():
    image = picture(20, 10)
    assert fit_image(image, (10, 20)) is image
    assert fit_image(image, (10, 20), Fit("crop", share=0.5)) is not image


def test_all_of_a_strip_is_seen_by_squash_and_pad_and_a_quarter_by_crop():
    shares = {kind: kept_share((400, 100), 32, fit_named(kind)) for kind in ("crop", "squash", "pad")}
    assert shares == {"crop": 0.25, "squash": 1.0, "pad": 1.0}
    assert kept_share((400, 100), (16, 64), fit_named("crop")) == 1.0


def test_strips_are_named_in_one_line(tmp_path):
    picture(100, 20).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # 转了 90°,看上去是高的
    picture(100, 20).save(tmp_path / "b.jpg", exif=exif)
    info = DataInfo("x", ("a",), 3, 16, (0.5,) * 3, (0.5,) * 3, {})
    hint = far_from_square([tmp_path / "a.png"], info)
    assert "宽 100、高 20" in hint and "--fit" in hint and "20%" in hint and "\n" not in hint
    wide = DataInfo("x", ("a",), 3, (20, 100), (0.5,) * 3, (0.5,) * 3, {})
    assert far_from_square([tmp_path / "a.png"], wide) is None
    assert "宽 20、高 100" in far_from_square([tmp_path / "b.jpg"], wide)
    assert far_from_square([], info) is None


@pytest.mark.parametrize("kind", ["crop", "squash", "pad"])
def test_a_random_crop_of_everything_is_what_evaluation_sees(kind):
    image, fit = picture(60, 20), fit_named(kind)
    found = random_resized_crop(image, (12, 12), 1.0, np.array([0, 0.5, 0, 0]), fit)  # 全部面积,长宽比 1
    if kind == "crop":  # 面积不变,长宽比 1:整张放不下
        assert found.size == (12, 12)
        return
    difference = np.abs(np.asarray(found, "float32") - np.asarray(fit_image(image, 12, fit), "float32"))
    assert difference.mean() < 6


def test_input_of_a_rectangular_model_is_height_by_width():
    info = DataInfo("x", ("a",), 3, (8, 24), (0.5,) * 3, (0.5,) * 3, {}, fit_named("squash"))
    assert to_input([picture(30, 40)], info).shape == (1, 3, 8, 24)


@pytest.mark.parametrize("text, size", [("64x128", (64, 128)), ("64×64", 64), (" 7 X 9 ", (7, 9)), (32, 32)])
def test_sizes_are_written_and_read_back(tmp_path, text, size):
    config = make_config({"image_size": text})
    assert image_size_of(config) == size and parse_size(size_setting(size)) == config.image_size
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path).image_size == config.image_size
    info = DataInfo("x", ("a",), 1, size, (0.5,), (0.5,), {"train": 1, "val": 1, "test": 1}, Fit("pad", fill=(3,)))
    save_info(info, tmp_path / "data.json")
    assert load_info(tmp_path / "data.json") == info


@pytest.mark.parametrize("text", ["64x", "x", "0x8", "1x2x3", "-8", "a", 0, 2.5, True, [8, 8]])
def test_no_size(text):
    with pytest.raises(UserError, match="高x宽"):
        make_config({"image_size": text})


@pytest.mark.parametrize("change", [{"fit": {"kind": "zoom"}}, {"fit": {"share": 0}}, {"fit": 3}, {"image_size": [8]}])
def test_a_damaged_description_is_refused(tmp_path, change):
    info = DataInfo("x", ("a",), 1, 8, (0.5,), (0.5,), {"train": 1, "val": 1, "test": 1})
    save_info(info, tmp_path / "data.json")
    values = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    (tmp_path / "data.json").write_text(json.dumps({**values, **change}), encoding="utf-8")
    with pytest.raises(UserError, match="损坏"):
        load_info(tmp_path / "data.json")
