"""把一个运行的注意力画成 PNG,和量一量注意力有多少落在图形上。"""

import dataclasses
import io
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from PIL import ImageOps

from ..attention.maps import (
    attention_distance,
    attention_weights,
    check_no_windows,
    distance_figure,
    filters_figure,
    gradient_rollout,
    heads_figure,
    maps_figure,
    position_figure,
    position_table,
    rollout,
    token_map,
)
from ..data.augment import normalize, resize_and_center_crop
from ..data.sources import evaluation_batches, read_image, varied_images
from ..deploy.predictor import expand_paths
from ..errors import UserError
from ..runs.train import build_model, load_run_data
from ..system.files import atomic_write
from ..system.runtime import seed_everything

__all__ = [
    "Pictures",
    "data_to_look_at",
    "draw_attention",
    "figure_mask",
    "figure_ratio",
    "measure_figure_share",
    "pictures_to_show",
]

MAX_IMAGES = 16  # 一次最多画几张图像
SAMPLE = 4  # 不给图片时用验证部分的几张
DARK_BACKGROUND = ("digits", "mnist", "fashion-mnist")  # 图形比背景亮的数据集


@dataclasses.dataclass(frozen=True)
class Pictures:
    """要看的几张图像。

    Attributes:
        names (list[str]): 名字,用在文件名里。
        images (ndarray): uint8,[B, H, W, C],已是模型要的大小。
        labels (list[str] | None): 真实类别;自己的图片没有。
    """

    names: list
    images: np.ndarray
    labels: object = None


def data_to_look_at(loaded, data_dir=None):
    """载入一个运行的数据集,见 ``load_run_data``;看不了的模型(Swin)在读数据之前就报错。"""
    check_no_windows(loaded.model)
    return load_run_data(loaded, data_dir)


def pictures_to_show(loaded, patterns, sample, invert=False, data_dir=None):
    """要看的图像:自己的图片,或者验证部分固定的几张(各类轮流)。

    Args:
        loaded (LoadedRun): ``load_run`` 的结果。
        patterns (list[str]): 图片文件、目录或通配符;空的就用验证部分。
        sample (int | None): 用验证部分的几张;``None`` 是 4 张。
        invert (bool): 自己的图片先反色。
        data_dir (str | None): 数据所在的目录;``None`` 用训练时的。

    Returns:
        Pictures

    Raises:
        UserError: 没有图片、坏图、太多张,或数据有误。
    """
    info = loaded.info
    if patterns and sample is not None:
        raise UserError(f"--sample {sample} 与图片不能同时给:请去掉其中一个。")
    if invert and not patterns:
        raise UserError("--invert 只用于自己的图片:请给出图片,或去掉 --invert。")
    paths = expand_paths(patterns)
    count = len(paths) if paths else SAMPLE if sample is None else sample
    if not 1 <= count <= MAX_IMAGES:
        raise UserError(f"要画 {count} 张图像:一次应为 1 到 {MAX_IMAGES} 张,请少给几张图片,或改 --sample。")
    if paths:
        images = [read_image(path, info.channels) for path in paths]
        if invert:
            images = [ImageOps.invert(image) for image in images]
        images = [np.asarray(resize_and_center_crop(image, info.image_size)) for image in images]  # [H, W(, C)]
        images = np.stack(images).reshape(count, info.image_size, info.image_size, -1)  # [B, H, W, C]
        return Pictures([path.stem for path in paths], images)
    part = data_to_look_at(loaded, data_dir).val
    indices, images = varied_images(part, count)  # [B], [B, H, W, C]
    return Pictures([f"val{i}" for i in indices], images, [info.classes[k] for k in part.labels[indices]])


def draw_attention(loaded, pictures, directory, query=None, layer=None):
    """把注意力的各种图画成 PNG。

    Args:
        loaded (LoadedRun): ``load_run`` 的结果。
        pictures (Pictures): 要看的图像。
        directory (str | Path): 写到哪里。
        query ((int, int) | None): 看哪个图块(行, 列),见 ``token_map``。
        layer (int | None): 对比图里另画第几层(从 1 起);``None`` 是最后一层。

    Yields:
        Path: 刚写好的文件。

    Raises:
        UserError: 没有这一层,图块在网格之外,模型是 Swin,或写不进去。
    """
    model, info = loaded.model, loaded.info
    check_no_windows(model)
    depth = len(model.encoders)
    layer = depth if layer is None else layer
    if not 1 <= layer <= depth:
        raise UserError(f"--layer {layer} 不合法:模型有 {depth} 层,应在 1 到 {depth} 之间。")
    inputs = normalize(pictures.images, info.mean, info.std)  # [B, C, H, W]
    names = {"rollout": [], "梯度加权": [], f"第 {layer} 层": []}
    distances = []
    for i, name in enumerate(pictures.names):  # 一张一张来:权重是 [L, 1, h, N, N],图块多时很大
        weights = attention_weights(model, inputs[i : i + 1])
        matrices = rollout(weights), gradient_rollout(model, inputs[i : i + 1]), weights[layer - 1].mean(axis=1)
        for maps, matrix in zip(names.values(), matrices):
            maps.append(token_map(matrix, model, query))
        distances.append(attention_distance(weights, model))
        figure = heads_figure(weights[:, 0], model, pictures.images[i], query)
        yield _save(figure, Path(directory) / f"heads_{i + 1}_{name}.png")
    maps = {name: np.concatenate(arrays) for name, arrays in names.items()}
    title = "模型看图像的哪里" + ("" if query is None else f"(图块 {query[0]},{query[1]})")
    figure = maps_figure(pictures.images, maps, _captions(loaded, pictures, inputs), title)
    yield _save(figure, Path(directory) / "maps.png")
    yield _save(distance_figure(np.mean(distances, axis=0)), Path(directory) / "distance.png")
    yield _save(filters_figure(model), Path(directory) / "filters.png")
    if position_table(model) is not None:
        yield _save(position_figure(model), Path(directory) / "position.png")


def _captions(loaded, pictures, inputs):
    """每张图像的名字、真实类别(知道的话)、预测的类别和概率。"""
    with paddle.no_grad():
        probabilities = F.softmax(loaded.model(paddle.to_tensor(inputs))).numpy()  # [B, K]
    predicted = [f"{loaded.info.classes[row.argmax()]} {row.max():.0%}" for row in probabilities]
    truth = pictures.labels or pictures.names
    return [f"{name} → {guess}" for name, guess in zip(truth, predicted)]


def _save(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    atomic_write(path, buffer.getvalue())
    return path


# ---- 有多少注意力落在图形上 ----


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


def figure_mask(images, grid_size):
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


def figure_ratio(maps, masks):
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


def measure_figure_share(loaded, part):
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
