import paddle.nn.functional as F
from einops import einsum as esum
from einops import rearrange


def cut_patches(x, patch_size):
    return rearrange(F.unfold(x, patch_size, strides=patch_size), "b k n -> b n k")


def attention(x, w_q, w_k, w_v, w_o):
    q, k, v = (esum(x, w, "b n D, D h d -> b h n d") for w in (w_q, w_k, w_v))
    a = F.softmax(esum(q, k, "b h n d, b h m d -> b h n m") / q.shape[-1] ** 0.5)
    return esum(a, v, w_o, "b h n m, b h m d, h d D -> b n D"), a
