"""作业 0:线性分类器。课程第 0 课。

logits = x @ weight + bias。形状:x [B, D],weight [D, K],bias [K],logits [B, K];B 张图,D 个特征,K 个类别。
把三处 TODO 换成你的代码,写法不限。检查:python scripts/homework.py check 0
"""

import paddle


def softmax(logits):
    """每一行变成概率,行内之和为 1。logits 可以大到 1000,不许溢出成 nan。

    Args:
        logits (Tensor): [B, K]。

    Returns:
        Tensor: [B, K]。
    """
    raise NotImplementedError("TODO")


def cross_entropy(logits, labels):
    """交叉熵:每张图是 -log(正确类别的概率),再对一批取平均。

    Args:
        logits (Tensor): [B, K],没有经过 softmax;可以相差 1000,不许得到 inf。
        labels (Tensor): int64,[B],正确的类别 0…K-1。

    Returns:
        Tensor: 0 维,平均损失。
    """
    raise NotImplementedError("TODO")


def gradient_step(weight, bias, x, labels, learning_rate):
    """做一步梯度下降。可以手算梯度(提示:d 损失 / d logits = (概率 - one-hot) / B),也可以用 backward()。

    Args:
        weight (Tensor): [D, K]。
        bias (Tensor): [K]。
        x (Tensor): [B, D]。
        labels (Tensor): int64,[B]。
        learning_rate (float): 学习率。

    Returns:
        tuple: ``(新的 weight, 新的 bias, 更新之前的平均损失)``。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex00_classifier.py
    print(softmax(paddle.to_tensor([[0.0, 1.0, 2.0]])))  # 应为 [[0.0900, 0.2447, 0.6652]]
