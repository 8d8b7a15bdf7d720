"""画给人看的图:图像网格、混淆矩阵、错得最离谱的图像。matplotlib 只在用到时导入。"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .files import atomic_write

if TYPE_CHECKING:  # 只给编辑器看:导入它要半秒以上
    from matplotlib.figure import Figure

__all__ = [
    "Words",
    "confusion_figure",
    "draw",
    "figure_and_words",
    "font_advice",
    "image_grid",
    "mistakes_figure",
    "save_pixels",
    "to_array",
    "to_pillow",
    "use_chinese_font",
]

_CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "SimHei",
    "Heiti SC",
    "Songti SC",
    "SimSun",
    "Microsoft JhengHei",
    "Noto Sans SC",
    "Source Han Sans CN",
    "Noto Serif CJK SC",
    "Noto Serif CJK JP",
    "LXGW WenKai",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
)


def _chinese_font():
    """装了的第一个中文字体的名字;一个也没有时是 ``None``。"""
    from matplotlib import font_manager

    def first():
        installed = {font.name for font in font_manager.fontManager.ttflist}
        return next((name for name in _CJK_FONTS if name in installed), None)

    if first() is None:  # matplotlib 记着的字体可能比系统的旧:刚装的还不在里面
        known = {font.fname for font in font_manager.fontManager.ttflist}
        for path in sorted({*font_manager.findSystemFonts()} - known):
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # 读不了的字体文件
                font_manager.fontManager.addfont(path)
    return first()


def _in_default_font(text):
    """matplotlib 自带的字体写不写得出。"""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return all(font.get_char_index(ord(letter)) for letter in text)


def _families(font):
    """中文字体里没有的字符(如某些符号)由 DejaVu Sans 补上。"""
    return [font, "DejaVu Sans"]


def use_chinese_font() -> str | None:
    """让之后用 ``matplotlib.pyplot`` 画的图能写中文,在笔记本(notebook)开头调用一次。

    改的是全局设置 ``matplotlib.rcParams``:字体,以及负号用普通的减号(有的中文字体没有 U+2212)。

    Returns:
        str | None: 用上的字体名;没有装中文字体时什么也不改,返回 ``None``。
    """
    import matplotlib

    font = _chinese_font()
    if font is not None:
        matplotlib.rcParams.update({"font.family": _families(font), "axes.unicode_minus": False})
    return font


def font_advice() -> str:
    """没有中文字体时,告诉使用者怎样安装的一行(连同换行);有的话是空的。"""
    if _chinese_font() is not None:
        return ""
    return (
        "提示:没有中文字体,图里的说明是英文,中文的类别名写成 #序号。"
        "Debian、Ubuntu 上运行 sudo apt-get install fonts-noto-cjk,再画就有了。\n"
    )


class Words:
    """图里的文字:有中文字体时写中文,没有时写英文。

    Attributes:
        font (str | None): 能写中文的字体名。
        style (dict): 文字的样式:用得上的中文字体;类别名里的 $ 不当作公式。
        legend (dict): 图例的字体。
    """

    def __init__(self):
        self.font = font = _chinese_font()
        self.style = {"parse_math": False, **({"fontfamily": _families(font)} if font else {})}
        self.legend = {"size": 8, **({"family": font} if font else {})}

    def __call__(self, chinese: str, english: str) -> str:
        """``chinese``,没有中文字体时 ``english``。"""
        return chinese if self.font else english

    def writable(self, text: str, otherwise: str) -> str:
        """``text``;没有中文字体、而它写不出来时 ``otherwise``。"""
        return text if self.font or _in_default_font(text) else otherwise

    def names(self, classes: Sequence[str]) -> list[str]:
        """类别名;写不出来的写成 #3 这样的序号。"""
        return [self.writable(name, f"#{i}") for i, name in enumerate(classes)]


def figure_and_words(width: float, height: float) -> tuple[Figure, Words]:
    """一张不经过 pyplot 的 matplotlib 图(不占全局状态,单位英寸),和写在它上面的 ``Words``。"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, Words()


def draw(image: Figure | np.ndarray) -> np.ndarray:
    """``figure_and_words`` 的图画成像素,一批图像(uint8 [B, H, W, C])排成网格:uint8 [高, 宽, 3]。"""
    if isinstance(image, np.ndarray):
        return image_grid(image)
    canvas: Any = image.canvas
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]  # 底是白的,用不着透明度


def save_pixels(pixels: np.ndarray, path: str | Path) -> Path:
    """把像素(uint8 [高, 宽, 3])存成 PNG,目录没有就建;返回它的路径。"""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    atomic_write(path, buffer.getvalue())
    return Path(path)


def image_grid(images: np.ndarray, columns: int = 8, min_side: int = 64) -> np.ndarray:
    """把一批图像拼成网格。

    Args:
        images (ndarray): uint8,[B, H, W, C],C 为 1、3 或 4(第四个通道不画)。
        columns (int): 每行几张。
        min_side (int): 小图像按整数倍放大到不小于这么多像素。

    Returns:
        ndarray: uint8,[网格高, 网格宽, 3]。
    """
    B, H, W, _ = images.shape
    columns = min(columns, B)
    rows = -(-B // columns)
    factor = max(1, -(-min_side // min(H, W)))
    images = images[..., :3].repeat(factor, axis=1).repeat(factor, axis=2)
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    height, width = H * factor + 2, W * factor + 2  # 2 像素的白边
    grid = np.full((rows * height, columns * width, 3), 255, "uint8")
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        grid[top : top + height - 2, left : left + width - 2] = image
    return grid


def confusion_figure(confusion: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """混淆矩阵(confusion matrix)。

    Args:
        confusion (ndarray): int,[K, K],行是真实类别,列是预测类别。
        classes (Sequence[str]): 类别名。
        title (str): 标题。

    Returns:
        matplotlib.figure.Figure
    """
    K = len(classes)
    side = min(4 + 0.35 * K, 16)
    figure, words = figure_and_words(side + 1, side)
    style = words.style
    axes = figure.subplots()
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046)
    if K <= 30:
        names = words.names(classes)
        axes.set_xticks(range(K), names, rotation=45, ha="right", **style)
        axes.set_yticks(range(K), names, **style)
        for i in range(K):
            for j in range(K):
                if confusion[i, j]:
                    color = "white" if share[i, j] > 0.5 else "black"
                    axes.text(j, i, str(confusion[i, j]), ha="center", va="center", fontsize=8, color=color)
    axes.set_xlabel(words("预测类别", "predicted"), **style)
    axes.set_ylabel(words("真实类别", "true"), **style)
    axes.set_title(words.writable(title, "confusion matrix"), **style)
    return figure


def mistakes_figure(
    images: list[np.ndarray], guesses: list[tuple[int, int, float]], classes: Sequence[str], title: str
) -> Figure:
    """错得最离谱的图像,每张上方写真实类别和预测类别。

    Args:
        images (list[ndarray]): uint8,[H, W, C]。
        guesses (list[tuple[int, int, float]]): 每张的 (真实类别, 预测类别, 预测概率 0–1),类别是下标。
        classes (Sequence[str]): 类别名。
        title (str): 标题。

    Returns:
        matplotlib.figure.Figure
    """
    columns = min(6, max(len(images), 1))
    rows = max(-(-len(images) // columns), 1)
    figure, words = figure_and_words(1.6 * columns, 1.9 * rows + 0.5)
    style, names = words.style, words.names(classes)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, image, (true, predicted, probability) in zip(axes, images, guesses):
        axis.imshow(to_pillow(image), cmap="gray")
        axis.set_title(f"{names[true]} → {names[predicted]} {probability:.0%}", fontsize=9, **style)
    figure.suptitle(words.writable(title, "worst mistakes (true → predicted)"), **style)
    return figure


def to_pillow(array: np.ndarray) -> Image.Image:
    """数组 [H, W, C] -> Pillow 图像,C 为 1 是灰度。"""
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def to_array(image: Image.Image) -> np.ndarray:
    """Pillow 图像 -> 数组 [H, W, C]:uint8,模式 F 的是 float32。"""
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array  # [H, W, C]
