"""作业 12 的检查:切窗口、拼回去、合并图块、乘加次数。"""

import numpy as np

from .machinery import Exercise, compare, tensor

MISTAKES = {
    "no_transpose": "没有转置就合并了轴:切出的是一段一段连续的 token,不是 w x w 的方块。",
    "column_windows": "窗口按列优先排了:应先从左到右,再从上到下。",
    "transposed_inside": "窗口里的 token 按列优先排了:应先从左到右,再从上到下。",
    "sizes_swapped": "H 和 W 用反了:行被切成 H / w 段,列被切成 W / w 段。",
    "windows_before_images": "窗口排在了图的前面:应先是第一张图的全部窗口,再是第二张图的。",
    "not_flattened": "还没有展平:应为 [B * nW, w * w, D] 三轴。",
    "no_check": "H 或 W 不是 window_size 的整数倍时没有抛出 ValueError:会裁掉几行几列,或把几张图混在一起。",
    "reverse_no_transpose": "拼回去时没有转置:窗口的行和特征图的行混在了一起。",
    "reverse_column_windows": "拼回去时把窗口当成了列优先:窗口的行和列调换了。",
    "reverse_transposed_inside": "拼回去时把窗口里的 token 当成了列优先:每个窗口都转置了。",
    "reverse_sizes_swapped": "拼回去时 H 和 W 用反了:窗口排成 H / w 行、W / w 列。",
    "reverse_windows_before_images": "拼回去时 B 和 nW 的次序反了:每张图里混进了别的图的窗口;第 0 轴是先图、后窗口。",
    "merge_row_order": "四个邻居的次序不对:应是左上、左下、右上、右下(先列后行),你的是左上、右上、左下、右下。",
    "merge_reshape": "直接 reshape 成 4D:拼在一起的是同一行里连续的 4 个 token,不是 2 x 2 的邻居。",
    "merge_quarters": "拼的是特征图的四大块(左上角……),不是 2 x 2 的邻居:应隔一个取一个,x[:, 0::2, 0::2]。",
    "merge_interleaved": "四个邻居的通道交错了:应先是左上的全部 D 个数,再是左下的 D 个数……",
    "merge_mean": "四个邻居取了平均,应拼接成 4D 维。",
    "odd_cropped": "奇数的边上最后一行(列)丢掉了:应先补一行(列)零。",
    "odd_before": "零补在了上边(左边),应补在下边(右边)。",
    "no_norm": "没有做层归一化。",
    "norm_after": "层归一化做在了线性映射之后:应先在 4D 维上归一化,再映射。",
    "norm_each": "拼接之前就归一化了:应在拼接后的 4D 维上求均值和方差。",
    "no_gamma_beta": "归一化之后没有乘 gamma、加 beta。",
    "unbiased": "方差除以了 4D - 1(Paddle 的 var 默认如此):应除以 4D,写 var(axis=-1, unbiased=False)。",
    "no_projections": "少了四个线性层:每个 token 4 * D * D 次。",
    "three_projections": "少了输出的线性层:一共四个 [D, D](q、k、v、输出)。",
    "cost_of_the_whole_map": "窗口没有起作用:每个 token 只看自己窗口里的 w * w 个,不是全图的 H * W 个。",
    "cost_of_one_side": "一个窗口有 w * w 个 token,不是 w 个。",
    "cost_of_one_window": "只数了一个窗口:一张图有 nW = (H / w) * (W / w) 个。",
    "one_product": "少了一次矩阵乘法:q k^T 和 attn_weights v 两次。",
    "doubled": "把乘法和加法分开数了:一次乘加只数一次,你的结果正好是两倍。",
}
EXERCISE = Exercise(12, "切窗口,合并图块,窗口注意力的代价", MISTAKES)
NAMES = list(MISTAKES)
PARTITION = NAMES[: NAMES.index("no_check")]
REVERSE = NAMES[NAMES.index("reverse_no_transpose") : NAMES.index("merge_row_order")]
JOIN = NAMES[NAMES.index("merge_row_order") : NAMES.index("no_norm")]
MERGE = NAMES[NAMES.index("no_norm") : NAMES.index("no_projections")]
COST = NAMES[NAMES.index("no_projections") :]


def partition_reference(x, w, wrong=()):
    """x [B, H, W, D] -> [B * nW, w * w, D]。"""
    B, H, W, D = x.shape
    H, W = (W, H) if "sizes_swapped" in wrong else (H, W)
    x = x.reshape(B, H // w, w, W // w, w, D)  # [B, H/w, w, W/w, w, D]
    if "no_transpose" not in wrong:
        x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, H/w, W/w, w, w, D]
        x = x.swapaxes(1, 2) if "column_windows" in wrong else x
        x = x.swapaxes(3, 4) if "transposed_inside" in wrong else x
    if "windows_before_images" in wrong:
        x = np.moveaxis(x, 0, 2)
    shape = (B, -1, w * w, D) if "not_flattened" in wrong else (-1, w * w, D)
    return x.reshape(shape)


def reverse_reference(windows, w, map_size, wrong=()):
    """windows [B * nW, w * w, D] -> [B, H, W, D]。"""
    (H, W), D = map_size, windows.shape[-1]
    rows, columns = (W // w, H // w) if "reverse_sizes_swapped" in wrong else (H // w, W // w)
    if "reverse_windows_before_images" in wrong:
        x = np.moveaxis(windows.reshape(rows, columns, -1, w, w, D), 2, 0)  # [B, H/w, W/w, w, w, D]
    elif "reverse_column_windows" in wrong:
        x = windows.reshape(-1, columns, rows, w, w, D).swapaxes(1, 2)
    else:
        x = windows.reshape(-1, rows, columns, w, w, D)
    x = x.swapaxes(3, 4) if "reverse_transposed_inside" in wrong else x
    x = x if "reverse_no_transpose" in wrong else x.transpose(0, 1, 3, 2, 4, 5)  # [B, H/w, w, W/w, w, D]
    return x.reshape(-1, H, W, D)


def join_reference(x, wrong=()):
    """x [B, H, W, D] -> [B, H/2, W/2, 4D]。"""
    B, H, W, D = x.shape
    if "odd_cropped" in wrong:
        x = x[:, : H // 2 * 2, : W // 2 * 2]
    else:
        rows, columns = ((0, H % 2), (0, W % 2)) if "odd_before" not in wrong else ((H % 2, 0), (W % 2, 0))
        x = np.pad(x, ((0, 0), rows, columns, (0, 0)))
    H, W = x.shape[1] // 2, x.shape[2] // 2
    if "merge_reshape" in wrong:
        return x.reshape(B, H, W, 4 * D)
    if "merge_quarters" in wrong:
        four = [x[:, :H, :W], x[:, H:, :W], x[:, :H, W:], x[:, H:, W:]]
    else:
        four = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]  # 左上、左下、右上、右下
    if "merge_row_order" in wrong:
        four = [four[k] for k in (0, 2, 1, 3)]
    if "merge_mean" in wrong:
        return np.mean(four, axis=0)
    if "merge_interleaved" in wrong:
        return np.stack(four, axis=-1).reshape(B, H, W, 4 * D)
    return np.concatenate(four, axis=-1)


def normalize(x, wrong):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof="unbiased" in wrong, keepdims=True) + 1e-5)


def merging_reference(x, gamma, beta, weight, wrong=()):
    joined = join_reference(normalize(x, wrong) if "norm_each" in wrong else x)  # [B, H/2, W/2, 4D]
    gamma, beta = (1, 0) if "no_gamma_beta" in wrong else (gamma, beta)
    if "norm_after" in wrong:  # 2D 维,gamma 和 beta 的长度对不上,只能不用
        return normalize(joined @ weight, wrong)
    if not {"no_norm", "norm_each"} & set(wrong):
        joined = normalize(joined, wrong)
    return (joined * gamma + beta) @ weight


def cost_reference(map_size, D, w, wrong=()):
    H, W = map_size
    N = H * W
    count = 0 if "no_projections" in wrong else 3 if "three_projections" in wrong else 4
    seen = N if w is None or "cost_of_the_whole_map" in wrong else w if "cost_of_one_side" in wrong else w * w
    tokens = seen if "cost_of_one_window" in wrong else N
    products = count * tokens * D * D + (1 if "one_product" in wrong else 2) * tokens * seen * D
    return np.array(products * (2 if "doubled" in wrong else 1), "float64")


def random_map(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def compare_partition(function, shape, w):
    x = random_map(*shape)
    name = f"window_partition({list(shape)}, {w})"
    compare(name, function(tensor(x), w), lambda wrong: partition_reference(x, w, wrong), EXERCISE.only(PARTITION))


@EXERCISE.check("window_partition", "切窗口:一张方的图", "reshape 成 [B, H/w, w, W/w, w, D],再交换中间两根轴。")
def check_square(function):
    compare_partition(function, (1, 6, 6, 2), 3)


@EXERCISE.check("window_partition", "切窗口:几张长方形的图", "H 和 W 不同时,H / w 和 W / w 也不同;B 在最前面。")
def check_rectangle(function):
    compare_partition(function, (3, 4, 6, 2), 2)
    compare_partition(function, (2, 9, 6, 1), 3)


@EXERCISE.check("window_partition", "切窗口:不是整数倍", "if H % w or W % w: raise ValueError(…)。")
def check_refusal(function):
    for shape, w in (((4, 6, 6, 1), 4), ((2, 8, 6, 1), 4), ((2, 6, 8, 1), 4)):
        try:
            function(tensor(random_map(*shape)), w)
        except NotImplementedError:
            raise
        except (ValueError, RuntimeError, AssertionError):  # assert、Paddle 和 einops 的拒绝也算
            continue
        EXERCISE.fail("no_check", f"(给的是 {list(shape)},window_size = {w})")


def compare_reverse(function, shape, w):
    x = random_map(*shape)
    windows, map_size = partition_reference(x, w), shape[1:3]
    name = f"window_reverse({list(windows.shape)}, {w}, {map_size})"
    got = function(tensor(windows), w, map_size)
    compare(name, got, lambda wrong: reverse_reference(windows, w, map_size, wrong), EXERCISE.only(REVERSE))


@EXERCISE.check("window_reverse", "拼回去:一张方的图", "window_partition 倒着做:reshape,同样的 transpose,reshape。")
def check_reverse_square(function):
    compare_reverse(function, (1, 6, 6, 2), 3)


@EXERCISE.check("window_reverse", "拼回去:几张长方形的图", "第 0 轴拆成 [B, H/w, W/w]:B 可以写 -1,让 reshape 自己算。")
def check_reverse_rectangle(function):
    compare_reverse(function, (3, 4, 6, 2), 2)
    compare_reverse(function, (2, 9, 6, 1), 3)


def compare_join(function, *shapes):
    for shape in shapes:
        x = random_map(*shape)
        name = f"join_neighbours({list(shape)})"
        compare(name, function(tensor(x)), lambda wrong, x=x: join_reference(x, wrong), EXERCISE.only(JOIN))


@EXERCISE.check("join_neighbours", "2 x 2 的邻居:偶数的边", "四个切片:x[:, 0::2, 0::2] 是左上的;沿最后一轴 concat。")
def check_join(function):
    compare_join(function, (2, 4, 8, 3))


@EXERCISE.check("join_neighbours", "2 x 2 的邻居:奇数的边", "F.pad(x, [0, W % 2, 0, H % 2], data_format='NHWC')。")
def check_join_odd(function):
    compare_join(function, (2, 5, 4, 3), (2, 4, 3, 3), (1, 5, 7, 2))


@EXERCISE.check("patch_merging", "图块合并的数值", "先 join_neighbours;F.layer_norm(y, 4 * D, gamma, beta) 也可以。")
def check_merging(function):
    x = random_map(2, 4, 6, 3) * 2 + 1
    gamma, beta, weight = random_map(12) + 1, random_map(12), random_map(12, 6)
    got = function(tensor(x), tensor(gamma), tensor(beta), tensor(weight))
    compare("图块合并", got, lambda wrong: merging_reference(x, gamma, beta, weight, wrong), EXERCISE.only(MERGE))


def compare_cost(function, *cases):
    for map_size, D, w in cases:
        name = f"attention_cost({map_size}, {D}, {w})"
        got = function(map_size, D, w) if w else function(map_size, D)
        compare(name, got, lambda wrong, case=(map_size, D, w): cost_reference(*case, wrong), EXERCISE.only(COST))


@EXERCISE.check("attention_cost", "看全图的代价", "N = H * W:四个线性层 4 * N * D * D,两次矩阵乘法各 N * N * D。")
def check_full_cost(function):
    compare_cost(function, ((4, 6), 8, None), ((8, 8), 12, None))


@EXERCISE.check("attention_cost", "窗口的代价", "线性层不变;每个 token 只和 w * w 个 token 相乘。")
def check_window_cost(function):
    compare_cost(function, ((4, 6), 8, 2), ((9, 15), 10, 3), ((14, 14), 6, 7))
