"""看见注意力:记录注意力权重,算 rollout、梯度加权和注意力距离,画成图。

数组都是 NumPy float32。除了通用的字母,L 是层数;权重的 N 是全部 token 数,图块排在最后,前面是
class token、蒸馏 token 和寄存器 token(共 ``model.num_prefix_tokens`` 个,可以没有)。
"""

import contextlib

import numpy as np
import paddle

from ..errors import UserError
from ..family.swin import WindowAttention
from ..layers import Attention
from ..system.pictures import figure_and_font, image_grid, text_style

__all__ = [
    "attention_distance",
    "attention_weights",
    "distance_figure",
    "filters_figure",
    "gradient_rollout",
    "has_windows",
    "heads_figure",
    "maps_figure",
    "overlay",
    "position_figure",
    "position_similarity",
    "position_table",
    "record_attention",
    "rollout",
    "side_by_side",
    "token_map",
]

# ---- 记录 ----


def has_windows(model):
    """模型的注意力是不是在小窗口里(Swin):那样就没有全部 token 之间的权重,也就没有注意力图。"""
    return any(isinstance(layer, WindowAttention) for layer in model.sublayers(include_self=True))


def check_no_windows(model):
    """模型的注意力在窗口里时抛出 ``UserError``。"""
    if has_windows(model):
        raise UserError(f"{type(model).__name__} 的注意力在小窗口里,画不成整张图像的注意力图:请换成 ViT 或 DeiT。")


@contextlib.contextmanager
def record_attention(model):
    """在 with 里记录每一层的注意力权重;离开以后模型照旧走不算权重的快路径。

    做法是钩子(forward hook):每个 ``Attention`` 算完,用同样的输入再算一遍并要权重,用这一遍的输出代替原来的,
    所以权重在计算图里。要权重的梯度,用 ``weights.retain_grads()`` 和 ``backward()``;CPU 上 ``paddle.grad``
    不能穿过本项目的快速算子。有随机失活的模型请先 ``model.eval()``,不然记录会多用一次随机数。

    Args:
        model (nn.Layer): 含有 ``Attention`` 的模型。

    Yields:
        list[Tensor]: 每次前向之后是 L 个 [B, h, N, N],从第一层到最后一层。

    Raises:
        UserError: 模型里没有 ``Attention``,或它是 Swin。
    """
    check_no_windows(model)
    layers = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, Attention)]
    if not layers:
        raise UserError(f"{type(model).__name__} 里没有 Attention 层:请给 ViT 或含有 Attention 的模型。")
    recorded = []

    def start(layer, inputs):
        recorded.clear()

    def record(layer, inputs, output):
        z, attn_weights = layer.forward(inputs[0], need_weights=True)
        recorded.append(attn_weights)
        return z, attn_weights

    hooks = [model.register_forward_pre_hook(start), *(layer.register_forward_post_hook(record) for layer in layers)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _evaluating(model):
    """在 with 里模型处于评估状态;离开时各层还原。"""
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextlib.contextmanager
def _borrowed_gradients(model):
    """在 with 里所有参数都求梯度;离开时梯度和冻结与否还原。

    冻结着不行:Paddle 3.3.1 在 CPU 上,LayerNorm 的 weight 不求梯度时,对输入的梯度也会漏乘 weight。
    """
    saved = [(p, p.stop_gradient, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    for parameter, _, _ in saved:
        parameter.stop_gradient = False
    try:
        yield
    finally:
        for parameter, stop_gradient, grad in saved:
            parameter.clear_gradient(set_to_zero=False)
            if grad is not None:
                parameter.grad = grad
            parameter.stop_gradient = stop_gradient


def attention_weights(model, images):
    """各层各头的注意力权重,每行之和为 1。

    Args:
        model (nn.Layer): ``ViT``;按评估状态计算,之后恢复原来的状态。
        images (ndarray | Tensor): float32,[B, C, H, W],已归一化。

    Returns:
        ndarray: [L, B, h, N, N]。

    Raises:
        UserError: 模型里没有 ``Attention``,或图像的形状与模型不符。
    """
    with _evaluating(model), paddle.no_grad(), record_attention(model) as weights:
        model(paddle.to_tensor(images))
    return np.stack([layer.astype("float32").numpy() for layer in weights])


# ---- 从权重到图 ----


def rollout(weights, residual=0.5):
    """注意力展开(attention rollout):把各层的注意力连乘起来,近似每个输出 token 用了多少每个输入图块。

    每层先对头取平均,再与残差连接各占一半,A = 0.5 A + 0.5 I;结果是 A_L ... A_2 A_1,每行之和为 1。
    来源:Abnar 和 Zuidema(arXiv 2005.00928)。

    Args:
        weights (ndarray): [L, B, h, N, N]。
        residual (float): 残差连接占的份额,0–1;论文用 0.5。

    Returns:
        ndarray: [B, N, N],行是输出 token,列是输入 token。
    """
    identity = np.eye(weights.shape[-1], dtype="float32")
    result = identity
    for layer in weights.mean(axis=2):  # 对头平均,[B, N, N]
        result = ((1 - residual) * layer + residual * identity) @ result
    return result


def gradient_rollout(model, images, class_index=None):
    """梯度加权的注意力:只留下让某一类的 logit 变大的那些注意力,再逐层累积。

    每层 A = mean_h(relu(dY/dA * A)),R 从单位矩阵开始,R = R + A R;返回 R - I(单位矩阵只说每个 token 用了自己)。
    来源:Chefer 等(arXiv 2103.15679)式 5、6。

    Args:
        model (nn.Layer): ``ViT``;按评估状态计算,参数的梯度不变。
        images (ndarray | Tensor): float32,[B, C, H, W],已归一化。
        class_index (int | Sequence[int] | None): 看哪一类(每张图像可以不同);``None`` 是模型预测的类。

    Returns:
        ndarray: [B, N, N],不小于 0,行之和不是 1。

    Raises:
        UserError: 模型里没有 ``Attention``、没有这一类,或图像的形状与模型不符。
    """
    with _evaluating(model), _borrowed_gradients(model), paddle.enable_grad(), record_attention(model) as weights:
        logits = model(paddle.to_tensor(images))  # [B, K]
        classes = logits.numpy().argmax(axis=1) if class_index is None else np.asarray(class_index)
        B, K = logits.shape
        if (classes < 0).any() or (classes >= K).any():
            raise UserError(f"class_index={class_index} 不合法:模型有 {K} 类,应在 0 到 {K - 1} 之间。")
        for layer in weights:
            layer.retain_grads()
        chosen = np.zeros((B, K), "float32")
        chosen[np.arange(B), classes] = 1
        (logits * paddle.to_tensor(chosen)).sum().backward()
    identity = np.eye(weights[0].shape[-1], dtype="float32")
    result = identity
    for layer in weights:
        relevance = np.maximum(layer.grad.numpy() * layer.numpy(), 0).mean(axis=1)  # [B, N, N]
        result = result + relevance @ result
    return result - identity


def _patch_number(query, grid_size):
    """图块的行列或序号 -> 序号。"""
    rows, columns = grid_size
    row, column = query if isinstance(query, (tuple, list)) else divmod(query, columns)
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(f"图块 {row},{column} 在网格之外:共 {rows} 行 {columns} 列,行列都从 0 数起。")
    return row * columns + column


def _output_tokens(model):
    """分类头用到的 token 的位置(切片)和名字:class token(和蒸馏 token),或者全部图块。"""
    if model.pool == "avg":
        return slice(model.num_prefix_tokens, None), "所有图块平均"
    if model.distillation_token is None:
        return slice(0, 1), "class token"
    return slice(0, 2), "class token 和蒸馏 token 平均"


def token_map(matrix, model, query=None):
    """从 token 对 token 的矩阵取出一张图块网格上的图。

    Args:
        matrix (ndarray): [B, N, N],如 ``rollout`` 的结果或某一层某一头的权重。
        model (ViT): 用到汇聚方式、token 的次序和图块网格。
        query (int | (int, int) | None): 看哪个图块的那一行,给序号(按行优先)或 (行, 列);
            ``None`` 看分类头用到的 token 的平均:``pool='cls'`` 时是 class token(有蒸馏 token 时还有它),否则是所有图块。

    Returns:
        ndarray: [B, 行数, 列数]。

    Raises:
        UserError: 图块在网格之外。
    """
    prefix = model.num_prefix_tokens
    if query is not None:
        row = matrix[:, prefix + _patch_number(query, model.patch_embed.grid_size)]  # [B, N]
    else:
        row = matrix[:, _output_tokens(model)[0]].mean(axis=1)  # [B, N]
    return row[:, prefix:].reshape(-1, *model.patch_embed.grid_size)  # [B, 行数, 列数]


def attention_distance(weights, model):
    """平均注意力距离(mean attention distance):各头平均看多远,类似卷积的感受野。

    图块中心之间的距离按注意力加权平均;只算图块之间的注意力,每行重新归一化。来源:ViT 论文图 7(右)。

    Args:
        weights (ndarray): [L, B, h, N, N]。
        model (ViT): 用到 token 的次序、图块网格和图块大小。

    Returns:
        ndarray: [L, h],像素。
    """
    prefix = model.num_prefix_tokens
    weights = weights[..., prefix:, prefix:]  # [L, B, h, N, N],N 从这里起是图块数
    centers = np.indices(model.patch_embed.grid_size).reshape(2, -1).T  # [N, 2],单位是图块
    centers = centers * np.array(model.patch_embed.patch_size)  # 像素
    distances = np.sqrt(((centers[:, None] - centers[None]) ** 2).sum(axis=-1))  # [N, N]
    mean = (weights * distances).sum(axis=-1) / weights.sum(axis=-1)  # [L, B, h, N]
    return mean.mean(axis=(1, 3)).astype("float32")  # [L, h]


def position_table(model):
    """图块的位置编码,ndarray [N, D](不含 class token 和蒸馏 token 的);模型没有位置编码时是 ``None``。"""
    if model.position_embedding is None:
        return None
    return model.position_embedding.numpy()[0, -model.patch_embed.num_patches :]  # [N, D]


def position_similarity(table):
    """两两位置编码的余弦相似度(cosine similarity)。来源:ViT 论文图 7(中)。

    Args:
        table (ndarray): [N, D]。

    Returns:
        ndarray: [N, N],-1 到 1;零向量与任何向量的相似度是 0。
    """
    length = np.sqrt((table**2).sum(axis=1, keepdims=True))  # [N, 1]
    unit = table / np.maximum(length, 1e-12)
    return unit @ unit.T  # [N, N]


# ---- 画图 ----


def _stretch(maps):
    """每张图线性拉伸到 0–1;处处相同的图是 0。"""
    low, high = maps.min(axis=(-2, -1), keepdims=True), maps.max(axis=(-2, -1), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


def _enlarge(images, min_side):
    """小图像按整数倍放大到边长不小于 min_side 像素。"""
    factor = max(1, -(-min_side // min(images.shape[1:3])))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)  # [B, H', W', C]


def overlay(images, maps, query=None, min_side=64):
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
    images = _enlarge(images, min_side).mean(axis=-1, keepdims=True)  # 灰度,[B, H', W', 1]
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


def side_by_side(images, *maps, min_side=64):
    """每张图像和盖上各张图的样子排在一起:原图、第一种、第二种……,再下一张图像。

    Args:
        images (ndarray): uint8,[B, H, W, C]。
        *maps (ndarray): 每种 [B, 行数, 列数]。
        min_side (int): 小图像按整数倍放大到不小于这么多像素。

    Returns:
        ndarray: uint8,[B * (1 + 种数), H', W', 3]。
    """
    layers = [overlay(images, layer, min_side=min_side) for layer in maps]
    original = np.broadcast_to(_enlarge(images, min_side), layers[0].shape)
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
        query = divmod(_patch_number(query, model.patch_embed.grid_size), model.patch_embed.grid_size[1])
    return overlay(np.repeat(image[None], L * h, axis=0), maps, query)


def heads_figure(weights, model, image, query=None):
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
    figure, font = figure_and_font(max(1.2 * h + 1, 5), 1.2 * L * image.shape[0] / image.shape[1] + 0.9)
    rows = [f"第 {i + 1} 层" if font else f"layer {i + 1}" for i in range(L)]
    columns = [f"头 {i + 1}" if font else f"head {i + 1}" for i in range(h)]
    cells = _head_overlays(weights, model, image, query)
    _mosaic(figure.subplots(), cells, h, rows, columns, text_style(font))
    who = f"图块 {query}" if query is not None else _output_tokens(model)[1]
    title = f"各层各头看哪里({who};亮处多,每格各自拉伸)"
    figure.suptitle(title if font else "attention of every head", fontsize=10, **text_style(font))
    return figure


def maps_figure(images, maps, captions, title="模型看图像的哪里"):
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
    figure, font = figure_and_font(1.5 * columns + 2, 1.4 * B * images.shape[1] / images.shape[2] + 0.9)
    style = text_style(font)
    cells = side_by_side(images, *maps.values())  # [B * columns, H', W', 3]
    names = ["图像", *maps] if font else ["image", *(f"map {i + 1}" for i in range(len(maps)))]
    captions = captions if font else [text if text.isascii() else str(i) for i, text in enumerate(captions)]
    axes = figure.subplots()
    height, width = _mosaic(axes, cells, columns, captions, names, style)
    for i, layer in enumerate(maps.values(), 1):
        for row, values in enumerate(layer):
            ratio = values.max() / max(values.mean(), 1e-12)
            place = ((i + 1) * width - 5, (row + 1) * height - 6)
            axes.text(*place, f"{ratio:.1f}×", ha="right", va="bottom", color="white", fontsize=7, **style)
    figure.suptitle(title if font or title.isascii() else "attention maps", fontsize=10, **style)
    return figure


def distance_figure(distances):
    """平均注意力距离随层数的变化,每个点一个头。

    Args:
        distances (ndarray): [L, h],像素,``attention_distance`` 的结果。

    Returns:
        matplotlib.figure.Figure
    """
    L, h = distances.shape
    figure, font = figure_and_font(5, 3.5)
    style = text_style(font)
    axes = figure.subplots()
    for head in range(h):
        axes.scatter(np.arange(1, L + 1), distances[:, head], s=25, alpha=0.8)
    axes.plot(np.arange(1, L + 1), distances.mean(axis=1), color="gray", linestyle="--")
    axes.set_xticks(range(1, L + 1))
    axes.set_ylim(0)
    axes.grid(alpha=0.3)
    axes.set_xlabel("层" if font else "layer", **style)
    axes.set_ylabel("平均注意力距离(像素)" if font else "mean attention distance (pixels)", **style)
    axes.set_title("每个头看多远(每点一个头,虚线是各头平均)" if font else "attention distance", fontsize=10, **style)
    return figure


def _filter_components(kernels, count):
    """核的前几个主成分 [k, C, P, P] 和各自占的方差(0–1);主成分的正负号任意,这里让各元素之和不小于 0。"""
    flat = kernels.reshape(len(kernels), -1)  # [D, C * P * P]
    _, sizes, components = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    components = components[:count] * np.where(components[:count].sum(axis=1, keepdims=True) < 0, -1, 1)
    return components.reshape(-1, *kernels.shape[1:]), (sizes**2 / (sizes**2).sum())[:count]


def filters_figure(model, count=28):
    """图块嵌入的卷积核(patch filters):前几个主成分(principal components),各自拉伸。来源:ViT 论文图 7(左)。

    Args:
        model (ViT): 1 或 3 通道的模型。
        count (int): 画几个;图块的像素数 C * P * P 更少时只有那么多。

    Returns:
        matplotlib.figure.Figure

    Raises:
        UserError: 模型的通道数不是 1 或 3。
    """
    kernels = model.patch_embed.patch_embedding.weight.numpy()  # [D, C, P, P]
    if kernels.shape[1] not in (1, 3):
        raise UserError(f"模型有 {kernels.shape[1]} 个通道:卷积核只能画 1 个(灰度)或 3 个(RGB)通道的。")
    components, shares = _filter_components(kernels, count)
    columns = min(7, len(components))
    rows = -(-len(components) // columns)
    figure, font = figure_and_font(max(1.1 * columns, 5), 1.3 * rows + 0.6)
    style = text_style(font)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for axis, component, share in zip(axes, components, shares):
        pixels = 0.5 + 0.5 * component.transpose(1, 2, 0) / max(np.abs(component).max(), 1e-12)  # [P, P, C],灰是 0
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{share:.1%}", fontsize=8, **style)
    title = "图块嵌入的卷积核:主成分和它占的方差(灰色是 0)"
    figure.suptitle(title if font else "principal components of the patch filters", fontsize=10, **style)
    return figure


def position_figure(model):
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
    figure, font = figure_and_font(side + 1, side * rows / columns + 0.8)
    style = text_style(font)
    axes = figure.subplots()
    low = min(0.0, float(similarity.min()))
    image = axes.imshow(tiles, cmap="viridis", vmin=low, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.046)
    every = 1 + max(rows, columns) // 16
    axes.set_xticks([(i + 0.5) * columns + i * gap - 0.5 for i in range(0, columns, every)], range(0, columns, every))
    axes.set_yticks([(i + 0.5) * rows + i * gap - 0.5 for i in range(0, rows, every)], range(0, rows, every))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("图块的列" if font else "patch column", **style)
    axes.set_ylabel("图块的行" if font else "patch row", **style)
    axes.set_title("位置编码的余弦相似度" if font else "similarity of position embeddings", fontsize=10, **style)
    return figure
