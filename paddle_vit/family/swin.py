"""Swin Transformer:注意力只在小窗口里做,特征图逐级变小的视觉 Transformer。先读 layers.py,再读这个文件。

ViT 的每个 token 看全图,计算量随 token 数的平方增长。Swin 把特征图(feature map,H x W 个 token)切成 w x w 的窗口
(window),每个 token 只看自己的窗口,计算量只随 token 数线性增长,所以图块可以小到 4 像素;每过一级(stage),相邻的
2 x 2 个 token 合并成一个(patch merging),通道加倍,越往后看得越广。

只看窗口,窗口之间就不通消息。移动窗口(shifted window)让每两层中的第二层把窗口的分界线挪动 s = w // 2 个 token。
做法是循环移动(cyclic shift):特征图滚动 s 个 token,窗口照旧切,算完再滚回去。以一行 8 个 token、w = 4 为例::

    第一层的窗口      0 1 2 3 | 4 5 6 7
    滚动 s = 2 之后   2 3 4 5 | 6 7 0 1

第一个窗口里,3 和 4 这对邻居终于见面;第二个窗口里,0 1 是从另一头绕过来的,与 6 7 并不相邻,所以用掩码(mask)让两边
互相看不见:不该看的分数加上 -100,softmax 之后就是 0。

形状字母除 layers.py 里的之外:H W 在这里是特征图的行数和列数(token),w 窗口边长(token),nW 一张特征图的窗口数,
窗口里的 token 数 N = w * w。来源:arXiv 2103.14030。
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ..checks import as_pair, check_count, check_drop_path, check_positive, check_probability, settings_of
from ..errors import UserError
from ..layers import Attention, AverageTokens, EncoderLayer, Identity, LayerNorm, Linear, PatchEmbedding
from .windows import pad_map, relative_position_index, round_up, shifted_window_mask, window_partition, window_reverse

__all__ = ["PatchMerging", "SwinBlock", "SwinStage", "SwinTransformer", "WindowAttention"]


class WindowAttention(Attention):
    """窗口注意力(Window Attention):窗口里的多头自注意力,q k^T 上加可学习的相对位置偏置(relative position bias)。

    每个头有一张 (2w-1)^2 行的偏置表,两个 token 之间的偏置只取决于它们的行差和列差。来源:论文 3.2 节式 (4)。

    Args:
        embed_dim (int), num_heads (int): 见 ``Attention``。
        window_size (int): 窗口边长 w,token。
        qkv_bias (bool), qk_scale (float | None), dropout (float), attention_dropout (float): 见 ``Attention``。

    Raises:
        UserError: embed_dim 不能被 num_heads 整除。
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        window_size: int,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__(embed_dim, num_heads, qkv_bias, qk_scale, dropout, attention_dropout)
        self.relative_position_bias_table = self.create_parameter(
            [(2 * window_size - 1) ** 2, num_heads], default_initializer=nn.initializer.TruncatedNormal(std=0.02)
        )
        index = paddle.to_tensor(relative_position_index(window_size))  # [N, N]
        self.register_buffer("relative_position_index", index, persistable=False)

    def relative_position_bias(self) -> Tensor:
        """每个头、每一对 token 的偏置,[h, N, N]。"""
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table)  # [N, N, h]
        return bias.transpose([2, 0, 1])  # [h, N, N]

    def forward(self, x: Tensor, need_weights: bool = True, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """在每个窗口里计算自注意力。

        Args:
            x (Tensor): [B * nW, N, D],``window_partition`` 的结果。
            need_weights (bool): 是否返回注意力权重。
            mask (Tensor | None): [nW, N, N],``shifted_window_mask`` 的结果;``None`` 表示窗口里的 token 都互相看得见。

        Returns:
            tuple: ``(z, attn_weights)``,形状 [B * nW, N, D] 和 [B * nW, h, N, N];``need_weights=False`` 时第二项为
            ``None``。
        """
        q, k, v = self.split_heads(x)  # 各 [B * nW, h, N, d]
        bias = self.relative_position_bias().unsqueeze(0)  # [1, h, N, N]
        if mask is not None:
            bias = bias + mask.unsqueeze(1)  # [nW, h, N, N]
            bias = bias.tile([x.shape[0] // mask.shape[0], 1, 1, 1])  # [B * nW, h, N, N]
        return self.attend(q, k, v, need_weights, bias)


class SwinBlock(EncoderLayer):
    """Swin 的一层:与 ``EncoderLayer`` 只差在注意力分支,``attend`` 先切窗口、后拼回。[B, H * W, D] -> [B, H * W, D]。

    特征图的行数和列数若不是窗口的整数倍,归一化之后在下边和右边补零,算完裁掉。特征图的短边不比窗口长时,
    窗口缩成短边那么大,也不移动。来源:论文 3.2 节式 (3)。

    Args:
        embed_dim (int): 嵌入维度 D。
        map_size (int | (int, int)): 特征图的边长或 (行数, 列数),token。
        num_heads (int): 头数 h。
        window_size (int): 窗口边长 w,token。
        shifted (bool): 是否移动窗口,移动 w // 2 个 token。
        mlp_ratio, qkv_bias, qk_scale, dropout, attention_dropout, drop_path, epsilon: 见 ``EncoderLayer``。

    Raises:
        UserError: embed_dim 不能被 num_heads 整除,或某个参数不合法。
    """

    def __init__(
        self,
        embed_dim: int,
        map_size: int | tuple[int, int],
        num_heads: int = 4,
        window_size: int = 7,
        shifted: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        epsilon: float = 1e-5,
    ):
        settings = (qkv_bias, qk_scale, dropout, attention_dropout)
        super().__init__(embed_dim, num_heads, mlp_ratio, *settings, drop_path, epsilon=epsilon)
        check_positive(window_size, "window_size")
        self.map_size = as_pair(map_size, "map_size")
        self.window_size = min(window_size, *self.map_size)
        rows, columns = self.map_size
        self.padded_size = round_up(rows, self.window_size), round_up(columns, self.window_size)
        self.shift = self.window_size // 2 if shifted and min(self.map_size) > window_size else 0
        self.attn = WindowAttention(embed_dim, num_heads, self.window_size, *settings)  # 换下 EncoderLayer 的 Attention
        mask: Any = shifted_window_mask(self.padded_size, self.window_size, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistable=False)  # [nW, N, N]

    def split_windows(self, x: Tensor) -> Tensor:
        """把特征图补零、移动、切成窗口,[B, H * W, D] -> [B * nW, N, D]。"""
        x = x.reshape([-1, *self.map_size, x.shape[-1]])  # [B, H, W, D]
        x = pad_map(x, self.window_size)  # [B, H', W', D]
        if self.shift:
            x = paddle.roll(x, [-self.shift, -self.shift], axis=[1, 2])
        return window_partition(x, self.window_size)  # [B * nW, N, D]

    def join_windows(self, x: Tensor) -> Tensor:
        """``split_windows`` 的逆,[B * nW, N, D] -> [B, H * W, D]。"""
        x = window_reverse(x, self.window_size, self.padded_size)  # [B, H', W', D]
        if self.shift:
            x = paddle.roll(x, [self.shift, self.shift], axis=[1, 2])
        H, W = self.map_size
        return x[:, :H, :W].flatten(1, 2)  # [B, H * W, D]

    def attend(self, x: Tensor) -> Tensor:
        """归一化之后的窗口注意力,[B, H * W, D] -> [B, H * W, D]。"""
        x = self.split_windows(x)  # [B * nW, N, D]
        x, _ = self.attn(x, need_weights=False, mask=self.mask)
        return self.join_windows(x)  # [B, H * W, D]


class PatchMerging(nn.Layer):
    """图块合并(Patch Merging):相邻 2 x 2 个 token 拼成 4D 维,归一化后线性映射成 2D 维。

    拼接的次序是左上、左下、右上、右下;行数或列数是奇数时先补零。[B, H * W, D] -> [B, H/2 * W/2, 2D](除法向上取整)。
    来源:论文 3.1 节。

    Args:
        embed_dim (int): 嵌入维度 D。
        map_size (int | (int, int)): 特征图的边长或 (行数, 列数),token。
        epsilon (float): 层归一化里加在方差上的小数。
    """

    def __init__(self, embed_dim: int, map_size: int | tuple[int, int], epsilon: float = 1e-5):
        super().__init__()
        self.map_size = as_pair(map_size, "map_size")
        self.norm = LayerNorm(4 * embed_dim, epsilon)
        self.reduction = Linear(4 * embed_dim, 2 * embed_dim, bias_attr=False)

    def join_neighbours(self, x: Tensor) -> Tensor:
        """相邻的 2 x 2 个 token 拼成一个,[B, H * W, D] -> [B, H/2 * W/2, 4D]。"""
        D = x.shape[-1]
        x = x.reshape([-1, *self.map_size, D])  # [B, H, W, D]
        x = pad_map(x, 2)  # [B, H', W', D]
        _, H, W, _ = x.shape
        x = x.reshape([-1, H // 2, 2, W // 2, 2, D])  # [B, H'/2, 2, W'/2, 2, D]
        x = x.transpose([0, 1, 3, 4, 2, 5])  # [B, H'/2, W'/2, 2, 2, D],先列后行
        return x.reshape([-1, H // 2 * (W // 2), 4 * D])  # [B, H'/2 * W'/2, 4D]

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(self.join_neighbours(x)))  # [B, H'/2 * W'/2, 2D]


class SwinStage(nn.Layer):
    """Swin 的一级(stage):若干个 ``SwinBlock``,窗口一层不动、一层移动,末尾可以合并图块。

    [B, H * W, D] -> [B, H * W, D],合并时 -> [B, H/2 * W/2, 2D](除法向上取整)。来源:论文 3.1 节,图 3。

    Args:
        embed_dim (int): 嵌入维度 D。
        map_size (int | (int, int)): 特征图的边长或 (行数, 列数),token。
        num_heads (int): 头数 h。
        window_size (int): 窗口边长 w,token。
        drop_paths (list[float]): 各层的随机深度概率,0–1;有几个就有几层。
        merge (bool): 末尾是否有 ``PatchMerging``。
        mlp_ratio, qkv_bias, qk_scale, dropout, attention_dropout, epsilon: 见 ``EncoderLayer``。
    """

    def __init__(
        self,
        embed_dim: int,
        map_size: int | tuple[int, int],
        num_heads: int,
        window_size: int,
        drop_paths: list[float],
        merge: bool,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        settings = (mlp_ratio, qkv_bias, qk_scale, dropout, attention_dropout)
        self.blocks = nn.LayerList(
            [
                SwinBlock(embed_dim, map_size, num_heads, window_size, i % 2 == 1, *settings, drop_path, epsilon)
                for i, drop_path in enumerate(drop_paths)
            ]
        )
        self.downsample = PatchMerging(embed_dim, map_size, epsilon) if merge else Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)  # [B, H * W, D]
        return self.downsample(x)  # [B, H/2 * W/2, 2D],不合并时不变


class SwinTransformer(nn.Layer):
    """Swin Transformer;``SwinTransformer()`` 是论文里的 Swin-T。

    图像 -> PatchEmbedding -> LayerNorm -> SwinStage x 级数 -> LayerNorm -> 平均 -> 分类头。没有位置编码,位置由各层的
    相对位置偏置给出。第 i 级(从 0 数)的维度是 embed_dim * 2**i,特征图的边长是图块网格的 1 / 2**i(向上取整)。
    初值:偏置表是标准差 0.02 的截断正态分布(截断在 ±2),与论文的代码相同;线性层与本项目的 ViT 一样用 Paddle 的默认初值。

    来源:arXiv 2103.14030。

    Args:
        image_size (int | (int, int)): 图像边长或 (高, 宽),像素。
        patch_size (int | (int, int)): 图块边长或 (高, 宽),像素,必须整除 image_size。
        in_channels (int): 图像通道数 C。
        num_classes (int): 类别数;0 表示不要分类头,输出特征。
        embed_dim (int): 第一级的嵌入维度。
        depths (list[int]): 每一级的层数。
        num_heads (list[int]): 每一级的头数,要整除那一级的维度。
        window_size (int): 窗口边长 w,token。
        mlp_ratio (float): Mlp 隐藏层宽度与嵌入维度之比。
        qkv_bias (bool), qk_scale (float | None): 见 ``Attention``。
        dropout (float): 嵌入、注意力输出和 Mlp 里的随机失活概率,0–1。
        attention_dropout (float): 注意力权重的随机失活概率,0–1。
        drop_path (float): 最后一层的随机深度概率,0–1;从第一级的第一层起,各层从 0 到它线性增长。
        epsilon (float): 层归一化里加在方差上的小数。

    Raises:
        UserError: 某个参数不合法,或几个参数互相矛盾。
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        epsilon: float = 1e-5,
    ):
        super().__init__()
        self.settings = settings_of(locals())
        _check_stages(embed_dim, depths, num_heads)
        check_count(num_classes, "num_classes")
        check_drop_path(drop_path)
        check_probability(dropout, "dropout")
        self.patch_embed = PatchEmbedding(image_size, patch_size, in_channels, embed_dim)
        self.embed_norm = LayerNorm(embed_dim, epsilon)
        self.embed_dropout = nn.Dropout(dropout)

        last = len(depths) - 1
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]  # 随深度线性增长
        settings = (mlp_ratio, qkv_bias, qk_scale, dropout, attention_dropout, epsilon)
        map_size = self.patch_embed.grid_size
        self.stages = nn.LayerList()
        for i, (depth, heads) in enumerate(zip(depths, num_heads)):
            drop_paths, rates = rates[:depth], rates[depth:]
            self.stages.append(
                SwinStage(embed_dim * 2**i, map_size, heads, window_size, drop_paths, i < last, *settings)
            )
            rows, columns = map_size
            map_size = round_up(rows, 2) // 2, round_up(columns, 2) // 2
        self.norm = LayerNorm(embed_dim * 2**last, epsilon)
        self.avgpool = AverageTokens()
        self.head = Linear(embed_dim * 2**last, num_classes) if num_classes else Identity()

    @property
    def pads_before_shift(self) -> bool:
        """有没有既补零又移动的层(特征图不是窗口的整数倍);我们先补零再移动,timm 先移动再补零,这时结果不同。"""
        blocks = [block for stage in self.stages for block in stage.blocks]
        return any(block.shift and block.padded_size != block.map_size for block in blocks)

    def forward_features(self, x: Tensor) -> Tensor:
        """图像 [B, C, 高, 宽] -> 最后一级归一化后的全部 token [B, N, D]。"""
        x = self.patch_embed(x)  # [B, H * W, D]
        x = self.embed_dropout(self.embed_norm(x))
        for stage in self.stages:
            x = stage(x)  # [B, H/2 * W/2, 2D],最后一级不变
        return self.norm(x)

    def pool_tokens(self, x: Tensor) -> Tensor:
        """把 ``forward_features`` 的 token 平均成一个向量:[B, N, D] -> [B, D]。"""
        return self.avgpool(x)  # [B, D]

    def forward(self, x: Tensor) -> Tensor:
        """图像 [B, C, 高, 宽] -> 各类的 logits [B, num_classes]。"""
        x = self.forward_features(x)  # [B, N, D]
        x = self.pool_tokens(x)  # [B, D]
        return self.head(x)  # [B, num_classes]


def _check_stages(embed_dim, depths, num_heads):
    """各级的层数、头数不合法,或头数不能整除那一级的维度时抛出 ``UserError``。"""
    check_positive(embed_dim, "embed_dim")
    for name, values in (("depths", depths), ("num_heads", num_heads)):
        if not isinstance(values, (list, tuple)) or not values:
            raise UserError(f"{name}={values!r} 不合法:应是一列正整数,每一级一个,例如 (2, 2, 6, 2)。")
        for value in values:
            check_positive(value, name)
    if len(depths) != len(num_heads):
        raise UserError(
            f"depths={tuple(depths)} 有 {len(depths)} 级,num_heads={tuple(num_heads)} 有 {len(num_heads)} 级:"
            "两者的个数要相同,请改其中一个。"
        )
    for i, heads in enumerate(num_heads):
        if embed_dim * 2**i % heads:
            raise UserError(
                f"第 {i} 级(从 0 数)的维度 embed_dim * 2**{i} = {embed_dim * 2**i} 不能被 num_heads[{i}]={heads} 整除:"
                "请改 embed_dim 或 num_heads。"
            )
