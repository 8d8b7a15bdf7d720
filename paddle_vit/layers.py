"""课程里的层:Identity、Mlp、PatchEmbedding、Attention、EncoderLayer,以及 DropPath 和位置编码。

先读这个文件。注释里的形状字母:B 一批图像的张数,C 通道,H W 图像的高和宽(像素),P 图块(patch)边长(像素),
N token 数,D 嵌入维度(embed_dim),h 头数(num_heads),d 每个头的维度。
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import Tensor, nn

from . import broadcast, functional
from .activations import ACTIVATIONS, GELU
from .checks import (
    as_pair,
    check_choice,
    check_drop_path,
    check_features,
    check_flag,
    check_heads,
    check_images,
    check_layer_norm,
    check_positive,
    check_probability,
    check_tokens,
    hidden_width,
    is_plain,
    patch_grid,
)

__all__ = ["GELU", "Attention", "AverageTokens", "DropPath", "EncoderLayer", "Identity", "LayerNorm", "LayerScale"]
__all__ += ["Linear", "Mlp", "NormalizedAttention", "PatchConv", "PatchEmbedding"]


class Identity(nn.Layer):
    """恒等层(Identity):原样返回输入。来源:课程第 1 课。"""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Linear(nn.Linear):
    """线性层,参数与 ``paddle.nn.Linear`` 完全相同,只是在 CPU 上求偏置梯度更快(见 ``functional.linear``)。"""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """层归一化(Layer Normalization)沿最后一轴,参数与 ``paddle.nn.LayerNorm(embed_dim)`` 完全相同。

    只是在 CPU 上求梯度更快(见 ``functional.layer_norm``)。来源:arXiv 1607.06450。

    Args:
        embed_dim (int): 最后一轴的长度 D。
        epsilon (float): 加在方差上的小数,大于 0,不超过 0.001。
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, embed_dim: int, epsilon: float = 1e-5):
        check_layer_norm(embed_dim, epsilon)
        super().__init__(embed_dim, epsilon)

    @property
    def epsilon(self) -> float:
        """加在方差上的小数;可以改。"""
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._epsilon = value

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight, self.bias, self.epsilon)


class Mlp(nn.Layer):
    """多层感知机(MLP):fc1 -> GELU -> dropout -> fc2 -> dropout,[B, N, D] -> [B, N, D]。

    来源:ViT 论文(arXiv 2010.11929)3.1 节;课程第 1 课。

    Args:
        embed_dim (int): 嵌入维度 D。
        mlp_ratio (float): 隐藏层宽度与 D 之比,隐藏层宽度为 int(D * mlp_ratio)。
        dropout (float): 两次随机失活(dropout)的概率,0–1。
    """

    def __init__(self, embed_dim: int, mlp_ratio: float = 4.0, dropout: float = 0.0):
        super().__init__()
        hidden_dim = hidden_width(embed_dim, mlp_ratio)
        check_probability(dropout, "dropout")
        self.fc1 = Linear(embed_dim, hidden_dim)
        self.act = GELU()
        self.fc2 = Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        check_features(x, self.fc1.weight, self.fc1.weight.shape[0])
        plain = is_plain((self.fc1, Linear), (self.act, GELU), (self.fc2, Linear), (self.dropout, nn.Dropout))
        if plain and not (self.training and self.dropout.p):
            return functional.mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)  # [B, N, D]
        x = self.dropout(self.act(self.fc1(x)))  # [B, N, D * mlp_ratio]
        return self.dropout(self.fc2(x))  # [B, N, D]


class PatchConv(nn.Conv2D):
    """步长等于卷积核的卷积,参数与 ``paddle.nn.Conv2D`` 相同;输出排成 token:[B, C, H, W] -> [B, H/P * W/P, D]。"""

    def forward(self, x: Tensor) -> Tensor:
        return functional.patch_embedding(x, self.weight, self.bias)


class PatchEmbedding(nn.Layer):
    """图块嵌入(Patch Embedding):把图像切成 P x P 的图块,每块线性映射成一个 token。

    卷积核和步长都等于 P 的卷积正好做这件事:[B, C, H, W] -> [B, H/P * W/P, D]。来源:ViT 论文 3.1 节;课程第 1 课。

    Args:
        image_size (int | (int, int)): 图像边长或 (高, 宽),像素;``forward`` 收到别的尺寸会报错。
        patch_size (int | (int, int)): 图块边长或 (高, 宽),像素,必须整除 image_size。
        in_channels (int): 图像通道数 C。
        embed_dim (int): 嵌入维度 D。
        dropout (float): 输出上的随机失活概率,0–1。

    Raises:
        UserError: 图块不能整除图像,或输入的形状与 image_size、in_channels 不符。
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int | tuple[int, int],
        in_channels: int,
        embed_dim: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_positive(in_channels, "in_channels")
        check_positive(embed_dim, "embed_dim")
        self.image_size = as_pair(image_size, "image_size")
        self.patch_size = as_pair(patch_size, "patch_size")
        self.grid_size = patch_grid(self.image_size, self.patch_size)
        self.in_channels = in_channels
        check_probability(dropout, "dropout")
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.patch_embedding = PatchConv(in_channels, embed_dim, self.patch_size, self.patch_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.patch_embedding.weight, self.in_channels, self.image_size)
        return self.dropout(self.patch_embedding(x))  # [B, N, D],N = H/P * W/P


class AverageTokens(nn.Layer):
    """对全部 token 取平均(average pooling),[B, N, D] -> [B, D]。来源:课程第 6 课。"""

    def forward(self, x: Tensor) -> Tensor:
        return broadcast.mean_tokens(x)


class Attention(nn.Layer):
    """多头自注意力(Multi-Head Self-Attention):softmax(q k^T * scales) v,再经过 proj。

    来源:《Attention Is All You Need》(arXiv 1706.03762)3.2 节;课程第 2 课。

    Args:
        embed_dim (int): 嵌入维度 D,必须能被 num_heads 整除。
        num_heads (int): 头数 h,每个头的维度 d = D / h。
        qkv_bias (bool): q、k、v 的线性层是否有偏置。
        qk_scale (float | None): q k^T 的缩放系数;``None`` 表示 d ** -0.5。
        dropout (float): 输出(proj 之后)的随机失活概率,0–1。
        attention_dropout (float): 注意力权重的随机失活概率,0–1。

    Raises:
        UserError: embed_dim 不能被 num_heads 整除。
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        check_heads(embed_dim, num_heads)
        check_probability(dropout, "dropout")
        check_probability(attention_dropout, "attention_dropout")
        self.num_heads = num_heads
        self.attn_head_size = embed_dim // num_heads
        self.all_head_size = self.attn_head_size * num_heads
        self.scales = self.attn_head_size**-0.5 if qk_scale is None else qk_scale
        self.qkv = Linear(embed_dim, self.all_head_size * 3, bias_attr=None if qkv_bias else False)
        self.proj = Linear(self.all_head_size, embed_dim)
        self.softmax = nn.Softmax(axis=-1)
        self.attn_dropout = nn.Dropout(attention_dropout)
        self.proj_dropout = nn.Dropout(dropout)

    def transpose_multihead(self, x: Tensor) -> Tensor:
        """把合在一起的各个头拆开:[B, N, h*d] -> [B, h, N, d]。"""
        B, N, _ = x.shape
        x = x.reshape([B, N, -1, self.attn_head_size])  # [B, N, h, d]
        return x.transpose([0, 2, 1, 3])  # [B, h, N, d]

    def forward(self, x: Tensor, need_weights: bool = True) -> tuple[Tensor, Tensor | None]:
        """计算自注意力。

        Args:
            x (Tensor): [B, N, D]。
            need_weights (bool): 是否返回注意力权重;不要时省内存,GPU 上还能用融合的注意力算子。

        Returns:
            tuple: ``(z, attn_weights)``,形状 [B, N, D] 和 [B, h, N, N];``need_weights=False`` 时第二项为 ``None``。
            attn_weights 是 softmax 之后、随机失活之前的权重,每行之和为 1。
        """
        check_flag(need_weights, "need_weights")
        if need_weights or not self._is_plain():
            q, k, v = self.split_heads(x)  # 各 [B, h, N, d]
            return self.attend(q, k, v, need_weights)
        check_tokens(x, self.qkv.weight, self.qkv.weight.shape[0])
        dropout = self.attn_dropout.p if self.training else 0.0
        z = functional.self_attention(self.qkv(x), self.num_heads, self.scales, dropout)  # [B, N, h*d],不必拆开各个头
        return self.proj_dropout(self.proj(z)), None

    def _is_plain(self):  # 子类没有改过中间的步骤
        steps = ("split_heads", "transpose_multihead", "attend")
        return all(getattr(type(self), step) is getattr(Attention, step) for step in steps)

    def split_heads(self, x: Tensor) -> Sequence[Tensor]:
        """各个头的 q、k、v:[B, N, D] -> 三个 [B, h, N, d]。"""
        check_tokens(x, self.qkv.weight, self.qkv.weight.shape[0])
        return self.transpose_multihead(self.qkv(x)).chunk(3, axis=1)  # [B, 3h, N, d] -> 各 [B, h, N, d]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        need_weights: bool = True,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """由 q、k、v 求输出;参数和返回值同 ``forward``。

        Args:
            q, k, v (Tensor): [B, h, N, d]。
            need_weights (bool): 见 ``forward``。
            bias (Tensor | None): 加在 q k^T * scales 上,能广播成 [B, h, N, N]。
        """
        B, _, N, _ = q.shape
        if need_weights:
            scores = paddle.matmul(q * self.scales, k, transpose_y=True)  # [B, h, N, N]
            attn_weights = self.softmax(scores if bias is None else scores + bias)  # [B, h, N, N]
            z = paddle.matmul(self.attn_dropout(attn_weights), v)  # [B, h, N, d]
        else:
            attn_weights = None
            dropout = self.attn_dropout.p if self.training else 0.0
            z = functional.attention(q, k, v, self.scales, dropout, bias)
        z = z.transpose([0, 2, 1, 3]).reshape([B, N, self.all_head_size])  # [B, N, h*d]
        return self.proj_dropout(self.proj(z)), attn_weights


class NormalizedAttention(Attention):
    """q、k 各过一次层归一化的注意力(QK norm):q k^T 不会随训练越来越大,大模型训练得更稳。

    来源:arXiv 2302.05442 2.1 节。参数比 ``Attention`` 多一个。

    Args:
        epsilon (float): 两个层归一化里加在方差上的小数。
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        epsilon: float = 1e-5,
    ):
        super().__init__(embed_dim, num_heads, qkv_bias, qk_scale, dropout, attention_dropout)
        self.q_norm = LayerNorm(self.attn_head_size, epsilon)
        self.k_norm = LayerNorm(self.attn_head_size, epsilon)

    def split_heads(self, x: Tensor) -> Sequence[Tensor]:
        q, k, v = super().split_heads(x)
        q, k = self.q_norm(q).astype(v.dtype), self.k_norm(k).astype(v.dtype)  # 混合精度时归一化给出 float32
        return q, k, v  # 各 [B, h, N, d]


class LayerScale(nn.Layer):
    """逐通道缩放(Layer Scale):x * gamma,gamma 可学习,[B, N, D] -> [B, N, D]。

    放在残差分支的末尾,从很小的值学起,深的模型也训练得动。来源:CaiT(arXiv 2103.17239)2.1 节。

    Args:
        embed_dim (int): 嵌入维度 D。
        value (float): gamma 的初值。
    """

    def __init__(self, embed_dim: int, value: float):
        super().__init__()
        self.gamma = self.create_parameter([embed_dim], default_initializer=nn.initializer.Constant(value))

    def forward(self, x: Tensor) -> Tensor:
        return broadcast.scale_channels(x, self.gamma)


class DropPath(nn.Layer):
    """随机深度(Stochastic Depth):训练时以概率 drop_path 把整条残差分支置零,每张图像独立抽签。

    留下的分支除以保留概率,期望不变;评估时原样返回。来源:arXiv 1603.09382。

    Args:
        drop_path (float): 丢弃概率,0 <= drop_path < 1。

    Raises:
        UserError: 概率不在 [0, 1) 内。
    """

    def __init__(self, drop_path: float = 0.0):
        super().__init__()
        check_drop_path(drop_path)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_path == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_path
        mask = paddle.bernoulli(paddle.full([x.shape[0]], keep, x.dtype))  # [B]
        return broadcast.scale_each(x, mask / keep)


class EncoderLayer(nn.Layer):
    """编码器层(Encoder Layer),先归一化(pre-norm),两条残差。来源:ViT 论文式 (2)(3);课程第 5 课。

    ``x = x + attn(attn_norm(x))``,``x = x + mlp(mlp_norm(x))``:[B, N, D] -> [B, N, D]。

    Args:
        embed_dim (int): 嵌入维度 D。
        num_heads (int): 头数 h。
        mlp_ratio (float): Mlp 隐藏层宽度与 D 之比。
        qkv_bias (bool), qk_scale (float | None): 见 ``Attention``。
        dropout (float): Attention 输出和 Mlp 里的随机失活概率,0–1。
        attention_dropout (float): 注意力权重的随机失活概率,0–1。
        drop_path (float): 两条残差分支的随机深度概率,0–1。
        layer_scale (float | None): 两条残差分支上 ``LayerScale`` 的初值;``None`` 表示没有。
        qk_norm (bool): 用 ``NormalizedAttention``。
        epsilon (float): 层归一化里加在方差上的小数。
        activation (str): Mlp 里用 ``'gelu'``,或它的近似 ``'quick_gelu'``、``'gelu_tanh'``,见 ``activations``。
        trunk_norm (bool): mlp_norm 在主干上,第二条残差也从它之后走(CCT):``x = mlp_norm(x)``,``x = x + mlp(x)``。
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        qk_norm: bool = False,
        epsilon: float = 1e-5,
        activation: str = "gelu",
        trunk_norm: bool = False,
    ):
        super().__init__()
        self.trunk_norm = trunk_norm
        check_choice(activation, "activation", ACTIVATIONS)
        settings = (embed_dim, num_heads, qkv_bias, qk_scale, dropout, attention_dropout)
        self.attn_norm = LayerNorm(embed_dim, epsilon)
        self.attn = NormalizedAttention(*settings, epsilon) if qk_norm else Attention(*settings)
        self.attn_scale = Identity() if layer_scale is None else LayerScale(embed_dim, layer_scale)
        self.mlp_norm = LayerNorm(embed_dim, epsilon)
        self.mlp = Mlp(embed_dim, mlp_ratio, dropout)
        self.mlp.act = ACTIVATIONS[activation]()
        self.mlp_scale = Identity() if layer_scale is None else LayerScale(embed_dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        """归一化之后的注意力分支,[B, N, D] -> [B, N, D]。"""
        z, _ = self.attn(x, need_weights=False)  # [B, N, D]
        return z

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.attn_norm.weight, self.attn_norm.weight.shape[0])
        z = self.attend(self.attn_norm(x))  # [B, N, D]
        x = x + self.drop_path(self.attn_scale(z))
        y = self.mlp_norm(x)  # [B, N, D]
        return (y if self.trunk_norm else x) + self.drop_path(self.mlp_scale(self.mlp(y)))
