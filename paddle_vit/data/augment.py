"""数据增强(data augmentation)。内存里的图像整批处理;需要 Pillow 的变换逐张处理。

每张图像先抽好一行 [0, 1) 的均匀随机数,变换只从这行数里取值,自己不抽签。于是同一个种子在任何进程数、
任何断点处都得到同样的图像,测试也只需要给定这行数。
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ..checks import as_pair
from ..config import Config
from ..errors import UserError
from ..system.fitting import Fit, Size, fit_image

__all__ = [
    "IMAGE_NUMBERS",
    "NUMBERS",
    "augment_batch",
    "augment_image",
    "augment_pixels",
    "mix_batch",
    "normalize",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_flip",
    "random_resized_crop",
    "to_pixels",
]

IMAGE_NUMBERS = 16  # 每行里给逐张变换的个数:裁剪 4,RandAugment 每种变换 3,最多 4 种
NUMBERS = IMAGE_NUMBERS + 8  # 一行的总长:其后裁剪平移 2,翻转 1,擦除 5


def random_crop(images: np.ndarray, padding: int, numbers: np.ndarray) -> np.ndarray:
    """四周补 padding 个零,再裁回原大小。

    Args:
        images (ndarray): uint8,[B, H, W, C]。
        padding (int): 补零的宽度,像素。
        numbers (ndarray): [B, 2],[0, 1) 的均匀随机数,决定裁剪的行、列起点。

    Returns:
        ndarray: uint8,[B, H, W, C]。
    """
    B, H, W, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))  # [B, H + 2p, W + 2p, C]
    start = (numbers * (2 * padding + 1)).astype(int)  # [B, 2]
    rows = start[:, :1] + np.arange(H)  # [B, H]
    columns = start[:, 1:] + np.arange(W)  # [B, W]
    return padded[np.arange(B)[:, None, None], rows[:, :, None], columns[:, None, :]]  # [B, H, W, C]


def random_flip(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """以一半的概率左右翻转。images [B, H, W, C],numbers [B]。"""
    return np.where((numbers < 0.5)[:, None, None, None], images[:, :, ::-1], images)


def random_erasing(images: np.ndarray, probability: float, numbers: np.ndarray) -> np.ndarray:
    """随机擦除(Random Erasing, arXiv 1708.04896):以给定概率把一块矩形置零(归一化后的零就是平均颜色)。

    Args:
        images (ndarray): float32,归一化之后的 [B, C, H, W];就地修改。
        probability (float): 擦除的概率,0–1。
        numbers (ndarray): [B, 5]:是否擦除、面积(2 %–33 %)、长宽比(0.3–3.3)、行、列。

    Returns:
        ndarray: 修改后的 images。
    """
    H, W = images.shape[2:]
    area = (0.02 + (0.33 - 0.02) * numbers[:, 1]) * H * W
    ratio = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * numbers[:, 2])
    heights = np.clip(np.rint(np.sqrt(area * ratio)), 1, H).astype(int)
    widths = np.clip(np.rint(np.sqrt(area / ratio)), 1, W).astype(int)
    tops = (numbers[:, 3] * (H - heights + 1)).astype(int)
    lefts = (numbers[:, 4] * (W - widths + 1)).astype(int)
    for i in np.flatnonzero(numbers[:, 0] < probability):
        images[i, :, tops[i] : tops[i] + heights[i], lefts[i] : lefts[i] + widths[i]] = 0.0
    return images


def random_resized_crop(
    image: Image.Image, size: Size, min_scale: float, numbers: np.ndarray, fit: Fit | None = None
) -> Image.Image:
    """随机缩放裁剪(Inception 式,arXiv 1409.4842):裁出面积占 min_scale–1、长宽比 3/4–4/3 的一块,缩放到 size。

    长宽比是相对于 size 的;评估时压扁(squash)的,相对于整张图片,评估时补边(pad)的,先补好再裁:与评估看到的一致。

    Args:
        image (PIL.Image.Image): 任意大小。
        size (int | (int, int)): 输出边长或 (高, 宽),像素。
        min_scale (float): 面积的下限,比例。
        numbers (ndarray): [4]:面积、长宽比、行、列。
        fit (Fit | None): 评估时怎样摆;``None`` 是默认的。
    """
    fit, (rows, columns) = fit or Fit(), as_pair(size, "image_size")
    if fit.kind == "pad":
        image = fit_image(image, _around(image.size, columns / rows), dataclasses.replace(fit, share=1))
    width, height = image.size
    aspect = width / height if fit.kind == "squash" else columns / rows
    area = (min_scale + (1 - min_scale) * numbers[0]) * width * height
    ratio = (3 / 4) ** (1 - 2 * numbers[1]) * aspect
    crop_width = int(np.clip(round((area * ratio) ** 0.5), 1, width))
    crop_height = int(np.clip(round((area / ratio) ** 0.5), 1, height))
    top = int(numbers[2] * (height - crop_height + 1))
    left = int(numbers[3] * (width - crop_width + 1))
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize((columns, rows), Image.Resampling[fit.interpolation.upper()], box=box)


def _around(have, aspect):
    """能放下 (宽, 高) 的图片、长宽比为 aspect 的最小的 (高, 宽)。"""
    width, height = have
    return max(height, round(width / aspect)), max(width, round(height * aspect))


def _affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


# 名字 -> 变换(图像, 强度 0–1, 符号 ±1)。种类和最大强度同 RandAugment 论文(arXiv 1909.13719)。
_RAND_AUGMENT = {
    "identity": lambda image, m, s: image,
    "auto_contrast": lambda image, m, s: ImageOps.autocontrast(image),
    "equalize": lambda image, m, s: ImageOps.equalize(image),
    "rotate": lambda image, m, s: image.rotate(s * m * 30, Image.Resampling.BILINEAR),
    "shear_x": lambda image, m, s: _affine(image, (1, s * m * 0.3, -s * m * 0.15 * image.height, 0, 1, 0)),
    "shear_y": lambda image, m, s: _affine(image, (1, 0, 0, s * m * 0.3, 1, -s * m * 0.15 * image.width)),
    "translate_x": lambda image, m, s: _affine(image, (1, 0, s * m * 0.45 * image.width, 0, 1, 0)),
    "translate_y": lambda image, m, s: _affine(image, (1, 0, 0, 0, 1, s * m * 0.45 * image.height)),
    "posterize": lambda image, m, s: ImageOps.posterize(image, 8 - round(4 * m)),
    "solarize": lambda image, m, s: ImageOps.solarize(image, round(256 * (1 - m))),
    "color": lambda image, m, s: ImageEnhance.Color(image).enhance(1 + s * m * 0.9),
    "contrast": lambda image, m, s: ImageEnhance.Contrast(image).enhance(1 + s * m * 0.9),
    "brightness": lambda image, m, s: ImageEnhance.Brightness(image).enhance(1 + s * m * 0.9),
    "sharpness": lambda image, m, s: ImageEnhance.Sharpness(image).enhance(1 + s * m * 0.9),
}
_MOVES = [_RAND_AUGMENT[name] for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")]


def rand_augment(image: Image.Image, operations: int, magnitude: float, numbers: np.ndarray) -> Image.Image:
    """RandAugment(arXiv 1909.13719):依次做几种随机挑选的变换。

    Args:
        image (PIL.Image.Image): 灰度(L)、彩色(RGB)或四个通道(RGBX)。
        operations (int): 做几种。
        magnitude (float): 强度,0–10;每次在它的一半到全部之间取。
        numbers (ndarray): [3 * operations]:每种变换的种类、符号、强度。
    """
    choices = list(_RAND_AUGMENT.values())
    for kind, sign, strength in numbers.reshape(-1, 3)[:operations]:
        level = magnitude / 10 * (0.5 + 0.5 * strength)
        change, direction = choices[int(kind * len(choices))], 1 if sign < 0.5 else -1
        if image.mode == "RGBX" and change not in _MOVES:  # 改颜色的,第四个通道不变
            *colors, fourth = image.split()
            changed = change(Image.merge("RGB", colors), level, direction)
            image = Image.merge("RGBX", (*changed.split(), fourth))
        else:
            image = change(image, level, direction)
    return image


def augment_image(
    image: Image.Image, size: Size, config: Config, numbers: np.ndarray, fit: Fit | None = None
) -> Image.Image:
    """逐张的变换:随机缩放裁剪(关闭时与评估相同)和 RandAugment。

    Args:
        image (PIL.Image.Image): 任意大小。
        size (int | (int, int)): 输出边长或 (高, 宽),像素。
        config (Config): 用到 crop_scale、rand_augment、rand_augment_magnitude。
        numbers (ndarray): [IMAGE_NUMBERS]。
        fit (Fit | None): 评估时怎样摆;``None`` 是默认的。

    Returns:
        PIL.Image.Image: 大小是 size。
    """
    if config.crop_scale < 1:
        image = random_resized_crop(image, size, config.crop_scale, numbers[:4], fit)
    else:
        image = fit_image(image, size, fit)
    if config.rand_augment:
        operations = config.rand_augment
        image = rand_augment(image, operations, config.rand_augment_magnitude, numbers[4 : 4 + 3 * operations])
    return image


def augment_batch(
    images: np.ndarray, config: Config, mean: Sequence[float], std: Sequence[float], numbers: np.ndarray
) -> np.ndarray:
    """整批的变换:补零裁剪、翻转、归一化、随机擦除。

    Args:
        images (ndarray): uint8,[B, H, W, C]。
        config (Config): 用到 crop_padding、flip、random_erasing。
        mean, std (ndarray): [C],0–1 的像素值的均值和标准差。
        numbers (ndarray): [B, NUMBERS]。

    Returns:
        ndarray: float32,[B, C, H, W]。
    """
    images = normalize(augment_pixels(images, config, numbers), mean, std)
    return random_erasing(images, config.random_erasing, numbers[:, -5:]) if config.random_erasing else images


def augment_pixels(images: np.ndarray, config: Config, numbers: np.ndarray) -> np.ndarray:
    """``augment_batch`` 里归一化之前的那些:补零裁剪、翻转;uint8 [B, H, W, C] 进,uint8 [B, H, W, C] 出。"""
    numbers = numbers[:, IMAGE_NUMBERS:]
    if config.crop_padding:
        images = random_crop(images, config.crop_padding, numbers[:, :2])
    if config.flip:
        images = random_flip(images, numbers[:, 2])
    return images


def normalize(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """0–255 的像素 [B, H, W, C] -> float32 [B, C, H, W],(像素 / 255 - mean) / std。

    Raises:
        UserError: 不是一批图像,或通道不在最后、与 mean 的个数不同。
    """
    if images.ndim != 4 or images.shape[-1] != len(mean):
        shape = f"[B, H, W, {len(mean)}]"
        raise UserError(f"normalize 的图像形状是 {list(images.shape)},应为 {shape},通道在最后,由它换到前面。")
    scale = (1 / (255 * np.asarray(std))).astype("float32")  # [C]
    shift = (-np.asarray(mean) / np.asarray(std)).astype("float32")  # [C]
    return np.ascontiguousarray((images * scale + shift).transpose(0, 3, 1, 2))  # [B, C, H, W]


def to_pixels(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """``normalize`` 的反过程:float32 [B, C, H, W] -> uint8 [B, H, W, C],用来给人看。"""
    pixels = images.transpose(0, 2, 3, 1) * np.asarray(std) + np.asarray(mean)  # [B, H, W, C]
    return np.clip(np.rint(pixels * 255), 0, 255).astype("uint8")


def mix_batch(images: np.ndarray, targets: np.ndarray, mixup: float, cutmix: float, rng: np.random.Generator) -> tuple:
    """mixup(arXiv 1710.09412)或 cutmix(arXiv 1905.04899):每张图像与隔半批的那张混合,标签按同样比例混合。

    Args:
        images (ndarray): float32,[B, C, H, W]。
        targets (ndarray): float32,[B, K],每行是一个概率分布。
        mixup, cutmix (float): Beta 分布的参数;0 关闭;都开时各一半机会。
        rng (numpy.random.Generator): 整批共用一个混合比例。

    Returns:
        tuple: 混合后的 (images, targets)。
    """
    if not (mixup or cutmix):
        return images, targets
    use_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    keep = rng.beta(cutmix, cutmix) if use_cutmix else rng.beta(mixup, mixup)
    center = rng.random(2)
    half = len(images) // 2
    other_images, other_targets = np.roll(images, half, axis=0), np.roll(targets, half, axis=0)
    if use_cutmix:
        H, W = images.shape[2:]
        height, width = H * (1 - keep) ** 0.5, W * (1 - keep) ** 0.5
        top, bottom = np.clip(np.rint(center[0] * H + np.array([-0.5, 0.5]) * height), 0, H).astype(int)
        left, right = np.clip(np.rint(center[1] * W + np.array([-0.5, 0.5]) * width), 0, W).astype(int)
        images = images.copy()
        images[:, :, top:bottom, left:right] = other_images[:, :, top:bottom, left:right]
        keep = 1 - (bottom - top) * (right - left) / (H * W)  # 实际留下的面积
    else:
        images = (keep * images + (1 - keep) * other_images).astype("float32")
    return images, (keep * targets + (1 - keep) * other_targets).astype("float32")
