import numpy as np
import paddle
import paddle.nn.functional as F


def soft_loss(student_logits, teacher_logits, temperature):
    q = F.softmax(paddle.to_tensor(teacher_logits.numpy()) / temperature)
    log_p = student_logits / temperature - paddle.logsumexp(student_logits / temperature, axis=-1, keepdim=True)
    return temperature**2 * F.kl_div(log_p, q, reduction="sum") / len(q)


def deit_loss(class_logits, distillation_logits, teacher_logits, labels, alpha):
    hard = paddle.to_tensor(np.argmax(teacher_logits.numpy(), axis=-1))
    return F.cross_entropy(class_logits, labels) + alpha * (
        F.nll_loss(F.log_softmax(distillation_logits), hard) - F.cross_entropy(class_logits, labels)
    )


def predict(class_logits, distillation_logits):
    return paddle.add(class_logits, distillation_logits).scale(0.5)


def mixup(images, targets, order, keep):
    order = order.numpy()
    mixed = [keep * x.numpy() + (1 - keep) * x.numpy()[order] for x in (images, targets)]
    return mixed[0], mixed[1]


def cutmix(images, targets, order, keep, center):
    x, y, order = images.numpy().copy(), targets.numpy(), order.numpy()
    other = x[order]
    cut = []
    for size, middle in zip(x.shape[2:], center):
        half = size * np.sqrt(1 - keep) / 2
        cut.append(slice(max(0, round(middle - half)), max(0, round(middle + half))))
    x[:, :, cut[0], cut[1]] = other[:, :, cut[0], cut[1]]
    share = np.zeros(x.shape[2:])
    share[cut[0], cut[1]] = 1
    return x, (1 - share.mean()) * y + share.mean() * y[order]
