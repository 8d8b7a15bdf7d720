"""作业 7 的检查:用 einsum 或 einops 写的切图块和注意力。"""

import ast
import inspect
import textwrap

import numpy as np

from . import ex1_patches, ex2_attention
from .machinery import Exercise, Wrong, compare, tensor

PATCHES = ("scrambled", "patch_order", "pixel_order", "channel_last")
ATTENTION = [name for name in ex2_attention.MISTAKES if name not in ("qkv_interleaved", "one_head")]
MISTAKES = {
    **{name: ex1_patches.MISTAKES[name] for name in PATCHES},
    **{name: ex2_attention.MISTAKES[name] for name in ATTENTION},
    "no_einsum": "没有用到 einsum 或 einops:这份作业要练的就是它们。",
}
EXERCISE = Exercise(7, "用 einsum 或 einops 写切图块和注意力", MISTAKES)


def expect_einsum(function):
    """函数(或它所在的文件里它调用的函数)用到了 einsum 或 einops 的函数。"""
    names = {"einsum", "rearrange", "reduce", "repeat", "einops"}
    pending, seen = [function], set()
    while pending:
        code = pending.pop()
        seen.add(code)
        nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(code)))))
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        if used & names:
            return
        helpers = [code.__globals__.get(name) for name in used]
        pending += [h for h in helpers if inspect.isfunction(h) and h not in seen and h.__module__ == code.__module__]
    EXERCISE.fail("no_einsum")


def compare_patches(function, shape, patch_size):
    x = np.random.default_rng(0).standard_normal(shape)
    kernel = np.eye(shape[1] * patch_size**2).reshape(-1, shape[1], patch_size, patch_size)  # 恒等的映射
    mistakes = {name: MISTAKES[name] for name in PATCHES}
    got = function(tensor(x), patch_size)
    compare("图块", got, lambda wrong: ex1_patches.reference(x, kernel, 0.0, wrong), mistakes)


@EXERCISE.check("cut_patches", "切图块", "H 拆成 (行 P),W 拆成 (列 P);图块的轴是 (行 列),展平的轴是 (C P P)。")
def check_patches(function):
    compare_patches(function, (2, 3, 4, 4), 2)


@EXERCISE.check("cut_patches", "切长方形的图", "行数和列数不必相同:rearrange 只要给出 P,别的自己会算。")
def check_wide_patches(function):
    compare_patches(function, (2, 2, 6, 12), 3)


@EXERCISE.check("cut_patches", "切图块用到了 einsum 或 einops", "from einops import rearrange(pip install einops)。")
def check_patches_style(function):
    expect_einsum(function)


def inputs(B, N, h, d):
    """x 和 w_q、w_k、w_v、w_o。"""
    rng = np.random.default_rng(0)
    D = h * d
    return [rng.standard_normal(s) * 0.6 for s in ((B, N, D), (D, h, d), (D, h, d), (D, h, d), (h, d, D))]


def compare_attention(function, sizes):
    x, *weights, w_o = arrays = inputs(*sizes)
    D = x.shape[-1]
    roles = {name: (w.reshape(D, D), 0.0) for name, w in zip("qkv", weights)}
    roles["o"] = (w_o.reshape(D, D), 0.0)
    outputs = function(*(tensor(a) for a in arrays))
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        raise Wrong("应返回两样:(z, attn_weights)。", ["no_return"])
    mistakes = {name: MISTAKES[name] for name in ATTENTION}

    def answer(index):
        return lambda wrong: ex2_attention.reference(x, roles, sizes[2], wrong)[index]

    ex2_attention.check_weights(outputs[1], answer(1), mistakes)
    compare("z", outputs[0], answer(0), mistakes)


@EXERCISE.check("attention", "注意力的数值", "q 是 'bne,ehd->bhnd',分数是 'bhnd,bhmd->bhnm',乘 d ** -0.5。")
def check_attention(function):
    compare_attention(function, (2, 5, 3, 4))


@EXERCISE.check("attention", "换一种尺寸", "d 从 w_q.shape 得来,不要写死。")
def check_other_attention(function):
    compare_attention(function, (1, 4, 2, 5))


@EXERCISE.check("attention", "注意力用到了 einsum 或 einops", "paddle.einsum 不用安装。")
def check_attention_style(function):
    expect_einsum(function)
