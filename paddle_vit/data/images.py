"""图片文件 -> 像素:任何 Pillow 支持的格式和模式,读不出来时说出原因,查坏图,缩放成模型的输入。"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import itertools
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, Union

import numpy as np
from PIL import Image

from ..config import Config
from ..errors import UserError
from ..system.files import LISTED, describe_os_error
from ..system.fitting import Fit, Size, fit_image
from ..system.pictures import to_array
from .augment import IMAGE_NUMBERS, augment_image, normalize
from .info import DataInfo
from .pixels import PixelMax, check_channels, convert_image, wide_kind

__all__ = [
    "ImageFacts",
    "UnreadableImage",
    "at_size",
    "bad_images",
    "check_image_files",
    "image_formats",
    "image_suffixes",
    "orientation",
    "pixel_range",
    "read_image",
    "read_images",
    "to_input",
    "upright",
]

ORIENTATION = 274  # EXIF 里拍摄方向的编号
_PROGRAMS = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF")  # 不是图片,或要交给别的程序去执行
_PLUGINS = (("pillow_heif", "register_heif_opener"), ("pillow_avif", None))  # 装了就用:HEIC(苹果手机的照片)和 AVIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS = (8, 10, 12, 14, 16, 24, 31)  # 灰度的位数,常见的相机和扫描仪


def at_size(
    image: Image.Image,
    size: Size,
    fit: Fit | None = None,
    config: Config | None = None,
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """Pillow 图像 -> uint8 [H, W, C],size 是边长或 (H, W);有随机数时增强,没有时(评估、预测)只照 fit 摆好。"""
    if numbers is None or config is None:
        return to_array(fit_image(image, size, fit))
    return to_array(augment_image(image, size, config, numbers[:IMAGE_NUMBERS], fit))


# ---- 格式 ----


@functools.cache
def image_formats() -> tuple[str, ...]:
    """认得的格式,Pillow 的叫法;常见的在前。"""
    Image.preinit()
    Image.init()
    for name, register in _PLUGINS:
        try:
            plugin = importlib.import_module(name)
        except ImportError:
            continue
        if register is not None:
            getattr(plugin, register)()
    return tuple(name for name in Image.OPEN if name not in _PROGRAMS)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """图片的后缀,小写,如 ``.jpg``;由 Pillow 和它的插件登记的。"""
    formats = image_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


# ---- 读 ----


class UnreadableImage(UserError):
    """读不出来的一张图片。

    Attributes:
        short (str): 几个字的原因。
        memory (bool): 是内存不够,图片本身也许没有问题。
    """

    def __init__(self, path, error: Exception):
        self.memory = isinstance(error, MemoryError)
        self.short, advice = _reason(path, error)
        super().__init__(f"{path} {self.short}:{advice}。")


def _reason(path, error):
    """(几个字的原因, 怎么办)。"""
    replace = "请替换或删除它,然后重新运行"
    if isinstance(error, UserError):
        return str(error), "模型要四个通道,请转成 RGBA(如有透明度的 PNG),或训练时用 --channels 3"
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return "是断开的链接", "它指向的文件不在了,请放回原处,或删除这个链接"
        return "不存在", "没有这个文件,请检查路径"
    if isinstance(error, PermissionError):
        return "没有权限读", "请修改它的权限(Linux 上是 chmod u+r)"
    if isinstance(error, IsADirectoryError):
        return "是一个目录", "请给图片文件,或一列图片文件"
    if isinstance(error, Image.DecompressionBombError):
        return f"像素太多({2 * (Image.MAX_IMAGE_PIXELS or 0)} 以上)", "请先缩小再用"
    if isinstance(error, MemoryError):
        return "太大,内存不够", "请先缩小它,或减小 --workers"
    if isinstance(error, OSError) and error.errno is not None:
        return "读的时候磁盘出错", describe_os_error(error, path).rstrip("。")
    actually, advice = _what_it_is(path)
    if actually is not None:
        return actually, advice or replace
    if isinstance(error, (OSError, SyntaxError, ValueError, EOFError)):
        return "不是图片,或文件不完整", replace
    return f"读的时候出错({type(error).__name__} {' '.join(str(error).split())})", replace


def _what_it_is(path):
    """Pillow 不认得的文件实际上是什么,看它的开头:(几个字, 怎么办);看不出来是 (``None``, ``None``)。"""
    head = _head(path)
    kind = head[8:12] if head[4:8] == b"ftyp" else b""
    if not head:
        return "是空文件(0 字节)", None
    if kind in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        return "其实是 HEIC(苹果手机的照片)", "请运行 pip install pillow-heif 再试,或转成 JPEG"
    if kind in (b"avif", b"avis"):
        return "其实是 AVIF", "请运行 pip install pillow-avif-plugin 再试,或转成 JPEG"
    if kind or (head[:4] in (b"\x1aE\xdf\xa3", b"RIFF") and head[8:12] != b"WEBP"):
        return "其实是视频或声音", "请换成图片"
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "其实是网页", "多半是下载时出了错,请重新下载或删除它"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "其实是 SVG(矢量图)", "请转成 PNG"
    if text.startswith(b"version https://git-lfs"):
        return "只是 Git LFS 的指针", "请运行 git lfs pull 取来真正的图片"
    names = {
        b"%PDF": "PDF",
        b"%!PS": "PostScript",
        b"PK\x03\x04": "ZIP 压缩包",
        b"Rar!": "RAR 压缩包",
        b"\x1f\x8b": "gzip 压缩包",
        b"\xff\x0a": "JPEG XL",
        b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    }
    name = next((name for start, name in names.items() if head.startswith(start)), None)
    return (None, None) if name is None else (f"其实是 {name}", "请转成 JPEG 或 PNG,或删除它")


def _head(path):
    """文件开头的 300 字节;读不了时当作看不出来。"""
    try:
        if hasattr(path, "seek"):
            path.seek(0)
            return path.read(300)
        with open(path, "rb") as file:
            return file.read(300)
    except OSError:
        return b"?"


def _decode(file: Union[str, Path, BinaryIO], quick: bool = False) -> Image.Image:
    """把一个图片文件完整地解码、摆正;检查坏图和训练时读图都是它。quick 时 JPEG 缩小解码,快得多,但仍要读完整个文件。"""
    with Image.open(file, formats=image_formats()) as image:
        if quick:
            image.draft("RGB", (64, 64))
        image.load()
        return upright(image)


def orientation(image: Image.Image) -> int:
    """EXIF 里的拍摄方向,1 是正的,5–8 转了 90°;EXIF 坏了当作 1:它只是附带的说明,像素是好的。"""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  EXIF 坏成什么样的都有,Pillow 抛出的异常五花八门
        return 1


def upright(image: Image.Image) -> Image.Image:
    """按 EXIF 里的拍摄方向摆正。"""
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    image = image.transpose(turn)
    for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # 已经摆正,别处不要再转一次
        image.info.pop(name, None)
    return image


def read_image(
    path: str | Path | BinaryIO, channels: int, pixel_max: PixelMax = None, full_range: bool = False
) -> Image.Image:
    """读一张图片,任何 Pillow 支持的格式和模式,按 EXIF 摆正,转成要的通道数,见 ``convert_image``。

    Args:
        path (str | Path): 图片文件。
        channels (int): 1 得到灰度(L),3 得到 RGB,4 得到四个通道(RGBX)。
        pixel_max (dict | None): 16 位、浮点的灰度按多大缩放,见 ``DataInfo.pixel_max``。
        full_range (bool): 灰度保留全部精度(F)。

    Returns:
        PIL.Image.Image: 模式为 L、RGB、RGBX 或 F。

    Raises:
        UnreadableImage: 不是图片、文件不完整、没有第四个通道、没有权限、像素多得可疑、内存不够……读的时候出的任何错。
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 有些文件的 EXIF、调色板不规范,Pillow 会警告,图像本身没有问题
        try:
            return convert_image(_decode(path), channels, pixel_max, full_range)
        except Exception as error:  # 解码器抛出什么的都有;有了文件名才知道怎么办
            raise UnreadableImage(path, error) from error


def read_images(paths: Sequence[Path], info: DataInfo) -> list[Image.Image]:
    """照数据集的说明读几张图片,见 ``read_image``;有坏的就一次全说出来。"""
    images, bad = [], []
    for path in paths:
        try:
            images.append(read_image(path, *info.form))
        except UnreadableImage as error:
            bad.append((path, error))
    if bad:
        raise bad_images(bad)
    return images


def bad_images(bad: Sequence[tuple[Path, UnreadableImage]], rest: str = "") -> UserError:
    """若干张坏图 -> 一行的错误:列出前十个和总数;rest 是接在后面的话。"""
    if len(bad) == 1:
        return UserError(f"{bad[0][1]}{rest}")
    names = "、".join(f"{path}({error.short})" for path, error in bad[:LISTED])
    more = f"……另有 {len(bad) - LISTED} 个" if len(bad) > LISTED else ""
    return UserError(f"{len(bad)} 个文件读不出来:{names}{more}。请替换或删除,然后重新运行。{rest}")


# ---- 检查 ----


class ImageFacts(NamedTuple):
    """检查时看到的一个文件。

    Attributes:
        digest (str): 内容的摘要,十六进制:内容相同就相同,与名字无关。
        kind (str | None): 超过 8 位的灰度:``'I'`` 整数,``'F'`` 浮点;超过 8 位的彩色:``'RGB'``。
        top (float): 它的像素的最大值;8 位的不看。
    """

    digest: str
    kind: str | None = None
    top: float = 0.0


def check_image_files(paths: Sequence[Path], channels: int = 3) -> list[ImageFacts]:
    """开始训练之前把每个文件完整地解码一遍,免得最后才发现坏图;用的就是训练时读图的那个函数。

    Args:
        paths (list[Path]): 图片文件。
        channels (int): 要的通道数;4 时图片要有第四个通道。

    Raises:
        UserError: 有文件读不出来;一次全说出来。
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(_examined, paths, itertools.repeat(channels)))
        # 几张大图一起读才不够内存的,单独再试
        found = [
            _examined(path, channels) if getattr(facts, "memory", False) else facts for path, facts in zip(paths, found)
        ]
    bad = [(path, error) for path, error in zip(paths, found) if isinstance(error, UnreadableImage)]
    if bad:
        raise bad_images(bad)
    return [facts for facts in found if isinstance(facts, ImageFacts)]


def _examined(path, channels):
    """一个文件的 ``ImageFacts``;读不出来时是它的错误。"""
    try:
        with open(path, "rb") as file:
            content = file.read()
        image = _decode(io.BytesIO(content), quick=True)
        check_channels(image, channels)
        digest, kind = hashlib.blake2b(content, digest_size=16).hexdigest(), wide_kind(image)
        if kind is None and _is_deep(content):
            return ImageFacts(digest, "RGB", float(np.asarray(image).max(initial=0)))
        if kind is None:
            return ImageFacts(digest)
        values = np.asarray(image, "float64")
        return ImageFacts(digest, kind, float(values[np.isfinite(values)].max(initial=0)))
    except Exception as error:  # noqa: BLE001  解码器抛出什么的都有;收齐了一起说
        return UnreadableImage(path, error)


def _is_deep(content):
    """是不是每个通道 16 位的彩色图(PNG、TIFF)。"""
    if content[:4] not in (b"\x89PNG", b"II*\0", b"MM\0*"):
        return False
    with Image.open(io.BytesIO(content), formats=("PNG", "TIFF")) as image:
        return ";16" in str(getattr(image, "tile", ""))


def pixel_range(facts: Iterable[ImageFacts], full_range: bool = False) -> tuple[dict[str, float] | None, list[str]]:
    """整个数据集里超过 8 位的灰度图用的一个范围。

    Args:
        facts: 各个文件的 ``ImageFacts``。
        full_range (bool): 使用者要全部精度。

    Returns:
        tuple: ``DataInfo.pixel_max``(没有这样的图是 ``None``),和说明它的几句话。

    Raises:
        UserError: 要全部精度,而有 16 位的彩色图:Pillow 只读得出高 8 位。
    """
    tops: dict[str, list[float]] = {}
    for one in facts:
        if one.kind is not None:
            tops.setdefault(one.kind, []).append(one.top)
    colors, lines = tops.pop("RGB", []), []
    chosen = {kind: _full_scale(kind, max(values)) for kind, values in sorted(tops.items())}
    for kind, top in chosen.items():
        name, values = {"I": "超过 8 位的灰度图", "F": "浮点的灰度图"}[kind], tops[kind]
        kept = ",保留全部精度" if full_range else ""
        lines.append(f"{name}有 {len(values)} 张,像素最大是 {max(values):g}:都按 0–{top:g} 缩放成 0–255{kept}")
    if colors and full_range:
        raise UserError(
            f"16 位的彩色图有 {len(colors)} 张,读得出的只有每个通道的高 8 位,--full-range 保不住其余的:"
            "请转成 16 位的灰度图,或去掉 --full-range。"
        )
    if colors:
        dark = f",最大只到 {max(colors):g},多半是 12 位的:请先放大到 16 位,或转成 8 位" if max(colors) < 64 else ""
        lines.append(f"16 位的彩色图有 {len(colors)} 张,只读每个通道的高 8 位{dark}")
    return chosen or None, lines


def _full_scale(kind, top):
    """最大值是 top 的数据,满量程是多少。"""
    if kind == "F" and top <= 1:
        return 1.0
    return float(next((2**bits - 1 for bits in _BITS if top < 2**bits), top))


def to_input(images: Iterable[Image.Image], info: DataInfo) -> np.ndarray:
    """一批 Pillow 图像 -> 模型的输入 float32 [B, C, H, W](照 info.fit 摆好,归一化,与训练时评估的处理相同)。"""
    pixels = np.stack([at_size(image, info.image_size, info.fit) for image in images])  # [B, H, W, C]
    return normalize(pixels, info.mean, info.std)
