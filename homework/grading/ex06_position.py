"""作业 6 的检查:二维正弦余弦位置编码,class token。"""

import numpy as np

from .machinery import Exercise, compare, expect_gradients, tensor

MISTAKES = {
    "rows_columns_swapped": "行和列调换了:前一半维度编码行号 r,后一半编码列号 c。",
    "column_major": "图块的顺序不对:应按行优先,第 r 行第 c 列是第 r * columns + c 个。",
    "one_dimensional": "只用了一维的编号:应分别编码行号和列号,你编码的是图块的序号。",
    "interleaved": "sin 和 cos 交错排列了:应各占连续的一段。",
    "cos_first": "sin 和 cos 的先后反了:先 sin 后 cos。",
    "degrees": "角度用了度:应为弧度,不要换算。",
    "frequency_dim": "频率的分母不对:w_i = 10000 ** (-i / (D/4)),你除以的是 D/2。",
    "frequency_full_dim": "频率的分母不对:w_i = 10000 ** (-i / (D/4)),你除以的是 D。",
    "frequency_sign": "频率的指数少了负号:w_i = 10000 ** (-i / (D/4)),应越来越小。",
    "count_from_one": "行号和列号从 1 数起了:应从 0 数起。",
    "class_at_end": "class token 放在了最后:应放在最前面。",
    "no_position": "没有加位置编码。",
    "position_shifted": "位置编码错了一位:应先加位置编码再拼接;你先拼接再加,每个图块用了后一个位置的编码。",
    "position_on_class": "class token 也加了位置编码:它没有位置,应该不加。",
    "no_class_token": "没有把 class token 拼接进去。",
    "class_added": "class token 是加到每个图块上的:应拼接成多出来的一个 token。",
    "class_dim": "沿错了轴拼接:class token 是多出来的一个 token,沿第 1 轴(N)拼接。",
}
EXERCISE = Exercise(6, "class token 和位置编码", MISTAKES)


def table_reference(rows, columns, embed_dim, wrong=()):
    quarter = embed_dim // 4
    divisor = quarter * (2 if "frequency_dim" in wrong else 4 if "frequency_full_dim" in wrong else 1)
    w = 10000.0 ** (np.arange(quarter) / divisor * (1 if "frequency_sign" in wrong else -1))  # [D/4]
    r, c = np.divmod(np.arange(rows * columns), columns)  # 各 [N]
    if "column_major" in wrong:
        c, r = np.divmod(np.arange(rows * columns), rows)
    if "rows_columns_swapped" in wrong:
        r, c = c, r
    if "one_dimensional" in wrong:
        r = c = np.arange(rows * columns)
    if "count_from_one" in wrong:
        r, c = r + 1, c + 1
    angles = [np.outer(a, w) for a in (r, c)]  # 各 [N, D/4]
    if "degrees" in wrong:
        angles = [np.deg2rad(a) for a in angles]
    halves = []
    for a in angles:
        parts = [np.cos(a), np.sin(a)] if "cos_first" in wrong else [np.sin(a), np.cos(a)]
        half = np.stack(parts, -1) if "interleaved" in wrong else np.stack(parts, 1)  # [N, D/4, 2] 或 [N, 2, D/4]
        halves.append(half.reshape(rows * columns, -1))
    return np.concatenate(halves, 1)  # [N, D]


def front_reference(tokens, class_token, table, wrong=()):
    B, N, D = tokens.shape
    first = np.broadcast_to(class_token, (B, 1, D))
    if "position_shifted" in wrong:
        shifted = np.concatenate([table, np.zeros((1, D))])  # [N + 1, D]
        return np.concatenate([first, tokens], 1) + shifted
    body = tokens if "no_position" in wrong else tokens + table
    if "position_on_class" in wrong:
        first = first + table[0]
    if "no_class_token" in wrong:
        return body
    if "class_added" in wrong:
        return body + class_token
    if "class_dim" in wrong:
        return np.concatenate([np.broadcast_to(class_token, (B, N, D)), body], 2)
    return np.concatenate([body, first] if "class_at_end" in wrong else [first, body], 1)


FRONT = [name for name in MISTAKES if "class" in name or "position" in name]


def compare_table(function, rows, columns, embed_dim):
    mistakes = {name: text for name, text in MISTAKES.items() if name not in FRONT}
    got = function(rows, columns, embed_dim)
    compare("编码表", got, lambda wrong: table_reference(rows, columns, embed_dim, wrong), mistakes)


@EXERCISE.check("position_table", "第 0 行只有一个图块的表", "r = c = 0 时 sin 是 0,cos 是 1。")
def check_first_row(function):
    compare_table(function, 1, 1, 8)


@EXERCISE.check(
    "position_table", "3 行 2 列的表", "行号用 np.meshgrid(…, indexing='ij') 或 np.divmod 得到;角度是 [N, 1] 乘 [D/4]。"
)
def check_table(function):
    compare_table(function, 3, 2, 16)


@EXERCISE.check("position_table", "换一种尺寸", "不要写死行数、列数和 D。")
def check_other_table(function):
    compare_table(function, 4, 7, 12)


def front_inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 4, 6)), rng.standard_normal((1, 1, 6)), rng.standard_normal((4, 6))


@EXERCISE.check(
    "add_class_token",
    "class token 和位置",
    "class_token.expand([B, -1, -1]) 是 [B, 1, D],再 paddle.concat(axis=1)。",
)
def check_front(function):
    inputs = front_inputs()
    mistakes = EXERCISE.only(FRONT)
    got = function(*(tensor(a) for a in inputs))
    compare("输出", got, lambda wrong: front_reference(*inputs, wrong), mistakes)


@EXERCISE.check("add_class_token", "class token 有梯度", "不要用 NumPy 或 to_tensor 复制 class_token。")
def check_class_gradient(function):
    tokens, class_token, table = (tensor(a) for a in front_inputs())
    tokens.stop_gradient = class_token.stop_gradient = False
    expect_gradients(function(tokens, class_token, table), {"tokens": tokens, "class_token": class_token})
