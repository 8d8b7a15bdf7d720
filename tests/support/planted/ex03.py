PLANTED = [
    ("ex03_einsum", "patch_order", [("(r s)", "(s r)")]),
    ("ex03_einsum", "pixel_order", [("(c p q)", "(c q p)")]),
    ("ex03_einsum", "channel_last", [("(c p q)", "(p q c)")]),
    ("ex03_einsum", "no_scale", [("    scores = scores / w_q.shape[-1] ** 0.5\n", "")]),
    ("ex03_einsum", "scale_by_embed_dim", [("w_q.shape[-1]", "x.shape[-1]")]),
    ("ex03_einsum", "q_k_swapped", [('"bhnd,bhmd->bhnm"', '"bhnd,bhmd->bhmn"')]),
    ("ex03_einsum", "softmax_over_queries", [("axis=-1", "axis=-2")]),
    ("ex03_einsum", "weights_transposed", [('"bhnm,bhmd->bhnd"', '"bhmn,bhmd->bhnd"')]),
    ("ex03_einsum", "no_einsum", [("    return rearrange", "    B, C, H, W = x.shape\n    P = patch_size\n    x = x.reshape([B, C, H // P, P, W // P, P])\n    return x.transpose([0, 2, 4, 1, 3, 5]).reshape([B, -1, C * P * P])\n    return "),
        ('return (x, "b c (r p) (s q) -> b (r s) (c p q)", p=patch_size, q=patch_size)', "return None")]),
]  # fmt: skip
