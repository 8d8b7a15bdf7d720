import paddle
import paddle.nn.functional as F


def causal_mask(num_tokens):
    return paddle.tril(paddle.ones([num_tokens, num_tokens])).astype("bool")


def masked_attention(q, k, v, mask):
    scores = paddle.matmul(q, k, transpose_y=True)
    scores = scores / q.shape[-1] ** 0.5
    scores = paddle.where(mask, scores, paddle.full_like(scores, -1e9))
    weights = F.softmax(scores, axis=-1)
    return paddle.matmul(weights, v), weights


def layer_cost(kind, num_tokens, dim, kernel_size=3):
    N, D, K = num_tokens, dim, kernel_size
    if kind == "rnn":
        return 2 * D * D + D, 2 * N * D * D
    if kind == "conv":
        return K * D * D + D, K * N * D * D
    return 4 * D * D + 4 * D, 4 * N * D * D + 2 * N * N * D
