FIRST = "        z, _ = self.attn(self.attn_norm(x))\n        x = x + z\n"
SECOND = "        z = self.mlp(self.mlp_norm(x))\n        x = x + z\n"
PLANTED = [
    ("ex05_encoder", "no_activation", [("        x = self.act(x)\n", "")]),
    ("ex05_encoder", "relu", [("nn.GELU()", "nn.ReLU()")]),
    ("ex05_encoder", "tanh_gelu", [("nn.GELU()", "nn.GELU(approximate=True)")]),
    ("ex05_encoder", "activation_at_end", [("        x = self.act(x)\n", ""), ("= self.fc2(x)", "= self.act(self.fc2(x))")]),
    ("ex05_encoder", "dropout_at_eval", [("return self.dropout(x)", "return nn.functional.dropout(x, self.dropout.p)")]),
    ("ex05_encoder", "dropout_never", [("nn.Dropout(dropout)", "nn.Dropout(0.0)")]),
    ("ex05_encoder", "dropout_never", [("num_heads, dropout=dropout", "num_heads")]),
    ("ex05_encoder", "hidden_width", [("int(embed_dim * mlp_ratio)", "embed_dim * 4")]),
    ("ex05_encoder", "no_residual_1", [(FIRST, FIRST.replace("x + z", "z"))]),
    ("ex05_encoder", "no_residual_2", [(SECOND, SECOND.replace("x + z", "z"))]),
    ("ex05_encoder", "post_norm", [
        (FIRST, "        x = self.attn_norm(x + self.attn(x)[0])\n"),
        (SECOND, "        x = self.mlp_norm(x + self.mlp(x))\n")]),
    ("ex05_encoder", "norm_after_branch", [
        (FIRST, "        x = x + self.attn_norm(self.attn(x)[0])\n"),
        (SECOND, "        x = x + self.mlp_norm(self.mlp(x))\n")]),
    ("ex05_encoder", "residual_of_norm", [
        (FIRST, "        x = self.attn_norm(x)\n        x = x + self.attn(x)[0]\n"),
        (SECOND, "        x = self.mlp_norm(x)\n        x = x + self.mlp(x)\n")]),
    ("ex05_encoder", "no_attn_norm", [("self.attn(self.attn_norm(x))", "self.attn(x)")]),
    ("ex05_encoder", "no_mlp_norm", [("self.mlp(self.mlp_norm(x))", "self.mlp(x)")]),
    ("ex05_encoder", "norm_reused", [("self.mlp(self.mlp_norm(x))", "self.mlp(self.attn_norm(x))")]),
    ("ex05_encoder", "parallel", [("        x = x + z\n        z = self.mlp", "        y = x + z\n        z = self.mlp"),
        ("        x = x + z\n        return x", "        return y + z")]),
    ("ex05_encoder", "mlp_first", [(FIRST + SECOND, SECOND + FIRST)]),
    ("ex05_encoder", "no_mlp", [(SECOND, "")]),
    ("ex05_encoder", "no_attention", [(FIRST, "")]),
    ("ex05_encoder", "type", [(FIRST, FIRST.replace("z, _", "z, w")), ("        return x\n", "        return x, w\n")]),
]  # fmt: skip
