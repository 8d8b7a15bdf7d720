"""作业 10 的检查:注意力展开。"""

import numpy as np

from .machinery import Exercise, compare, tensor

MISTAKES = {
    "no_identity": "没有加单位矩阵:残差让每个 token 也看自己,应为 0.5 * A + 0.5 * I。",
    "not_normalized": "加了单位矩阵之后没有重新归一化:A + I 每行之和是 2,应为 0.5 * A + 0.5 * I。",
    "order": "乘的顺序反了:后面的层乘在左边,M_L … M_2 M_1。",
    "transposed": "结果转置了:行是看的 token,列是被看的。",
    "elementwise": "用了逐元素相乘(*),应为矩阵乘法(paddle.matmul 或 @)。",
    "head_sum": "各头是相加,应取平均。",
    "head_max": "各头取了最大值,应取平均。",
    "last_layer_only": "只用了最后一层:要把各层乘起来。",
    "first_layer_missing": "漏了第一层。",
    "last_layer_missing": "漏了最后一层。",
    "layer_mean": "各层取了平均,应该乘起来。",
    "column": "取了列,应取行:class token 看别人是第 0 行。",
    "grid_transposed": "网格的行和列调换了:图块按行优先排列,reshape 成 [B, rows, columns]。",
    "class_kept": "没有去掉 class token 自己的那一列,图块都错了一位。",
}
EXERCISE = Exercise(10, "注意力展开(attention rollout)", MISTAKES)
MAP = list(MISTAKES)[list(MISTAKES).index("column") :]


def reference(weights, wrong=()):
    """weights [L, B, h, N, N] -> [B, N, N]。"""
    heads = weights.sum(2) if "head_sum" in wrong else weights.max(2) if "head_max" in wrong else weights.mean(2)
    identity = np.eye(weights.shape[-1])
    layers = (
        heads if "no_identity" in wrong else heads + identity if "not_normalized" in wrong else (heads + identity) / 2
    )
    if "layer_mean" in wrong:
        return layers.mean(0)
    layers = layers[-1:] if "last_layer_only" in wrong else layers
    layers = layers[1:] if "first_layer_missing" in wrong else layers
    layers = layers[:-1] if "last_layer_missing" in wrong else layers
    layers = layers[::-1] if "order" in wrong else layers
    result = np.ones_like(layers[0]) if "elementwise" in wrong else np.broadcast_to(identity, heads.shape[1:])
    for layer in layers:
        result = layer * result if "elementwise" in wrong else layer @ result
    return result.swapaxes(1, 2) if "transposed" in wrong else result


def map_reference(matrix, rows, columns, wrong=()):
    line = matrix[:, :, 0] if "column" in wrong else matrix[:, 0]
    line = line[:, :-1] if "class_kept" in wrong else line[:, 1:]
    if "grid_transposed" in wrong:
        return line.reshape(-1, columns, rows).swapaxes(1, 2)
    return line.reshape(-1, rows, columns)


def random_weights(depth, tokens):
    """[L, B, h, N, N],每行之和为 1。"""
    raw = np.exp(np.random.default_rng(depth).standard_normal((depth, 2, 3, tokens, tokens)))
    return raw / raw.sum(-1, keepdims=True)


def compare_rollout(function, depth, tokens, names):
    weights = random_weights(depth, tokens)
    got = function([tensor(layer) for layer in weights])
    compare("rollout", got, lambda wrong: reference(weights, wrong), EXERCISE.only(names))


@EXERCISE.check("rollout", "只有一层", "layer.mean(axis=1) 是 [B, N, N];paddle.eye(N) 是单位矩阵。")
def check_one_layer(function):
    compare_rollout(function, 1, 4, ("no_identity", "not_normalized", "transposed", "head_sum", "head_max"))


@EXERCISE.check("rollout", "三层相乘", "从单位矩阵开始,每层 result = paddle.matmul(m, result):新的一层乘在左边。")
def check_three_layers(function):
    compare_rollout(function, 3, 5, [name for name in MISTAKES if name not in MAP])


@EXERCISE.check("class_token_map", "class token 的图", "matrix[:, 0, 1:] 是 [B, N],再 reshape。")
def check_map(function):
    matrix = np.random.default_rng(0).random((2, 7, 7))
    mistakes = EXERCISE.only(MAP)
    compare("图", function(tensor(matrix), 2, 3), lambda wrong: map_reference(matrix, 2, 3, wrong), mistakes)
