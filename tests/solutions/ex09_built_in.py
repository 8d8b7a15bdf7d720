import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddle_vit.tasks.distillation import distillation_loss


def soft_loss(student_logits, teacher_logits, temperature):
    p = F.log_softmax(student_logits / temperature)
    with paddle.no_grad():
        q = F.softmax(teacher_logits / temperature)
    return nn.KLDivLoss(reduction="batchmean")(p, q) * temperature * temperature


def deit_loss(class_logits, distillation_logits, teacher_logits, labels, alpha):
    hard = distillation_loss(distillation_logits, teacher_logits, "hard")
    return F.cross_entropy(class_logits, labels) * (1 - alpha) + hard * alpha


def predict(class_logits, distillation_logits):
    return paddle.stack([class_logits, distillation_logits]).mean(axis=0)


def mixup(images, targets, order, keep):
    other_images, other_targets = (paddle.index_select(x, order, axis=0) for x in (images, targets))
    return paddle.lerp(other_images, images, keep), paddle.lerp(other_targets, targets, keep)


def cutmix(images, targets, order, keep, center):
    size = np.array(images.shape[2:])
    half = size * np.sqrt(1 - keep) / 2
    start = np.clip(np.rint(np.array(center) - half), 0, size).astype(int)
    end = np.clip(np.rint(np.array(center) + half), 0, size).astype(int)
    inside = np.zeros(size, bool)
    inside[start[0] : end[0], start[1] : end[1]] = True
    mixed = paddle.where(paddle.to_tensor(inside), images[order], images)
    return mixed, paddle.lerp(targets, targets[order], float(inside.mean()))
