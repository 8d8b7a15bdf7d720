import paddle
import paddle.nn.functional as F
from einops import rearrange


def cut_patches(x, patch_size):
    return rearrange(x, "b c (r p) (s q) -> b (r s) (c p q)", p=patch_size, q=patch_size)


def attention(x, w_q, w_k, w_v, w_o):
    q = paddle.einsum("bne,ehd->bhnd", x, w_q)
    k = paddle.einsum("bne,ehd->bhnd", x, w_k)
    v = paddle.einsum("bne,ehd->bhnd", x, w_v)
    scores = paddle.einsum("bhnd,bhmd->bhnm", q, k)
    scores = scores / w_q.shape[-1] ** 0.5
    weights = F.softmax(scores, axis=-1)
    z = paddle.einsum("bhnm,bhmd->bhnd", weights, v)
    z = paddle.einsum("bhnd,hde->bne", z, w_o)
    return z, weights
