"""作业 10:注意力展开(attention rollout)。课程第 10 课。

每层的注意力权重说的是“这一层里谁看谁”。残差让每个 token 也直接看自己,所以一层的传递矩阵是 0.5 * A + 0.5 * I,
A 是各头的平均,每行之和仍为 1。从第一层到最后一层乘起来,就是“最后的 token 看到了哪些最初的图块”。
检查:python scripts/homework.py check 10
"""

import paddle


def rollout(weights):
    """各层的传递矩阵的乘积:后面的层乘在左边,R = M_L … M_2 M_1。

    Args:
        weights (list): L 个 Tensor,[B, h, N, N],从第一层到最后一层。

    Returns:
        Tensor: [B, N, N],每行之和为 1。
    """
    raise NotImplementedError("TODO")


def class_token_map(matrix, rows, columns):
    """class token(0 号)看各个图块的权重,排成图块的网格。

    Args:
        matrix (Tensor): [B, 1 + rows * columns, 1 + rows * columns],``rollout`` 的结果;行是看的,列是被看的。
        rows (int), columns (int): 图块网格的行数和列数。

    Returns:
        Tensor: [B, rows, columns]。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex10_rollout.py
    weights = [paddle.nn.functional.softmax(paddle.randn([1, 2, 7, 7])) for _ in range(3)]
    print(class_token_map(rollout(weights), 2, 3))
