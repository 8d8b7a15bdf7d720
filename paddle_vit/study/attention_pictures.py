"""把一个运行的注意力画成 PNG。"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F

from ..attention.figures import distance_figure, filters_figure, heads_figure, maps_figure, position_figure
from ..attention.maps import attention_distance, gradient_rollout, position_table, rollout, token_map
from ..attention.recording import attention_weights, check_no_windows
from ..data.augment import normalize
from ..data.finding import expand_paths
from ..data.images import at_size, read_images
from ..data.parts import varied_images
from ..data.pixels import invert_image
from ..errors import UserError
from ..runs.loading import load_run_data
from ..system.pictures import Words, draw, save_pixels

__all__ = ["Pictures", "data_to_look_at", "draw_attention", "pictures_to_show"]


MAX_IMAGES = 16  # 一次最多画几张图像
SAMPLE = 4  # 不给图片时用验证部分的几张


@dataclasses.dataclass(frozen=True)
class Pictures:
    """要看的几张图像。

    Attributes:
        names (list[str]): 名字,用在文件名里。
        images (ndarray): uint8,[B, H, W, C],已是模型要的大小。
        labels (ndarray | None): 真实类别的下标;自己的图片没有。
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
        images = read_images(paths, info)
        if invert:
            images = [invert_image(image) for image in images]
        images = np.stack([at_size(image, info.image_size, info.fit) for image in images])  # [B, H, W, C]
        return Pictures([path.stem for path in paths], images)
    data = data_to_look_at(loaded, data_dir)
    name = "val" if len(data.val) else "test"  # 别处的图片没有验证部分
    part = getattr(data, name)
    indices, images = varied_images(part, count)  # [B], [B, H, W, C]
    return Pictures([f"{name}{i}" for i in indices], images, part.labels[indices])


def draw_attention(loaded, pictures, directory, query=None, layer=None):
    """把注意力的各种图画成 PNG;目录里上一次画的各头的图,这次没有画的删掉。

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
    words = Words()
    names = {"rollout": [], words("梯度加权", "gradient"): [], words(f"第 {layer} 层", f"layer {layer}"): []}
    distances, written = [], []

    def save(figure, name):
        written.append(save_pixels(draw(figure), Path(directory) / name))
        return written[-1]

    for i, name in enumerate(pictures.names):  # 一张一张来:权重是 [L, 1, h, N, N],图块多时很大
        weights = attention_weights(model, inputs[i : i + 1])
        matrices = rollout(weights), gradient_rollout(model, inputs[i : i + 1]), weights[layer - 1].mean(axis=1)
        for maps, matrix in zip(names.values(), matrices):
            maps.append(token_map(matrix, model, query))
        distances.append(attention_distance(weights, model))
        figure = heads_figure(weights[:, 0], model, pictures.images[i], query)
        yield save(figure, f"heads_{i + 1}_{name}.png")
    maps = {name: np.concatenate(arrays) for name, arrays in names.items()}
    title = "模型看图像的哪里" + ("" if query is None else f"(图块 {query[0]},{query[1]})")
    figure = maps_figure(pictures.images, maps, _captions(loaded, pictures, inputs, words), title)
    yield save(figure, "maps.png")
    yield save(distance_figure(np.mean(distances, axis=0)), "distance.png")
    yield save(filters_figure(model), "filters.png")
    if position_table(model) is not None:
        yield save(position_figure(model), "position.png")
    for path in Path(directory).glob("heads_*_*.png"):  # 上一次画的别的图片
        if path not in written and re.fullmatch(r"heads_\d+_.*\.png", path.name):
            path.unlink()


def _captions(loaded, pictures, inputs, words):
    """每张图像的名字、真实类别(知道的话)、预测的类别和概率。"""
    with paddle.no_grad():
        probabilities = F.softmax(loaded.model(paddle.to_tensor(inputs))).numpy()  # [B, K]
    classes = words.names(loaded.info.classes)
    if pictures.labels is None:
        truth = [words.writable(name, f"image {i + 1}") for i, name in enumerate(pictures.names)]
    else:
        truth = [classes[label] for label in pictures.labels]
    return [f"{name} → {classes[row.argmax()]} {row.max():.0%}" for name, row in zip(truth, probabilities)]
