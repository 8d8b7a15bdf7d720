"""两个 Paddle 参赛者共用的「一步」:训练是前向、交叉熵、反向、AdamW,预测是没有梯度的前向。"""

import numpy as np
import paddle
import paddle.nn.functional as F

__all__ = ["make_step", "random_batch"]


def random_batch(spec):
    """随机的图像 float32 [B, C, H, W] 和类别 int64 [B]。"""
    architecture, rng = spec["architecture"], np.random.default_rng(0)
    size = architecture["image_size"]
    images = rng.standard_normal([spec["batch"], architecture["in_channels"], size, size], dtype="float32")
    return images, rng.integers(0, architecture["num_classes"], spec["batch"])


def make_step(model, images, labels, task, adamw=paddle.optimizer.AdamW, share=1.0, after_backward=lambda: None):
    """一步的函数。

    Args:
        model (nn.Layer): 图像 -> logits。
        images, labels (ndarray): 一批数据。
        task (str): ``'train'`` 或 ``'predict'``。
        adamw (type): 优化器。
        share (float): 这些图像在一批里所占的份额(几个进程平分时小于 1)。
        after_backward (Callable): 反向之后、更新之前做什么(几个进程时是把梯度加起来)。
    """
    images, labels = paddle.to_tensor(images), paddle.to_tensor(labels)
    if task == "predict":
        model.eval()

        @paddle.no_grad()
        def predict():
            return model(images).numpy()

        return predict
    optimizer = adamw(1e-3, parameters=model.parameters(), weight_decay=0.05)

    def train():
        loss = F.cross_entropy(model(images), labels)
        (loss * share).backward()
        after_backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        return float(loss)

    return train
