"""把模型写成静态图(static graph):算子的列表加上权重。

动态图(eager)逐个执行算子;静态图先把全部算子列出来,推理引擎就能把相邻的合并、选好内存布局,所以快得多。
写的是 Paddle 2 的旧格式(.pdmodel 和 .pdiparams):OpenVINO 和 VisualDL 只读它,paddle2onnx 也读。
"""

import numpy as np
import paddle
from paddle import nn

from ..compact import ConvTokenizer
from ..errors import UserError
from ..layers import Identity, LayerScale, NormalizedAttention
from .static_program import StaticGraph, serialize
from .swin import PatchMerging, SwinTransformer

__all__ = ["write_model"]


def _write_linear(graph, x, layer, gamma=1.0):
    """线性层;输出再乘以 gamma(数,或 [D])。"""
    return graph.linear(x, layer.weight.numpy() * gamma, None if layer.bias is None else layer.bias.numpy() * gamma)


def _gamma(layer):
    """``LayerScale`` 的 gamma;没有(``Identity``)时是 1。"""
    return layer.gamma.numpy() if isinstance(layer, LayerScale) else 1.0


def _write_attention(graph, y, attention, gamma=1.0, outputs=None, bias=None):
    """多头自注意力,[B, N, D] -> [B, N, D]。

    给了 outputs 就只算前这么多个 token 的输出,[B, outputs, D];bias 是加在 q k^T 上的 numpy 数组:[h, N, N],
    或 [nW, h, N, N](B 里每连续 nW 个是一张图的窗口)。
    """
    h, d, D = attention.num_heads, attention.attn_head_size, attention.all_head_size
    N = y.shape[1]
    # 缩放系数并进 q 的权重(QK norm 时是 q_norm 的),LayerScale 并进 proj 和 fc2 的,图里就少几个算子
    normalized = isinstance(attention, NormalizedAttention)
    scales = np.repeat([1 if normalized else attention.scales, 1, 1], D).astype("float32")  # [3D]
    weight = attention.qkv.weight.numpy() * scales  # [D, 3D]
    qkv_bias = None if attention.qkv.bias is None else attention.qkv.bias.numpy() * scales  # [3D]
    if outputs is not None:
        first = graph.slice(y, 1, 0, outputs)  # [B, outputs, D]
        q = graph.linear(first, weight[:, :D], None if qkv_bias is None else qkv_bias[:D])
        q = graph.transpose(graph.reshape(q, [0, outputs, h, d]), [0, 2, 1, 3])  # [B, h, outputs, d]
        kv = graph.linear(y, weight[:, D:], None if qkv_bias is None else qkv_bias[D:])  # [B, N, 2D]
        kv = graph.transpose(graph.reshape(kv, [0, N, 2, h, d]), [2, 0, 3, 1, 4])  # [2, B, h, N, d]
        k, v = (graph.pick(kv, 0, i) for i in range(2))
    else:
        qkv = graph.linear(y, weight, qkv_bias)  # [B, N, 3D]
        qkv = graph.transpose(graph.reshape(qkv, [0, N, 3, h, d]), [2, 0, 3, 1, 4])  # [3, B, h, N, d]
        q, k, v = (graph.pick(qkv, 0, i) for i in range(3))
    if normalized:
        q, k = graph.layer_norm(q, attention.q_norm, attention.scales), graph.layer_norm(k, attention.k_norm)
    scores = graph.matmul(q, graph.transpose(k, [0, 1, 3, 2]))  # [B, h, N, N]
    if bias is not None and bias.ndim == 4:
        scores = graph.add(graph.reshape(scores, [-1, *bias.shape]), graph.constant(bias))  # [B / nW, nW, h, N, N]
        scores = graph.reshape(scores, [-1, h, N, N])  # [B, h, N, N]
    elif bias is not None:
        scores = graph.add(scores, graph.constant(bias))
    weights = graph.op("softmax", {"X": scores}, axis=-1)
    z = graph.transpose(graph.matmul(weights, v), [0, 2, 1, 3])  # [B, N, h, d]
    return _write_linear(graph, graph.reshape(z, [0, outputs or N, D]), attention.proj, gamma)


def _write_mlp(graph, x, layer):
    """一层的后一半:x(``trunk_norm`` 时是归一化以后的)加上 Mlp 分支。"""
    y = graph.layer_norm(x, layer.mlp_norm)
    x = y if layer.trunk_norm else x
    with graph.inside(layer.mlp, "mlp"):
        y = graph.activation(_write_linear(graph, y, layer.mlp.fc1), layer.mlp.act)
        y = _write_linear(graph, y, layer.mlp.fc2, _gamma(layer.mlp_scale))
    return graph.add(x, y)


def _write_encoder(graph, x, layer, outputs=None):
    """一个 ``EncoderLayer``,[B, N, D] -> [B, N, D];给了 outputs 就只算前这么多个 token 的输出,[B, outputs, D]。"""
    y = graph.layer_norm(x, layer.attn_norm)
    with graph.inside(layer.attn, "attn"):
        z = _write_attention(graph, y, layer.attn, _gamma(layer.attn_scale), outputs)
    if outputs is not None:
        x = graph.slice(x, 1, 0, outputs)  # [B, outputs, D]
    return _write_mlp(graph, graph.add(x, z), layer)


def _write_head(graph, x, head):
    with graph.inside(head, "head"):
        for layer in head if isinstance(head, nn.Sequential) else [head]:
            if isinstance(layer, nn.Linear):
                x = _write_linear(graph, x, layer)
            elif isinstance(layer, nn.LayerNorm):
                x = graph.layer_norm(x, layer)
            elif isinstance(layer, nn.GELU):
                x = graph.activation(x, layer)
            elif not isinstance(layer, (Identity, nn.Identity, nn.Dropout)):  # 预测时这几种什么也不做
                raise UserError(f"分类头里的 {type(layer).__name__} 写不成静态图:能写的是 Linear、LayerNorm 和 GELU。")
    return x


def _prefix_and_positions(model):
    """图块之前的 token(M + R 个 [D],位置编码已经加上),和图块的位置编码 [N, D](没有时是 ``None``)。"""
    tokens = [token.numpy()[0, 0] for token in (model.class_token, model.distillation_token) if token is not None]
    positions = None
    if model.position_embedding is not None:
        table = model.position_embedding.numpy()[0]  # [M + N, D]
        positions = table[len(tokens) :]  # [N, D]
        tokens = [token + position for token, position in zip(tokens, table)]
    if model.register_tokens is not None:
        tokens.extend(model.register_tokens.numpy()[0])
    return tokens, positions


def _write_patches(graph, image, patches):
    """``PatchEmbedding`` 或 ``ConvTokenizer``:[B, C, H, W] -> [B, N, D]。"""
    if isinstance(patches, ConvTokenizer):
        x, sides = image, [patches.stride] * 2
        for layer in patches.convolutions:
            x = graph.conv2d(x, layer.weight, sides, [patches.padding] * 2)  # [B, D, H', W']
            x = graph.max_pool2d(graph.op("relu", {"X": x}), 3, 2, 1)  # [B, D, H' / 2, W' / 2],向上取整
        D = layer.weight.shape[0]
    else:
        convolution = patches.patch_embedding
        D = convolution.weight.shape[0]
        x = graph.conv2d(image, convolution.weight, list(patches.patch_size), [0, 0])  # [B, D, H/P, W/P]
        x = graph.add(x, graph.constant(convolution.bias), axis=1)
    return graph.transpose(graph.reshape(x, [0, D, patches.num_patches]), [0, 2, 1])  # [B, N, D]


def _write_sequence_pool(graph, x, pool):
    """``SequencePool``:[B, N, D] -> [B, D]。"""
    scores = graph.transpose(_write_linear(graph, x, pool.attention), [0, 2, 1])  # [B, 1, N]
    weights = graph.op("softmax", {"X": scores}, axis=-1)
    return graph.reshape(graph.matmul(weights, x), [0, x.shape[2]])


def _write_vit(graph, image, model):
    """评估状态的 ``ViT.forward``:[B, C, H, W] -> [B, K]。"""
    with graph.inside(model.patch_embed, "patch_embed"):
        x = _write_patches(graph, image, model.patch_embed)  # [B, N, D]
    prefix, positions = _prefix_and_positions(model)
    if positions is not None:
        x = graph.add(x, graph.constant(positions))
    if prefix:
        tokens = [graph.add(graph.zero_token(x), graph.constant(token)) for token in prefix]  # 各 [B, 1, D]
        x = graph.concat([*tokens, x], axis=1)  # [B, M + R + N, D]
    if isinstance(model.embed_norm, nn.LayerNorm):
        x = graph.layer_norm(x, model.embed_norm)
    heads = [model.head] if model.distillation_token is None else [model.head, model.distillation_head]
    for i, layer in enumerate(model.encoders):  # 最后一层之后只用到 class token(和蒸馏 token),其余 token 不必算
        last = i == len(model.encoders) - 1
        with graph.inside(layer, f"encoders.{i}"):
            x = _write_encoder(graph, x, layer, len(heads) if last and model.pool == "cls" else None)
    if isinstance(model.norm, nn.LayerNorm):
        x = graph.layer_norm(x, model.norm)
    if model.pool == "cls":
        pooled = [graph.pick(x, 1, i) for i in range(len(heads))]  # 各 [B, D]
    else:
        if prefix:
            x = graph.slice(x, 1, len(prefix), x.shape[1])  # [B, N, D]
        pool = model.sequence_pool
        pooled = [graph.mean_of_tokens(x) if pool is None else _write_sequence_pool(graph, x, pool)]  # [B, D]
    if isinstance(model.pool_norm, nn.LayerNorm):
        pooled = [graph.layer_norm(x, model.pool_norm) for x in pooled]
    logits = [_write_head(graph, x, head) for x, head in zip(pooled, heads)]  # 各 [B, K]
    return logits[0] if len(logits) == 1 else graph.scale(graph.add(*logits), 0.5)


def _moves(model):
    """Swin 里 token 的搬动:层 -> 下标数组。在写图之前算好,问的就是层自己:把 0、1、2… 当作 token 交给它搬。"""
    moves = {}
    for stage in model.stages:
        for block in stage.blocks:
            windows = block.split_windows(_numbers(block.map_size))  # [nW, N, 1]
            joined = block.join_windows(_numbers(windows.shape[:2]).reshape(windows.shape))  # [1, H * W, 1]
            moves[block] = [_indices(windows, block.map_size), _indices(joined, windows.shape[:2])]
        if isinstance(stage.downsample, PatchMerging):
            merged = stage.downsample.join_neighbours(_numbers(stage.downsample.map_size))  # [1, H/2 * W/2, 4]
            moves[stage.downsample] = _indices(merged, stage.downsample.map_size)
    return moves


def _numbers(size):
    """从 1 数起的 token,[1, H * W, 1];0 留给补的零。"""
    return paddle.arange(1, size[0] * size[1] + 1, dtype="float32").reshape([1, -1, 1])


def _indices(numbers, size):
    """搬动之后的编号 -> 下标,int64 [M];补的零是最后一个下标 H * W。"""
    indices = numbers.numpy().reshape(-1).astype("int64") - 1  # [M]
    return np.where(indices < 0, size[0] * size[1], indices)


def _write_move(graph, x, index):
    """按下标搬动 token:[B, N, D] -> [B, M, D];下标 N 是全零的 token。"""
    if index.max() == x.shape[1]:
        x = graph.concat([x, graph.zero_token(x)], axis=1)  # [B, N + 1, D]
    return graph.gather(x, index)


def _write_block(graph, x, block, move, bias):
    """一个 ``SwinBlock``,[B, H * W, D] -> [B, H * W, D];bias 见 ``_write_attention``。"""
    D, N = x.shape[2], block.window_size**2
    split, join = move
    y = _write_move(graph, graph.layer_norm(x, block.attn_norm), split)  # [B, nW * N, D]
    y = graph.reshape(y, [-1, N, D])  # [B * nW, N, D]
    with graph.inside(block.attn, "attn"):
        z = _write_attention(graph, y, block.attn, bias=bias)
    z = graph.gather(graph.reshape(z, [-1, len(split), D]), join)  # [B, H * W, D]
    return _write_mlp(graph, graph.add(x, z), block)


def _bias(block):
    """一层的相对位置偏置加掩码,numpy:[h, N, N],移动窗口的是 [nW, h, N, N]。"""
    bias = block.attn.relative_position_bias().numpy()  # [h, N, N]
    return bias if block.mask is None else bias + block.mask.numpy()[:, None]  # [nW, h, N, N]


def _write_stage(graph, x, stage, moves, biases):
    """一个 ``SwinStage``,[B, H * W, D] -> [B, H/2 * W/2, 2D],最后一段不合并。"""
    for i, block in enumerate(stage.blocks):
        with graph.inside(block, f"blocks.{i}"):
            x = _write_block(graph, x, block, moves[block], biases[block])
    merging = stage.downsample
    if merging not in moves:
        return x
    with graph.inside(merging, "downsample"):
        x = graph.reshape(_write_move(graph, x, moves[merging]), [0, len(moves[merging]) // 4, 4 * x.shape[2]])
        return _write_linear(graph, graph.layer_norm(x, merging.norm), merging.reduction)  # [B, H/2 * W/2, 2D]


def _write_swin(graph, image, model, moves, biases):
    """评估状态的 ``SwinTransformer.forward``:[B, C, 高, 宽] -> [B, K]。"""
    with graph.inside(model.patch_embed, "patch_embed"):
        x = _write_patches(graph, image, model.patch_embed)  # [B, H * W, D]
    x = graph.layer_norm(x, model.embed_norm)
    for i, stage in enumerate(model.stages):
        with graph.inside(stage, f"stages.{i}"):
            x = _write_stage(graph, x, stage, moves, biases)
    x = graph.mean_of_tokens(graph.layer_norm(x, model.norm))  # [B, D]
    return _write_head(graph, x, model.head)


def write_model(model, keep_constants=True):
    """把模型按评估状态(没有随机失活)写成静态图。

    Args:
        model (ViT | SwinTransformer): 模型。
        keep_constants (bool): ``False`` 时只要结构,不要权重。

    Returns:
        tuple: (program, constants):program 是 .pdmodel 的内容(bytes),输入 [B, C, H, W],输出 [B, K],B 随意;
        constants 是 {名字: numpy 数组}。

    Raises:
        UserError: 分类头里有别的层。
    """
    from paddle.pir_utils import OldIrGuard  # Paddle 3 才有

    swin = isinstance(model, SwinTransformer)
    if swin:  # 写图的时候不能做普通的运算
        moves = _moves(model)
        biases = {block: _bias(block) for stage in model.stages for block in stage.blocks}
    patches = model.patch_embed
    with OldIrGuard():
        graph = StaticGraph(keep_constants)
        image = graph.input("image", [-1, patches.in_channels, *patches.image_size])
        logits = _write_swin(graph, image, model, moves, biases) if swin else _write_vit(graph, image, model)
        logits = graph.op("scale", {"X": logits}, name="logits", scale=1.0, bias=0.0)
        return serialize(graph.program, [image], [logits]), graph.constants
