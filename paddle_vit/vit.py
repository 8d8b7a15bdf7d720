"""视觉 Transformer(Vision Transformer, ViT);命名的尺寸在 ``family.models``。

图像 -> PatchEmbedding ->(class token)->(位置编码)-> EncoderLayer x depth -> LayerNorm -> 汇聚 -> 分类头。
DeiT 也是它:``distillation_token=True`` 加一个蒸馏 token 和它的头;CCT 也是它,见 ``compact``。
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor, nn

from . import broadcast
from .checks import check_vit, settings_of
from .compact import ConvTokenizer, SequencePool
from .errors import UserError
from .layers import GELU, AverageTokens, EncoderLayer, Identity, LayerNorm, Linear, PatchEmbedding
from .positions import sincos_position_embedding, sincos_position_embedding_1d

__all__ = ["ViT"]


def _make_head(kind, embed_dim, mlp_ratio, num_classes, epsilon):
    """分类头,[B, D] -> [B, num_classes];参数同 ``ViT``。"""
    if num_classes == 0:
        return Identity()
    if kind == "linear":
        return Linear(embed_dim, num_classes)
    hidden_dim = int(embed_dim * mlp_ratio)
    layers = LayerNorm(embed_dim, epsilon), Linear(embed_dim, hidden_dim), GELU(), Linear(hidden_dim, num_classes)
    return nn.Sequential(*layers)


class ViT(nn.Layer):
    """视觉 Transformer。``ViT()`` 就是课程里的模型:224 像素、图块 7、3 通道、16 维、5 层、10 类、没有位置编码。

    来源:ViT 论文(arXiv 2010.11929);课程第 6 课。

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
        pool (str): ``'avg'`` 对所有图块 token 取平均;``'cls'`` 取 class token;
            ``'seq'`` 按学到的权重平均,见 ``SequencePool``。
        position_embedding (str): ``'none'`` 没有;``'learnable'`` 可学习;``'sincos'`` 固定的二维正弦余弦,
            按图块的行号和列号;``'sincos1d'`` 固定的一维正弦余弦,按图块的序号(行优先)。
        position_std (float): 可学习的位置编码初值的标准差;图块少的小图像用 0.5 学得快得多。
        head (str): ``'linear'`` 一个线性层;``'mlp'`` LayerNorm + 线性层 + GELU + 线性层。
        class_token (bool | None): 有没有 class token;``None`` 由 pool 决定:``'cls'`` 才有。
        distillation_token (bool): 加一个蒸馏 token(distillation token)和它自己的分类头 ``distillation_head``,
            预测时取两个头的平均;只用于 ``pool='cls'``。来源:DeiT(arXiv 2012.12877)第 4 节。
        register_tokens (int): 寄存器 token(register tokens)的个数 R:没有位置编码,输出不用,
            专供各层存放全局的信息。来源:arXiv 2309.16588。
        norm_after_pool (bool): 层归一化在汇聚之后(``pool_norm``),而不是之前(``norm``)。微调 BEiT、MAE 的代码这样做。
        layer_scale (float | None), qk_norm (bool), epsilon (float): 见 ``EncoderLayer``;epsilon 用于全部层归一化。
        activation (str): Mlp 的激活函数,见 ``EncoderLayer``。
        embed_norm (bool): 编码器之前(位置编码之后)也有一个层归一化 ``embed_norm``,CLIP 有。
        tokenizer (str): ``'patch'`` 切图块(``PatchEmbedding``);``'conv'`` 用卷积(``ConvTokenizer``),patch_size 定层数。
        tokenizer_kernel (int): ``'conv'`` 的卷积核边长,像素,奇数。
        trunk_norm (bool): 见 ``EncoderLayer``。卷积、``pool='seq'`` 和它合起来就是 CCT(arXiv 2104.05704)。

    Attributes:
        settings (dict): 上面的全部参数。

    Raises:
        UserError: 某个参数不合法,或几个参数互相矛盾。
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 7,
        in_channels: int = 3,
        num_classes: int = 10,
        embed_dim: int = 16,
        depth: int = 5,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        pool: str = "avg",
        position_embedding: str = "none",
        position_std: float = 0.02,
        head: str = "linear",
        class_token: bool | None = None,
        distillation_token: bool = False,
        register_tokens: int = 0,
        norm_after_pool: bool = False,
        layer_scale: float | None = None,
        qk_norm: bool = False,
        epsilon: float = 1e-5,
        activation: str = "gelu",
        embed_norm: bool = False,
        tokenizer: str = "patch",
        tokenizer_kernel: int = 3,
        trunk_norm: bool = False,
    ):
        super().__init__()
        self.settings = settings_of(locals())
        check_vit(self.settings)
        self.pool = pool
        sizes = image_size, patch_size, in_channels, embed_dim
        self.patch_embed: PatchEmbedding | ConvTokenizer
        self.patch_embed = PatchEmbedding(*sizes) if tokenizer == "patch" else ConvTokenizer(*sizes, tokenizer_kernel)
        self._add_tokens(embed_dim, pool == "cls" if class_token is None else class_token)
        self._add_positions(embed_dim)
        self.embed_norm = LayerNorm(embed_dim, epsilon) if embed_norm else Identity()
        self.embed_dropout = nn.Dropout(dropout)

        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]  # 随深度线性增长
        same = (embed_dim, num_heads, mlp_ratio, qkv_bias, qk_scale, dropout, attention_dropout)  # 各层相同的
        options = (layer_scale, qk_norm, epsilon, activation, trunk_norm)
        self.encoders = nn.LayerList([EncoderLayer(*same, rate, *options) for rate in rates])
        self.norm = Identity() if norm_after_pool else LayerNorm(embed_dim, epsilon)
        self.avgpool = AverageTokens()
        self.sequence_pool = SequencePool(embed_dim) if pool == "seq" else None
        self.pool_norm = LayerNorm(embed_dim, epsilon) if norm_after_pool else Identity()
        self.head = _make_head(head, embed_dim, mlp_ratio, num_classes, epsilon)
        if distillation_token:
            self.distillation_head = _make_head(head, embed_dim, mlp_ratio, num_classes, epsilon)

    def _add_tokens(self, embed_dim, class_token):
        """图块之前的 token,没有的是 ``None``。"""
        distillation, registers = self.settings["distillation_token"], self.settings["register_tokens"]
        self.class_token = self._create_tokens(1, embed_dim) if class_token else None
        self.distillation_token = self._create_tokens(1, embed_dim) if distillation else None
        self.register_tokens = self._create_tokens(registers, embed_dim) if registers else None
        self.num_prefix_tokens = class_token + distillation + registers

    def _add_positions(self, embed_dim):
        """位置编码,[1, M + N, D];寄存器 token 没有位置。"""
        kind, num_patches = self.settings["position_embedding"], self.patch_embed.num_patches
        num_special = self.num_prefix_tokens - self.settings["register_tokens"]  # M
        if kind == "none":
            self.position_embedding = None
        elif kind == "learnable":
            std = self.settings["position_std"]
            self.position_embedding = self._create_tokens(num_special + num_patches, embed_dim, std)
        else:
            if kind == "sincos":
                table = sincos_position_embedding(self.patch_embed.grid_size, embed_dim)  # [N, D]
            else:
                table = sincos_position_embedding_1d(num_patches, embed_dim)  # [N, D]
            table = np.pad(table, [(num_special, 0), (0, 0)])  # [M + N, D],class token 等没有位置,给零向量
            self.register_buffer("position_embedding", paddle.to_tensor(table).unsqueeze(0), persistable=False)

    def _create_tokens(self, count, embed_dim, std=0.02):
        """可学习的 token 或位置编码,[1, count, D]。"""
        normal = nn.initializer.TruncatedNormal(std=std)
        return self.create_parameter([1, count, embed_dim], default_initializer=normal)

    def forward_features(self, x: Tensor) -> Tensor:
        """图像 [B, C, H, W] -> 全部 token [B, M + R + N, D],已归一化(``norm_after_pool=True`` 时还没有)。

        次序是 class token、蒸馏 token(M 是它们的个数,0 到 2)、R 个寄存器 token、图块;M + R 就是 num_prefix_tokens。
        """
        x = self.patch_embed(x)  # [B, N, D]
        special = [token for token in (self.class_token, self.distillation_token) if token is not None]
        if special:
            tokens = paddle.concat(special, axis=1).expand([x.shape[0], -1, -1])  # [B, M, D]
            x = paddle.concat([tokens, x], axis=1)  # [B, M + N, D]
        if self.position_embedding is not None:
            x = broadcast.add_to_each(x, self.position_embedding)
        if self.register_tokens is not None:
            registers = self.register_tokens.expand([x.shape[0], -1, -1])  # [B, R, D]
            M = self.num_prefix_tokens - registers.shape[1]
            x = paddle.concat([x[:, :M], registers, x[:, M:]], axis=1)  # [B, M + R + N, D]
        x = self.embed_dropout(self.embed_norm(x))
        for encoder in self.encoders:
            x = encoder(x)  # [B, M + R + N, D]
        return self.norm(x)

    def pool_tokens(self, x: Tensor) -> Tensor:
        """把 ``forward_features`` 的 token 汇聚成一个向量:[B, M + R + N, D] -> [B, D]。"""
        if self.pool == "cls":
            return self.pool_norm(x[:, 0])  # [B, D]
        if self.num_prefix_tokens:
            x = x[:, self.num_prefix_tokens :]  # [B, N, D]
        pool = self.avgpool if self.sequence_pool is None else self.sequence_pool
        return self.pool_norm(pool(x))  # [B, D]

    def forward_heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """两个头各自的 logits,训练时分开算损失:图像 [B, C, H, W] -> 两个 [B, num_classes]。

        Returns:
            tuple: (class token 的, 蒸馏 token 的)。

        Raises:
            UserError: 模型没有蒸馏 token。
        """
        if self.distillation_token is None:
            raise UserError("模型只有一个分类头:建模型时用 distillation_token=True 才有两个,如 deit_tiny_distilled。")
        x = self.forward_features(x)  # [B, 2 + R + N, D]
        distillation_token = self.pool_norm(x[:, 1])  # [B, D]
        return self.head(self.pool_tokens(x)), self.distillation_head(distillation_token)  # 各 [B, num_classes]

    def forward(self, x: Tensor) -> Tensor:
        """图像 [B, C, H, W] -> 各类的 logits [B, num_classes];有两个头时是它们的平均。"""
        if self.distillation_token is not None:
            logits, distillation_logits = self.forward_heads(x)  # 各 [B, num_classes]
            return (logits + distillation_logits) / 2
        x = self.forward_features(x)  # [B, M + R + N, D]
        x = self.pool_tokens(x)  # [B, D]
        return self.head(x)  # [B, num_classes]
