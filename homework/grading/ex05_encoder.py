"""作业 5 的检查:Mlp 和 EncoderLayer。"""

import math

import numpy as np
import paddle
from paddle import nn

from .machinery import Exercise, Wrong, as_array, compare, expect_gradients, tensor, weights_of

MISTAKES = {
    "no_activation": "没有激活函数:两个线性层连在一起还是一个线性层。",
    "relu": "激活函数用了 ReLU,应为 GELU。",
    "tanh_gelu": "GELU 用了 tanh 近似,应为精确的 GELU(paddle.nn.GELU() 的默认)。",
    "activation_at_end": "激活函数的位置不对:应在两个线性层之间,你放在了第二个线性层之后。",
    "dropout_at_eval": "评估时随机失活还在起作用:用 nn.Dropout 层,或给 F.dropout 传 training=self.training。",
    "dropout_never": "训练时随机失活没有起作用:建了却没有用上,或没有用参数 dropout。",
    "hidden_width": "隐藏层宽度不对:应为 int(embed_dim * mlp_ratio)。",
    "no_residual_1": "少了第一条残差:应为 x + attn(attn_norm(x))。",
    "no_residual_2": "少了第二条残差:应为 x + mlp(mlp_norm(x))。",
    "post_norm": "归一化放在了残差之后(post-norm):应先归一化再进子层(pre-norm)。",
    "norm_after_branch": "归一化放在了子层之后:应为 attn(attn_norm(x)),你是 attn_norm(attn(x))。",
    "residual_of_norm": "残差加错了:应加归一化之前的 x,你加的是归一化之后的。",
    "no_attn_norm": "进 attn 之前没有归一化(attn_norm 没有用上)。",
    "no_mlp_norm": "进 mlp 之前没有归一化(mlp_norm 没有用上)。",
    "norm_reused": "两个子层用了同一个归一化层:mlp 之前应该用 mlp_norm。",
    "parallel": "mlp 的输入不对:应该是加过注意力之后的 x,你用的是最初的 x。",
    "mlp_first": "顺序反了:先 attn,后 mlp。",
    "no_mlp": "没有经过 mlp。",
    "no_attention": "没有经过 attn。",
}
EXERCISE = Exercise(5, "补全 Mlp 和 EncoderLayer", MISTAKES)
_erf = np.vectorize(math.erf)


def gelu(x, wrong=()):
    if "no_activation" in wrong:
        return x
    if "relu" in wrong:
        return np.maximum(x, 0)
    if "tanh_gelu" in wrong:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def mlp_reference(x, fc1, fc2, wrong=()):
    """fc1、fc2 是 ``(weight, bias)``。"""
    hidden = x @ fc1[0] + fc1[1]
    if "activation_at_end" in wrong:
        return gelu(hidden @ fc2[0] + fc2[1])
    return gelu(hidden, wrong) @ fc2[0] + fc2[1]


def build_mlp(layer_class, embed_dim, mlp_ratio):
    """学生的 Mlp 和它的两个线性层。"""
    layer = layer_class(embed_dim, mlp_ratio)
    layer.eval()
    hidden = int(embed_dim * mlp_ratio)
    shapes, found = {(embed_dim, hidden): "fc1", (hidden, embed_dim): "fc2"}, {}
    groups = weights_of(layer)
    for weight, bias in groups.values():
        b = 0.0 if bias is None else bias.numpy().astype("float64")
        found[shapes.get(tuple(weight.shape))] = (weight.numpy().astype("float64"), b)
    if set(found) != {"fc1", "fc2"} or len(groups) != 2:
        given = "、".join(f"{name} {list(weight.shape)}" for name, (weight, _) in groups.items()) or "没有"
        text = f"应有两个线性层 [{embed_dim}, {hidden}] 和 [{hidden}, {embed_dim}],找到的是:{given}。"
        widths = [tuple(weight.shape) for weight, _ in groups.values()]
        if len(widths) == 2 and widths[0][0] == widths[1][1] == embed_dim and widths[0][1:] == widths[1][:1]:
            EXERCISE.fail("hidden_width", text)
        raise Wrong(text, ["roles"])
    return layer, found["fc1"], found["fc2"]


@EXERCISE.check("Mlp", "Mlp 的两个线性层", "nn.Linear(D, hidden) 和 nn.Linear(hidden, D),hidden = int(D * mlp_ratio)。")
def check_mlp_layers(layer_class):
    build_mlp(layer_class, 8, 4.0)
    build_mlp(layer_class, 6, 1.5)


@EXERCISE.check("Mlp", "Mlp 的数值(评估时)", "fc1 -> GELU -> 随机失活 -> fc2 -> 随机失活。")
def check_mlp_values(layer_class):
    layer, fc1, fc2 = build_mlp(layer_class, 8, 1.5)
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    names = ("no_activation", "relu", "tanh_gelu", "activation_at_end")
    compare("输出", layer(tensor(x)), lambda wrong: mlp_reference(x, fc1, fc2, wrong), EXERCISE.only(names))


def is_random(function, x):
    """同样的输入,两次的输出不同。"""
    return not np.allclose(as_array("输出", function(x.clone())), as_array("输出", function(x.clone())))


@EXERCISE.check("Mlp", "Mlp 的随机失活", "在 __init__ 里建 nn.Dropout(dropout),它自己认得 train() 和 eval()。")
def check_mlp_dropout(layer_class):
    layer = layer_class(32, 4.0, 0.5)
    x = paddle.ones([2, 5, 32])
    layer.eval()
    if is_random(layer, x):
        EXERCISE.fail("dropout_at_eval")
    layer.train()
    if not is_random(layer, x):
        EXERCISE.fail("dropout_never")


def encoder_reference(layer, x, wrong=()):
    """用学生的四个子层按公式算一遍。"""

    def attn(a):
        z = layer.attn(a)
        return z[0] if isinstance(z, (tuple, list)) else z

    def branch(x, norm, sublayer, residual):
        if "post_norm" in wrong:
            return norm(x + sublayer(x))
        if "norm_after_branch" in wrong:
            return x + norm(sublayer(x))
        z = sublayer(norm(x))
        if not residual:
            return z
        return (norm(x) if "residual_of_norm" in wrong else x) + z

    def skip(a):
        return a

    attn_norm = skip if "no_attn_norm" in wrong else layer.attn_norm
    mlp_norm = skip if "no_mlp_norm" in wrong else layer.mlp_norm
    mlp_norm = layer.attn_norm if "norm_reused" in wrong else mlp_norm
    steps = []
    if "no_attention" not in wrong:
        steps.append((attn_norm, attn, "no_residual_1" not in wrong))
    if "no_mlp" not in wrong:
        steps.append((mlp_norm, layer.mlp, "no_residual_2" not in wrong))
    if "mlp_first" in wrong:
        steps.reverse()
    if "parallel" in wrong:
        return x + attn(attn_norm(x)) + layer.mlp(mlp_norm(x))
    for step in steps:
        x = branch(x, *step)
    return x


def build_encoder(layer_class, dropout=0.0):
    layer = layer_class(8, 2, 1.5, dropout)
    for name in ("attn_norm", "attn", "mlp_norm", "mlp"):
        if not isinstance(getattr(layer, name, None), nn.Layer):
            raise Wrong(f"没有子层 self.{name}:请保留模板里的名字。", ["missing_name"])
    weights_of(layer)
    layer.eval()
    return layer


def encoder_check(layer_class, names):
    layer = build_encoder(layer_class)
    x = np.random.default_rng(1).standard_normal((2, 5, 8))

    def answer(wrong):
        with paddle.no_grad():
            return as_array("输出", encoder_reference(layer, tensor(x), wrong))

    compare("输出", layer(tensor(x)), answer, EXERCISE.only(names))


ENCODER_MISTAKES = list(MISTAKES)[list(MISTAKES).index("no_residual_1") :]


@EXERCISE.check("EncoderLayer", "EncoderLayer 的形状", "输入和输出的形状相同;self.attn(x) 返回两样东西,取第一样。")
def check_encoder_shape(layer_class):
    layer = build_encoder(layer_class)
    output = layer(paddle.ones([2, 5, 8]))
    if isinstance(output, (tuple, list)):
        raise Wrong("EncoderLayer 应返回一个 Tensor,得到几个:不要返回 attn_weights。", ["type"])
    got = list(as_array("输出", output).shape)
    if got != [2, 5, 8]:
        raise Wrong(f"输出的形状应为 [2, 5, 8],得到 {got}。")


@EXERCISE.check("EncoderLayer", "EncoderLayer 的数值(评估时)", "照模板开头的两行公式写;残差加的是归一化之前的 x。")
def check_encoder_values(layer_class):
    encoder_check(layer_class, ENCODER_MISTAKES)


@EXERCISE.check(
    "EncoderLayer", "EncoderLayer 的随机失活", "dropout 要传给 Attention 和 Mlp;用 F.dropout 时要传 training。"
)
def check_encoder_dropout(layer_class):
    layer = build_encoder(layer_class, 0.5)
    x = tensor(np.random.default_rng(1).standard_normal((2, 5, 8)))
    if is_random(layer, x):
        EXERCISE.fail("dropout_at_eval")
    layer.train()
    for name in ("attn", "mlp"):
        sublayer = getattr(layer, name)
        if not is_random(lambda a, f=sublayer: f(a)[0] if isinstance(f(a), tuple) else f(a), x):
            EXERCISE.fail("dropout_never", f"(self.{name} 里没有)")


@EXERCISE.check("EncoderLayer", "每个参数都有梯度", "forward 里只用 Paddle 的运算。")
def check_encoder_gradients(layer_class):
    layer = build_encoder(layer_class)
    output = layer(tensor(np.random.default_rng(1).standard_normal((2, 5, 8))))
    expect_gradients(output, dict(layer.named_parameters()))
