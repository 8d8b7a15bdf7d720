import numpy as np
import paddle
from einops.layers.paddle import Rearrange
from paddle import einsum


def cut_patches(x, patch_size):
    return Rearrange("b c (h p) (w q) -> b (h w) (c p q)", p=patch_size, q=patch_size)(x)


def softmax(s):
    e = paddle.exp(s - s.max(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def attention(x, w_q, w_k, w_v, w_o):
    project = lambda w: einsum("bnm,mhd->bhnd", x, w)
    q, k, v = project(w_q), project(w_k), project(w_v)
    attn = softmax(einsum("bhid,bhjd->bhij", q, k) / np.sqrt(w_q.shape[-1]))
    return einsum("bhnd,hdm->bnm", attn @ v, w_o), attn
