"""参赛者:同样的模型用 PyTorch 写。``mode`` 是 ``float32``、``bfloat16``(自动混合精度)或 ``compile``(torch.compile)。

注意力用 PyTorch 最快的 ``F.scaled_dot_product_attention``。
"""

import shutil

import torch
import torch.nn.functional as F
from torch import nn
from worker import Unavailable, serve


class EncoderLayer(nn.Module):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.attn_norm = nn.LayerNorm(embed_dim)
        self.qkv = nn.Linear(embed_dim, embed_dim * 3)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.mlp_norm = nn.LayerNorm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, embed_dim * 4)
        self.fc2 = nn.Linear(embed_dim * 4, embed_dim)

    def attention(self, x):
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 各 [B, h, N, d]
        z = F.scaled_dot_product_attention(q, k, v)  # [B, h, N, d]
        return self.proj(z.transpose(1, 2).reshape(B, N, D))

    def forward(self, x):
        x = x + self.attention(self.attn_norm(x))
        return x + self.fc2(F.gelu(self.fc1(self.mlp_norm(x))))


class TorchViT(nn.Module):
    def __init__(self, image_size, patch_size, in_channels, num_classes, embed_dim, depth, num_heads, pool):
        super().__init__()
        self.patch_embedding = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        tokens = (image_size // patch_size) ** 2 + (pool == "cls")
        self.class_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02) if pool == "cls" else None
        self.position_embedding = nn.Parameter(torch.randn(1, tokens, embed_dim) * 0.02)
        self.encoders = nn.Sequential(*(EncoderLayer(embed_dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, x):
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)  # [B, N, D]
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)  # [B, 1 + N, D]
        x = self.norm(self.encoders(x + self.position_embedding))
        return self.head(x.mean(dim=1) if self.class_token is None else x[:, 0])


def build(spec):
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    architecture = spec["architecture"]
    model = TorchViT(**architecture)
    info = {"parameters": sum(p.numel() for p in model.parameters()), "version": f"PyTorch {torch.__version__}"}
    size = architecture["image_size"]
    images = torch.randn(spec["batch"], architecture["in_channels"], size, size)
    labels = torch.randint(0, architecture["num_classes"], (spec["batch"],))
    forward = model
    if spec["mode"] == "compile":
        if not any(shutil.which(name) for name in ("g++", "clang++", "cl")):
            raise Unavailable("没有 C++ 编译器")
        forward = torch.compile(model)
    bfloat16 = spec["mode"] == "bfloat16"
    if spec["task"] == "predict":
        model.eval()

        @torch.inference_mode()
        def predict():
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                return forward(images).float().numpy()

        return predict, info
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)

    def train():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return train, info


if __name__ == "__main__":
    serve(build)
