"""作业 1 的检查:PatchEmbedding。卷积和线性层两种写法都认。"""

import numpy as np
import paddle

from .machinery import Exercise, Wrong, compare, expect_gradients, is_bias, tensor, weights_of

MISTAKES = {
    "no_transpose": "忘了转置:得到的是 [B, D, N],应为 [B, N, D](每个 token 是一行)。",
    "reshape_for_transpose": "用 reshape 代替了转置:[B, D, N] 直接 reshape 成 [B, N, D] 会把数打乱,要用 transpose。",
    "not_flattened": "没有把图块的行和列合成一轴:得到的是 [B, D, H/P, W/P]。",
    "scrambled": "直接把图像 reshape 成图块:切出的是连续的像素,不是 P x P 的方块;"
    "要先 reshape 成 [B, C, H/P, P, W/P, P] 再转置。",
    "patch_order": "图块的顺序不对:应按行优先(先从左到右,再从上到下),你按列优先了。",
    "pixel_order": "图块里像素的行和列调换了。",
    "channel_last": "图块展平的顺序是 (P, P, C),约定是 (C, P, P),与卷积核相同。",
    "no_stride": "卷积没有写 stride=patch_size:相邻的图块重叠了。",
    "no_bias_used": "建了偏置却没有加上。",
}
EXERCISE = Exercise(1, "补全 PatchEmbedding", MISTAKES)


def reference(x, kernel, bias, wrong=()):
    """x [B, C, H, W],kernel [D, C, P, P],bias [D] -> [B, N, D]。"""
    B, C, H, W = x.shape
    P = kernel.shape[-1]
    bias = 0 if "no_bias_used" in wrong else bias
    if "no_stride" in wrong:
        windows = np.lib.stride_tricks.sliding_window_view(x, (P, P), (2, 3))  # [B, C, H-P+1, W-P+1, P, P]
        patches = windows.transpose(0, 2, 3, 1, 4, 5)
    else:
        patches = x.reshape(B, C, H // P, P, W // P, P).transpose(0, 2, 4, 1, 3, 5)  # [B, H/P, W/P, C, P, P]
    if "patch_order" in wrong:
        patches = patches.transpose(0, 2, 1, 3, 4, 5)
    if "pixel_order" in wrong:
        patches = patches.swapaxes(4, 5)
    if "channel_last" in wrong:
        patches = patches.transpose(0, 1, 2, 4, 5, 3)
    rows, columns = patches.shape[1:3]
    patches = patches.reshape(B, rows * columns, C * P * P)
    if "scrambled" in wrong:
        patches = x.reshape(B, -1, C * P * P)
    tokens = patches @ kernel.reshape(len(kernel), -1).T + bias  # [B, N, D]
    if "no_transpose" in wrong:
        return tokens.swapaxes(1, 2)
    if "reshape_for_transpose" in wrong:
        return tokens.swapaxes(1, 2).reshape(tokens.shape)
    if "not_flattened" in wrong:
        return tokens.swapaxes(1, 2).reshape(B, len(kernel), rows, columns)
    return tokens


def build(layer_class, image_size, patch_size, in_channels, embed_dim):
    """学生的层、它的卷积核 [D, C, P, P] 和偏置 [D]。"""
    layer = layer_class(image_size, patch_size, in_channels, embed_dim)
    layer.eval()
    groups = weights_of(layer)
    if len(groups) != 1:
        raise Wrong(
            f"应恰好有一个线性映射(卷积或 Linear),找到 {len(groups)} 个:{'、'.join(groups) or '没有'}。", ["roles"]
        )
    weight, bias = next(iter(groups.values()))
    conv, flat = [embed_dim, in_channels, patch_size, patch_size], in_channels * patch_size**2
    if list(weight.shape) not in (conv, [flat, embed_dim], [embed_dim, flat, 1, 1]):  # 最后一种是先切块再 1 x 1 卷积
        found = list(weight.shape)
        raise Wrong(f"权重的形状应为 {conv}(卷积)或 {[flat, embed_dim]}(Linear),得到 {found}。", ["roles"])
    kernel = weight.numpy().astype("float64")
    kernel = (kernel.T if weight.ndim == 2 else kernel).reshape(conv)
    return layer, kernel, 0.0 if bias is None else bias.numpy().astype("float64")


def compare_on(layer_class, sizes, title):
    layer, kernel, bias = build(layer_class, *sizes)
    x = np.random.default_rng(0).standard_normal((2, sizes[2], sizes[0], sizes[0]))
    compare(title, layer(tensor(x)), lambda wrong: reference(x, kernel, bias, wrong), MISTAKES)


@EXERCISE.check("PatchEmbedding", "能建立,有一个线性映射", "nn.Conv2D(C, D, P, stride=P) 或 nn.Linear(C * P * P, D)。")
def check_build(layer_class):
    build(layer_class, 6, 2, 3, 8)


@EXERCISE.check("PatchEmbedding", "每个图块的像素之和", "画一张 4 x 4 的图,手工切成四块,看每块应是哪四个像素。")
def check_sums(layer_class):
    layer, kernel, _ = build(layer_class, 4, 2, 1, 3)
    for parameter in layer.parameters():  # 全 1 的权重把图块变成像素之和
        parameter.set_value(np.full(parameter.shape, float(not is_bias(parameter)), "float32"))
    x = (np.arange(16.0) ** 2).reshape(1, 1, 4, 4)
    ones = np.ones_like(kernel)
    names = [name for name in MISTAKES if name not in ("pixel_order", "channel_last", "no_bias_used")]
    compare("像素之和", layer(tensor(x)), lambda wrong: reference(x, ones, 0.0, wrong), {n: MISTAKES[n] for n in names})


@EXERCISE.check(
    "PatchEmbedding",
    "随机权重的数值(三个通道)",
    "reshape 成 [B, C, H/P, P, W/P, P],transpose 成 [B, H/P, W/P, C, P, P],再合并后三轴;卷积则 flatten(2) 再转置。",
)
def check_values(layer_class):
    compare_on(layer_class, (6, 2, 3, 8), "输出")


@EXERCISE.check("PatchEmbedding", "换一种尺寸", "尺寸要由 image_size、patch_size、in_channels 算出,不要写死。")
def check_other_size(layer_class):
    compare_on(layer_class, (12, 3, 1, 5), "输出")


@EXERCISE.check("PatchEmbedding", "每个参数都有梯度", "forward 里只用 Paddle 的运算,不要转成 NumPy。")
def check_gradients(layer_class):
    layer, _, _ = build(layer_class, 6, 2, 3, 8)
    output = layer(paddle.ones([2, 3, 6, 6]))
    expect_gradients(output, dict(layer.named_parameters()))
