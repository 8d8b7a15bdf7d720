"""作业 2 的检查:多头自注意力。参数合在一个 qkv 里、分成三个线性层、每个头各有三个线性层都认。"""

import re

import numpy as np

from .machinery import Exercise, Wrong, as_array, compare, expect_gradients, is_bias, is_close, tensor, weights_of

MISTAKES = {
    "no_scale": "没有缩放:q k^T 没有除以 √d。",
    "scale_by_embed_dim": "缩放用错了维度:除以了 √D(整个嵌入维度),应为 √d,d = D / h 是一个头的维度。",
    "scale_without_root": "缩放忘了开方:除以了 d,应为 √d。",
    "scale_multiplied": "缩放反了:乘了 √d,应为除以 √d。",
    "scale_after_softmax": "缩放放在了 softmax 之后:除以 √d 要在 softmax 之前。",
    "no_softmax": "没有做 softmax。",
    "softmax_over_queries": "softmax 沿错了轴:应沿最后一轴(key)归一化,你沿 query 那一轴归一化了。",
    "softmax_over_heads": "softmax 沿错了轴:应沿最后一轴(key)归一化,你沿头那一轴归一化了。",
    "heads_mixed": "拆头时只用了 reshape:[B, N, D] 直接 reshape 成 [B, h, N, d] 会把不同 token 的数混在一起;"
    "要先 reshape 成 [B, N, h, d] 再转置。",
    "heads_interleaved": "拆头的顺序不对:每个头应占连续的 d 列([B, N, h, d]),你是每隔 h 列取一列([B, N, d, h])。",
    "qkv_interleaved": "qkv 的列拆错了:约定先分 q、k、v 三段,每段里再分头;你先分了头,头里再分 q、k、v。",
    "merge_mixed": "合并头时只用了 reshape:[B, h, N, d] 要先转置成 [B, N, h, d],再 reshape 成 [B, N, D]。",
    "q_k_swapped": "q 和 k 调换了:应为 q k^T(行是 query,列是 key),列的顺序是 q、k、v。",
    "k_v_swapped": "k 和 v 调换了:列的顺序是 q、k、v。",
    "q_v_swapped": "q 和 v 调换了:列的顺序是 q、k、v。",
    "weights_transposed": "注意力权重转置了:softmax 之后乘 v 时行列反了。",
    "no_projection": "没有经过输出的线性层(proj)。",
    "scores_returned": "返回的 attn_weights 是 softmax 之前的分数。",
    "one_head": "没有分头:把 D 维当成一个头算了。",
}
EXERCISE = Exercise(2, "补全 Attention(多头自注意力)", MISTAKES)


def softmax(scores, axis=-1):
    e = np.exp(scores - scores.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def reference(x, roles, num_heads, wrong=()):
    """x [B, N, D],roles 是 q、k、v、o 的 ``(weight [D, D], bias [D])`` -> ``(z, attn_weights)``。"""
    B, N, D = x.shape
    h = 1 if "one_head" in wrong else num_heads
    d = D // h
    q, k, v = (x @ roles[name][0] + roles[name][1] for name in "qkv")  # 各 [B, N, D]
    if "qkv_interleaved" in wrong:
        mixed = np.concatenate([q, k, v], -1).reshape(B, N, h, 3, d)
        q, k, v = (mixed[:, :, :, i].reshape(B, N, D) for i in range(3))
    if "q_k_swapped" in wrong:
        q, k = k, q
    if "k_v_swapped" in wrong:
        k, v = v, k
    if "q_v_swapped" in wrong:
        q, v = v, q

    def split(a):
        if "heads_mixed" in wrong:
            return a.reshape(B, h, N, d)
        if "heads_interleaved" in wrong:
            return a.reshape(B, N, d, h).transpose(0, 3, 1, 2)
        return a.reshape(B, N, h, d).transpose(0, 2, 1, 3)

    q, k, v = split(q), split(k), split(v)  # 各 [B, h, N, d]
    scale = d**-0.5
    if "no_scale" in wrong or "scale_after_softmax" in wrong:
        scale = 1.0
    if "scale_by_embed_dim" in wrong:
        scale = D**-0.5
    if "scale_without_root" in wrong:
        scale = 1 / d
    if "scale_multiplied" in wrong:
        scale = d**0.5
    scores = q @ k.swapaxes(2, 3) * scale  # [B, h, N, N]
    axis = 2 if "softmax_over_queries" in wrong else 1 if "softmax_over_heads" in wrong else 3
    weights = scores if "no_softmax" in wrong else softmax(scores, axis)
    if "scale_after_softmax" in wrong:
        weights = weights * d**-0.5
    if "weights_transposed" in wrong:
        weights = weights.swapaxes(2, 3)
    z = weights @ v  # [B, h, N, d]
    z = (z if "merge_mixed" in wrong else z.transpose(0, 2, 1, 3)).reshape(B, N, D)
    if "no_projection" not in wrong:
        z = z @ roles["o"][0] + roles["o"][1]
    return z, scores if "scores_returned" in wrong else weights


def role_of(name):
    """线性层的名字 -> 'q'、'k'、'v' 或 'o';W_q、q_proj、to_q、query、queries.0、heads.0.q 都是 'q'。"""
    for part in reversed(name.lower().split(".")):
        for role, words in {"q": "w?qs?|query|queries", "k": "w?ks?|keys?", "v": "w?vs?|values?"}.items():
            if re.search(rf"(^|_)({words})(_|\d|$)", part):
                return role
    return "o"


def roles_of(layer, embed_dim, num_heads):
    """把学生的参数认成 q、k、v、o:名字 -> ``(weight [D, D], bias [D] 或 0)``,都是 ndarray。"""
    D, d = embed_dim, embed_dim // num_heads
    roles, heads, found = {}, {}, []
    for name, (weight, bias) in weights_of(layer).items():
        found.append(f"{name} {list(weight.shape)}")
        w = weight.numpy().astype("float64")
        b = np.zeros(w.shape[-1]) if bias is None else bias.numpy().reshape(-1).astype("float64")
        if w.shape == (D, 3 * D):
            for i, role in enumerate("qkv"):
                roles[role] = (w[:, i * D : (i + 1) * D], b[i * D : (i + 1) * D])
        elif w.shape == (D, D):
            roles[role_of(name)] = (w, b)
        elif w.shape == (D, d):  # 一个头的 q、k 或 v
            heads.setdefault(role_of(name), []).append((w, b))
    for role, pairs in heads.items():
        if len(pairs) == num_heads:
            roles[role] = tuple(np.concatenate(arrays, -1) for arrays in zip(*pairs))
    if set(roles) != set("qkvo"):
        raise Wrong(
            f"认不出 q、k、v 和输出层的参数(D={D}),找到的是:{'、'.join(found) or '没有'}。"
            f"应为 qkv [{D}, {3 * D}] 和 proj [{D}, {D}],"
            f"或名字里有 q、k、v 的三个 [{D}, {D}](或每个头三个 [{D}, {d}])和一个输出层。",
            ["roles"],
        )
    return roles


def build(layer_class, embed_dim=12, num_heads=3):
    layer = layer_class(embed_dim, num_heads)
    layer.eval()
    return layer, roles_of(layer, embed_dim, num_heads)


def outputs_of(layer, x):
    outputs = layer(tensor(x))
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        raise Wrong("forward 应返回两样:(z, attn_weights)。", ["no_return"])
    return outputs


X = np.random.default_rng(5).standard_normal((2, 5, 12))  # [B, N, D]


def check_weights(attn_weights, answer, mistakes):
    """attn_weights 的数值:先看每行之和,再与参考比较。"""
    weights = as_array("attn_weights", attn_weights)
    sums = weights.sum(-1)
    try:
        compare("attn_weights", weights, answer, mistakes)
    except Wrong as wrong:
        if wrong.mistakes or weights.shape != answer(frozenset()).shape or np.allclose(sums, 1, atol=1e-4):
            raise
        raise Wrong(f"attn_weights 每行之和应为 1,第一行是 {sums.flat[0]:.4f}。\n{wrong}") from None


@EXERCISE.check(
    "Attention",
    "两个输出的形状",
    "保留模板的 __init__;写出每一行之后的形状:[B, N, 3D] -> 三个 [B, h, N, d] -> [B, h, N, N] -> [B, N, D]。",
)
def check_shapes(layer_class):
    layer, _ = build(layer_class)
    z, attn_weights = outputs_of(layer, X)
    for name, value, shape in (("attn_weights", attn_weights, [2, 3, 5, 5]), ("z", z, [2, 5, 12])):
        got = list(as_array(name, value).shape)
        if got != shape:
            one_head = name == "attn_weights" and got in ([2, 1, 5, 5], [2, 5, 5])
            text = MISTAKES["one_head"] if one_head else ""
            raise Wrong(f"{text}{name} 的形状应为 {shape},得到 {got}。", ["one_head"] if one_head else ())


@EXERCISE.check(
    "Attention",
    "注意力权重的数值",
    "reshape 成 [B, N, h, d],transpose([0, 2, 1, 3]);分数 q @ k^T 乘 d ** -0.5;softmax 沿 axis=-1。",
)
def check_attn_weights(layer_class):
    layer, roles = build(layer_class)
    z, attn_weights = outputs_of(layer, X)
    z_is_right = is_close(as_array("z", z), reference(X, roles, 3)[0])  # 那么只可能是返回错了
    names = [name for name in MISTAKES if (name == "scores_returned") == z_is_right]
    mistakes = EXERCISE.only(names)
    check_weights(attn_weights, lambda wrong: reference(X, roles, 3, wrong)[1], mistakes)


@EXERCISE.check("Attention", "z 的数值", "attn_weights @ v 转置成 [B, N, h, d],reshape 成 [B, N, D],再经过 proj。")
def check_z(layer_class):
    layer, roles = build(layer_class)
    compare("z", outputs_of(layer, X)[0], lambda wrong: reference(X, roles, 3, wrong)[0], MISTAKES)


@EXERCISE.check("Attention", "换一种尺寸", "形状都要从 x.shape 和 __init__ 的参数得来,不要写死。")
def check_other_size(layer_class):
    layer, roles = build(layer_class, 8, 2)
    x = np.random.default_rng(6).standard_normal((3, 7, 8))
    z, attn_weights = outputs_of(layer, x)
    compare("attn_weights", attn_weights, lambda wrong: reference(x, roles, 2, wrong)[1], MISTAKES)
    compare("z", z, lambda wrong: reference(x, roles, 2, wrong)[0], MISTAKES)


@EXERCISE.check("Attention", "每个参数都有梯度", "forward 里只用 Paddle 的运算,不要转成 NumPy,不要 detach。")
def check_gradients(layer_class):
    layer, _ = build(layer_class)
    z, _ = outputs_of(layer, X)
    weights = {name: p for name, p in layer.named_parameters() if not is_bias(p)}  # k 的偏置的梯度本来就是 0
    expect_gradients(z, weights)
    lost = [name for name, p in layer.named_parameters() if p.grad is None]
    if lost:
        raise Wrong(f"{'、'.join(lost)} 没有梯度:它没有用上,或计算图断了。", ["no_gradient"])
