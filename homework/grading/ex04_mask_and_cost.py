"""作业 4 的检查:因果掩码,三种层的参数量和乘加次数。"""

import numpy as np
import paddle

from .ex02_attention import softmax
from .machinery import Exercise, Wrong, as_array, compare, tensor

MISTAKES = {
    "mask_transposed": "掩码转置了:应是下三角(能看过去),你的是上三角(能看将来)。",
    "mask_inverted": "掩码反了:True 应表示可以看,你的 True 表示不许看。",
    "no_diagonal": "掩码里没有对角线:每个 token 也要能看自己。",
    "no_mask": "没有用掩码:每个 token 都能看全部。",
    "mask_used_inverted": "掩码用反了:mask 里 True 是可以看,应把 False 的地方遮住。",
    "mask_used_transposed": "掩码用的时候转置了:行是看的(query),列是被看的(key)。",
    "mask_after_softmax": "掩码放在了 softmax 之后:每行之和不再是 1;应在 softmax 之前把不许看的分数设成 -inf。",
    "zero_scores": "把不许看的分数设成了 0(乘以掩码):exp(0) = 1,还是看得见;应设成 -inf 或很小的负数。",
    "mask_added": "把 True / False 当成 1 / 0 加到了分数上:遮不住;应把不许看的分数设成 -inf。",
    "no_scale": "没有缩放:q k^T 没有除以 √d。",
    "softmax_over_queries": "softmax 沿错了轴:应沿最后一轴(key)。",
    "not_finite": "结果里有 nan 或 inf:一整行都被遮住了,或 0 乘了 -inf。",
    "no_bias": "参数量少了偏置。",
    "three_projections": "自注意力少了输出的线性层:一共四个 [D, D](q、k、v、输出)。",
    "no_quadratic": "自注意力的计算量少了随 N² 增长的部分:q k^T 和 attn_weights v 各是 N * N * D 次。",
    "one_quadratic": "自注意力少了一次矩阵乘法:q k^T 和 attn_weights v 两次,各是 N * N * D 次。",
    "doubled": "把乘法和加法分开数了:一次乘加(multiply-add)只数一次,你的结果正好是两倍。",
    "one_matrix": "循环层有两个 [D, D] 的矩阵:W 和 U。",
    "kernel_squared": "一维卷积的核是 K,不是 K * K。",
    "no_kernel": "卷积少乘了核宽 K。",
    "per_token": "计算量少乘了 token 数 N。",
    "parameters_times_tokens": "参数量多乘了 N:各个位置共用同一份参数。",
}
EXERCISE = Exercise(4, "因果掩码,三种层的代价", MISTAKES)
MASK = ("mask_transposed", "mask_inverted", "no_diagonal")
ATTENTION = (
    *("no_mask", "mask_used_inverted", "mask_used_transposed", "mask_after_softmax", "zero_scores", "mask_added"),
    *("no_scale", "softmax_over_queries"),
)
COST = list(MISTAKES)[list(MISTAKES).index("no_bias") :]


def mask_reference(num_tokens, wrong=()):
    mask = np.tri(num_tokens, k=-1 if "no_diagonal" in wrong else 0, dtype=bool)
    mask = mask.T if "mask_transposed" in wrong else mask
    return ~mask if "mask_inverted" in wrong else mask


def attention_reference(q, k, v, mask, wrong=()):
    scores = q @ k.swapaxes(2, 3) * (1 if "no_scale" in wrong else q.shape[-1] ** -0.5)  # [B, h, N, N]
    mask = ~mask if "mask_used_inverted" in wrong else mask
    mask = mask.T if "mask_used_transposed" in wrong else mask
    if "zero_scores" in wrong:
        scores = scores * mask
    elif "mask_added" in wrong:
        scores = scores + mask
    elif "no_mask" not in wrong and "mask_after_softmax" not in wrong:
        scores = np.where(mask, scores, -1e9)
    weights = softmax(scores, 2 if "softmax_over_queries" in wrong else 3)
    if "mask_after_softmax" in wrong:
        weights = weights * mask
    return weights @ v, weights


def cost_reference(kind, N, D, K, wrong=()):
    bias = 0 if "no_bias" in wrong else D
    if kind == "rnn":
        matrices = 1 if "one_matrix" in wrong else 2
        parameters, products = matrices * D * D + bias, matrices * N * D * D
    elif kind == "conv":
        width = K * K if "kernel_squared" in wrong else 1 if "no_kernel" in wrong else K
        parameters, products = width * D * D + bias, width * N * D * D
    else:
        count = 3 if "three_projections" in wrong else 4
        times = 0 if "no_quadratic" in wrong else 1 if "one_quadratic" in wrong else 2
        parameters, products = count * (D * D + bias), count * N * D * D + times * N * N * D
    products = products / N if "per_token" in wrong else products * 2 if "doubled" in wrong else products
    parameters = parameters * N if "parameters_times_tokens" in wrong else parameters
    return np.array([parameters, products], "float64")


@EXERCISE.check("causal_mask", "因果掩码", "paddle.tril 取下三角(含对角线),再 astype('bool')。")
def check_mask(function):
    got = function(5)
    compare("掩码", got, lambda wrong: mask_reference(5, wrong).astype("float64"), EXERCISE.only(MASK))
    if isinstance(got, paddle.Tensor) and got.dtype != paddle.bool:
        raise Wrong(f"掩码的类型应为 bool,得到 {str(got.dtype).split('.')[-1]}:用 astype('bool')。", ["type"])


def compare_attention(function, mask):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 2, len(mask), 4))
    outputs = function(tensor(q), tensor(k), tensor(v), paddle.to_tensor(mask))
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        raise Wrong("应返回两样:(z, attn_weights)。", ["no_return"])
    for index, name in ((1, "attn_weights"), (0, "z")):
        if not np.isfinite(as_array(name, outputs[index])).all():
            EXERCISE.fail("not_finite", f"({name})")

        def answer(wrong, index=index):
            return attention_reference(q, k, v, mask, wrong)[index]

        compare(name, outputs[index], answer, EXERCISE.only(ATTENTION))


@EXERCISE.check(
    "masked_attention", "用因果掩码的注意力", "scores = paddle.where(mask, scores, 全是 -1e9 的张量),再 softmax。"
)
def check_causal_attention(function):
    compare_attention(function, np.tri(5, dtype=bool))


@EXERCISE.check("masked_attention", "别的掩码", "用参数 mask,不要在函数里另建因果掩码。")
def check_other_mask(function):
    mask = np.random.default_rng(1).random((6, 6)) < 0.5
    mask[:, 2] = True
    compare_attention(function, mask)


def compare_cost(function, kind):
    for N, D, K in ((10, 8, 3), (7, 12, 5)):
        got = function(kind, N, D, K)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong("应返回两个数:(参数量, 乘加次数)。", ["no_return"])
        got = np.array([as_array("参数量", got[0]), as_array("乘加次数", got[1])])
        for index, name in enumerate(("参数量", "乘加次数")):

            def answer(wrong, index=index, N=N, D=D, K=K):
                return cost_reference(kind, N, D, K, wrong)[index]

            title = f"layer_cost('{kind}', {N}, {D}, {K}) 的{name}"
            compare(title, got[index], answer, EXERCISE.only(COST))


@EXERCISE.check("layer_cost", "循环层的代价", "[N, D] 乘 [D, D] 是 N * D * D 次乘加;循环层每个 token 做两次。")
def check_rnn(function):
    compare_cost(function, "rnn")


@EXERCISE.check("layer_cost", "卷积层的代价", "一维卷积核的形状是 [D, D, K]。")
def check_conv(function):
    compare_cost(function, "conv")


@EXERCISE.check("layer_cost", "自注意力层的代价", "四个线性层,再加 [N, D] 乘 [D, N] 和 [N, N] 乘 [N, D]。")
def check_attention(function):
    compare_cost(function, "attention")
