import paddle.nn.functional as F


def soft_loss(student_logits, teacher_logits, temperature):
    teacher_logits = teacher_logits.detach()
    log_p = F.log_softmax(student_logits / temperature, axis=-1)
    log_q = F.log_softmax(teacher_logits / temperature, axis=-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(axis=-1)
    return temperature**2 * kl.mean()


def deit_loss(class_logits, distillation_logits, teacher_logits, labels, alpha):
    taught = teacher_logits.argmax(axis=-1)
    by_labels = F.cross_entropy(class_logits, labels)
    by_teacher = F.cross_entropy(distillation_logits, taught)
    return (1 - alpha) * by_labels + alpha * by_teacher


def predict(class_logits, distillation_logits):
    return (class_logits + distillation_logits) / 2


def mixup(images, targets, order, keep):
    mixed = keep * images + (1 - keep) * images[order]
    labels = keep * targets + (1 - keep) * targets[order]
    return mixed, labels


def cutmix(images, targets, order, keep, center):
    H, W = images.shape[2:]
    height, width = H * (1 - keep) ** 0.5, W * (1 - keep) ** 0.5
    top, bottom = round(center[0] - height / 2), round(center[0] + height / 2)
    left, right = round(center[1] - width / 2), round(center[1] + width / 2)
    top, bottom, left, right = max(top, 0), min(bottom, H), max(left, 0), min(right, W)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[order][:, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (H * W)
    labels = kept * targets + (1 - kept) * targets[order]
    return mixed, labels
