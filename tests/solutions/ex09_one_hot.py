import paddle
import paddle.nn.functional as F


def soft_loss(student_logits, teacher_logits, temperature):
    """交叉熵减去老师的熵。"""
    q = F.softmax(teacher_logits.detach() / temperature)
    cross = F.cross_entropy(student_logits / temperature, q, soft_label=True)
    entropy = -(q * paddle.log(q)).sum(-1).mean()
    return temperature**2 * (cross - entropy)


def deit_loss(class_logits, distillation_logits, teacher_logits, labels, alpha):
    K = class_logits.shape[1]
    hard = F.one_hot(teacher_logits.argmax(1), K)
    truth = F.one_hot(labels, K)
    by_labels = -(truth * F.log_softmax(class_logits)).sum(1)
    by_teacher = -(hard * F.log_softmax(distillation_logits)).sum(1)
    return ((1 - alpha) * by_labels + alpha * by_teacher).mean()


def predict(class_logits, distillation_logits):
    return 0.5 * class_logits + 0.5 * distillation_logits


def _mixing_matrix(order, keep):
    B = len(order)
    return keep * paddle.eye(B) + (1 - keep) * F.one_hot(order, B)


def mixup(images, targets, order, keep):
    matrix = _mixing_matrix(order, keep)
    return paddle.einsum("ij,jchw->ichw", matrix, images), matrix @ targets


def cutmix(images, targets, order, keep, center):
    _, _, H, W = images.shape
    half = (1 - keep) ** 0.5 / 2
    rows, columns = paddle.arange(H), paddle.arange(W)
    in_rows = (rows >= round(center[0] - half * H)) & (rows < round(center[0] + half * H))
    in_columns = (columns >= round(center[1] - half * W)) & (columns < round(center[1] + half * W))
    inside = (in_rows.unsqueeze(1) & in_columns).astype("float32")
    mixed = images * (1 - inside) + images[order] * inside
    return mixed, _mixing_matrix(order, float(1 - inside.mean())) @ targets
