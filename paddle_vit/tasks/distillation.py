"""知识蒸馏(Knowledge Distillation):除了标签,也向一个训练好的老师学。来源:DeiT(arXiv 2012.12877)第 4 节。

学生有蒸馏 token 时,class token 的头学标签,蒸馏 token 的头学老师;没有时,唯一的输出两样都学。
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..checks import as_pair
from ..data.info import DataInfo
from ..errors import UserError
from .classification import label_loss

__all__ = ["Distillation", "distillation_loss", "teacher_input"]


def distillation_loss(
    logits: paddle.Tensor, teacher_logits: paddle.Tensor, kind: str, temperature: float = 3.0
) -> paddle.Tensor:
    """学生与老师的差别。

    ``'hard'`` 是对老师判的那一类的交叉熵;``'soft'`` 是温度 τ 下的 τ² KL(老师 ‖ 学生)(arXiv 1503.02531),
    乘 τ² 是为了让梯度的大小不随温度变。

    Args:
        logits (Tensor): 学生的,[B, K]。
        teacher_logits (Tensor): 老师的,[B, K]。
        kind (str): ``'hard'`` 或 ``'soft'``。
        temperature (float): 温度 τ,只用于 ``'soft'``。

    Returns:
        Tensor: 一个数,整批的平均。
    """
    if kind == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(-1))
    log_p = F.log_softmax(logits / temperature)  # [B, K]
    log_q = F.log_softmax(teacher_logits / temperature)  # [B, K]
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1).mean()


def teacher_input(images: paddle.Tensor, info: DataInfo, teacher_info: DataInfo) -> paddle.Tensor:
    """学生的输入 -> 老师的输入:按老师的均值和标准差重新归一化,边长不同时用双三次插值缩放。

    Args:
        images (Tensor): 已按 info 归一化,[B, C, H, W]。
        info, teacher_info (DataInfo): 学生和老师的均值、标准差和图像边长(像素)。

    Returns:
        Tensor: [B, C, H', W']。
    """
    if (info.mean, info.std) != (teacher_info.mean, teacher_info.std):
        shape = [1, len(info.mean), 1, 1]
        mean, std, teacher_mean, teacher_std = (
            paddle.to_tensor(values, "float32").reshape(shape)
            for values in (info.mean, info.std, teacher_info.mean, teacher_info.std)
        )
        images = (images * std + mean - teacher_mean) / teacher_std
    if info.image_size != teacher_info.image_size:
        size = list(as_pair(teacher_info.image_size, "image_size"))
        images = F.interpolate(images, size, mode="bicubic")  # [B, C, H', W']
    return images


class Distillation:
    """训练的目标:标签的损失和老师的损失,各占 1 - alpha 和 alpha。

    Args:
        teacher (nn.Layer): 老师,图像 [B, C, H', W'] -> logits [B, K];会被设为评估状态并冻结。
        teacher_info (DataInfo): 老师的类别、通道数、图像边长、均值和标准差。
        info (DataInfo): 学生的。
        kind (str), temperature (float): 见 ``distillation_loss``。
        alpha (float): 老师那一项的份额,0–1。
        weights (Tensor | None): 标签那一项里各类的权重,见 ``label_loss``。

    Raises:
        UserError: 老师的类别或通道数与学生的不同。
    """

    def __init__(
        self,
        teacher: nn.Layer,
        teacher_info: DataInfo,
        info: DataInfo,
        kind: str = "hard",
        alpha: float = 0.5,
        temperature: float = 3.0,
        weights: paddle.Tensor | None = None,
    ):
        if teacher_info.classes != info.classes:
            raise UserError(
                f"老师分的是 {_shown(teacher_info.classes)},数据是 {_shown(info.classes)}:"
                "蒸馏时要完全相同,次序也要相同,请换一个老师。"
            )
        if teacher_info.channels != info.channels:
            raise UserError(
                f"老师看的图像是 {teacher_info.channels} 个通道,数据是 {info.channels} 个:请换一个老师,"
                "folder 的图片可以用 --channels 选几个通道。"
            )
        self.teacher, self.teacher_info, self.info = teacher, teacher_info, info
        self.kind, self.alpha, self.temperature, self.weights = kind, alpha, temperature, weights
        teacher.eval()
        for parameter in teacher.parameters():
            parameter.stop_gradient = True

    def __call__(
        self, model: nn.Layer, images: paddle.Tensor, targets: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """学生在一批图像上的 logits 和损失。

        Args:
            model (nn.Layer): 学生。
            images (Tensor): 已增强、按学生的数据归一化,[B, C, H, W]。
            targets (Tensor): 标签分布,[B, K]。

        Returns:
            tuple[Tensor, Tensor]: 预测用的 logits [B, K] 和损失(一个数)。
        """
        with paddle.no_grad():
            taught = self.teacher(teacher_input(images, self.info, self.teacher_info)).astype("float32")  # [B, K]
        if getattr(model, "distillation_token", None) is None:
            prediction = logits = for_teacher = model(images)  # [B, K]
        else:
            logits, for_teacher = model.forward_heads(images)  # 各 [B, K]
            prediction = (logits + for_teacher) / 2
        by_labels = label_loss(logits, targets, self.weights)
        teacher_loss = distillation_loss(for_teacher.astype("float32"), taught, self.kind, self.temperature)
        return prediction, (1 - self.alpha) * by_labels + self.alpha * teacher_loss


def _shown(classes):
    return f"{len(classes)} 类({'、'.join(classes[:5])}{'…' if len(classes) > 5 else ''})"
