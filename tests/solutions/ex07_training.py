import math

import paddle
import paddle.nn.functional as F


def learning_rate(step, total, warmup, peak, minimum):
    if step < warmup:
        return peak * (step + 1) / warmup
    p = (step - warmup) / (total - warmup)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * p)) / 2


def train_step(model, images, labels, optimizer, max_norm):
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    paddle.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.clear_grad()
    return float(loss)
