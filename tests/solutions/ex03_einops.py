import einops
import paddle
import paddle.nn.functional as F


def heads(x, w):
    h = w.shape[1]
    return einops.rearrange(x @ einops.rearrange(w, "e h d -> e (h d)"), "b n (h d) -> b h n d", h=h)


def cut_patches(x, patch_size):
    B, C, H, W = x.shape
    eye = paddle.eye(H // patch_size)
    x = x.reshape([B, C, H // patch_size, patch_size, W // patch_size, patch_size])
    return paddle.einsum("bcrpsq,rt->btscpq", x, eye).reshape([B, -1, C * patch_size**2])


def attention(x, w_q, w_k, w_v, w_o):
    q, k, v = heads(x, w_q), heads(x, w_k), heads(x, w_v)
    weights = F.softmax(paddle.matmul(q, k, transpose_y=True) / q.shape[-1] ** 0.5)
    z = einops.rearrange(weights @ v, "b h n d -> b n (h d)")
    return z @ w_o.reshape([-1, w_o.shape[-1]]), weights
