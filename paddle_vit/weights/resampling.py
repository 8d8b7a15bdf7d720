"""换图像边长、窗口或图块边长时,把权重里按网格排的表改成另一种大小。双三次插值(bicubic)写成矩阵乘法:行一次,列一次。

与 PyTorch 的 ``F.interpolate(mode="bicubic", align_corners=False)`` 相同,有无 ``antialias=True`` 两种。
"""

from __future__ import annotations

import numpy as np

__all__ = ["bicubic_matrix", "resize_bias_table", "resize_patch_kernel", "resize_positions"]


def _cubic(x, a):
    """三次卷积核(Keys, 1981);x 是到采样点的距离,a 是核的参数。"""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def bicubic_matrix(old: int, new: int, antialias: bool) -> np.ndarray:
    """一维双三次插值的矩阵 [new, old],行和为 1。

    Args:
        old, new (int): 原来和后来的长度。
        antialias (bool): 缩小时把核放宽到 old / new 倍,免得混叠;核的参数随之是 -0.5,否则是 -0.75。

    Returns:
        numpy.ndarray: float64。
    """
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale - 0.5  # 每个新点在旧网格上的位置,[new]
    if antialias:
        width = max(scale, 1.0)
        weights = _cubic((np.arange(old) - centers[:, None]) / width, -0.5)  # [new, old];网格之外的点不算
        return weights / weights.sum(axis=1, keepdims=True)
    first = np.floor(centers).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        source = first + tap
        index = np.clip(source, 0, old - 1)  # 网格之外的点取边上的值
        np.add.at(matrix, (np.arange(new), index), _cubic(centers - source, -0.75))
    return matrix


def _resize_grid(grid, size, antialias):
    """[H, W, D] -> [*size, D]。"""
    rows, columns = (bicubic_matrix(old, new, antialias) for old, new in zip(grid.shape, size))
    return np.einsum("yh,hwd,xw->yxd", rows, grid, columns, optimize=True).astype("float32")


def resize_positions(table: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
    """把图块的位置编码改成另一个网格的,缩小时抗混叠,与 timm 相同。来源:ViT 论文(arXiv 2010.11929)3.2 节。

    Args:
        table (numpy.ndarray): [N, D],不含 class token 等的行。
        old_grid, new_grid ((int, int)): 图块网格的 (行数, 列数)。

    Returns:
        numpy.ndarray: float32,[新的 N, D]。
    """
    grid = _resize_grid(table.reshape(*old_grid, -1), new_grid, antialias=True)
    return grid.reshape(new_grid[0] * new_grid[1], -1)  # [N, D]


def resize_bias_table(table: np.ndarray, new_length: int) -> np.ndarray:
    """把 Swin 的相对位置偏置表改成另一个窗口的,与 Swin 自己的做法相同(不抗混叠)。

    Args:
        table (numpy.ndarray): [(2w-1)^2, h],w 是窗口边长(图块)。
        new_length (int): 新的 (2w-1)^2。

    Returns:
        numpy.ndarray: float32,[new_length, h]。
    """
    old, new = (round(length**0.5) for length in (len(table), new_length))
    return _resize_grid(table.reshape(old, old, -1), (new, new), antialias=False).reshape(new_length, -1)


def resize_patch_kernel(kernel: np.ndarray, new_size: tuple[int, int]) -> np.ndarray:
    """把图块嵌入的卷积核改成另一种图块边长,使同样放大的图块得到尽量相同的 token。

    放大图块是 x -> B x;要 <w', B x> = <w, x>,所以 w' = pinv(B^T) w。来源:FlexiViT(arXiv 2212.08013)3.4 节。

    Args:
        kernel (numpy.ndarray): [D, C, P, P]。
        new_size ((int, int)): 新的 (高, 宽),像素。

    Returns:
        numpy.ndarray: float32,[D, C, *new_size]。
    """
    sizes = zip(kernel.shape[2:], new_size)
    rows, columns = (np.linalg.pinv(bicubic_matrix(old, new, antialias=True).T) for old, new in sizes)
    return np.einsum("yh,dchw,xw->dcyx", rows, kernel, columns, optimize=True).astype("float32")
