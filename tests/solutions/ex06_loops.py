import math

import paddle


def position_table(rows, columns, embed_dim):
    table = []
    for r in range(rows):
        for c in range(columns):
            w = [10000 ** (-i / (embed_dim / 4)) for i in range(embed_dim // 4)]
            row = []
            for place in (r, c):
                row += [math.sin(place * f) for f in w] + [math.cos(place * f) for f in w]
            table.append(row)
    return paddle.to_tensor(table)


def add_class_token(tokens, class_token, table):
    zero = paddle.zeros([1, table.shape[1]])
    first = paddle.tile(class_token, [len(tokens), 1, 1])
    return paddle.concat([first, tokens], axis=1) + paddle.concat([zero, table])
