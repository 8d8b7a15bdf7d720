import math

import paddle
import paddle.nn.functional as F


def learning_rate(step, total, warmup, peak, minimum):
    if step >= warmup:
        half = math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
        return peak * half + minimum * (1 - half)
    return peak / warmup * (step + 1)


def train_step(model, images, labels, optimizer, max_norm):
    optimizer.clear_grad()
    loss = -paddle.take_along_axis(F.log_softmax(model(images)), labels.unsqueeze(1), 1).mean()
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    if norm > max_norm:
        for p in model.parameters():
            p.grad.set_value(p.grad * (max_norm / norm))
    optimizer.step()
    return loss.item()
