"""作业 13 的检查:相对位置偏置、循环移动、掩码、移动窗口的注意力。"""

import numpy as np
import paddle

from .ex02_attention import softmax
from .ex12_window_attention import partition_reference, random_map, reverse_reference
from .machinery import Exercise, Wrong, as_array, compare, expect_gradients, tensor

MISTAKES = {
    "index_transposed": "行号转置了:差是 i 减 j,你的是 j 减 i。",
    "no_offset": "没有加 w - 1:行差和列差有负数,要先各加 w - 1,从 0 数起。",
    "no_row_offset": "行差没有加 w - 1。",
    "no_column_offset": "列差没有加 w - 1。",
    "stride_of_one_window": "乘数错了:列差有 2w - 1 种,行差应乘 2w - 1,不是 w;否则几种相对位置会挤在同一行。",
    "axes_swapped": "行差和列差调换了:乘 2w - 1 的是行差。",
    "absolute": "取了绝对值:左边和右边、上边和下边要分得清。",
    "bias_last_axis": "头在最后一轴:取出来的是 [N, N, h],要转置成 [h, N, N]。",
    "bias_reshaped": "用 reshape 代替了转置:[N, N, h] 直接 reshape 成 [h, N, N] 会把数打乱。",
    "bias_pairs_swapped": "偏置的 i 和 j 调换了:应转置成 [h, i, j]。",
    "bias_of_one_head": "各个头用了同一列:偏置表每个头一列,各不相同。",
    "shift_direction": "滚反了方向:应向左上滚,paddle.roll 的 shifts 是负的。",
    "shift_rows_only": "只滚了行,列也要滚。",
    "shift_columns_only": "只滚了列,行也要滚。",
    "shift_of_the_batch": "滚错了轴:第 0 轴是 B,行和列是第 1、2 轴。",
    "shift_flattened": "没有写 axis:paddle.roll 会先把张量摊平再滚。",
    "not_cyclic": "滚出去的丢掉了,补进来的是 0:应从另一头补进来。",
    "undo_again": "又往左上滚了一次:应滚回右下。",
    "undo_rows_only": "滚回去时只滚了行。",
    "undo_nothing": "没有滚回去。",
    "mask_inverted": "掩码反了:同一片的之间应是 0,不同片的之间才是 -100。",
    "mask_of_ones": "用了 0 / 1 的掩码:加到分数上的 1 什么也遮不住,应是 -100。",
    "mask_true_for_visible": "看得见的是 1、看不见的是 0,这是布尔掩码;加在分数上的应是 0 和 -100。",
    "mask_positive": "看不见的是 +100:反而只看得见它们了,应是 -100。",
    "no_third_slice": "最后一个窗口没有再分成两段:分界在 H - s(和 W - s),前面的是原来就在末尾的,后面的是绕过来的。",
    "mask_rows_only": "只分了行,列也要分。",
    "mask_columns_only": "只分了列,行也要分。",
    "regions_added": "行的段号和列的段号直接相加,不同的片撞了号(1 + 2 = 2 + 1):应是 行 * 3 + 列。",
    "mask_for_the_other_direction": "片是按反方向滚动分的:向左上滚,绕过来的在最后面,不在最前面。",
    "mask_not_rolled": "片是在没有滚动的特征图上切成窗口的:窗口是滚动之后切的,分片也要在滚动之后。",
    "mask_of_half_a_window": "没有用 shift,总是按 w // 2 算。",
    "mask_of_differences": "留下的是片号之差:不等于 0 的要换成 -100。",
    "no_scale": "没有缩放:q k^T 没有除以 √d。",
    "softmax_over_queries": "softmax 沿错了轴:应沿最后一轴(key)。",
    "no_bias": "没有加偏置。",
    "bias_after_softmax": "偏置加在了 softmax 之后:每行之和不再是 1,应加在分数上。",
    "bias_of_the_first_head": "各个头用了同一个头的偏置:bias[n] 是第 n 个头的。",
    "bias_scaled": "偏置也被除以了 √d:只有 q k^T 要除。",
    "mask_unused": "没有用掩码。",
    "mask_subtracted": "掩码减反了:mask 里已经是 -100,应加上。",
    "mask_multiplied": "掩码乘在了分数上,应加上。",
    "mask_after_softmax": "掩码用在了 softmax 之后:每行之和不再是 1,应加在分数上。",
    "mask_interleaved": "掩码配错了窗口:第 0 轴先是第一张图的全部窗口,第 g 个窗口用 mask[g % nW](整段重复)。",
    "block_not_shifted": "没有滚动特征图。",
    "block_direction": "滚反了方向:先向左上,后向右下。",
    "block_not_shifted_back": "算完没有滚回去。",
    "block_shifted_again": "算完又往左上滚了一次:应滚回右下。",
    "block_without_mask": "shift 不是 0 时没有把掩码交给 attend。",
    "mask_without_shift": "shift 是 0 时也用了掩码:没有滚动,窗口里的 token 都应互相看得见。",
}
EXERCISE = Exercise(13, "相对位置偏置,循环移动,移位的掩码", MISTAKES)
NAMES = list(MISTAKES)
INDEX = NAMES[: NAMES.index("bias_last_axis")]
BIAS = NAMES[NAMES.index("bias_last_axis") : NAMES.index("shift_direction")]
SHIFT = NAMES[NAMES.index("shift_direction") : NAMES.index("undo_again")]
UNDO = NAMES[NAMES.index("undo_again") : NAMES.index("mask_inverted")]
MASK = NAMES[NAMES.index("mask_inverted") : NAMES.index("no_scale")]
ATTENTION = NAMES[NAMES.index("no_scale") : NAMES.index("block_not_shifted")]
BLOCK = NAMES[NAMES.index("block_not_shifted") : NAMES.index("block_without_mask")]


def index_reference(w, wrong=()):
    row, column = np.divmod(np.arange(w * w), w)
    row, column = row[:, None] - row, column[:, None] - column  # 各 [N, N]
    if "index_transposed" in wrong:
        row, column = row.T, column.T
    if "absolute" in wrong:
        row, column = np.abs(row), np.abs(column)
    if "axes_swapped" in wrong:
        row, column = column, row
    row = row if {"no_offset", "no_row_offset"} & set(wrong) else row + w - 1
    column = column if {"no_offset", "no_column_offset"} & set(wrong) else column + w - 1
    return (row * (w if "stride_of_one_window" in wrong else 2 * w - 1) + column).astype("float64")


def bias_reference(table, index, wrong=()):
    table = np.repeat(table[:, :1], table.shape[1], axis=1) if "bias_of_one_head" in wrong else table
    bias = table[index]  # [N, N, h]
    if "bias_last_axis" in wrong:
        return bias
    if "bias_reshaped" in wrong:
        return bias.reshape(-1, *index.shape)
    return bias.transpose(2, 1, 0) if "bias_pairs_swapped" in wrong else bias.transpose(2, 0, 1)


def shift_reference(x, s, wrong=()):
    if "shift_flattened" in wrong:
        return np.roll(x, s if "shift_direction" in wrong else -s)
    if "not_cyclic" in wrong:
        out = np.zeros_like(x)
        out[:, :-s, :-s] = x[:, s:, s:]
        return out
    axes = (1,) if "shift_rows_only" in wrong else (2,) if "shift_columns_only" in wrong else (1, 2)
    axes = (0, 1) if "shift_of_the_batch" in wrong else axes
    return np.roll(x, [s if "shift_direction" in wrong else -s] * len(axes), axes)


def undo_reference(x, s, wrong=()):
    if "undo_nothing" in wrong:
        return x
    axes = (1,) if "undo_rows_only" in wrong else (1, 2)
    return np.roll(x, [-s if "undo_again" in wrong else s] * len(axes), axes)


def segments(size, w, s, wrong):
    """一个方向上滚动之后各 token 的段号,[size]。"""
    place = np.arange(size)
    if "mask_for_the_other_direction" in wrong:
        return (place < s) + 2 * (place >= w)
    if "mask_not_rolled" in wrong:
        return (place - s) // w + 1
    return (place >= size - w).astype(int) + ((place >= size - s) if "no_third_slice" not in wrong else 0)


def mask_reference(map_size, w, s, wrong=()):
    """[nW, N, N],0 和 -100。"""
    s = w // 2 if "mask_of_half_a_window" in wrong else s
    row, column = (segments(size, w, s, wrong)[:, None] for size in map_size)
    row = np.zeros_like(row) if "mask_columns_only" in wrong else row
    column = np.zeros_like(column) if "mask_rows_only" in wrong else column
    region = row + column.T if "regions_added" in wrong else row * max(map_size) + column.T  # [H, W]
    region = partition_reference(region[None, :, :, None], w)  # [nW, N, 1]
    hidden = region != region.swapaxes(1, 2)  # [nW, N, N]
    if "mask_of_differences" in wrong:
        region = partition_reference((row * 3 + column.T)[None, :, :, None], w)
        return (region.swapaxes(1, 2) - region).astype("float64")
    hidden = ~hidden if {"mask_inverted", "mask_true_for_visible"} & set(wrong) else hidden
    ones = {"mask_of_ones", "mask_true_for_visible"} & set(wrong)
    return hidden * (1.0 if ones else 100.0 if "mask_positive" in wrong else -100.0)


def attention_reference(q, k, v, bias, mask, wrong=()):
    d = q.shape[-1]
    scores = q @ k.swapaxes(2, 3)  # [B * nW, h, N, N]
    scores = scores if "no_scale" in wrong else scores / d**0.5
    bias = bias[:1] if "bias_of_the_first_head" in wrong else bias
    if not {"no_bias", "bias_after_softmax"} & set(wrong):
        scores = scores + bias / (d**0.5 if "bias_scaled" in wrong else 1)
    if mask is not None and "mask_unused" not in wrong:
        images = len(q) // len(mask)
        mask = np.repeat(mask, images, 0) if "mask_interleaved" in wrong else np.tile(mask, (images, 1, 1))
        mask = mask[:, None]  # [B * nW, 1, N, N]
        if "mask_multiplied" in wrong:
            scores = scores * mask
        elif "mask_after_softmax" not in wrong:
            scores = scores - mask if "mask_subtracted" in wrong else scores + mask
    weights = softmax(scores, 2 if "softmax_over_queries" in wrong else 3)
    if mask is not None and "mask_after_softmax" in wrong:
        weights = weights * (mask == 0)
    weights = weights + bias if "bias_after_softmax" in wrong else weights
    return weights @ v, weights


def mix(windows):
    """判卷用的“注意力”:只与窗口里的内容和次序有关,[B * nW, N, D] -> [B * nW, N, D]。"""
    place = np.arange(1, windows.shape[1] + 1)[:, None] / windows.shape[1]  # [N, 1]
    return windows * place + windows.mean(axis=1, keepdims=True)


def block_reference(x, w, s, wrong=()):
    first = 0 if "block_not_shifted" in wrong else s if "block_direction" in wrong else -s
    x = np.roll(x, (first, first), (1, 2))
    x = reverse_reference(mix(partition_reference(x, w)), w, x.shape[1:3])
    last = -first if "block_not_shifted_back" not in wrong else 0
    last = first if "block_shifted_again" in wrong else last
    return np.roll(x, (last, last), (1, 2))


@EXERCISE.check(
    "relative_position_index", "2 x 2 的窗口", "i // w 是行号,i % w 是列号;x.unsqueeze(1) - x.unsqueeze(0) 是两两之差。"
)
def check_small_index(function):
    compare_index(function, 2)


@EXERCISE.check("relative_position_index", "大一些的窗口", "不同的相对位置要有不同的行号,一共 (2w - 1)^2 种。")
def check_index(function):
    compare_index(function, 3)
    compare_index(function, 5)


def compare_index(function, w):
    got = function(w)
    compare(f"relative_position_index({w})", got, lambda wrong: index_reference(w, wrong), EXERCISE.only(INDEX))
    if isinstance(got, paddle.Tensor) and got.is_floating_point():
        raise Wrong("行号应是整数:用 astype('int64')。", ["type"])


@EXERCISE.check("relative_position_bias", "取出偏置", "F.embedding(index, table) 或 table[index] 是 [N, N, h],再转置。")
def check_bias(function):
    w, h = 2, 3
    table = tensor(random_map((2 * w - 1) ** 2, h))
    table.stop_gradient = False
    index = index_reference(w).astype("int64")
    got = function(table, paddle.to_tensor(index))
    compare(
        "偏置", got, lambda wrong: bias_reference(table.numpy().astype("float64"), index, wrong), EXERCISE.only(BIAS)
    )
    expect_gradients(got, {"偏置表": table})


@EXERCISE.check("cyclic_shift", "循环移动", "paddle.roll(x, [-s, -s], axis=[1, 2])。")
def check_shift(function):
    x = random_map(2, 5, 7, 3)
    for s in (1, 2):
        got = function(tensor(x), s)
        compare(f"cyclic_shift(x, {s})", got, lambda wrong, s=s: shift_reference(x, s, wrong), EXERCISE.only(SHIFT))


@EXERCISE.check("undo_shift", "滚回去", "cyclic_shift 反过来:paddle.roll(x, [s, s], axis=[1, 2])。")
def check_undo(function):
    x = random_map(2, 5, 7, 3)
    got = function(tensor(x), 2)
    compare("undo_shift(x, 2)", got, lambda wrong: undo_reference(x, 2, wrong), EXERCISE.only(UNDO))


def compare_mask(function, *cases):
    for map_size, w, s in cases:
        got = as_array("掩码", function(map_size, w, s))
        got = np.where(got <= -50, -100.0, got)  # -inf、-1e9 也算
        name = f"shifted_window_mask({map_size}, {w}, {s})"
        compare(name, got, lambda wrong, case=(map_size, w, s): mask_reference(*case, wrong), EXERCISE.only(MASK))


@EXERCISE.check("shifted_window_mask", "掩码:移动半个窗口", "给滚动之后的特征图分片编号,切窗口,再两两比较片号。")
def check_mask(function):
    compare_mask(function, ((8, 8), 4, 2))


@EXERCISE.check("shifted_window_mask", "掩码:长方形,别的移动", "行按 H 分,列按 W 分;分界在 H - s 和 W - s。")
def check_other_masks(function):
    compare_mask(function, ((8, 12), 4, 1), ((9, 6), 3, 2), ((4, 8), 4, 3))


def compare_attention(function, with_mask):
    B, h, w, d = 2, 3, 2, 4
    map_size = (4, 6)
    windows, N = map_size[0] * map_size[1] // w**2, w * w
    q, k, v = random_map(3, B * windows, h, N, d)
    bias = random_map(h, N, N)
    mask = mask_reference(map_size, w, 1) if with_mask else None
    given = [tensor(value) for value in (q, k, v, bias)]
    outputs = function(*given, tensor(mask)) if with_mask else function(*given)
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        raise Wrong("应返回两样:(z, attn_weights)。", ["no_return"])
    for index, name in ((1, "attn_weights"), (0, "z")):

        def answer(wrong, index=index):
            return attention_reference(q, k, v, bias, mask, wrong)[index]

        names = [name for name in ATTENTION if with_mask or not name.startswith("mask")]
        compare(name, outputs[index], answer, EXERCISE.only(names))


@EXERCISE.check("window_attention", "注意力:没有掩码", "scores = q @ k^T / √d + bias,再 softmax;[h, N, N] 会广播。")
def check_attention(function):
    compare_attention(function, with_mask=False)


@EXERCISE.check(
    "window_attention", "注意力:有掩码", "mask.tile([B, 1, 1]).unsqueeze(1) 是 [B * nW, 1, N, N],加在分数上。"
)
def check_masked_attention(function):
    compare_attention(function, with_mask=True)


def compare_block(function, shape, w, s):
    x, windows = random_map(*shape), shape[1] * shape[2] // w**2
    masks = []

    def attend(inputs, mask=None):
        if list(inputs.shape) != [shape[0] * windows, w * w, shape[3]]:
            expected = [shape[0] * windows, w * w, shape[3]]
            raise Wrong(f"交给 attend 的窗口应是 {expected},得到 {list(inputs.shape)}。", ["shape"])
        masks.append(mask)
        return tensor(mix(inputs.numpy()))

    got = function(tensor(x), w, s, attend)
    if not masks:
        raise Wrong("没有调用 attend(windows, mask)。", ["no_attend"])
    name = f"shifted_window_attention({list(shape)}, {w}, {s})"
    compare(name, got, lambda wrong: block_reference(x, w, s, wrong), EXERCISE.only(BLOCK))
    if s and masks[0] is None:
        EXERCISE.fail("block_without_mask")
    if not s and masks[0] is not None and np.any(masks[0].numpy()):
        EXERCISE.fail("mask_without_shift")


@EXERCISE.check("shifted_window_attention", "一层:不移动", "shift 是 0 时:切窗口,attend(windows, None),拼回去。")
def check_plain_block(function):
    compare_block(function, (2, 4, 8, 3), 4, 0)


@EXERCISE.check(
    "shifted_window_attention", "一层:移动", "cyclic_shift、window_partition、attend、window_reverse、undo_shift。"
)
def check_shifted_block(function):
    compare_block(function, (2, 6, 9, 3), 3, 1)
    compare_block(function, (1, 8, 4, 2), 4, 3)
