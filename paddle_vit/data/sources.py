"""数据集:自带的 digits、Paddle 下载的几种、自己的图片文件夹。

每个数据集都分成训练、验证(选最好的一轮)、测试(最后只看一次)三部分。小数据集整个放在内存里,整批增强;
图片文件夹由 ``paddle.io.DataLoader`` 的进程读取。评估时每张图像恰好用一次,不丢也不换。
"""

import dataclasses
import gzip
import json
import pickle
import struct
import tarfile
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from PIL import Image, ImageCms, ImageOps

from ..errors import UserError
from ..family.models import model_settings
from ..system.files import atomic_write, matches, read_json
from .augment import IMAGE_NUMBERS, NUMBERS, augment_batch, augment_image, mix_batch, normalize, resize_and_center_crop

__all__ = [
    "ArrayPart",
    "Data",
    "DataInfo",
    "FilePart",
    "check_images",
    "check_same_data",
    "evaluation_batches",
    "find_images",
    "image_size_of",
    "load_data",
    "load_info",
    "parse_info",
    "pixel_statistics",
    "read_image",
    "save_info",
    "stratified_split",
    "to_input",
    "training_batches",
    "varied_images",
    "varied_indices",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FEW_IMAGES = 500  # 一遍少于这么多张时,起动读取进程的时间比读图还长,就在主进程里读
SPLIT_SEED = 0  # 分出验证集、测试集的种子,固定不变:换训练种子时各部分的图像不变
DIGITS = Path(__file__).parents[1] / "assets" / "digits.npz"


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """数据集的说明,随运行保存在 ``data.json``,评估和预测都从这里取。

    Attributes:
        name (str): 数据集名。
        classes (tuple[str]): 类别名,下标就是标签。
        channels (int): 通道数 C,1 或 3。
        image_size (int): 图像边长,像素。
        mean, std (tuple[float]): 每个通道的均值和标准差,像素值按 0–1。
        counts (dict): 训练、验证、测试各有多少张。
    """

    name: str
    classes: tuple
    channels: int
    image_size: int
    mean: tuple
    std: tuple
    counts: dict


@dataclasses.dataclass(frozen=True)
class Data:
    """一个数据集:说明和三个部分(``ArrayPart`` 或 ``FilePart``)。"""

    info: DataInfo
    train: Any
    val: Any
    test: Any


class ArrayPart:
    """放在内存里的一部分数据。

    Args:
        images (ndarray): uint8,[n, H, W, C],原来的大小。
        labels (ndarray): int64,[n]。
        image_size (int | None): 取出时缩放到的边长,像素;``None`` 不缩放。放大后的图像不常驻内存。
    """

    def __init__(self, images, labels, image_size=None):
        self.images, self.labels = images, np.asarray(labels, "int64")
        self.image_size = image_size or images.shape[1]

    def __len__(self):
        return len(self.labels)

    def fetch(self, requests, config=None):
        """按 ``requests`` 逐批取图像:每项是 (下标 [b], 随机数 [b, NUMBERS] 或 ``None``),得到 uint8 [b, H, W, C]。"""
        for indices, numbers in requests:
            images = self.images[indices]  # [b, H, W, C]
            augmented = numbers is not None and (config.rand_augment or config.crop_scale < 1)
            if augmented or images.shape[1:3] != (self.image_size, self.image_size):
                rows = numbers if augmented else [None] * len(images)
                size = self.image_size
                images = np.stack([_at_size(_to_pillow(x), size, config, row) for x, row in zip(images, rows)])
            yield images

    def read(self, index):
        """一张图像,uint8 [H, W, C]。"""
        return self.images[index]

    def chosen(self, indices, labels):
        """只留下 indices 里的图像,标签换成 labels(与 indices 一一对应)。"""
        return ArrayPart(self.images[indices], labels, self.image_size)


class FilePart(paddle.io.Dataset):
    """图片文件组成的一部分数据,由 ``paddle.io.DataLoader`` 的进程读取、缩放。

    Args:
        paths (list[Path]): 图片文件。
        labels (ndarray): int64,[n]。
        image_size (int): 缩放后的边长,像素。
        workers (int): 读取进程数。
        channels (int): 通道数 C:1 读成灰度,3 读成 RGB。
    """

    def __init__(self, paths, labels, image_size, workers, channels=3):
        super().__init__()
        self.paths, self.labels = list(paths), np.asarray(labels, "int64")
        self.image_size, self.workers, self.channels = image_size, workers, channels
        self.config = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, request):
        index, numbers = request
        try:
            image = read_image(self.paths[index], self.channels)
        except UserError as error:  # 在进程里抛出会变成一屏调用栈,带回主进程再抛
            return str(error)
        return _at_size(image, self.image_size, self.config, numbers)

    def fetch(self, requests, config=None):
        """同 ``ArrayPart.fetch``。"""
        self.config = config
        images = sum(len(indices) for indices, _ in requests)
        workers = self.workers if images >= FEW_IMAGES else 0
        batches = [
            [(index, None if numbers is None else numbers[i]) for i, index in enumerate(indices)]
            for indices, numbers in requests
        ]
        loader = paddle.io.DataLoader(
            self, batch_sampler=batches, collate_fn=list, num_workers=workers, return_list=True
        )
        for batch in loader:
            for image in batch:
                if isinstance(image, str):
                    raise UserError(image)
            yield np.stack([np.asarray(image) for image in batch])  # [b, H, W, C]

    def read(self, index):
        """一张图像,uint8 [H, W, C]。"""
        return _at_size(read_image(self.paths[index], self.channels), self.image_size)

    def chosen(self, indices, labels):
        """同 ``ArrayPart.chosen``。"""
        return FilePart([self.paths[i] for i in indices], labels, self.image_size, self.workers, self.channels)


def _at_size(image, size, config=None, numbers=None):
    """Pillow 图像 -> uint8 [size, size, C];有随机数时增强,没有时(评估、预测)只缩放和中心裁剪。"""
    if numbers is None:
        return _to_array(resize_and_center_crop(image, size))
    return _to_array(augment_image(image, size, config, numbers[:IMAGE_NUMBERS]))


def _to_pillow(array):
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _to_array(image):
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array  # [H, W, C]


def read_image(path, channels):
    """读一张图片,任何 Pillow 支持的格式和模式,转成灰度或 RGB;透明处垫白,按 EXIF 摆正。

    Args:
        path (str | Path): 图片文件。
        channels (int): 1 得到灰度(L),3 得到 RGB。

    Returns:
        PIL.Image.Image: 模式为 L 或 RGB。

    Raises:
        UserError: 不是图片、文件不完整,或像素多得可疑。
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 有些文件的 EXIF、调色板不规范,Pillow 会警告,图像本身没有问题
        try:
            with Image.open(path) as image:
                image.load()
                image = ImageOps.exif_transpose(image)
        except FileNotFoundError:
            raise UserError(f"没有 {path}:请检查路径。") from None
        except IsADirectoryError:
            raise UserError(f"{path} 是一个目录:请给图片文件,或一列图片文件。") from None
        except Image.DecompressionBombError:
            raise UserError(f"{path} 的像素太多({Image.MAX_IMAGE_PIXELS * 2} 以上):请先缩小再用。") from None
        except (OSError, SyntaxError, ValueError, struct.error, EOFError):
            raise UserError(f"{path} 不是图片,或文件不完整:请替换或删除它,然后重新运行。") from None
        return convert_image(image, channels)


def convert_image(image, channels):
    """Pillow 图像转成灰度(channels=1)或 RGB(3);透明处垫白。"""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 位灰度
        image = Image.fromarray((np.clip(np.asarray(image, "int64"), 0, 65535) // 257).astype("uint8"))
    elif image.mode == "F":  # 浮点灰度:最大值不超过 1 时按 0–1,否则按 0–255
        values = np.nan_to_num(np.asarray(image, "float64"))
        scale = 255 if values.max(initial=0) <= 1 else 1
        image = Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype("uint8"))
    elif image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, to_rgb)
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def find_images(directory):
    """目录里(不含子目录)的图片文件,按名字排序;其他文件忽略。"""
    return sorted(
        path
        for path in Path(directory).iterdir()
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def stratified_split(labels, fraction, seed=SPLIT_SEED):
    """按类别成比例地分成两部分。

    Args:
        labels (ndarray): [n]。
        fraction (float): 第二部分所占的比例;每类至少分出一张。
        seed (int): 随机种子。

    Returns:
        tuple[ndarray, ndarray]: 两部分的下标,各自升序。

    Raises:
        UserError: 某一类的图像太少,分不出来。
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    second = []
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        if len(indices) < 2:
            raise UserError(f"第 {label} 类只有 {len(indices)} 张图像,分不出验证集:每类至少要有 3 张,请补充图片。")
        second.append(indices[: max(1, round(len(indices) * fraction))])
    second = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), second), second


def varied_indices(labels, count):
    """固定的 count 张,各类轮流:先是每类的第一张,再是每类的第二张……不够时给出全部。

    Args:
        labels (ndarray): [n]。
        count (int): 要几张。

    Returns:
        ndarray: 下标,[min(count, n)]。
    """
    labels = np.asarray(labels)
    turns = np.zeros(len(labels), int)  # 每张是它那一类的第几张
    for label in np.unique(labels):
        turns[labels == label] = np.arange((labels == label).sum())
    return np.lexsort((labels, turns))[:count]


def varied_images(part, count):
    """``varied_indices`` 的那几张:(下标 [b], 图像 uint8 [b, H, W, C])。"""
    indices = varied_indices(part.labels, count)
    (images,) = part.fetch([(indices, None)])  # [b, H, W, C]
    return indices, images


_FASHION = ("T恤", "裤子", "套头衫", "连衣裙", "外套", "凉鞋", "衬衫", "运动鞋", "包", "短靴")
_CIFAR10 = ("飞机", "汽车", "鸟", "猫", "鹿", "狗", "青蛙", "马", "船", "卡车")
_NATIVE_SIZES = {"digits": 8, "mnist": 28, "fashion-mnist": 28, "cifar10": 32, "cifar100": 32}


def load_data(config):
    """按设置载入数据集。

    Args:
        config (Config): 用到 dataset、data_dir、val_fraction、classes、train_per_class、grayscale、image_size、
            model、workers。

    Returns:
        Data: 三部分数据和说明。

    Raises:
        UserError: 文件缺失、损坏、下载失败,图片文件夹不合要求,或没有 classes 里的类。
    """
    size = image_size_of(config)
    if config.data_dir is not None and not Path(config.data_dir).is_dir():
        raise UserError(f"--data-dir {config.data_dir} 不是目录:请给数据所在的目录。")
    if config.crop_padding > size:
        raise UserError(f"--crop-padding {config.crop_padding} 超过了图像边长 {size}:请改小,通常是边长的八分之一。")
    if config.dataset == "folder":
        return _load_folder(config, size)
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
    classes, parts = _choose(config, classes, parts)
    pixels = parts[0].images.reshape(-1, train_images.shape[-1])
    mean, std = pixels.mean(axis=0) / 255, pixels.std(axis=0) / 255
    return _data(config.dataset, classes, size, mean, std, *parts)


def _choose(config, classes, parts):
    """只留下 ``--classes`` 里的类,训练和验证部分每类至多 ``--train-per-class`` 张。

    Args:
        config (Config): 用到 dataset、classes、train_per_class。
        classes (Sequence[str]): 全部类别名。
        parts (list): 训练、验证、测试三部分。

    Returns:
        tuple[list[str], list]: 留下的类别名和三部分。
    """
    chosen = list(range(len(classes))) if config.classes is None else _class_indices(config, classes)
    limits = (config.train_per_class, config.train_per_class, None)
    return [classes[label] for label in chosen], [_choose_part(*pair, chosen) for pair in zip(parts, limits)]


def _choose_part(part, limit, chosen):
    rng = np.random.default_rng(SPLIT_SEED)
    places = [np.flatnonzero(part.labels == label) for label in chosen]
    places = [rng.permutation(place)[:limit] if limit else place for place in places]
    indices, labels = np.concatenate(places), np.repeat(np.arange(len(chosen)), [len(place) for place in places])
    order = indices.argsort()
    if len(order) == len(part) and (labels[order] == part.labels).all():
        return part
    return part.chosen(indices[order], labels[order])


def _class_indices(config, classes):
    """``--classes`` 写的名字或序号 -> 标签的列表。"""
    found = []
    for word in config.classes.replace("，", ",").split(","):
        word = word.strip()
        if word in classes:
            found.append(list(classes).index(word))
        elif word.isdecimal() and int(word) < len(classes):
            found.append(int(word))
        else:
            known = _shorten(tuple(classes))
            raise UserError(
                f"--classes 里的 {word!r} 不是 {config.dataset} 的类:请写类别名或序号 0–{len(classes) - 1}({known})。"
            )
    if len(found) < 2 or len(set(found)) < len(found):
        raise UserError(f"--classes {config.classes} 不合法:至少要有 2 类,不能重复。")
    return found


def pixel_statistics(part):
    """一部分图像每个通道的均值和标准差(像素按 0–1),两个元组。"""
    count = total = squares = 0
    for images in part.fetch([(batch, None) for batch in np.array_split(np.arange(len(part)), -(-len(part) // 64))]):
        pixels = images.reshape(-1, images.shape[-1]).astype("float64") / 255  # [b * H * W, C]
        count, total, squares = count + len(pixels), total + pixels.sum(axis=0), squares + (pixels**2).sum(axis=0)
    mean = total / count  # [C]
    return _rounded(mean, np.sqrt(np.maximum(squares / count - mean**2, 0)))


def image_size_of(config):
    """图像边长(像素):设置里的,没有就由模型的名字定,再没有就是数据集原来的。"""
    named = model_settings(config.model).get("image_size")
    return config.image_size or named or _NATIVE_SIZES.get(config.dataset, 224)


def _data(name, classes, image_size, mean, std, train, val, test):
    counts = {"train": len(train), "val": len(val), "test": len(test)}
    mean, std = _rounded(mean, std)
    return Data(DataInfo(name, tuple(classes), len(mean), image_size, mean, std, counts), train, val, test)


def _rounded(mean, std):
    return tuple(round(float(m), 6) for m in mean), tuple(round(max(float(s), 1e-3), 6) for s in std)


def _load_digits(config):
    with np.load(DIGITS) as file:
        images, labels, test = file["images"], file["labels"].astype("int64"), file["test"]
    images = np.rint(images * (255 / 16)).astype("uint8")[..., None]  # 原始灰度是 0–16
    return (images[~test], labels[~test]), (images[test], labels[test]), [str(digit) for digit in range(10)]


def _download(config, build, *args):
    """调用 ``build(*args)`` 下载或读取 Paddle 自带的数据集,把各种失败说成一句话。"""
    damaged = (zlib.error, gzip.BadGzipFile, tarfile.TarError, struct.error, pickle.UnpicklingError)
    try:
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
        raise UserError(
            f"--data-dir {config.data_dir} 里缺少 {'、'.join(missing)}:请放入 {config.dataset} 的原始文件。"
        )
    return [str(path) for path in paths]


def _load_mnist(config):
    from paddle.vision.datasets import MNIST, FashionMNIST

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
    from paddle.vision.datasets import Cifar10, Cifar100

    is_10 = config.dataset == "cifar10"
    (file,) = _local_files(config, ["cifar-10-python.tar.gz" if is_10 else "cifar-100-python.tar.gz"])

    def build(mode):
        dataset = (Cifar10 if is_10 else Cifar100)(data_file=file, mode=mode)
        images = np.stack([pixels for pixels, _ in dataset.data]).reshape(-1, 3, 32, 32)  # 红、绿、蓝三个平面
        return images.transpose(0, 2, 3, 1).astype("uint8"), np.array([label for _, label in dataset.data])

    train, test = _download(config, build, "train"), _download(config, build, "test")
    return train, test, _CIFAR10 if is_10 else [str(label) for label in range(100)]


def _load_flowers(config, size):
    from paddle.vision.datasets import Flowers

    files = _local_files(config, ["102flowers.tgz", "imagelabels.mat", "setid.mat"])

    def build(mode):
        dataset = Flowers(*files, mode=mode)
        paths = [Path(dataset.data_path) / "jpg" / f"image_{index:05}.jpg" for index in dataset.indexes]
        return paths, dataset.labels[dataset.indexes - 1].astype("int64") - 1

    parts = {}
    # Paddle 把官方的训练集和测试集对调了;这里换回来,好与论文的数字相比:训练 1020,验证 1020,测试 6149
    for part, mode in (("train", "test"), ("val", "valid"), ("test", "train")):
        paths, labels = _download(config, build, mode)
        check_images(paths)
        parts[part] = FilePart(paths, labels, size, config.workers)
    classes, parts = _choose(config, [str(i + 1) for i in range(102)], [parts[p] for p in ("train", "val", "test")])
    return _data("flowers102", classes, size, [0.5] * 3, [0.5] * 3, *parts)


def _load_folder(config, size):
    if config.data_dir is None:
        raise UserError("--dataset folder 需要 --data-dir:请给图片所在的目录,里面是 train/类别名/图片。")
    root = Path(config.data_dir)
    if not (root / "train").is_dir():
        raise UserError(f"{root} 里没有 train 目录:图片要按 {root}/train/类别名/图片 摆放。")
    classes = sorted(path.name for path in (root / "train").iterdir() if path.is_dir() and path.name[0] != ".")
    if len(classes) < 2:
        raise UserError(f"{root / 'train'} 里有 {len(classes)} 个类别目录:至少要有 2 个,每类一个目录。")
    parts = {"train": _scan(root / "train", classes)}
    for part in ("val", "test"):
        if (root / part).is_dir():
            parts[part] = _scan(root / part, classes)
    for part in ("test", "val"):
        if part not in parts:
            paths, labels = parts["train"]
            few = [name for i, name in enumerate(classes) if (labels == i).sum() < 2 + (part == "test")]
            if few:
                raise UserError(
                    f"{root / 'train' / few[0]} 的图片太少,分不出验证集和测试集:每类至少要有 3 张;"
                    f"请补充图片,或自己放好 {root / 'val'} 和 {root / 'test'}。"
                )
            keep, rest = stratified_split(labels, config.val_fraction)
            parts[part] = [paths[i] for i in rest], labels[rest]
            parts["train"] = [paths[i] for i in keep], labels[keep]
    for paths, _ in parts.values():
        check_images(paths)
    channels = 1 if config.grayscale else 3
    parts = [FilePart(*parts[name], size, config.workers, channels) for name in ("train", "val", "test")]
    classes, parts = _choose(config, classes, parts)
    middle = [0.5] * channels  # 均值和标准差:像素从 0–1 变成 -1–1
    return _data("folder", classes, size, middle, middle, *parts)


def _scan(directory, classes):
    """目录/类别/图片 -> (图片路径, 标签)。"""
    paths, labels = [], []
    for path in sorted(directory.iterdir()):
        if path.is_dir() and path.name[0] != "." and path.name not in classes:
            raise UserError(f"{path} 在 train 里没有同名的类别:请改名,或在 train 里也放这一类。")
    for label, name in enumerate(classes):
        if not (directory / name).is_dir():
            continue
        images = find_images(directory / name)
        if not images and directory.name == "train":
            raise UserError(f"类别目录 {directory / name} 里没有图片:请放入图片({' '.join(IMAGE_SUFFIXES)}),或删除它。")
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"{directory} 里没有图片:请按 {directory}/类别名/图片 摆放({' '.join(IMAGE_SUFFIXES)})。")
    return paths, np.array(labels)


def check_images(paths):
    """开始训练之前把每个文件完整地解码一遍,免得最后才发现坏图。

    Raises:
        UserError: 有文件不是图片或不完整。
    """

    def check(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Image.open(path) as image:
                    image.draft("RGB", (64, 64))  # JPEG 缩小解码,快得多,但仍要读完整个文件
                    image.load()
            except (OSError, SyntaxError, ValueError, struct.error, EOFError, Image.DecompressionBombError):
                return path
        return None

    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise UserError(f"没有 {missing}:图片不全,可能是上次解压时中断了;请删除 {missing.parent} 后重新运行。")
    with ThreadPoolExecutor() as pool:
        bad = [path for path in pool.map(check, paths) if path is not None]
    if bad:
        more = f"(另有 {len(bad) - 1} 个)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]} 不是图片,或文件不完整{more}:请替换或删除,然后重新运行。")


def training_batches(part, config, info, epoch, start=0, rank=0, world=1):
    """一轮训练的批,已增强、归一化、混合。

    第 epoch 轮第 step 步的一切随机数只由 (seed, epoch, step) 决定,所以能从任何一步接着来。
    整批先抽好数,第 rank 个进程取其中第 rank、rank + world、… 张,于是进程数不影响结果
    (mixup、cutmix 与隔半批的图像混合,批大小是 2 * world 的倍数时也不受影响)。
    最后不满一批的图像这一轮不用(每轮打乱,下一轮就用到);全部图像不足一批时,整个部分就是一批。

    Args:
        part (ArrayPart | FilePart): 训练部分,n 张。
        config (Config): 用到 seed、batch_size、accumulate、label_smoothing 和各种增强。
        info (DataInfo): 类别数、均值、标准差。
        epoch (int): 第几轮,从 0 起。
        start (int): 从第几步开始。
        rank, world (int): 本进程的序号和进程总数。

    Yields:
        tuple[ndarray, ndarray]: 图像 float32 [b, C, H, W] 和标签分布 float32 [b, K]。
    """
    batch = step_size(len(part), config, world)
    order = _rng(config.seed, "order", epoch).permutation(len(part))
    requests = []
    for step in range(start, len(part) // batch):
        indices = order[step * batch : (step + 1) * batch][rank::world]
        numbers = _rng(config.seed, "augment", epoch, step).random((batch, NUMBERS), "float32")[rank::world]
        requests.append((indices, numbers))
    smoothing, K = config.label_smoothing, len(info.classes)
    for step, (images, (indices, numbers)) in enumerate(zip(part.fetch(requests, config), requests), start):
        images = augment_batch(images, config, info.mean, info.std, numbers)  # [b, C, H, W]
        targets = np.eye(K, dtype="float32")[part.labels[indices]] * (1 - smoothing) + smoothing / K  # [b, K]
        mix_rng = _rng(config.seed, "mix", epoch, step)
        yield mix_batch(images, targets.astype("float32"), config.mixup, config.cutmix, mix_rng)


def _rng(seed, purpose, *position):
    """每种用途、每个位置各自独立的随机数发生器(NumPy 会在短的种子后面补零,所以用途放在位置之前)。"""
    return np.random.default_rng([seed, ("order", "augment", "mix").index(purpose) + 1, *position])


def step_size(images, config, world=1):
    """一次更新用多少张图像(所有进程合计):batch_size * accumulate,图像不够时有多少用多少;取进程数的整数倍。"""
    size = min(config.batch_size * config.accumulate, images)
    if size < world:
        raise UserError(f"每次更新只有 {size} 张图像,不够 {world} 个进程分:请减少进程,或加大 --batch-size。")
    return size - size % world


def evaluation_batches(part, info, batch_size, rank=0, world=1):
    """依次给出第 rank、rank + world、… 张图像:(下标 [b], 图像 float32 [b, C, H, W])。不打乱,不增强,一张不丢。"""
    mine = np.arange(rank, len(part), world)
    requests = [(mine[i : i + batch_size], None) for i in range(0, len(mine), batch_size)]
    for (indices, _), images in zip(requests, part.fetch(requests)):
        yield indices, normalize(images, info.mean, info.std)


def to_input(images, info):
    """一批 Pillow 图像 -> 模型的输入 float32 [B, C, H, W](缩放、中心裁剪、归一化,与训练时评估的处理相同)。"""
    return normalize(np.stack([_at_size(image, info.image_size) for image in images]), info.mean, info.std)


def save_info(info, path):
    """把数据集的说明写成 JSON。"""
    atomic_write(path, json.dumps(dataclasses.asdict(info), ensure_ascii=False, indent=1).encode())


def check_same_data(saved, found, where, whole=True):
    """核对现在的数据与运行当时的是否相同。

    Args:
        saved (DataInfo): 运行当时的说明。
        found (DataInfo): 现在载入的数据的说明。
        where (str | Path): 运行目录,写进提示。
        whole (bool): 续训要完全相同;评估只要类别、通道和图像大小相同。

    Raises:
        UserError: 不同。
    """
    names = {"classes": "类别", "channels": "通道数", "image_size": "图像边长"}
    if whole:
        names.update(counts="各部分的张数", mean="均值", std="标准差")
    for name, chinese in names.items():
        before, now = getattr(saved, name), getattr(found, name)
        if before != now:
            raise UserError(
                f"数据的{chinese}与 {where} 训练时不同:当时是 {_shorten(before)},现在是 {_shorten(now)};"
                "请用 --data-dir 给出当时的数据,或用 --output 开一个新的运行。"
            )


def _shorten(value):
    text = "、".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


_INFO = dict(name=str, classes=[str], channels=int, image_size=int, mean=[float], std=[float], counts={None: int})


def parse_info(values, source):
    """字典(JSON 读来的)-> ``DataInfo``。

    Args:
        values (dict): 各项;别处来的权重不知道有多少张图像,counts 是空的。
        source (str | Path): 从哪里读来的,写进提示。

    Raises:
        UserError: 缺了哪一项,或不合法。
    """
    good = (
        matches(values, _INFO)
        and values["classes"]
        and values["mean"]
        and min(values["counts"].values(), default=1) >= 1
    )
    if not good or not len(values["mean"]) == len(values["std"]) == values["channels"] or not min(values["std"]) > 0:
        raise UserError(f"{source} 已损坏:请换一个备份,或重新训练。")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return DataInfo(**{field.name: values[field.name] for field in dataclasses.fields(DataInfo)})


def load_info(path):
    """读回 ``save_info`` 写的说明。

    Raises:
        UserError: 文件不存在或已损坏。
    """
    if not Path(path).exists():
        raise UserError(f"没有 {path}:这个运行还没有开始训练,请先训练至少一轮。")
    return parse_info(read_json(path, {"counts": dict(train=int, val=int, test=int)}), path)
