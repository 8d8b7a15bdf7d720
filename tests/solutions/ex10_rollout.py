import paddle


def rollout(weights):
    result = paddle.eye(weights[0].shape[-1])
    for layer in weights:
        a = layer.mean(axis=1)
        m = 0.5 * a + 0.5 * paddle.eye(a.shape[-1])
        result = paddle.matmul(m, result)
    return result


def class_token_map(matrix, rows, columns):
    row = matrix[:, 0, 1:]
    return row.reshape([-1, rows, columns])
