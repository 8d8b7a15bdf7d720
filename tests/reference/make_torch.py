"""PyTorch 自带的 nn.MultiheadAttention、nn.TransformerEncoder(学生自己的 ViT),以及 vit-pytorch 的两代。

装着新的 vit-pytorch 时做新的一代,装着 0.26.0 时只做旧的一代(见 README.md)。
"""

import importlib.metadata

import torch
import vit_pytorch
from common import case_folder, input_images, packages
from images import image_batch
from torch import nn
from torch_common import CLASSES, make

SMALL = dict(embed_dim=6, depth=2, num_heads=3)


def entry(file, family, arguments, **more):
    return dict(
        file=file,
        family=family,
        model=arguments,
        made_by="make_torch.py",
        packages=packages("torch", "vit-pytorch", "einops", "numpy"),
        **more,
    )


def save(case, model, family, arguments, seed, **more):
    """求参考输出,存成 model.pth。"""
    record = entry(f"cases/{case}/model.pth", family, arguments, **more)
    make(case, model, input_images(224), seed, 1e-3, record)
    torch.save(model.state_dict(), case_folder(case) / "model.pth")


class StudentViT(nn.Module):
    """学生用 PyTorch 自带的层写的 ViT。

    final_norm=False 时编码器之后没有层归一化;norm_first=False 是后归一化(post-norm),名字完全相同。
    """

    def __init__(self, embed_dim, depth, num_heads, norm_first=True, final_norm=True, activation="gelu"):
        super().__init__()
        self.patch = nn.Conv2d(3, embed_dim, 16, 16)
        self.cls = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos = nn.Parameter(torch.zeros(1, 197, embed_dim))
        layer = nn.TransformerEncoderLayer(
            embed_dim, num_heads, 4 * embed_dim, 0.0, activation, batch_first=True, norm_first=norm_first
        )
        norm = nn.LayerNorm(embed_dim) if final_norm else None
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.classifier = nn.Linear(embed_dim, len(CLASSES))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)  # [B, N, D]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos  # [B, 1 + N, D]
        return self.classifier(self.encoder(x)[:, 0])


def students():
    arguments = dict(
        image_size=224,
        patch_size=16,
        num_classes=len(CLASSES),
        qkv_bias=True,
        pool="cls",
        position_embedding="learnable",
        epsilon=1e-5,
        **SMALL,
    )
    formats = dict(format="torch-encoder")
    save("torch_encoder", StudentViT(**SMALL), "vit", arguments, 61, **formats)
    reason = "后归一化(post-norm),没有最后的层归一化"
    model = StudentViT(**SMALL, norm_first=False, final_norm=False)
    save("torch_encoder_post_norm", model, "vit", arguments, 62, loads=False, reason=reason, **formats)
    reason = "没有最后的层归一化"
    model = StudentViT(**SMALL, final_norm=False)
    save("torch_encoder_no_final_norm", model, "vit", arguments, 63, loads=False, reason=reason, **formats)
    # 下面两个的名字和形状与 torch_encoder 全都一样,只看文件分辨不出来
    reason = "后归一化(post-norm),从名字和形状看不出来"
    model = StudentViT(**SMALL, norm_first=False)
    save("torch_encoder_post_norm_same_names", model, "vit", arguments, 64, loads=None, reason=reason, **formats)
    reason = "激活函数是 ReLU(PyTorch 的默认值),从名字和形状看不出来"
    model = StudentViT(**SMALL, activation="relu")
    save("torch_encoder_relu_same_names", model, "vit", arguments, 65, loads=None, reason=reason, **formats)


class SelfAttention(nn.MultiheadAttention):
    """只有一个输入的自注意力,各头的权重分开返回。"""

    def forward(self, x):
        return super().forward(x, x, x, average_attn_weights=False)


def attention():
    case = "torch_attention"
    model = SelfAttention(12, 3, batch_first=True)
    record = entry(f"cases/{case}/model.pth", "attention", dict(embed_dim=12, num_heads=3, qkv_bias=True))
    record["format"] = "torch-attention"
    x = image_batch(2, 1, 7, 12)[:, 0]  # [B, N, D]
    make(case, model, x, 66, None, record, lambda model, x: dict(zip(("z", "attn_weights"), model(x))))
    torch.save(model.state_dict(), case_folder(case) / "model.pth")


def vit_pytorch_models():
    settings = dict(image_size=224, patch_size=16, num_classes=len(CLASSES), dim=6, depth=2, heads=3, mlp_dim=24)
    arguments = dict(
        image_size=224,
        patch_size=16,
        num_classes=len(CLASSES),
        qkv_bias=False,
        position_embedding="learnable",
        epsilon=1e-5,
        **SMALL,
    )
    refused = dict(format="vit-pytorch", loads=False, reason="图块嵌入里还有两个层归一化")
    if importlib.metadata.version("vit-pytorch") == "0.26.0":
        model = vit_pytorch.ViT(**settings, dim_head=2)
        save("vit_pytorch_old", model, "vit", dict(arguments, pool="cls"), 71, format="vit-pytorch")
    else:
        save(
            "vit_pytorch_vit",
            vit_pytorch.ViT(**settings, dim_head=2),
            "vit",
            dict(arguments, pool="cls"),
            72,
            **refused,
        )
        model = vit_pytorch.SimpleViT(**{**settings, "dim": 12}, dim_head=4)
        save("vit_pytorch_simple", model, "vit", dict(arguments, embed_dim=12, pool="avg"), 73, **refused)


def main():
    if importlib.metadata.version("vit-pytorch") != "0.26.0":
        students()
        attention()
    vit_pytorch_models()


if __name__ == "__main__":
    main()
