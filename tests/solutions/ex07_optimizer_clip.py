import math

import paddle.nn.functional as F
from paddle import nn


def learning_rate(step, total, warmup, peak, minimum):
    rise = [peak * i / warmup for i in range(1, warmup + 1)]
    rest = total - warmup
    fall = [minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    return (rise + fall)[step]


def train_step(model, images, labels, optimizer, max_norm):
    model.train()
    loss = nn.CrossEntropyLoss()(model(images), F.one_hot(labels, 3).argmax(-1))
    loss.backward()
    clip = nn.ClipGradByGlobalNorm(max_norm)
    for p, g in clip([(p, p.grad) for p in model.parameters()]):
        p.grad.set_value(g)
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)
    return loss.item()
