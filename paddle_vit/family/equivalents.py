"""同一计算的别的写法:多头注意力和图块嵌入的第二种形式,每一种都与 ``layers.py`` 里的层相等。

论文、教材和别的项目常用这些写法;对照着读,就知道它们算的是同一件事。形状字母同 ``layers.py``,另有
M 键和值的 token 数(交叉注意力里可以不等于 N)。einops 只在用到时导入。
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ..checks import as_pair, check_images, check_positive, check_type, patch_grid
from ..errors import UserError
from ..layers import Attention, PatchEmbedding

__all__ = [
    "LinearPatchEmbedding",
    "MultiHeadAttention",
    "attention_by_einops",
    "attention_by_einsum",
    "causal_mask",
    "cut_patches",
    "patches_by_einops",
]


def causal_mask(num_tokens: int) -> Tensor:
    """因果掩码(causal mask):第 i 个 token 只能看第 0 到 i 个。

    来源:《Attention Is All You Need》(arXiv 1706.03762)3.2.3 节;课程第 2 课。

    Args:
        num_tokens (int): token 数 N。

    Returns:
        Tensor: bool,[N, N],True 表示可以看:下三角,包括对角线;与 ``paddle.nn.MultiHeadAttention`` 的约定相同。

    Raises:
        UserError: num_tokens 不是正整数。
    """
    check_positive(num_tokens, "num_tokens")
    return paddle.tril(paddle.ones([num_tokens, num_tokens], dtype="bool"))  # [N, N]


def _check_mask(mask, shape):
    """掩码不是 bool、不能广播到 shape,或有一行全是 False 时抛出 ``UserError``。"""
    if mask.dtype != paddle.bool:
        raise UserError(f"mask 的类型是 {mask.dtype},应为 bool(True 表示可以看):请用 mask.astype('bool') 转换。")
    tail = shape[len(shape) - mask.ndim :]
    if mask.ndim > len(shape) or any(given not in (1, size) for given, size in zip(mask.shape, tail)):
        raise UserError(f"mask 的形状是 {list(mask.shape)},应能广播到 [B, h, N, M] = {shape}:请改 mask 的形状。")
    if not mask.any(axis=-1).all():
        raise UserError("mask 里有一行全是 False:每个 token 至少要能看一个 token,不然 softmax 没有定义,请改这一行。")


class MultiHeadAttention(nn.Layer):
    """多头注意力(Multi-Head Attention),q、k、v 各用一个线性层:softmax(q k^T / sqrt(d)) v,再经过 W_o。

    只给 query 时是自注意力,与 ``layers.Attention`` 相等;key 和 value 来自另一个序列时是交叉注意力
    (cross-attention);给 mask 时不让看的位置权重为 0。
    来源:《Attention Is All You Need》(arXiv 1706.03762)3.2 节;课程第 2 课。

    Args:
        d_model (int): 嵌入维度 D,必须能被 num_heads 整除。
        num_heads (int): 头数 h,每个头的维度 d = D / h。

    Raises:
        UserError: d_model 不能被 num_heads 整除。
    """

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        check_positive(d_model, "d_model")
        check_positive(num_heads, "num_heads")
        if d_model % num_heads:
            raise UserError(
                f"d_model={d_model} 不能被 num_heads={num_heads} 整除:每个头分到 d_model / num_heads 维,请改其中一个。"
            )
        self.d_model = d_model
        self.num_heads = num_heads
        self.scale = (d_model // num_heads) ** -0.5
        self.W_q = nn.Linear(d_model, d_model)
        self.W_k = nn.Linear(d_model, d_model)
        self.W_v = nn.Linear(d_model, d_model)
        self.W_o = nn.Linear(d_model, d_model)

    @classmethod
    def from_attention(cls, attention: Attention) -> MultiHeadAttention:
        """由 ``layers.Attention`` 建立,权重和缩放系数相同;没有 qkv_bias 时偏置为 0,不带随机失活。"""
        layer = cls(attention.all_head_size, attention.num_heads)
        layer.scale = attention.scales
        weights = attention.qkv.weight.chunk(3, axis=1)  # [D, 3D] -> 各 [D, D]
        bias = attention.qkv.bias
        biases = (paddle.zeros([3 * layer.d_model]) if bias is None else bias).chunk(3)  # [3D] -> 各 [D]
        for linear, weight, bias in zip((layer.W_q, layer.W_k, layer.W_v), weights, biases):
            linear.weight.set_value(weight)
            linear.bias.set_value(bias)
        layer.W_o.weight.set_value(attention.proj.weight)
        layer.W_o.bias.set_value(attention.proj.bias)
        return layer

    def split_heads(self, x: Tensor) -> Tensor:
        """把合在一起的各个头拆开:[B, N, D] -> [B, h, N, d]。"""
        B, N, D = x.shape
        x = x.reshape([B, N, self.num_heads, D // self.num_heads])  # [B, N, h, d]
        return x.transpose([0, 2, 1, 3])  # [B, h, N, d]

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """计算多头注意力。

        Args:
            query (Tensor): [B, N, D]。
            key (Tensor | None): [B, M, D];``None`` 表示就是 query。
            value (Tensor | None): [B, M, D];``None`` 表示就是 key。
            mask (Tensor | None): bool,能广播到 [B, h, N, M],True 表示可以看;``None`` 表示都可以看。

        Returns:
            tuple: ``(z, attn_weights)``,形状 [B, N, D] 和 [B, h, N, M];attn_weights 每行之和为 1。

        Raises:
            UserError: query、key、value 或 mask 的形状不对,mask 不是 bool,或 mask 有一行全是 False。
        """
        key = query if key is None else key
        value = key if value is None else value
        self._check_inputs(query, key, value)
        q = self.split_heads(self.W_q(query))  # [B, h, N, d]
        k = self.split_heads(self.W_k(key))  # [B, h, M, d]
        v = self.split_heads(self.W_v(value))  # [B, h, M, d]
        scores = paddle.matmul(q * self.scale, k, transpose_y=True)  # [B, h, N, M]
        if mask is None:
            attn_weights = F.softmax(scores, axis=-1)  # [B, h, N, M]
        else:
            _check_mask(mask, list(scores.shape))
            hidden = mask.logical_not()
            attn_weights = F.softmax(scores.masked_fill(hidden, float("-inf")), axis=-1)  # [B, h, N, M]
            # 在 CPU 上 Paddle 的 softmax 按 exp(-64) 算 exp(-inf),这里换成真正的 0
            attn_weights = attn_weights.masked_fill(hidden, 0.0)
        z = paddle.matmul(attn_weights, v)  # [B, h, N, d]
        z = z.transpose([0, 2, 1, 3])  # [B, N, h, d]
        z = z.reshape(query.shape)  # [B, N, D]
        return self.W_o(z), attn_weights

    def _check_inputs(self, query, key, value):
        for name, x in (("query", query), ("key", key), ("value", value)):
            check_type(x, self.W_q.weight, f" {name} ".lstrip())
            if x.ndim != 3 or x.shape[-1] != self.d_model:
                raise UserError(f"{name} 的形状是 {list(x.shape)},应为 [B, token 数, {self.d_model}]:请改 {name}。")
        if key.shape != value.shape or key.shape[0] != query.shape[0]:
            raise UserError(
                f"query {list(query.shape)}、key {list(key.shape)}、value {list(value.shape)} 不相配:"
                "三者的 B 要相同,key 和 value 的 token 数要相同,请改其中一个。"
            )


def _patch_grid_of(x, patch_size):
    """一批图像的图块网格 (行数, 列数) 和图块的 (高, 宽)。"""
    if x.ndim != 4:
        raise UserError(f"输入图像的形状是 {list(x.shape)},应为 [B, C, H, W]:一张图像请先用 unsqueeze(0)。")
    patch_size = as_pair(patch_size, "patch_size")
    return patch_grid(tuple(x.shape[2:]), patch_size), patch_size


def cut_patches(x: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """把图像切成图块,每块按 C、高、宽的顺序展平(与卷积核的顺序相同)。

    来源:ViT 论文(arXiv 2010.11929)3.1 节的 x_p;课程第 1 课。

    Args:
        x (Tensor): [B, C, H, W]。
        patch_size (int | (int, int)): 图块边长或 (高, 宽),像素,必须整除图像。

    Returns:
        Tensor: [B, N, C*P*P],N = H/P * W/P,图块按行优先排列。

    Raises:
        UserError: x 不是四维,或图块不能整除图像。
    """
    (rows, columns), (height, width) = _patch_grid_of(x, patch_size)
    B, C = x.shape[:2]
    x = x.reshape([B, C, rows, height, columns, width])  # [B, C, H/P, P, W/P, P]
    x = x.transpose([0, 2, 4, 1, 3, 5])  # [B, H/P, W/P, C, P, P]
    return x.reshape([B, rows * columns, C * height * width])  # [B, N, C*P*P]


def patches_by_einops(x: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """用 einops 写的 ``cut_patches``:一个式子说明每根轴从哪里来、到哪里去。

    Args:
        x (Tensor): [B, C, H, W]。
        patch_size (int | (int, int)): 图块边长或 (高, 宽),像素,必须整除图像。

    Returns:
        Tensor: [B, N, C*P*P],与 ``cut_patches(x, patch_size)`` 相等。

    Raises:
        UserError: x 不是四维,或图块不能整除图像。
    """
    from einops import rearrange  # 只有这一种写法要用

    _, (height, width) = _patch_grid_of(x, patch_size)
    pattern = "B C (rows height) (columns width) -> B (rows columns) (C height width)"
    return rearrange(x, pattern, height=height, width=width)  # [B, N, C*P*P]


class LinearPatchEmbedding(nn.Layer):
    """图块嵌入的另一种写法:切成图块、展平,再用一个线性层映射;与 ``layers.PatchEmbedding`` 的卷积相等。

    来源:ViT 论文(arXiv 2010.11929)式 (1);课程第 1 课。

    Args:
        image_size (int | (int, int)): 图像边长或 (高, 宽),像素;``forward`` 收到别的尺寸会报错。
        patch_size (int | (int, int)): 图块边长或 (高, 宽),像素,必须整除 image_size。
        in_channels (int): 图像通道数 C。
        embed_dim (int): 嵌入维度 D。

    Raises:
        UserError: 图块不能整除图像,或输入的形状与 image_size、in_channels 不符。
    """

    def __init__(
        self, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], in_channels: int, embed_dim: int
    ):
        super().__init__()
        self.image_size = as_pair(image_size, "image_size")
        self.patch_size = as_pair(patch_size, "patch_size")
        self.grid_size = patch_grid(self.image_size, self.patch_size)
        self.in_channels = in_channels
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.projection = nn.Linear(in_channels * self.patch_size[0] * self.patch_size[1], embed_dim)

    @classmethod
    def from_conv(cls, patch_embedding: PatchEmbedding) -> LinearPatchEmbedding:
        """由 ``layers.PatchEmbedding`` 建立,权重相同,不带随机失活。"""
        kernel = patch_embedding.patch_embedding.weight  # [D, C, P, P]
        embed_dim = kernel.shape[0]
        layer = cls(patch_embedding.image_size, patch_embedding.patch_size, patch_embedding.in_channels, embed_dim)
        layer.projection.weight.set_value(kernel.flatten(1).transpose([1, 0]))  # [C*P*P, D]
        layer.projection.bias.set_value(patch_embedding.patch_embedding.bias)
        return layer

    def to_conv(self) -> PatchEmbedding:
        """换成权重相同的 ``layers.PatchEmbedding``。"""
        embed_dim = self.projection.weight.shape[1]
        layer = PatchEmbedding(self.image_size, self.patch_size, self.in_channels, embed_dim)
        kernel = self.projection.weight.transpose([1, 0])  # [D, C*P*P]
        kernel = kernel.reshape([embed_dim, self.in_channels, *self.patch_size])  # [D, C, P, P]
        layer.patch_embedding.weight.set_value(kernel)
        layer.patch_embedding.bias.set_value(self.projection.bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """图像 [B, C, H, W] -> token [B, N, D],N = H/P * W/P。"""
        check_images(x, self.projection.weight, self.in_channels, self.image_size)
        x = cut_patches(x, self.patch_size)  # [B, N, C*P*P]
        return self.projection(x)  # [B, N, D]


def attention_by_einsum(attention: Attention, x: Tensor) -> tuple:
    """用爱因斯坦求和(einsum)写的 ``layers.Attention``:不必转置,下标就是形状。

    下标:b = B,n = N,m = 被看的 token(也有 N 个),t = q、k、v 三个,h、d 同上,e = 嵌入维度 D。
    ``paddle.einsum`` 把大写和小写字母当成同一个下标,所以 D 不能写成大写。

    Args:
        attention (Attention): 用它的权重。
        x (Tensor): [B, N, D]。

    Returns:
        tuple: ``(z, attn_weights)``,与 ``attention(x)`` 相等,形状 [B, N, D] 和 [B, h, N, N]。
    """
    h, d = attention.num_heads, attention.attn_head_size
    weight: Tensor = attention.qkv.weight.reshape([-1, 3, h, d])  # [D, 3D] -> [D, 3, h, d]
    qkv = paddle.einsum("bne,ethd->tbhnd", x, weight)  # [3, B, h, N, d]
    if attention.qkv.bias is not None:
        qkv = qkv + attention.qkv.bias.reshape([3, 1, h, 1, d])  # [3, B, h, N, d]
    q, k, v = qkv.unbind(0)  # 各 [B, h, N, d]
    attn_weights = attention.softmax(paddle.einsum("bhnd,bhmd->bhnm", q * attention.scales, k))  # [B, h, N, N]
    z = paddle.einsum("bhnm,bhmd->bhnd", attention.attn_dropout(attn_weights), v)  # [B, h, N, d]
    weight = attention.proj.weight.reshape([h, d, -1])  # [D, D] -> [h, d, D]
    z = paddle.einsum("bhnd,hde->bne", z, weight) + attention.proj.bias  # [B, N, D]
    return attention.proj_dropout(z), attn_weights


def attention_by_einops(attention: Attention, x: Tensor) -> tuple:
    """用 einops 写的 ``layers.Attention``:reshape、transpose 和 chunk 写成一个式子。

    Args:
        attention (Attention): 用它的权重。
        x (Tensor): [B, N, D]。

    Returns:
        tuple: ``(z, attn_weights)``,与 ``attention(x)`` 相等,形状 [B, N, D] 和 [B, h, N, N]。
    """
    from einops import rearrange  # 只有这一种写法要用

    qkv = attention.qkv(x)  # [B, N, 3D]
    q, k, v = rearrange(qkv, "B N (qkv h d) -> qkv B h N d", qkv=3, h=attention.num_heads)  # 各 [B, h, N, d]
    attn_weights = attention.softmax(paddle.matmul(q * attention.scales, k, transpose_y=True))  # [B, h, N, N]
    z = paddle.matmul(attention.attn_dropout(attn_weights), v)  # [B, h, N, d]
    z = rearrange(z, "B h N d -> B N (h d)")  # [B, N, D]
    return attention.proj_dropout(attention.proj(z)), attn_weights
