"""作业 7:训练的一步和学习率。课程第 7 课。

检查:python scripts/homework.py check 7
"""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn


def learning_rate(step, total, warmup, peak, minimum):
    """第 step 步的学习率:先线性预热(warm-up),再余弦退火(cosine annealing)。

    预热的 warmup 步(step = 0 … warmup - 1):peak * (step + 1) / warmup,最后一步正好到 peak。
    之后:minimum + (peak - minimum) * (1 + cos(π * p)) / 2,进度 p = (step - warmup) / (total - warmup)。

    Args:
        step (int): 第几步,从 0 起。
        total (int): 一共多少步。
        warmup (int): 预热多少步;0 表示不预热。
        peak (float): 最大的学习率。
        minimum (float): 最后的学习率。

    Returns:
        float: 学习率。
    """
    raise NotImplementedError("TODO")


def train_step(model, images, labels, optimizer, max_norm):
    """训练一步:前向、交叉熵损失、反向、梯度裁剪、更新权重、梯度清零。

    梯度裁剪(gradient clipping):全部参数的梯度合在一起的范数(global norm)超过 max_norm 时,按比例缩小到 max_norm;
    可以用 ``paddle.nn.utils.clip_grad_norm_``。

    Args:
        model (nn.Layer): images [B, …] -> logits [B, K]。
        images (Tensor): 一批输入。
        labels (Tensor): int64,[B]。
        optimizer (paddle.optimizer.Optimizer): 管着 model 的参数。
        max_norm (float): 梯度范数的上限。

    Returns:
        float: 更新之前的平均损失,是 Python 的 float。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex07_training.py
    print([round(learning_rate(step, 10, 3, 1.0, 0.0), 2) for step in range(10)], math.pi)
    model = nn.Linear(4, 3)
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    images, labels = paddle.randn([8, 4]), paddle.randint(0, 3, [8])
    print([train_step(model, images, labels, optimizer, 1.0) for _ in range(5)], F.cross_entropy(model(images), labels))
