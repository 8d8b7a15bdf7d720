"""作业 6:class token 和位置编码。课程第 6 课。

检查:python scripts/homework.py check 6
"""

import numpy as np
import paddle


def position_table(rows, columns, embed_dim):
    """二维正弦余弦位置编码(2-D sin/cos position embedding)。

    第 r 行第 c 列的图块是表的第 r * columns + c 行,它的 D 个数依次是四段,每段 D/4 个:
    sin(r * w),cos(r * w),sin(c * w),cos(c * w),其中 w_i = 10000 ** (-i / (D/4)),i = 0 … D/4 - 1。角度用弧度。

    Args:
        rows (int), columns (int): 图块网格的行数和列数。
        embed_dim (int): 嵌入维度 D,4 的倍数。

    Returns:
        numpy.ndarray 或 Tensor: [rows * columns, D]。
    """
    raise NotImplementedError("TODO")


def add_class_token(tokens, class_token, table):
    """给图块加上位置编码,再把 class token 放在最前面;class token 没有位置,不加位置编码。

    Args:
        tokens (Tensor): [B, N, D],图块。
        class_token (Tensor): [1, 1, D],可学习的参数,一批里的每张图用同一个。
        table (Tensor): [N, D],位置编码。

    Returns:
        Tensor: [B, 1 + N, D]。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex06_position.py
    table = paddle.to_tensor(np.asarray(position_table(2, 3, 8), "float32"))  # [6, 8]
    print(add_class_token(paddle.zeros([4, 6, 8]), paddle.ones([1, 1, 8]), table).shape)  # 应为 [4, 7, 8]
