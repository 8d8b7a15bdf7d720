"""四个通道和超过 8 位的灰度:从读图到训练、预测、导出。"""

import numpy as np
import pytest
from PIL import Image

from paddle_vit import Predictor, load_data, make_config, train
from paddle_vit.data.augment import _RAND_AUGMENT, rand_augment
from paddle_vit.data.images import ImageFacts, UnreadableImage, check_image_files, pixel_range, read_image
from paddle_vit.data.info import load_info
from paddle_vit.data.pixels import invert_image
from paddle_vit.deploy.classifier import Classifier, examples_of
from paddle_vit.deploy.export import export_model, real_images
from paddle_vit.errors import UserError
from paddle_vit.system.fitting import fit_image
from paddle_vit.system.pictures import to_array
from paddle_vit.weights.layouts import match_channels

RNG = np.random.default_rng(0)
SMALL = dict(recipe="none", image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, epochs=2, batch_size=4)


def folder(path, make, **settings):
    """两类,每类六张,make(label) 给出一张图像;返回设置。"""
    for label, name in enumerate("ab"):
        (path / name).mkdir(parents=True)
        for i in range(6):
            make(label).save(path / name / f"{i}.png")
    return make_config(dict(SMALL, dataset="folder", data_dir=str(path), workers=0, **settings))


def hidden(label):
    """颜色在透明处也在的 RGBA。"""
    pixels = RNG.integers(0, 256, (8, 8, 4), "uint8")
    pixels[..., 3] = RNG.integers(0, 100, (8, 8)) + 150 * label
    return Image.fromarray(pixels)


def faint(label):
    """16 位的灰度,两类都落在 256 级里的同一级。"""
    return Image.fromarray((30069 + RNG.integers(0, 100, (8, 8)) + 100 * label).astype("uint16"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_four_channels_are_kept_as_they_are(tmp_path, mode):
    image = hidden(0).convert(mode)
    image.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 4)
    np.testing.assert_array_equal(to_array(found), np.asarray(image.convert("RGBA")))
    assert read_image(tmp_path / "a.png", 3).mode == "RGB"
    inverted = to_array(invert_image(found))
    np.testing.assert_array_equal(inverted[..., :3], 255 - to_array(found)[..., :3])
    np.testing.assert_array_equal(inverted[..., 3], to_array(found)[..., 3])


@pytest.mark.parametrize("kind", list(range(len(_RAND_AUGMENT))))
def test_the_fourth_channel_is_resized_and_augmented_by_itself(tmp_path, kind):
    hidden(0).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 4)
    small = to_array(fit_image(image, 4))
    for band in range(4):
        np.testing.assert_array_equal(small[..., band], np.asarray(fit_image(image.split()[band], 4)))
    numbers = np.array([(kind + 0.5) / len(_RAND_AUGMENT), 0.2, 0.9])
    changed, colors = (rand_augment(one, 1, 9.0, numbers) for one in (image, Image.merge("RGB", image.split()[:3])))
    np.testing.assert_array_equal(to_array(changed)[..., :3], to_array(colors))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "1"])
def test_pictures_without_a_fourth_channel(tmp_path, mode):
    for name in "ab":
        Image.new(mode, (4, 4)).save(tmp_path / f"{name}.tif")
    with pytest.raises(UnreadableImage, match=rf"没有第四个通道\(它是 {mode}\).*--channels 3"):
        read_image(tmp_path / "a.tif", 4)
    with pytest.raises(UserError, match=r"2 个文件.*没有第四个通道"):
        check_image_files([tmp_path / "a.tif", tmp_path / "b.tif"], 4)


def test_a_four_channel_run(tmp_path):
    config = folder(tmp_path / "data", hidden, channels=4, output=str(tmp_path / "run"), rand_augment=2)
    run = train(config)
    assert run.model.patch_embed.in_channels == 4 and load_info(tmp_path / "run" / "data.json").channels == 4
    path = tmp_path / "data" / "a" / "0.png"
    predictor = Predictor(run)
    expected = predictor.probabilities([path])
    with Image.open(path) as image:
        np.testing.assert_array_equal(predictor.probabilities([image]), expected)
        np.testing.assert_array_equal(predictor.probabilities([np.asarray(image)]), expected)
        with pytest.raises(UserError, match=r"没有第四个通道.*RGBA"):
            predictor(image.convert("RGB"))
    export_model(run, tmp_path / "out", real_images(run), onnx=False)
    np.testing.assert_allclose(Predictor(tmp_path / "out").probabilities([path]), expected, atol=1e-5)
    classifier = Classifier(predictor)
    example = examples_of(run, tmp_path, count=1)[0]
    assert classifier.classify(example)[0].labels and classifier.attention(read_image(path, 4)).shape[-1] == 3
    Image.new("RGB", (8, 8)).save(tmp_path / "no.png")
    with pytest.raises(UserError, match="没有第四个通道"):
        classifier.classify(str(tmp_path / "no.png"))


def test_full_range_keeps_what_256_levels_lose(tmp_path):
    plain = load_data(folder(tmp_path / "data", faint, channels=1))
    assert len(np.unique(plain.train.read(0))) == 1
    settings = dict(SMALL, dataset="folder", data_dir=str(tmp_path / "data"), channels=1, full_range=True)
    run = train(make_config(dict(settings, output=str(tmp_path / "run"), normalization="data")))
    assert load_info(tmp_path / "run" / "data.json").full_range
    path = tmp_path / "data" / "b" / "0.png"
    pixels = to_array(read_image(path, 1, run.info.pixel_max, True))[..., 0]
    with Image.open(path) as image:
        np.testing.assert_allclose(pixels, np.asarray(image, float) * 255 / run.info.pixel_max["I"], rtol=1e-6)
    predictor = Predictor(run)
    expected = predictor.probabilities([path])
    export_model(run, tmp_path / "out", real_images(run), onnx=False)
    np.testing.assert_allclose(Predictor(tmp_path / "out").probabilities([path]), expected, atol=1e-5)
    example = examples_of(run, tmp_path, count=1)[0]
    original = next(one for one in run_paths(run) if np.array_equal(np.asarray(Image.open(one)), open_values(example)))
    assert Classifier(predictor).classify(example)[0].labels == predictor(original, top=5).labels


def run_paths(run):
    return load_data(run.config).test.paths


def open_values(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"channels": 2}, "1.*3.*4"),
        ({"channels": 4, "full_range": True}, "--channels 1"),
        ({"channels": 1, "full_range": True, "rand_augment": 2}, "--rand-augment"),
        ({"channels": 4, "dataset": "digits"}, "digits"),
    ],
)
def test_settings_that_contradict(settings, said):
    with pytest.raises(UserError, match=said):
        make_config({"dataset": "folder", **settings})


def test_16_bit_colours_have_no_full_range():
    deep = [ImageFacts("", "RGB", 255.0)]
    assert "高 8 位" in pixel_range(deep)[1][0]
    with pytest.raises(UserError, match=r"1 张.*--full-range"):
        pixel_range(deep, full_range=True)


def test_a_fourth_channel_changes_nothing_at_first():
    kernel = RNG.normal(size=(5, 3, 2, 2)).astype("float32")
    image = RNG.normal(size=(4, 2, 2))
    wide = match_channels(kernel, 4)
    np.testing.assert_allclose((wide * image).sum((1, 2, 3)), (kernel * image[:3]).sum((1, 2, 3)), rtol=1e-5)
