import numpy as np
import paddle


def position_table(rows, columns, embed_dim):
    quarter = embed_dim // 4
    w = 10000.0 ** (-np.arange(quarter) / quarter)
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    r = r.reshape(-1, 1) * w
    c = c.reshape(-1, 1) * w
    return np.concatenate([np.sin(r), np.cos(r), np.sin(c), np.cos(c)], axis=1)


def add_class_token(tokens, class_token, table):
    tokens = tokens + table
    class_token = class_token.expand([tokens.shape[0], -1, -1])
    return paddle.concat([class_token, tokens], axis=1)
