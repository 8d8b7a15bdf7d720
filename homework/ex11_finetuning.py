"""作业 11:微调(fine-tuning)。课程第 11 课。

model 是 ``paddle_vit.ViT``:``model.head`` 是分类头(Linear [D, K]),别的都是主干(backbone)。
检查:python scripts/homework.py check 11
"""

import paddle
from paddle import nn

from paddle_vit import ViT


def replace_head(model, num_classes):
    """给训练好的模型换一个新的分类头,主干的权重不动。

    Args:
        model (ViT): 训练好的模型;``model.head.weight`` 的形状是 [D, 原来的类别数]。
        num_classes (int): 新的类别数。

    Returns:
        ViT: 同一个模型。
    """
    raise NotImplementedError("TODO")


def freeze_backbone(model):
    """冻结主干:除了 ``model.head``,参数都不再训练(Paddle 里是 ``stop_gradient = True``)。

    Returns:
        ViT: 同一个模型。
    """
    raise NotImplementedError("TODO")


def parameter_groups(model, head_lr, backbone_lr):
    """把参数分成两组,主干用小的学习率;被冻结的参数不放进去。

    返回值会这样用:``paddle.optimizer.AdamW(head_lr, parameters=groups)``。
    注意 Paddle 里一组的 'learning_rate' 是倍数:实际的学习率 = 优化器的 head_lr * 这个倍数。

    Args:
        model (ViT): 模型,有的参数可能已经冻结。
        head_lr (float): 分类头的学习率。
        backbone_lr (float): 主干的学习率。

    Returns:
        list: 若干个字典 ``{'params': [参数…], 'learning_rate': 倍数}``;空的组不要放。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex11_finetuning.py
    model = replace_head(ViT(image_size=8, patch_size=4), 3)
    print(isinstance(model.head, nn.Linear), model(paddle.randn([2, 3, 8, 8])).shape)  # 应为 True [2, 3]
