"""固定的位置编码(position embedding):正弦余弦的表,不学习。"""

from __future__ import annotations

import numpy as np

from .checks import as_pair, check_positive
from .errors import UserError

__all__ = ["sincos_position_embedding", "sincos_position_embedding_1d"]


def sincos_position_embedding(grid_size: int | tuple[int, int], embed_dim: int) -> np.ndarray:
    """二维正弦余弦位置编码(2-D sin/cos position embedding)。

    一半维度编码行号,一半编码列号;每一半里前一半是 sin(pos * w_i),后一半是 cos(pos * w_i),
    w_i = 10000 ** (-i / (D/4))。公式见《Attention Is All You Need》3.5 节,二维的拼法同 MoCo v3。

    Args:
        grid_size (int | (int, int)): 图块网格的 (行数, 列数)。
        embed_dim (int): 嵌入维度 D,必须是 4 的倍数。

    Returns:
        numpy.ndarray: float32,[行数 * 列数, D],按行优先排列。

    Raises:
        UserError: embed_dim 不是 4 的倍数。
    """
    rows, columns = as_pair(grid_size, "grid_size")
    if embed_dim % 4:
        raise UserError(f"embed_dim={embed_dim} 不是 4 的倍数:二维 sincos 位置编码要把它平分给行、列的 sin 和 cos。")
    frequency = 10000.0 ** (-np.arange(embed_dim // 4) / (embed_dim / 4))  # [D/4]
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")  # 各 [行数, 列数]
    row_angle = row.reshape(-1, 1) * frequency  # [N, D/4]
    column_angle = column.reshape(-1, 1) * frequency  # [N, D/4]
    parts = [np.sin(row_angle), np.cos(row_angle), np.sin(column_angle), np.cos(column_angle)]
    return np.concatenate(parts, axis=1).astype("float32")  # [N, D]


def sincos_position_embedding_1d(num_tokens: int, embed_dim: int) -> np.ndarray:
    """一维正弦余弦位置编码(1-D sin/cos position embedding):只编码 token 的序号 pos。

    第 2i 维是 sin(pos * w_i),第 2i+1 维是 cos(pos * w_i),w_i = 10000 ** (-2i / D)。
    公式见《Attention Is All You Need》(arXiv 1706.03762)3.5 节;课程第 6 课。

    Args:
        num_tokens (int): token 数 N。
        embed_dim (int): 嵌入维度 D,必须是偶数。

    Returns:
        numpy.ndarray: float32,[N, D]。

    Raises:
        UserError: num_tokens 不是正整数,或 embed_dim 不是偶数。
    """
    check_positive(num_tokens, "num_tokens")
    if embed_dim % 2:
        raise UserError(f"embed_dim={embed_dim} 不是偶数:一维 sincos 位置编码里 sin 和 cos 成对,请改 embed_dim。")
    frequency = 10000.0 ** (-np.arange(0, embed_dim, 2) / embed_dim)  # [D/2]
    angle = np.arange(num_tokens).reshape(-1, 1) * frequency  # [N, D/2]
    pairs = np.stack([np.sin(angle), np.cos(angle)], axis=2)  # [N, D/2, 2]
    return pairs.reshape(num_tokens, embed_dim).astype("float32")  # [N, D]
