"""数据集从哪里来:自带的 digits、Paddle 下载的几种、自己的图片文件夹。

每个数据集都分成训练、验证(选最好的一轮)、测试(最后只看一次)三部分。
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import io
import pickle
import re
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import paddle

from ..checks import as_pair
from ..config import Config
from ..errors import UserError
from ..family.models import model_settings
from ..system.fitting import Size, fit_named, size_text
from .choosing import assemble, choose
from .folder import load_folder
from .images import check_image_files
from .info import shorten
from .parts import ArrayPart, Data, FilePart, stratified_split
from .splits import KeptRun

__all__ = ["image_size_of", "load_data", "tell"]


DIGITS = Path(__file__).parents[1] / "assets" / "digits.npz"


_FASHION = ("T恤", "裤子", "套头衫", "连衣裙", "外套", "凉鞋", "衬衫", "运动鞋", "包", "短靴")


_CIFAR10 = ("飞机", "汽车", "鸟", "猫", "鹿", "狗", "青蛙", "马", "船", "卡车")


_NATIVE_SIZES = {"digits": 8, "mnist": 28, "fashion-mnist": 28, "cifar10": 32, "cifar100": 32}


def load_data(config: Config, kept: KeptRun | None = None) -> Data:
    """按设置载入数据集;要告诉使用者的(没有用到的文件等)写在 ``Data.notes`` 里,也打印出来。

    Args:
        config (Config): 用到 dataset、data_dir、val_fraction、classes、train_per_class、channels、full_range、
            image_size、fit、model、workers。
        kept (KeptRun | None): 再读这个运行的数据:自己的图片照着当时的分法;要说的留给调用者去打印。

    Returns:
        Data: 三部分数据和说明。

    Raises:
        UserError: 文件缺失、损坏、下载失败,图片文件夹不合要求,或没有 classes 里的类。
    """
    data = _load(config, kept)
    if config.classes is not None:
        data = dataclasses.replace(
            data, notes=(*data.notes, f"只用 {len(data.info.classes)} 类:{shorten(data.info.classes)}")
        )
    if kept is None:
        tell(data)
    return data


def tell(data: Data) -> None:
    """打印读数据时要告诉使用者的;几个进程一起训练时只有 0 号说。"""
    if paddle.distributed.get_rank() == 0:
        for note in data.notes:
            print(f"提示:{note}。", file=sys.stderr, flush=True)


def _load(config, kept):
    size = image_size_of(config)
    is_list = config.dataset == "folder" and config.data_dir is not None and Path(config.data_dir).is_file()
    if config.data_dir is not None and not Path(config.data_dir).is_dir() and not is_list:
        raise UserError(f"--data-dir {config.data_dir} 不是目录:请给数据所在的目录。")
    if config.crop_padding > min(as_pair(size, "image_size")):
        side = size_text(size)
        raise UserError(f"--crop-padding {config.crop_padding} 超过了图像边长 {side}:请改小,通常是边长的八分之一。")
    data = _load_parts(config, size, kept)
    return data if config.fit == "auto" else data.fitted(fit_named(config.fit))


def _load_parts(config, size, kept):
    if config.dataset == "folder":
        return load_folder(config, size, kept)
    if config.dataset == "flowers102":
        return _load_flowers(config, size)
    loaders = {"digits": _load_digits, "mnist": _load_mnist, "fashion-mnist": _load_mnist}
    load = loaders.get(config.dataset, _load_cifar)
    (train_images, train_labels), (test_images, test_labels), classes = load(config)
    keep, val = stratified_split(train_labels, config.val_fraction)
    parts = [
        ArrayPart(images, labels, size)
        for images, labels in (
            (train_images[keep], train_labels[keep]),
            (train_images[val], train_labels[val]),
            (test_images, test_labels),
        )
    ]
    classes, parts = choose(config, classes, parts)
    pixels = parts[0].images.reshape(-1, train_images.shape[-1])
    mean, std = pixels.mean(axis=0) / 255, pixels.std(axis=0) / 255
    return assemble(config.dataset, classes, size, mean, std, *parts)


def image_size_of(config: Config) -> Size:
    """图像边长或 (高, 宽)(像素):设置里的,没有就由模型的名字定,再没有就是数据集原来的。"""
    if isinstance(config.image_size, str):
        height, width = config.image_size.split("x")
        return int(height), int(width)
    named = model_settings(config.model).get("image_size")
    return config.image_size or named or _NATIVE_SIZES.get(config.dataset, 224)


def _load_digits(config):
    with np.load(DIGITS) as file:
        images, labels, test = file["images"], file["labels"].astype("int64"), file["test"]
    images = np.rint(images * (255 / 16)).astype("uint8")[..., None]  # 原始灰度是 0–16
    return (images[~test], labels[~test]), (images[test], labels[test]), [str(digit) for digit in range(10)]


class _DownloadNotes(io.TextIOBase):
    """把 Paddle 下载时的英文换成中文,每次下载一行。"""

    def __init__(self):
        self._stream, self._tries = sys.stderr, collections.Counter()

    def write(self, text):
        found = re.search(r"downloading (\S+)", text)
        if found:
            self._tries[found[1]] += 1
            again = f"(第 {self._tries[found[1]]} 次)" if self._tries[found[1]] > 1 else ""
            print(f"下载 {found[1]}{again} …", file=self._stream, flush=True)
        return len(text)


def _download(config, build, *args):
    """调用 ``build(*args)`` 下载或读取 Paddle 自带的数据集,把各种失败说成一句话。"""
    damaged = (zlib.error, gzip.BadGzipFile, tarfile.TarError, struct.error, pickle.UnpicklingError)
    try:
        with contextlib.redirect_stderr(_DownloadNotes()):
            return build(*args)
    except ImportError:
        raise UserError(f"读 {config.dataset} 的标签需要 scipy:请运行 pip install scipy。") from None
    except (*damaged, EOFError, ValueError, KeyError, IndexError, AssertionError):
        where = config.data_dir or "Paddle 的下载缓存(~/.cache/paddle/dataset)"
        raise UserError(f"{config.dataset} 的文件已损坏:请删除 {where} 里的文件后重新下载。") from None
    except (RuntimeError, OSError):
        if config.data_dir is not None:
            raise UserError(f"读不出 {config.data_dir} 里的 {config.dataset}:请检查文件和权限。") from None
        raise UserError(
            f"{config.dataset} 下载失败:请检查网络后重试;或在别处下载好,用 --data-dir 指向它所在的目录;"
            "没有网络时可以先用自带的 --dataset digits。"
        ) from None


def _local_files(config, names):
    """``--data-dir`` 里应有的文件;没给 ``--data-dir`` 时是 ``None``(由 Paddle 下载)。"""
    if config.data_dir is None:
        return [None] * len(names)
    paths = [Path(config.data_dir) / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        around = [*Path(config.data_dir).glob(f"*/{names[0]}"), *Path(config.data_dir).parent.glob(names[0])]
        hint = f"它们像是在 {around[0].parent},请改 --data-dir。" if around else f"请放入 {config.dataset} 的原始文件。"
        if (Path(config.data_dir) / "train").is_dir():
            hint = "里面是自己的图片的话,请用 --dataset folder。"
        raise UserError(f"--data-dir {config.data_dir} 里缺少 {'、'.join(missing)}:{hint}")
    return [str(path) for path in paths]


def _load_mnist(config):
    from paddle.vision.datasets import MNIST, FashionMNIST  # 只有下载时要用

    source = MNIST if config.dataset == "mnist" else FashionMNIST
    names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    files = _local_files(config, names)

    def build(mode, image_path, label_path):
        dataset = source(image_path=image_path, label_path=label_path, mode=mode)
        images = np.asarray(dataset.images).reshape(-1, 28, 28, 1).astype("uint8")
        return images, np.asarray(dataset.labels).reshape(len(images))

    train, test = _download(config, build, "train", *files[:2]), _download(config, build, "test", *files[2:])
    return train, test, [str(digit) for digit in range(10)] if config.dataset == "mnist" else _FASHION


def _load_cifar(config):
    from paddle.vision.datasets import Cifar10, Cifar100  # 只有下载时要用

    is_10 = config.dataset == "cifar10"
    (file,) = _local_files(config, ["cifar-10-python.tar.gz" if is_10 else "cifar-100-python.tar.gz"])

    def build(mode):
        dataset = (Cifar10 if is_10 else Cifar100)(data_file=file, mode=mode)
        images = np.stack([pixels for pixels, _ in dataset.data]).reshape(-1, 3, 32, 32)  # 红、绿、蓝三个平面
        return images.transpose(0, 2, 3, 1).astype("uint8"), np.array([label for _, label in dataset.data])

    train, test = _download(config, build, "train"), _download(config, build, "test")
    return train, test, _CIFAR10 if is_10 else [str(label) for label in range(100)]


def _load_flowers(config, size):
    from paddle.vision.datasets import Flowers  # 只有下载时要用

    files = _local_files(config, ["102flowers.tgz", "imagelabels.mat", "setid.mat"])

    def build(mode):
        dataset = Flowers(*files, mode=mode)
        paths = [Path(dataset.data_path) / "jpg" / f"image_{index:05}.jpg" for index in dataset.indexes]
        return paths, dataset.labels[dataset.indexes - 1].astype("int64") - 1

    parts = {}
    # Paddle 把官方的训练集和测试集对调了;这里换回来,好与论文的数字相比:训练 1020,验证 1020,测试 6149
    for part, mode in (("train", "test"), ("val", "valid"), ("test", "train")):
        paths, labels = _download(config, build, mode)
        missing = next((path for path in paths if not path.exists()), None)
        if missing is not None:
            raise UserError(f"没有 {missing}:图片不全,可能是上次解压时中断了;请删除 {missing.parent} 后重新运行。")
        parts[part] = FilePart(paths, labels, size, config.workers)
    check_image_files([path for part in parts.values() for path in part.paths])
    classes, parts = choose(config, [str(i + 1) for i in range(102)], [parts[p] for p in ("train", "val", "test")])
    return assemble("flowers102", classes, size, [0.5] * 3, [0.5] * 3, *parts)
