import paddle
import paddle.nn.functional as F


def soft_loss(student_logits, teacher_logits, temperature):
    total = 0
    for s, t in zip(student_logits, teacher_logits.detach()):
        p, q = F.softmax(s / temperature, axis=0), F.softmax(t / temperature, axis=0)
        for k in range(len(p)):
            total = total + q[k] * paddle.log(q[k] / p[k])
    return total / len(student_logits) * temperature**2


def deit_loss(class_logits, distillation_logits, teacher_logits, labels, alpha):
    losses = []
    for i in range(len(labels)):
        log_p = F.log_softmax(class_logits[i], axis=0)
        log_d = F.log_softmax(distillation_logits[i], axis=0)
        losses.append((alpha - 1) * log_p[int(labels[i])] - alpha * log_d[int(teacher_logits[i].argmax())])
    return sum(losses) / len(losses)


def predict(class_logits, distillation_logits):
    return paddle.stack([(a + b) / 2 for a, b in zip(class_logits, distillation_logits)])


def mixup(images, targets, order, keep):
    partners = order.tolist()
    mixed = [keep * images[i] + (1 - keep) * images[j] for i, j in enumerate(partners)]
    labels = [keep * targets[i] + (1 - keep) * targets[j] for i, j in enumerate(partners)]
    return paddle.stack(mixed), paddle.stack(labels)


def cutmix(images, targets, order, keep, center):
    height, width = (side * (1 - keep) ** 0.5 for side in images.shape[2:])
    rows = range(round(center[0] - height / 2), round(center[0] + height / 2))
    columns = range(round(center[1] - width / 2), round(center[1] + width / 2))
    pixels, replaced = images.numpy().copy(), 0
    H, W = pixels.shape[2:]
    for r in rows:
        for c in columns:
            if 0 <= r < H and 0 <= c < W:
                pixels[:, :, r, c] = images[order].numpy()[:, :, r, c]
                replaced += 1
    share = replaced / (H * W)
    return paddle.to_tensor(pixels), targets * (1 - share) + targets[order] * share
