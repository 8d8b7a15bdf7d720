import gzip
import pickle
import re
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data.batches import training_batches
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


@pytest.mark.parametrize("values", [{"dataset": "folder"}, {"dataset": "mnist", "data_dir": "/no/such"}])
def test_missing_data_dir(values):
    with pytest.raises(UserError, match="data-dir"):
        load_data(make_config(values))


def test_the_option_for_ones_own_pictures_is_named(picture_folder):
    """忘了 --dataset folder。"""
    for dataset in ("digits", "mnist", "cifar10"):
        with pytest.raises(UserError, match="--dataset folder"):
            load_data(make_config({"dataset": dataset, "data_dir": str(picture_folder)}))


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


def test_files_one_level_off_are_pointed_to(tmp_path):
    (tmp_path / "mnist").mkdir()
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist" / "raw").mkdir()
    for wrong in (tmp_path, tmp_path / "mnist" / "raw"):
        with pytest.raises(UserError, match=re.escape(f"像是在 {tmp_path / 'mnist'}")):
            load_data(make_config({"dataset": "mnist", "data_dir": str(wrong)}))


def test_a_download_speaks_chinese(monkeypatch, capsys, tmp_path):
    """Paddle 每次下载打印两三行英文,重试三次;改成每次一行中文。"""

    def stream(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("paddle.dataset.common.httpx.stream", stream)
    monkeypatch.setattr("paddle.dataset.common.DATA_HOME", str(tmp_path))
    monkeypatch.setattr("paddle.dataset.common.md5file", lambda path: "")
    with pytest.raises(UserError, match="下载失败"):
        load_data(make_config({"dataset": "mnist"}))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("下载 https://") for line in lines)
    assert "(第 3 次)" in lines[2] and "Cache" not in "".join(lines)
