"""CCT(arXiv 2104.05704),自己写的 PyTorch 版,张量的名字同作者的代码(SHI-Labs/Compact-Transformers)。"""

import torch
from common import case_folder, input_images, packages
from torch import nn
from torch_common import CLASSES, make


class SelfAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.pre_norm, self.norm1 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = SelfAttention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        x = x + self.self_attn(self.pre_norm(x))
        x = self.norm1(x)  # 主干上
        return x + self.linear2(nn.functional.gelu(self.linear1(x)))


class Tokenizer(nn.Module):
    def __init__(self, channels, kernel, stride, padding):
        super().__init__()
        layers = []
        for inputs, outputs in zip(channels, channels[1:]):
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
            layers.append(nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(3, 2, 1)))
        self.conv_layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.conv_layers(x).flatten(2).transpose(1, 2)


class Classifier(nn.Module):
    def __init__(self, tokens, dim, depth, heads, hidden):
        super().__init__()
        self.positional_emb = nn.Parameter(torch.zeros(1, tokens, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.attention_pool = nn.Linear(dim, 1)
        self.fc = nn.Linear(dim, len(CLASSES))

    def forward(self, x):
        x = x + self.positional_emb
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.fc((self.attention_pool(x).softmax(dim=1) * x).sum(dim=1))


class CCT(nn.Module):
    def __init__(self, image, kernel, layers, dim, depth, heads, ratio):
        super().__init__()
        stride = max(1, kernel // 2 - 1)
        self.tokenizer = Tokenizer([3] + [64] * (layers - 1) + [dim], kernel, stride, kernel // 2)
        tokens = (image // (2 * stride) ** layers) ** 2
        self.classifier = Classifier(tokens, dim, depth, heads, int(ratio * dim))

    def forward(self, x):
        return self.classifier(self.tokenizer(x))


def save(case, image, kernel, layers, seed):
    model = CCT(image, kernel, layers, dim=12, depth=2, heads=3, ratio=2)
    arguments = dict(
        image_size=image,
        patch_size=(2 * max(1, kernel // 2 - 1)) ** layers,
        num_classes=len(CLASSES),
        embed_dim=12,
        depth=2,
        num_heads=3,
        mlp_ratio=2.0,
        pool="seq",
        position_embedding="learnable",
        tokenizer="conv",
        tokenizer_kernel=kernel,
        trunk_norm=True,
    )
    entry = dict(
        file=f"cases/{case}/model.pth",
        family="vit",
        format="shilabs_cct",
        model=arguments,
        made_by="make_cct.py",
        packages=packages("torch", "numpy"),
    )
    make(case, model, input_images(image), seed, 1e-3, entry)
    torch.save(model.state_dict(), case_folder(case) / "model.pth")


def main():
    save("cct_3x2", 32, 3, 2, 91)
    save("cct_7x1", 32, 7, 1, 92)


if __name__ == "__main__":
    main()
