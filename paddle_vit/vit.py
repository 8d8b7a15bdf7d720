"""视觉 Transformer(Vision Transformer, ViT)和它的命名尺寸。

图像 -> PatchEmbedding ->(class token)->(位置编码)-> EncoderLayer x depth -> LayerNorm -> 汇聚 -> 分类头。
"""

import paddle
from paddle import nn

from .errors import UserError
from .layers import (
    GELU,
    EncoderLayer,
    Identity,
    LayerNorm,
    Linear,
    PatchEmbedding,
    sincos_position_embedding,
    sincos_position_embedding_1d,
)

__all__ = ["ViT", "count_parameters", "create_model", "full_name", "list_models", "model_settings"]


def _check_choice(name, value, choices):
    if value not in choices:
        raise UserError(f"{name}={value!r} 不合法:只能是 {'、'.join(choices)} 之一。")


class ViT(nn.Layer):
    """视觉 Transformer。``ViT()`` 就是课程里的模型:224 像素、图块 7、3 通道、16 维、5 层、10 类、没有位置编码。

    来源:ViT 论文(arXiv 2010.11929);课程第 4 课。

    Args:
        image_size (int | (int, int)): 图像边长或 (高, 宽),像素。
        patch_size (int | (int, int)): 图块边长或 (高, 宽),像素,必须整除 image_size。
        in_channels (int): 图像通道数 C。
        num_classes (int): 类别数;0 表示不要分类头,输出 [B, D] 的特征。
        embed_dim (int): 嵌入维度 D。
        depth (int): 编码器层数。
        num_heads (int): 头数 h,必须整除 embed_dim。
        mlp_ratio (float): Mlp 隐藏层宽度与 D 之比。
        qkv_bias (bool), qk_scale (float | None): 见 ``Attention``。
        dropout (float): 嵌入、Attention 输出和 Mlp 里的随机失活概率,0–1。
        attention_dropout (float): 注意力权重的随机失活概率,0–1。
        drop_path (float): 最后一层的随机深度概率,0–1;各层从 0 到它线性增长。
        pool (str): ``'avg'`` 对所有图块 token 取平均;``'cls'`` 加一个 class token 并取它。
        position_embedding (str): ``'none'`` 没有;``'learnable'`` 可学习;``'sincos'`` 固定的二维正弦余弦,
            按图块的行号和列号;``'sincos1d'`` 固定的一维正弦余弦,按图块的序号(行优先)。
        position_std (float): 可学习的位置编码初值的标准差;图块少的小图像用 0.5 学得快得多。
        head (str): ``'linear'`` 一个线性层;``'mlp'`` LayerNorm + 线性层 + GELU + 线性层。

    Raises:
        UserError: 某个参数不合法,或几个参数互相矛盾。
    """

    def __init__(
        self,
        image_size=224,
        patch_size=7,
        in_channels=3,
        num_classes=10,
        embed_dim=16,
        depth=5,
        num_heads=4,
        mlp_ratio=4.0,
        qkv_bias=False,
        qk_scale=None,
        dropout=0.0,
        attention_dropout=0.0,
        drop_path=0.0,
        pool="avg",
        position_embedding="none",
        position_std=0.02,
        head="linear",
    ):
        super().__init__()
        _check_choice("pool", pool, ("avg", "cls"))
        _check_choice("position_embedding", position_embedding, ("none", "learnable", "sincos", "sincos1d"))
        _check_choice("head", head, ("linear", "mlp"))
        if depth < 1:
            raise UserError(f"depth={depth} 不合法:编码器至少要有 1 层。")
        if num_classes < 0:
            raise UserError(f"num_classes={num_classes} 不合法:应为正整数,或用 0 表示不要分类头。")
        self.pool = pool
        self.patch_embed = PatchEmbedding(image_size, patch_size, in_channels, embed_dim)
        num_tokens = self.patch_embed.num_patches + (pool == "cls")
        self.class_token = None
        if pool == "cls":
            normal = nn.initializer.TruncatedNormal(std=0.02)
            self.class_token = self.create_parameter([1, 1, embed_dim], default_initializer=normal)
        if position_embedding == "none":
            self.position_embedding = None
        elif position_embedding == "learnable":
            normal = nn.initializer.TruncatedNormal(std=position_std)
            self.position_embedding = self.create_parameter([1, num_tokens, embed_dim], default_initializer=normal)
        else:
            if position_embedding == "sincos":
                table = sincos_position_embedding(self.patch_embed.grid_size, embed_dim)  # [N, D]
            else:
                table = sincos_position_embedding_1d(self.patch_embed.num_patches, embed_dim)  # [N, D]
            table = paddle.to_tensor(table).unsqueeze(0)  # [1, N, D]
            if pool == "cls":  # class token 没有位置,给它零向量
                table = paddle.concat([paddle.zeros([1, 1, embed_dim]), table], axis=1)  # [1, 1 + N, D]
            self.register_buffer("position_embedding", table, persistable=False)
        self.embed_dropout = nn.Dropout(dropout)

        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]  # 随深度线性增长
        self.encoders = nn.LayerList(
            [
                EncoderLayer(embed_dim, num_heads, mlp_ratio, qkv_bias, qk_scale, dropout, attention_dropout, rate)
                for rate in rates
            ]
        )
        self.norm = LayerNorm(embed_dim)
        self.avgpool = nn.AdaptiveAvgPool1D(1)
        if num_classes == 0:
            self.head = Identity()
        elif head == "linear":
            self.head = Linear(embed_dim, num_classes)
        else:
            hidden_dim = int(embed_dim * mlp_ratio)
            self.head = nn.Sequential(
                LayerNorm(embed_dim), Linear(embed_dim, hidden_dim), GELU(), Linear(hidden_dim, num_classes)
            )

    def forward_features(self, x):
        """图像 [B, C, H, W] -> 归一化后的全部 token [B, N, D](``pool='cls'`` 时第 0 个是 class token,共 1 + N 个)。"""
        x = self.patch_embed(x)  # [B, N, D]
        if self.class_token is not None:
            class_token = self.class_token.expand([x.shape[0], -1, -1])  # [B, 1, D]
            x = paddle.concat([class_token, x], axis=1)  # [B, 1 + N, D]
        if self.position_embedding is not None:
            x = x + self.position_embedding
        x = self.embed_dropout(x)
        for encoder in self.encoders:
            x = encoder(x)  # [B, N, D]
        return self.norm(x)

    def pool_tokens(self, x):
        """把 ``forward_features`` 的 token 汇聚成一个向量:[B, N, D] -> [B, D]。"""
        if self.pool == "cls":
            return x[:, 0]  # [B, D]
        x = x.transpose([0, 2, 1])  # [B, D, N]
        return self.avgpool(x).flatten(1)  # [B, D]

    def forward(self, x):
        """图像 [B, C, H, W] -> 各类的 logits [B, num_classes]。"""
        x = self.forward_features(x)  # [B, N, D]
        x = self.pool_tokens(x)  # [B, D]
        return self.head(x)  # [B, num_classes]


# 名字 -> (嵌入维度, 层数, 头数),ViT 论文表 1;tiny 和 small 来自 DeiT(arXiv 2012.12877)表 1。
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# 每种尺寸常用的 (图块, 图像),像素。
_PATCHES_AND_IMAGES = {
    "tiny": [(16, 224), (16, 384)],
    "small": [(16, 224), (32, 224), (16, 384)],
    "base": [(16, 224), (32, 224), (16, 384), (32, 384)],
    "large": [(16, 224), (32, 224), (16, 384), (32, 384)],
    "huge": [(14, 224)],
}


def _named_models():
    models = {}
    for size, (embed_dim, depth, num_heads) in _SIZES.items():
        for patch_size, image_size in _PATCHES_AND_IMAGES[size]:
            models[f"vit_{size}_patch{patch_size}_{image_size}"] = dict(
                image_size=image_size,
                patch_size=patch_size,
                num_classes=1000,
                embed_dim=embed_dim,
                depth=depth,
                num_heads=num_heads,
                qkv_bias=True,
                pool="cls",
                position_embedding="learnable",
            )
    return models


def list_models():
    """所有命名模型的名字;``'vit'`` 是课程里的模型,其余是论文里的尺寸。"""
    return ["vit", *_named_models()]


def full_name(name):
    """模型的全名:``'vit_base'`` 这样的简写指该尺寸的第一个,即 ``'vit_base_patch16_224'``。

    Raises:
        UserError: 没有这个模型。
    """
    for full in list_models():
        if full == name or full.startswith(f"{name}_patch"):
            return full
    raise UserError(f"没有名为 {name!r} 的模型:可用的有 {'、'.join(list_models())}。")


def model_settings(name):
    """命名模型与 ``ViT()`` 不同的那些参数(字典);课程里的模型 ``'vit'`` 没有。

    Raises:
        UserError: 没有这个名字。
    """
    return _named_models().get(full_name(name), {})


def create_model(name, **overrides):
    """按名字建模型,例如 ``create_model('vit_base_patch16_224', num_classes=10)``。

    Args:
        name (str): ``list_models()`` 里的名字,或 ``'vit_base'`` 这样的简写(见 ``full_name``)。
        **overrides: 覆盖 ``ViT`` 的任何参数;写错的名字会得到 ``TypeError``。

    Raises:
        UserError: 没有这个名字。
    """
    return ViT(**{**model_settings(name), **overrides})


def count_parameters(model):
    """模型的参数个数(不含缓冲区)。"""
    return sum(parameter.size for parameter in model.parameters())
