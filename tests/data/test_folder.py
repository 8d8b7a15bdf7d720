import numpy as np
import pytest
from PIL import Image
from support.pictures import bad_folder

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data.batches import training_batches
from paddle_vit.data.sources import load_data


def pixels_of(part):
    return np.concatenate(list(part.fetch([(np.arange(len(part)), None)])))


def test_folder_of_every_mode(picture_folder):
    config = make_config({"dataset": "folder", "data_dir": str(picture_folder), "image_size": 16, "workers": 2})
    data = load_data(config)
    assert data.info.classes == ("狗", "猫", "鸟")
    assert data.info.counts == {"train": 12, "val": 3, "test": 3}
    paths = [str(path) for part in (data.train, data.val, data.test) for path in part.paths]
    assert len(set(paths)) == 18
    images = pixels_of(data.train)
    assert images.shape == (12, 16, 16, 3)
    for path, label in zip(data.train.paths, data.train.labels):
        assert path.parent.name == data.info.classes[label]
    color = images.reshape(12, -1, 3).mean(axis=1)
    is_rgb = np.array([path.stem in ("0", "2", "3", "4") for path in data.train.paths])
    channel = np.array([{"猫": 0, "狗": 1, "鸟": 2}[data.info.classes[label]] for label in data.train.labels])
    np.testing.assert_array_equal(color[is_rgb].argmax(axis=1), channel[is_rgb])


def test_own_val_and_test_are_used(picture_folder):
    for part in ("val", "test"):
        (picture_folder / part / "猫").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(picture_folder / part / "猫" / "x.png")
    data = load_data(make_config({"dataset": "folder", "data_dir": str(picture_folder), "workers": 0}))
    assert data.info.counts == {"train": 18, "val": 1, "test": 1}
    assert data.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    "kind, word",
    [
        ("text", "note.png"),
        ("truncated", "0.jpg"),
        ("no image", "c"),
        ("few", "3 张"),
        ("unknown class", "z"),
        ("empty val", "val"),
    ],
)
def test_bad_folders(tmp_path, kind, word):
    bad_folder(tmp_path, kind)
    with pytest.raises(UserError, match=word):
        load_data(make_config({"dataset": "folder", "data_dir": str(tmp_path)}))


def test_a_picture_that_breaks_during_training_stops_it(picture_folder):
    config = make_config({"dataset": "folder", "data_dir": str(picture_folder), "image_size": 16, "workers": 2})
    data = load_data(config)
    data.train.paths[0].write_text("gone", encoding="utf-8")
    with pytest.raises(UserError, match=data.train.paths[0].name):
        list(training_batches(data.train, config, data.info, 0))


def test_a_folder_one_level_off_is_pointed_to(picture_folder):
    """给了 train 本身、一个类别,或上一层。类别目录直接放在里面的可以用。"""

    def refused(directory):
        with pytest.raises(UserError) as error:
            load_data(make_config({"dataset": "folder", "data_dir": str(directory)}))
        return str(error.value)

    assert f"是不是 {picture_folder}?" in refused(picture_folder / "train")
    one_class = next((picture_folder / "train").iterdir())
    assert f"是不是 {picture_folder}?" in refused(one_class)
    assert f"是不是 {picture_folder}?" in refused(picture_folder.parent)
    plain = picture_folder.rename(picture_folder.with_name("plain"))
    moved = (plain / "train").rename(plain.with_name("classes"))
    plain.rmdir()
    assert load_data(make_config({"dataset": "folder", "data_dir": str(moved)})).info.classes == ("狗", "猫", "鸟")
    assert "是不是" not in refused(moved / "猫")
