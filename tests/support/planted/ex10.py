ROLL = "result = paddle.matmul(m, result)"
PLANTED = [
    ("ex10_rollout", "no_identity", [("0.5 * a + 0.5 * paddle.eye(a.shape[-1])", "a")]),
    ("ex10_rollout", "not_normalized", [("0.5 * a + 0.5 * paddle.eye(a.shape[-1])", "a + paddle.eye(a.shape[-1])")]),
    ("ex10_rollout", "order", [(ROLL, "result = paddle.matmul(result.expand(m.shape), m)")]),
    ("ex10_rollout", "transposed", [("    return result\n", "    return result.transpose([0, 2, 1])\n")]),
    ("ex10_rollout", "elementwise", [(ROLL, "result = m * result"), ("result = paddle.eye", "result = paddle.ones([1]) + 0 * paddle.eye")]),
    ("ex10_rollout", "head_sum", [("mean(axis=1)", "sum(axis=1)")]),
    ("ex10_rollout", "head_max", [("mean(axis=1)", "max(axis=1)")]),
    ("ex10_rollout", "last_layer_only", [("in weights:", "in weights[-1:]:")]),
    ("ex10_rollout", "first_layer_missing", [("in weights:", "in weights[1:] or weights:")]),
    ("ex10_rollout", "last_layer_missing", [("in weights:", "in weights[:-1] or weights:")]),
    ("ex10_rollout", "layer_mean", [(ROLL, "result = m / len(weights) + (0 if layer is weights[0] else result)")]),
    ("ex10_rollout", "column", [("matrix[:, 0, 1:]", "matrix[:, 1:, 0]")]),
    ("ex10_rollout", "grid_transposed", [("[-1, rows, columns]", "[-1, columns, rows]"), ("columns, rows])", "columns, rows]).transpose([0, 2, 1])")]),
    ("ex10_rollout", "class_kept", [("matrix[:, 0, 1:]", "matrix[:, 0, :-1]")]),
]  # fmt: skip
