import numpy as np
import pytest
from PIL import Image

from paddle_vit.config import make_config
from paddle_vit.data.batches import evaluation_batches
from paddle_vit.data.images import read_image, to_input
from paddle_vit.data.sources import load_data


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
    _, images = next(evaluation_batches(data.test, data.info, 1))
    np.testing.assert_array_equal(to_input([image], data.info), images)
