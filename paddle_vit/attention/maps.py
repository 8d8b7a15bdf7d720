"""从注意力权重到图像上的图:rollout、梯度加权的 rollout、注意力距离、位置编码的相似度。形状字母见 ``recording``。"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError
from ..vit import ViT
from .recording import borrowed_gradients, evaluating, record_attention

__all__ = [
    "attention_distance",
    "gradient_rollout",
    "output_tokens",
    "patch_number",
    "position_similarity",
    "position_table",
    "rollout",
    "token_map",
]


def rollout(weights: np.ndarray, residual: float = 0.5) -> np.ndarray:
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


def gradient_rollout(
    model: nn.Layer, images: np.ndarray | paddle.Tensor, class_index: int | Sequence[int] | None = None
) -> np.ndarray:
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
    with evaluating(model), borrowed_gradients(model), paddle.enable_grad(), record_attention(model) as weights:
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


def patch_number(query: int | tuple[int, int], grid_size: tuple[int, int]) -> int:
    """图块的行列或序号 -> 序号。"""
    rows, columns = grid_size
    row, column = query if isinstance(query, (tuple, list)) else divmod(query, columns)
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(f"图块 {row},{column} 在网格之外:共 {rows} 行 {columns} 列,行列都从 0 数起。")
    return row * columns + column


def output_tokens(model: nn.Layer) -> tuple[slice, str]:
    """分类头用到的 token 的位置(切片)和名字:class token(和蒸馏 token),或者全部图块。"""
    if model.pool != "cls":
        return slice(model.num_prefix_tokens, None), "所有图块平均"
    if model.distillation_token is None:
        return slice(0, 1), "class token"
    return slice(0, 2), "class token 和蒸馏 token 平均"


def token_map(matrix: np.ndarray, model: ViT, query: int | tuple[int, int] | None = None) -> np.ndarray:
    """从 token 对 token 的矩阵取出一张图块网格上的图。

    Args:
        matrix (ndarray): [B, N, N],如 ``rollout`` 的结果或某一层某一头的权重。
        model (ViT): 用到汇聚方式、token 的次序和图块网格。
        query (int | (int, int) | None): 看哪个图块的那一行,给序号(按行优先)或 (行, 列);
            ``None`` 看分类头用到的 token 的平均:``pool='cls'`` 时是 class token(有蒸馏 token 时还有它),否则是所有图块
            (``pool='seq'`` 也是普通的平均,不按汇聚的权重)。

    Returns:
        ndarray: [B, 行数, 列数]。

    Raises:
        UserError: 图块在网格之外。
    """
    prefix = model.num_prefix_tokens
    if query is not None:
        row = matrix[:, prefix + patch_number(query, model.patch_embed.grid_size)]  # [B, N]
    else:
        row = matrix[:, output_tokens(model)[0]].mean(axis=1)  # [B, N]
    return row[:, prefix:].reshape(-1, *model.patch_embed.grid_size)  # [B, 行数, 列数]


def attention_distance(weights: np.ndarray, model: ViT) -> np.ndarray:
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


def position_table(model: nn.Layer) -> np.ndarray | None:
    """图块的位置编码,ndarray [N, D](不含 class token 和蒸馏 token 的);模型没有位置编码时是 ``None``。"""
    if model.position_embedding is None:
        return None
    return model.position_embedding.numpy()[0, -model.patch_embed.num_patches :]  # [N, D]


def position_similarity(table: np.ndarray) -> np.ndarray:
    """两两位置编码的余弦相似度(cosine similarity)。来源:ViT 论文图 7(中)。

    Args:
        table (ndarray): [N, D]。

    Returns:
        ndarray: [N, N],-1 到 1;零向量与任何向量的相似度是 0。
    """
    length = np.sqrt((table**2).sum(axis=1, keepdims=True))  # [N, 1]
    unit = table / np.maximum(length, 1e-12)
    return unit @ unit.T  # [N, N]
