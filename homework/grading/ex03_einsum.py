"""作业 3 的检查:用 einsum 或 einops 写的切图块和注意力。"""

import sys

import numpy as np
import paddle

from . import ex01_patches, ex02_attention
from .machinery import Exercise, Wrong, compare, tensor

PATCHES = ("scrambled", "patch_order", "pixel_order", "channel_last")
ATTENTION = [name for name in ex02_attention.MISTAKES if name not in ("qkv_interleaved", "one_head")]
MISTAKES = {
    **ex01_patches.EXERCISE.only(PATCHES),
    **ex02_attention.EXERCISE.only(ATTENTION),
    "no_einsum": "没有用到 einsum 或 einops:这份作业要练的就是它们。",
}
EXERCISE = Exercise(3, "用 einsum 或 einops 写切图块和注意力", MISTAKES)


def expect_einsum(function, *arguments):
    """函数运行时用到了 einsum 或 einops;怎样导入、叫什么名字、写在哪个函数里都行。"""
    modules = set()
    sys.setprofile(lambda frame, event, argument: modules.add(frame.f_globals.get("__name__", "")))
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    if not any(name.startswith("einops") or name.endswith((".einsum", ".einsumfunc")) for name in modules):
        EXERCISE.fail("no_einsum")


def compare_patches(function, shape, patch_size):
    x = np.random.default_rng(0).standard_normal(shape)
    kernel = np.eye(shape[1] * patch_size**2).reshape(-1, shape[1], patch_size, patch_size)  # 恒等的映射
    mistakes = EXERCISE.only(PATCHES)
    got = function(tensor(x), patch_size)
    compare("图块", got, lambda wrong: ex01_patches.reference(x, kernel, 0.0, wrong), mistakes)


@EXERCISE.check("cut_patches", "切图块", "H 拆成 (行 P),W 拆成 (列 P);图块的轴是 (行 列),展平的轴是 (C P P)。")
def check_patches(function):
    compare_patches(function, (2, 3, 4, 4), 2)


@EXERCISE.check("cut_patches", "切长方形的图", "行数和列数不必相同:rearrange 只要给出 P,别的自己会算。")
def check_wide_patches(function):
    compare_patches(function, (2, 2, 6, 12), 3)


@EXERCISE.check("cut_patches", "切图块用到了 einsum 或 einops", "from einops import rearrange(pip install einops)。")
def check_patches_style(function):
    expect_einsum(function, paddle.zeros([1, 1, 4, 4]), 2)


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
    mistakes = EXERCISE.only(ATTENTION)

    def answer(index):
        return lambda wrong: ex02_attention.reference(x, roles, sizes[2], wrong)[index]

    ex02_attention.check_weights(outputs[1], answer(1), mistakes)
    compare("z", outputs[0], answer(0), mistakes)


@EXERCISE.check("attention", "注意力的数值", "q 是 'bne,ehd->bhnd',分数是 'bhnd,bhmd->bhnm',乘 d ** -0.5。")
def check_attention(function):
    compare_attention(function, (2, 5, 3, 4))


@EXERCISE.check("attention", "换一种尺寸", "d 从 w_q.shape 得来,不要写死。")
def check_other_attention(function):
    compare_attention(function, (1, 4, 2, 5))


@EXERCISE.check("attention", "注意力用到了 einsum 或 einops", "paddle.einsum 不用安装。")
def check_attention_style(function):
    expect_einsum(function, *(tensor(a) for a in inputs(1, 4, 2, 5)))
