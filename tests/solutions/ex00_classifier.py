import paddle
import paddle.nn.functional as F


def softmax(logits):
    e = paddle.exp(logits - logits.max(axis=1, keepdim=True))
    return e / e.sum(axis=1, keepdim=True)


def cross_entropy(logits, labels):
    logits = logits - logits.max(axis=1, keepdim=True)
    log_p = logits - paddle.exp(logits).sum(axis=1, keepdim=True).log()
    picked = paddle.take_along_axis(log_p, labels.unsqueeze(1), axis=1)
    return -picked.mean()


def gradient_step(weight, bias, x, labels, learning_rate):
    logits = x @ weight + bias
    loss = cross_entropy(logits, labels)
    error = softmax(logits) - F.one_hot(labels, logits.shape[1])
    error = error / len(x)
    grad_weight = x.T @ error
    grad_bias = error.sum(axis=0)
    return weight - learning_rate * grad_weight, bias - learning_rate * grad_bias, loss
