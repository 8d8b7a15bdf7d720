"""把注意力画出来:叠在图像上,各层各头排成格子,距离、卷积核和位置编码的图。形状字母见 ``recording``。"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..compact import ConvTokenizer
from ..errors import UserError
from ..system.pictures import figure_and_words, image_grid
from ..vit import ViT
from .maps import output_tokens, patch_number, position_similarity, position_table, token_map

if TYPE_CHECKING:  # 只给编辑器看:导入它要半秒以上
    from matplotlib.figure import Figure

__all__ = [
    "distance_figure",
    "filters_figure",
    "heads_figure",
    "maps_figure",
    "overlay",
    "position_figure",
    "side_by_side",
]


def _stretch(maps):
    """每张图线性拉伸到 0–1;处处相同的图是 0。"""
    low, high = maps.min(axis=(-2, -1), keepdims=True), maps.max(axis=(-2, -1), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


def _enlarge(images, min_side):
    """小图像按整数倍放大到边长不小于 min_side 像素。"""
    factor = max(1, -(-min_side // min(images.shape[1:3])))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)  # [B, H', W', C]


def overlay(
    images: np.ndarray, maps: np.ndarray, query: tuple[int, int] | None = None, min_side: int = 64
) -> np.ndarray:
    """把图块网格上的图盖在图像上:亮黄最大,暗紫最小,每张各自拉伸。

    Args:
        images (ndarray): uint8,[B, H, W, C]。
        maps (ndarray): [B, 行数, 列数]。
        query ((int, int) | None): 给这个图块画一个框。
        min_side (int): 小图像按整数倍放大到不小于这么多像素。

    Returns:
        ndarray: uint8,[B, H', W', 3]。
    """
    from matplotlib import colormaps

    rows, columns = maps.shape[1:]
    images = _enlarge(images, min_side)[..., :3].mean(axis=-1, keepdims=True)  # 灰度,[B, H', W', 1]
    height, width = images.shape[1] // rows, images.shape[2] // columns  # 一个图块,像素
    heat = colormaps["plasma"](_stretch(maps))[..., :3] * 255  # [B, 行数, 列数, 3]
    heat = heat.repeat(height, axis=1).repeat(width, axis=2)  # [B, H', W', 3]
    mixed = 0.55 * heat + 0.45 * images
    if query is not None:
        row, column = query
        box = mixed[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        edge = max(1, min(height, width) // 10)
        inside = box[:, edge:-edge, edge:-edge].copy()
        box[:] = (0, 255, 0)
        box[:, edge:-edge, edge:-edge] = inside
    return mixed.astype("uint8")


def side_by_side(images: np.ndarray, *maps: np.ndarray, min_side: int = 64) -> np.ndarray:
    """每张图像和盖上各张图的样子排在一起:原图、第一种、第二种……,再下一张图像。

    Args:
        images (ndarray): uint8,[B, H, W, C]。
        *maps (ndarray): 每种 [B, 行数, 列数]。
        min_side (int): 小图像按整数倍放大到不小于这么多像素。

    Returns:
        ndarray: uint8,[B * (1 + 种数), H', W', 3]。
    """
    layers = [overlay(images, layer, min_side=min_side) for layer in maps]
    original = np.broadcast_to(_enlarge(images, min_side)[..., :3], layers[0].shape)
    return np.stack([original, *layers], axis=1).reshape(-1, *layers[0].shape[1:])  # [B * (1 + 种数), H', W', 3]


def _mosaic(axes, cells, columns, row_names, column_names, style):
    """一格格的图像拼成一张,行列的名字写在边上。"""
    grid = image_grid(cells, columns, min_side=1)
    height, width = (grid.shape[0] / -(-len(cells) // columns), grid.shape[1] / columns)
    axes.imshow(grid, interpolation="nearest")
    axes.set_xticks([(i + 0.5) * width - 1.5 for i in range(len(column_names))], column_names, **style)
    axes.set_yticks([(i + 0.5) * height - 1.5 for i in range(len(row_names))], row_names, **style)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    return height, width


def _head_overlays(weights, model, image, query=None):
    """一张图像各层各头的注意力,uint8 [L * h, H', W', 3];参数见 ``heads_figure``。"""
    L, h, N, _ = weights.shape
    maps = token_map(weights.reshape(-1, N, N), model, query)  # [L * h, 行数, 列数]
    if query is not None:
        query = divmod(patch_number(query, model.patch_embed.grid_size), model.patch_embed.grid_size[1])
    return overlay(np.repeat(image[None], L * h, axis=0), maps, query)


def heads_figure(
    weights: np.ndarray, model: ViT, image: np.ndarray, query: int | tuple[int, int] | None = None
) -> Figure:
    """一张图像各层各头的注意力,一行一层,一列一头。

    Args:
        weights (ndarray): [L, h, N, N],``attention_weights`` 里一张图像的那一份。
        model (ViT): 用到汇聚方式、token 的次序和图块网格。
        image (ndarray): uint8,[H, W, C]。
        query (int | (int, int) | None): 看哪个图块,见 ``token_map``。

    Returns:
        matplotlib.figure.Figure
    """
    L, h = weights.shape[:2]
    figure, words = figure_and_words(max(1.2 * h + 1, 5), 1.2 * L * image.shape[0] / image.shape[1] + 0.9)
    rows = [words(f"第 {i + 1} 层", f"layer {i + 1}") for i in range(L)]
    columns = [words(f"头 {i + 1}", f"head {i + 1}") for i in range(h)]
    cells = _head_overlays(weights, model, image, query)
    _mosaic(figure.subplots(), cells, h, rows, columns, words.style)
    who = f"图块 {query}" if query is not None else output_tokens(model)[1]
    title = f"各层各头看哪里({who};亮处多,每格各自拉伸)"
    figure.suptitle(words(title, "attention of every head"), fontsize=10, **words.style)
    return figure


def maps_figure(
    images: np.ndarray, maps: dict[str, np.ndarray], captions: list[str], title: str = "模型看图像的哪里"
) -> Figure:
    """几张图像各自的原图和几种注意力图,一行一张图像。

    每格下角的数是最亮的图块与各图块平均值之比:颜色是拉伸过的,这个数说明实际差多少。

    Args:
        images (ndarray): uint8,[B, H, W, C]。
        maps (dict[str, ndarray]): 名字 -> [B, 行数, 列数]。
        captions (list[str]): 每张图像的说明。
        title (str): 标题。

    Returns:
        matplotlib.figure.Figure
    """
    B, columns = len(images), 1 + len(maps)
    figure, words = figure_and_words(1.5 * columns + 2, 1.4 * B * images.shape[1] / images.shape[2] + 0.9)
    style = words.style
    cells = side_by_side(images, *maps.values())  # [B * columns, H', W', 3]
    names = [words("图像", "image"), *(words.writable(name, f"map {i + 1}") for i, name in enumerate(maps))]
    captions = [words.writable(text, f"image {i + 1}") for i, text in enumerate(captions)]
    axes = figure.subplots()
    height, width = _mosaic(axes, cells, columns, captions, names, style)
    for i, layer in enumerate(maps.values(), 1):
        for row, values in enumerate(layer):
            ratio = values.max() / max(values.mean(), 1e-12)
            place = ((i + 1) * width - 5, (row + 1) * height - 6)
            axes.text(*place, f"{ratio:.1f}×", ha="right", va="bottom", color="white", fontsize=7, **style)
    figure.suptitle(words.writable(title, "attention maps"), fontsize=10, **style)
    return figure


def distance_figure(distances: np.ndarray) -> Figure:
    """平均注意力距离随层数的变化,每个点一个头。

    Args:
        distances (ndarray): [L, h],像素,``attention_distance`` 的结果。

    Returns:
        matplotlib.figure.Figure
    """
    L, h = distances.shape
    figure, words = figure_and_words(5, 3.5)
    style = words.style
    axes = figure.subplots()
    for head in range(h):
        axes.scatter(np.arange(1, L + 1), distances[:, head], s=25, alpha=0.8)
    axes.plot(np.arange(1, L + 1), distances.mean(axis=1), color="gray", linestyle="--")
    axes.set_xticks(range(1, L + 1))
    axes.set_ylim(0)
    axes.grid(alpha=0.3)
    axes.set_xlabel(words("层", "layer"), **style)
    axes.set_ylabel(words("平均注意力距离(像素)", "mean attention distance (pixels)"), **style)
    axes.set_title(words("每个头看多远(每点一个头,虚线是各头平均)", "attention distance"), fontsize=10, **style)
    return figure


def _filter_components(kernels, count):
    """核的前几个主成分 [k, C, P, P] 和各自占的方差(0–1);主成分的正负号任意,这里让各元素之和不小于 0。"""
    flat = kernels.reshape(len(kernels), -1)  # [D, C * P * P]
    _, sizes, components = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    components = components[:count] * np.where(components[:count].sum(axis=1, keepdims=True) < 0, -1, 1)
    return components.reshape(-1, *kernels.shape[1:]), (sizes**2 / (sizes**2).sum())[:count]


def filters_figure(model: ViT, count: int = 28) -> Figure:
    """图块嵌入的卷积核(patch filters):前几个主成分(principal components),各自拉伸。来源:ViT 论文图 7(左)。

    由卷积得到 token 的模型,画第一层的卷积核。

    Args:
        model (ViT): 1、3 或 4 通道的模型;第四个通道不画。
        count (int): 画几个;图块的像素数 C * P * P 更少时只有那么多。

    Returns:
        matplotlib.figure.Figure

    Raises:
        UserError: 模型的通道数不是这几个。
    """
    patches = model.patch_embed
    first = patches.convolutions[0] if isinstance(patches, ConvTokenizer) else patches.patch_embedding
    kernels = first.weight.numpy()  # [D, C, P, P]
    if kernels.shape[1] not in (1, 3, 4):
        raise UserError(f"模型有 {kernels.shape[1]} 个通道:卷积核只能画 1 个(灰度)、3 个(RGB)或 4 个(画前三个)通道的。")
    components, shares = _filter_components(kernels[:, :3], count)
    columns = min(7, len(components))
    rows = -(-len(components) // columns)
    figure, words = figure_and_words(max(1.1 * columns, 5), 1.3 * rows + 0.6)
    style = words.style
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, component, share in zip(axes, components, shares):
        pixels = 0.5 + 0.5 * component.transpose(1, 2, 0) / max(np.abs(component).max(), 1e-12)  # [P, P, C],灰是 0
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{share:.1%}", fontsize=8, **style)
    title = "图块嵌入的卷积核:主成分和它占的方差(灰色是 0)"
    figure.suptitle(words(title, "principal components of the patch filters"), fontsize=10, **style)
    return figure


def position_figure(model: ViT) -> Figure:
    """位置编码两两的余弦相似度:第 r 行第 c 列的小图,是图块 (r, c) 与所有图块的相似度。来源:ViT 论文图 7(中)。

    Args:
        model (ViT): 有位置编码的模型。

    Returns:
        matplotlib.figure.Figure

    Raises:
        UserError: 模型没有位置编码。
    """
    table = position_table(model)
    if table is None:
        raise UserError("模型没有位置编码,画不了相似度:训练时用 --position-embedding learnable 或 sincos。")
    rows, columns = model.patch_embed.grid_size
    similarity = position_similarity(table).reshape(rows, columns, rows, columns)
    gap = 1 + max(rows, columns) // 10
    tiles = np.full((rows, columns, rows + gap, columns + gap), np.nan, "float32")
    tiles[:, :, :rows, :columns] = similarity
    tiles = tiles.transpose(0, 2, 1, 3).reshape(rows * (rows + gap), columns * (columns + gap))[:-gap, :-gap]
    side = 5.5
    figure, words = figure_and_words(side + 1, side * rows / columns + 0.8)
    style = words.style
    axes = figure.subplots()
    low = min(0.0, float(similarity.min()))
    image = axes.imshow(tiles, cmap="viridis", vmin=low, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.046)
    every = 1 + max(rows, columns) // 16
    shown_rows, shown_columns = range(0, rows, every), range(0, columns, every)
    axes.set_xticks([(i + 0.5) * columns + i * gap - 0.5 for i in shown_columns], map(str, shown_columns))
    axes.set_yticks([(i + 0.5) * rows + i * gap - 0.5 for i in shown_rows], map(str, shown_rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(words("图块的列", "patch column"), **style)
    axes.set_ylabel(words("图块的行", "patch row"), **style)
    axes.set_title(words("位置编码的余弦相似度", "similarity of position embeddings"), fontsize=10, **style)
    return figure
