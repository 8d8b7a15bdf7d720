import gzip
import pickle
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.pictures import bad_folder

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data.batches import evaluation_batches, training_batches
from paddle_vit.data.images import read_image, to_input
from paddle_vit.data.info import check_same_data, load_info, save_info
from paddle_vit.data.parts import ArrayPart, stratified_split
from paddle_vit.data.sources import load_data


def pixels_of(part):
    return np.concatenate(list(part.fetch([(np.arange(len(part)), None)])))


def test_digits_are_the_1797_of_uci():
    data = load_data(make_config({}))
    assert data.info.counts == {"train": 1295, "val": 142, "test": 360}
    images = np.concatenate([pixels_of(part) for part in (data.train, data.val, data.test)])
    labels = np.concatenate([part.labels for part in (data.train, data.val, data.test)])
    # scikit-learn 文档公布的每类张数和平均灰度(0–16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert abs(images.mean() * 16 / 255 - 4.8842) < 1e-3
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797  # 没有一张重复出现在两个部分
    assert len(set(np.bincount(data.test.labels))) <= 3  # 测试部分按类别成比例


def test_parts_do_not_depend_on_the_training_seed():
    first, second = (load_data(make_config({"seed": seed})) for seed in (0, 1))
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(pixels_of(getattr(first, name)), pixels_of(getattr(second, name)))


def test_mean_and_std_are_the_training_parts():
    data = load_data(make_config({}))
    np.testing.assert_allclose(data.info.mean, pixels_of(data.train).mean() / 255, atol=1e-5)
    np.testing.assert_allclose(data.info.std, pixels_of(data.train).std() / 255, atol=1e-5)


def test_image_size_resizes_every_part():
    config = make_config({"image_size": 12})
    data = load_data(config)
    assert all(pixels_of(part).shape[1:] == (12, 12, 1) for part in (data.train, data.val, data.test))
    assert next(training_batches(data.train, config, data.info, 0))[0].shape == (64, 1, 12, 12)
    expected = Image.fromarray(data.test.images[3, ..., 0]).resize((12, 12), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels_of(data.test)[3, ..., 0], np.asarray(expected))


def test_stratified_split():
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    first, second = stratified_split(labels, 0.1)
    assert sorted([*first, *second]) == list(range(153))
    assert np.bincount(labels[second]).tolist() == [10, 5, 1]
    with pytest.raises(UserError, match="1 张"):
        stratified_split([0, 0, 1], 0.1)


def write_idx(directory, counts=(300, 100)):
    rng = np.random.default_rng(0)
    made = {}
    for part, n in zip(("train", "t10k"), counts):
        images, labels = rng.integers(0, 256, (n, 28, 28), "uint8"), np.arange(n, dtype="uint8") % 10
        made[part] = images, labels
        with gzip.open(directory / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes())
        with gzip.open(directory / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 2049, n) + labels.tobytes())
    return made


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_idx_files(tmp_path, dataset):
    made = write_idx(tmp_path)
    data = load_data(make_config({"dataset": dataset, "data_dir": str(tmp_path)}))
    assert data.info.counts == {"train": 270, "val": 30, "test": 100}
    assert (data.info.channels, data.info.image_size, len(data.info.classes)) == (1, 28, 10)
    np.testing.assert_array_equal(pixels_of(data.test)[..., 0], made["t10k"][0])
    np.testing.assert_array_equal(data.test.labels, made["t10k"][1])


@pytest.mark.parametrize("dataset, classes", [("cifar10", 10), ("cifar100", 100)])
def test_cifar_files(tmp_path, dataset, classes):
    rng, n = np.random.default_rng(0), 300
    pixels, labels = rng.integers(0, 256, (n, 3072), "uint8"), (np.arange(n) % classes).tolist()
    key = b"labels" if classes == 10 else b"fine_labels"
    names = {10: ("data_batch_1", "test_batch"), 100: ("train", "test")}[classes]
    archive = tmp_path / f"cifar-{classes}-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            (tmp_path / name).write_bytes(pickle.dumps({b"data": pixels, key: labels}))
            tar.add(tmp_path / name, f"cifar/{name}")
    data = load_data(make_config({"dataset": dataset, "data_dir": str(tmp_path)}))
    assert (data.info.channels, data.info.image_size, len(data.info.classes)) == (3, 32, classes)
    # CIFAR 的一行依次是红、绿、蓝三个 32x32 的平面
    np.testing.assert_array_equal(pixels_of(data.test)[5, 2, 7], pixels[5].reshape(3, 32, 32)[:, 2, 7])
    np.testing.assert_array_equal(data.test.labels, labels)


def test_flowers_keep_the_official_split(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    labels = np.arange(60) % 3 + 1
    with tarfile.open(tmp_path / "102flowers.tgz", "w:gz") as tar:
        for i in range(1, 61):
            path = tmp_path / f"image_{i:05}.jpg"
            Image.new("RGB", (20, 24), (4 * i, 0, 0)).save(path)
            tar.add(path, f"jpg/{path.name}")
    scipy_io.savemat(tmp_path / "imagelabels.mat", {"labels": labels[None]})
    split = {"trnid": np.arange(1, 11), "valid": np.arange(11, 21), "tstid": np.arange(21, 61)}
    scipy_io.savemat(tmp_path / "setid.mat", {name: ids[None] for name, ids in split.items()})
    data = load_data(make_config({"dataset": "flowers102", "data_dir": str(tmp_path), "image_size": 16, "workers": 0}))
    assert data.info.counts == {"train": 10, "val": 10, "test": 40}
    np.testing.assert_array_equal(data.test.labels, labels[20:] - 1)
    assert abs(int(pixels_of(data.test)[0, 8, 8, 0]) - 4 * 21) < 6


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


@pytest.mark.parametrize("values", [{"dataset": "folder"}, {"dataset": "mnist", "data_dir": "/no/such"}])
def test_missing_data_dir(values):
    with pytest.raises(UserError, match="data-dir"):
        load_data(make_config(values))


def test_missing_and_damaged_idx_files(tmp_path):
    config = make_config({"dataset": "mnist", "data_dir": str(tmp_path)})
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz"):
        load_data(config)
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    data = path.read_bytes()
    noticed = 0
    for damaged in (data[:1000], b"", b"text", *(data[:i] + b"\x00\xff" + data[i + 2 :] for i in range(0, 3000, 100))):
        path.write_bytes(damaged)
        try:
            load_data(config)
        except UserError as error:
            assert "损坏" in str(error)
            noticed += 1
    assert noticed >= 25


def test_damaged_cifar(tmp_path):
    for data in (b"", b"text", gzip.compress(b"text" * 1000)):
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(data)
        with pytest.raises(UserError, match="损坏"):
            load_data(make_config({"dataset": "cifar10", "data_dir": str(tmp_path)}))


def test_failed_download_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Downloading failed. Retry limit reached")

    monkeypatch.setattr("paddle.vision.datasets.mnist._check_exists_and_download", fail)
    with pytest.raises(UserError, match="--data-dir"):
        load_data(make_config({"dataset": "mnist"}))


@pytest.mark.parametrize("n, batch, world", [(10, 4, 1), (10, 3, 2), (7, 64, 3), (5, 5, 1)])
def test_evaluation_uses_each_image_once(n, batch, world):
    data = load_data(make_config({}))
    part = ArrayPart(data.test.images[:n], data.test.labels[:n])
    seen = [
        i
        for rank in range(world)
        for indices, _ in evaluation_batches(part, data.info, batch, rank, world)
        for i in indices
    ]
    assert sorted(seen) == list(range(n))


def test_training_batches_are_the_same_from_any_step_and_any_process_count():
    data = load_data(make_config({}))
    settings = {"batch_size": 128, "crop_padding": 1, "mixup": 0.4, "random_erasing": 0.5, "rand_augment": 2, "seed": 3}
    config = make_config(settings)
    whole = list(training_batches(data.train, config, data.info, epoch=2))
    assert len(whole) == 1295 // 128
    later = list(training_batches(data.train, config, data.info, epoch=2, start=7))
    for ours, reference in zip(later, whole[7:]):
        np.testing.assert_array_equal(ours[0], reference[0])
    for rank in range(2):
        for ours, reference in zip(training_batches(data.train, config, data.info, 2, 0, rank, 2), whole):
            np.testing.assert_array_equal(ours[0], reference[0][rank::2])
            np.testing.assert_array_equal(ours[1], reference[1][rank::2])
    other = next(training_batches(data.train, config, data.info, epoch=3))
    assert not np.array_equal(other[0], whole[0][0])


def test_targets_are_smoothed():
    data = load_data(make_config({}))
    _, targets = next(training_batches(data.train, make_config({"label_smoothing": 0.1}), data.info, 0))
    np.testing.assert_allclose(np.sort(targets, axis=1)[:, -1], 0.91, atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)


def test_a_part_smaller_than_a_batch_is_one_batch():
    data = load_data(make_config({}))
    part = ArrayPart(data.train.images[:10], data.train.labels[:10])
    batches = list(training_batches(part, make_config({"batch_size": 64}), data.info, 0))
    assert [len(images) for images, _ in batches] == [10]


def test_folder_batches_do_not_depend_on_the_workers(picture_folder):
    settings = {"dataset": "folder", "data_dir": str(picture_folder), "image_size": 16, "batch_size": 4}
    settings.update(crop_scale=0.5, flip=True, rand_augment=1)
    results = []
    for workers in (0, 2):
        config = make_config({**settings, "workers": workers})
        data = load_data(config)
        results.append(np.concatenate([images for images, _ in training_batches(data.train, config, data.info, 0)]))
    np.testing.assert_array_equal(*results)


def test_prediction_input_equals_evaluation_input():
    data = load_data(make_config({}))
    image = Image.fromarray(data.test.images[0, ..., 0])
    _, images = next(evaluation_batches(data.test, data.info, 1))
    np.testing.assert_array_equal(to_input([image], data.info), images)


def test_the_same_data_is_required(picture_folder):
    config = make_config({"dataset": "folder", "data_dir": str(picture_folder), "workers": 0})
    info = load_data(config).info
    check_same_data(info, load_data(config).info, "runs/x")
    Image.new("RGB", (9, 9)).save(picture_folder / "train" / "猫" / "new.png")
    more = load_data(config).info
    check_same_data(info, more, "runs/x", whole=False)
    with pytest.raises(UserError, match="张数"):
        check_same_data(info, more, "runs/x")
    (picture_folder / "train" / "猫").rename(picture_folder / "train" / "虎")
    with pytest.raises(UserError, match="虎"):
        check_same_data(info, load_data(config).info, "runs/x", whole=False)


def test_random_streams_differ():
    from paddle_vit.data.batches import _rng

    firsts = [_rng(0, *key).random() for key in (("order", 0), ("order", 1), ("augment", 0, 0), ("augment", 0, 1))]
    firsts += [_rng(0, "mix", 0, 0).random(), _rng(1, "order", 0).random()]
    assert len(set(firsts)) == len(firsts)


def test_info_round_trip(tmp_path):
    info = load_data(make_config({})).info
    save_info(info, tmp_path / "data.json")
    assert load_info(tmp_path / "data.json") == info
    (tmp_path / "data.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="损坏"):
        load_info(tmp_path / "data.json")
