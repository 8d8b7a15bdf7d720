NORMAL = "logits - logits.max(axis=1, keepdim=True))\n    return e / e.sum(axis=1, keepdim=True)"
LOG = "log_p = logits - paddle.exp(logits).sum(axis=1, keepdim=True).log()"
GRAD = "    return weight - learning_rate * grad_weight, bias - learning_rate * grad_bias, loss"
PLANTED = [
    ("ex00_classifier", "softmax_axis", [(NORMAL, NORMAL.replace("axis=1", "axis=0"))]),
    ("ex00_classifier", "softmax_axis", [("return e / e.sum(axis=1, keepdim=True)", "return e / e.sum(axis=0, keepdim=True)")]),
    ("ex00_classifier", "overflow", [(NORMAL, NORMAL.replace("logits - logits.max(axis=1, keepdim=True)", "logits"))]),
    ("ex00_classifier", "no_normalization", [("return e / e.sum(axis=1, keepdim=True)", "return e")]),
    ("ex00_classifier", "log_of_zero", [(LOG, "log_p = paddle.log(softmax(logits))")]),
    ("ex00_classifier", "log_of_zero", [(LOG, "log_p = paddle.log(softmax(logits) + 1e-9)")]),
    ("ex00_classifier", "softmax_twice", [(LOG, "log_p = F.log_softmax(softmax(logits))")]),
    ("ex00_classifier", "not_averaged", [("-picked.mean()", "-picked.sum()")]),
    ("ex00_classifier", "sign", [("-picked.mean()", "picked.mean()")]),
    ("ex00_classifier", "no_log", [("-picked.mean()", "-paddle.exp(picked).mean()")]),
    ("ex00_classifier", "ascent", [(GRAD, GRAD.replace(" - ", " + "))]),
    ("ex00_classifier", "gradient_not_averaged", [("    error = error / len(x)\n", "")]),
    ("ex00_classifier", "no_one_hot", [(" - F.one_hot(labels, logits.shape[1])", "")]),
    ("ex00_classifier", "bias_not_updated", [("bias - learning_rate * grad_bias", "bias")]),
    ("ex00_classifier", "no_learning_rate", [(GRAD, GRAD.replace("learning_rate * ", ""))]),
    ("ex00_classifier", "not_updated", [(GRAD, "    return weight, bias, loss")]),
    (
        "ex00_classifier",
        "loss_after_step",
        [
            (GRAD, "    weight, bias = weight - learning_rate * grad_weight, bias - learning_rate * grad_bias\n" + GRAD),
            (GRAD, "    return weight, bias, cross_entropy(x @ weight + bias, labels)"),
        ],
    ),
]  # fmt: skip
