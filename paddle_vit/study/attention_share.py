"""量一量注意力有多少落在图形上:与图形占的面积之比,与随机的模型、随机的图像相比。"""

from __future__ import annotations

import numpy as np

from ..attention.maps import gradient_rollout, rollout, token_map
from ..attention.recording import attention_weights
from ..data.batches import evaluation_batches
from ..data.info import DARK_BACKGROUND
from ..data.parts import ArrayPart
from ..errors import UserError
from ..runs.loading import LoadedRun, build_model
from ..system.runtime import seed_everything

__all__ = ["figure_mask", "figure_ratio", "measure_figure_share"]


def otsu_threshold(image):
    """大津法(Otsu)的阈值:把灰度分成两组,组间方差最大。

    Args:
        image (ndarray): uint8,任意形状。

    Returns:
        int: 大于它的像素是亮的一组。来源:Otsu 1979。
    """
    share = np.bincount(image.ravel(), minlength=256) / image.size  # [256]
    dark = np.cumsum(share)
    dark_sum = np.cumsum(share * np.arange(256))
    spread = (dark_sum[-1] * dark - dark_sum) ** 2 / np.maximum(dark * (1 - dark), 1e-12)
    return int(spread.argmax())


def figure_mask(images: np.ndarray, grid_size: tuple[int, int]) -> np.ndarray:
    """每个图块里图形(比 Otsu 阈值亮的像素)所占的比例。

    Args:
        images (ndarray): uint8,[B, H, W, C],图形比背景亮。
        grid_size ((int, int)): 图块网格的 (行数, 列数)。

    Returns:
        ndarray: float32,[B, 行数, 列数],0–1。
    """
    rows, columns = grid_size
    gray = images.mean(axis=-1).astype("uint8")  # [B, H, W]
    bright = np.stack([image > otsu_threshold(image) for image in gray])
    B, H, W = bright.shape
    return bright.reshape(B, rows, H // rows, columns, W // columns).mean(axis=(2, 4)).astype("float32")


def figure_ratio(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """图形上的平均注意力与背景上的平均注意力之比;1 表示不分图形和背景。

    Args:
        maps (ndarray): [B, 行数, 列数],不小于 0。
        masks (ndarray): [B, 行数, 列数],图块算作图形的份额,0–1(布尔值也可以)。

    Returns:
        ndarray: [B];没有图形或没有背景的图像是 NaN。
    """
    figure_area, background_area = masks.sum(axis=(1, 2)), (1 - masks).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        figure = (maps * masks).sum(axis=(1, 2)) / figure_area
        ratio = figure / ((maps * (1 - masks)).sum(axis=(1, 2)) / background_area)
    return np.where((figure_area > 0) & (background_area > 0), ratio, np.nan)


def _part_maps(model, part, info, batch_size=64):
    """一部分数据的各种注意力图(名字 -> [n, 行数, 列数])和图形的位置 [n, 行数, 列数]。"""
    maps, masks = {}, []
    for indices, inputs in evaluation_batches(part, info, batch_size):
        weights = attention_weights(model, inputs)
        matrices = {
            "rollout": rollout(weights),
            "rollout,不算残差": rollout(weights, residual=0.0),
            "梯度加权": gradient_rollout(model, inputs),
            "最后一层": weights[-1].mean(axis=1),
        }
        for name, matrix in matrices.items():
            maps.setdefault(name, []).append(token_map(matrix, model))
        (images,) = part.fetch([(indices, None)])
        masks.append(figure_mask(images, model.patch_embed.grid_size))
    return {name: np.concatenate(arrays) for name, arrays in maps.items()}, np.concatenate(masks)


def measure_figure_share(loaded: LoadedRun, part: ArrayPart) -> list[list[list[str]]]:
    """量注意力落在图形上还是背景上,与两个对照比较。

    图形的图块是含有图形像素的图块,背景的图块里一个也没有;「按像素」一列则按图块里图形的面积分摊。
    对照一:把图形的位置换成另一张图像的。比值不变,说明模型看的是「图形常在的地方」,而不是这张图像里的图形。
    对照二:同样的设置和种子,没有训练过的模型。

    Args:
        loaded (LoadedRun): ``load_run`` 的结果。
        part (ArrayPart): 一部分数据。

    Returns:
        list[list[list[str]]]: 三张表,第一行是表头:各种图的比值(各张图像的平均,± 后是 95 % 置信区间的一半)、
        各种图块的 rollout 权重(1 是所有图块的平均)、各类的比值。

    Raises:
        UserError: 数据集的图形不一定比背景亮。
    """
    if loaded.info.name not in DARK_BACKGROUND:
        raise UserError(f"--measure 只能用于黑底的数据集({'、'.join(DARK_BACKGROUND)}):{loaded.info.name} 分不出图形。")
    maps, shares = _part_maps(loaded.model, part, loaded.info)
    seed_everything(loaded.config.seed)
    untrained, _ = _part_maps(build_model(loaded.config, loaded.info), part, loaded.info)
    others = np.random.default_rng(0).permutation(len(shares))
    masks = (shares > 0).astype("float32")
    table = [["注意力图", "图形/背景", "比值大于 1 的图像", "错配图形", "未训练", "按像素"]]
    classes = [["类别", *maps], *([name] for name in loaded.info.classes)]
    for name in maps:
        ratios = figure_ratio(maps[name], masks)
        others_ratios = figure_ratio(maps[name], masks[others])
        rest = [others_ratios, figure_ratio(untrained[name], masks), figure_ratio(maps[name], shares)]
        above = f"{(ratios > 1).sum() / max((~np.isnan(ratios)).sum(), 1):.1%}"
        table.append([name, _mean_with_interval(ratios), above, *map(_mean_with_interval, rest)])
        for label, row in enumerate(classes[1:]):
            row.append(_mean(ratios[part.labels == label]))
    return [table, _weight_by_share(maps["rollout"], shares, others), classes]


def _weight_by_share(maps, shares, others):
    """图块里图形占多少 -> 平均的注意力(1 是所有图块的平均),和错配图形时的。"""
    maps = maps / maps.mean(axis=(1, 2), keepdims=True)
    kinds = {
        "没有图形": shares == 0,
        "一半以下": (shares > 0) & (shares <= 0.5),
        "一半以上": (shares > 0.5) & (shares < 1),
        "全是图形": shares == 1,
    }
    table = [["图块", "占图块的", "rollout", "错配图形"]]
    for name, chosen in kinds.items():
        table.append([name, f"{chosen.mean():.0%}", _mean(maps[chosen]), _mean(maps[chosen[others]])])
    return table


def _mean(values):
    values = values[~np.isnan(values)]
    return f"{values.mean():.2f}" if len(values) else "—"


def _mean_with_interval(values):
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return "—"
    return f"{values.mean():.3f} ± {1.96 * values.std(ddof=1) / len(values) ** 0.5:.3f}"
