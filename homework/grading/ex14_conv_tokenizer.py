"""作业 14 的检查:卷积的输出大小,卷积的 tokenizer,序列汇聚,残差块。"""

import warnings

import numpy as np
import paddle

from .ex02_attention import softmax
from .machinery import Exercise, Wrong, as_array, compare, expect_gradients, tensor, weights_of

MISTAKES = {
    "padding_once": "补零只算了一边:两边各补 padding,共 2 * padding。",
    "no_plus_one": "少加了 1:核在开头的那个位置也算一个输出。",
    "kernel_ignored": "没有减去核的边长:核要整个放得下。",
    "stride_ignored": "没有除以步长。",
    "ceil": "应向下取整(//):放不下一整个核的地方没有输出。",
    "not_integer": "输出边长应是整数 int:用 //,不要用 /。",
    "no_transpose": "忘了转置:得到的是 [B, D, N],应为 [B, N, D](每个 token 是一行)。",
    "reshape_for_transpose": "用 reshape 代替了转置:每个 token 里混进了各处的数;应先 flatten(2),再 transpose。",
    "columns_first": "token 的顺序不对:应按行优先(先从左到右,再从上到下),你按列优先了。",
    "not_flattened": "没有把行和列合成一轴:得到的是 [B, D, H', W']。",
    "no_relu": "没有 ReLU:卷积的负数也传下去了。",
    "no_conv_padding": "卷积没有补零:图像缩小了一圈,token 少了;应补 kernel_size // 2。",
    "no_pool": "没有池化:token 有 H * W 个,应为四分之一。",
    "pool_no_padding": "最大池化没有补 1:最右、最下的 token 少了,别的也挪了位置。",
    "pool_2x2": "池化的窗口是 2 x 2:应为 3 x 3、步长 2、补 1,相邻的窗口重叠。",
    "average_pool": "用了平均池化,应为最大池化。",
    "conv_stride": "卷积的步长不是 1:池化已经缩小一半了,又缩小了一次。",
    "conv_bias": "卷积有偏置:应写 bias_attr=False(在残差块里,它后面的批归一化会把它减掉)。",
    "softmax_over_batch": "softmax 沿了一批的轴:一张图的结果会取决于同一批里还有谁;应沿 token。",
    "softmax_over_one": "softmax 沿了大小为 1 的轴:权重全是 1,成了各个 token 之和;应沿 token。",
    "no_softmax": "权重没有做 softmax:有正有负,加起来不是 1。",
    "plain_mean": "只取了平均:没有用 weight,各个 token 的权重都是 1 / N。",
    "divided_again": "加权求和之后又除以了 N:权重加起来已经是 1。",
    "scaled": "多除了 √D:序列汇聚没有缩放。",
    "exp_only": "只取了 exp,没有除以总和:权重加起来不是 1。",
    "no_residual": "没有加 S(x):残差块是 F(x) + S(x)。",
    "no_projection": "形状变了,捷径却没有 shortcut_conv 和 shortcut_bn:x 的通道数或大小与 F(x) 不同,加不上。",
    "needless_projection": "形状不变时捷径应是 x 本身,不要建 shortcut_conv。",
    "stride_twice": "conv2 的步长也是 stride:缩小了两次;只有 conv1 的是。",
    "stride_on_second": "步长放在了 conv2 上:应放在 conv1 上。",
    "block_padding": "3 x 3 的卷积没有补 1:图像每过一层缩小一圈。",
    "relu_before_add": "先做了 ReLU 再相加:应为 ReLU(F(x) + S(x)),ReLU 在最后。",
    "no_last_relu": "最后没有 ReLU:应为 ReLU(F(x) + S(x))。",
    "no_first_relu": "两个卷积之间没有 ReLU:两个线性层连在一起,等于一个。",
    "relu_before_bn": "第一个 ReLU 放在了批归一化之前:应为 conv1 -> bn1 -> ReLU。",
    "one_bn": "两处用了同一个 bn1:conv2 之后应是 bn2。",
    "no_shortcut_bn": "捷径上少了 shortcut_bn。",
    "always_evaluating": "训练模式下,批归一化应用这一批的均值和方差,你用了累计的(use_global_stats 之类)。",
    "always_training": "评估模式下,批归一化应用累计的均值和方差,你用了这一批的:一张图的结果会取决于同一批里还有谁。",
}
EXERCISE = Exercise(14, "卷积的 tokenizer,序列汇聚,残差块", MISTAKES)
_ALL = list(MISTAKES)
SIZES = _ALL[: _ALL.index("not_integer")]
TOKENS = _ALL[_ALL.index("no_transpose") : _ALL.index("conv_bias")]
POOLING = _ALL[_ALL.index("softmax_over_batch") : _ALL.index("no_residual")]
BLOCK = ["no_residual", "relu_before_add", "no_last_relu", "no_first_relu", "relu_before_bn", "one_bn"]


# ---- 输出大小 ----


def size_reference(n, k, s, p, wrong=()):
    room = n + (p if "padding_once" in wrong else 2 * p) - (0 if "kernel_ignored" in wrong else k)
    step = 1 if "stride_ignored" in wrong else s
    return (-(-room // step) if "ceil" in wrong else room // step) + (0 if "no_plus_one" in wrong else 1)


@EXERCISE.check("conv_output_size", "输出边长", "核的左端从 -padding 开始,每次走 stride;数一数有几个位置。")
def check_sizes(function):
    cases = [(8, 3, 1, 1), (8, 3, 2, 1), (7, 2, 2, 0), (224, 7, 2, 3), (32, 5, 3, 0), (9, 4, 3, 2), (5, 5, 1, 0)]
    sizes = [function(*case) for case in cases]
    got = np.array([as_array(f"conv_output_size{case}", size).item() for case, size in zip(cases, sizes)])
    if (got.round() != got).any():
        EXERCISE.fail("not_integer", f"例如 conv_output_size{cases[2]} 得到 {sizes[2]}。")

    def answer(wrong):
        return np.array([size_reference(*case, wrong) for case in cases], "float64")

    compare(f"{cases} 的输出边长", got, answer, EXERCISE.only(SIZES))
    if not all(isinstance(size, (int, np.integer)) for size in sizes):
        EXERCISE.fail("not_integer", f"得到 {type(sizes[0]).__name__}。")


# ---- tokenizer ----


def windows(x, k, s, p, fill=0.0):
    """[B, C, H, W] -> 各窗口 [B, C, H', W', k, k]。"""
    x = np.pad(x, [(0, 0), (0, 0), (p, p), (p, p)], constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::s, ::s]


def conv(x, kernel, stride=1, padding=0):
    """[B, C, H, W],[D, C, k, k] -> [B, D, H', W']。"""
    return np.einsum("bchwij,dcij->bdhw", windows(x, kernel.shape[-1], stride, padding), kernel)


def token_reference(x, kernel, wrong=()):
    k = kernel.shape[-1]
    maps = conv(x, kernel, 2 if "conv_stride" in wrong else 1, 0 if "no_conv_padding" in wrong else k // 2)
    maps = maps if "no_relu" in wrong else np.maximum(maps, 0)
    if "no_pool" not in wrong:
        size, padding = (2, 0) if "pool_2x2" in wrong else (3, 0 if "pool_no_padding" in wrong else 1)
        average = "average_pool" in wrong
        boxes = windows(maps, size, 2, padding, np.nan if average else -np.inf)
        maps = np.nanmean(boxes, axis=(4, 5)) if average else boxes.max(axis=(4, 5))
    B, D, H, W = maps.shape
    if "not_flattened" in wrong:
        return maps
    if "no_transpose" in wrong:
        return maps.reshape(B, D, H * W)
    if "reshape_for_transpose" in wrong:
        return maps.reshape(B, H * W, D)
    maps = maps.swapaxes(2, 3) if "columns_first" in wrong else maps
    return maps.reshape(B, D, H * W).swapaxes(1, 2)


def build_tokenizer(layer_class, C, D, k):
    """学生的层和它的卷积核 [D, C, k, k]。"""
    layer = layer_class(C, D, k)
    groups = weights_of(layer)
    if len(groups) != 1:
        raise Wrong(f"应恰好有一个卷积,找到 {len(groups)} 个:{'、'.join(groups) or '没有'}。", ["roles"])
    ((weight, bias),) = groups.values()
    if bias is not None:
        EXERCISE.fail("conv_bias")
    if list(weight.shape) not in ([D, C, k, k], [C * k * k, D]):  # 后一种是拉直窗口再乘矩阵
        raise Wrong(f"卷积核的形状应为 {[D, C, k, k]},得到 {list(weight.shape)}。", ["roles"])
    kernel = weight.numpy().astype("float64")
    return layer, (kernel.T if weight.ndim == 2 else kernel).reshape(D, C, k, k)


@EXERCISE.check("ConvTokenizer", "能建立,有一个没有偏置的卷积", "nn.Conv2D(C, D, k, padding=k // 2, bias_attr=False)。")
def check_tokenizer_build(layer_class):
    build_tokenizer(layer_class, 3, 5, 3)


def compare_tokens(layer_class, shape, D, k):
    layer, kernel = build_tokenizer(layer_class, shape[1], D, k)
    x = np.random.default_rng(0).standard_normal(shape)
    compare("token", layer(tensor(x)), lambda wrong: token_reference(x, kernel, wrong), EXERCISE.only(TOKENS))


@EXERCISE.check("ConvTokenizer", "数值", "卷积、ReLU、nn.MaxPool2D(3, 2, 1),再 flatten(2) 和 transpose([0, 2, 1])。")
def check_tokens(layer_class):
    compare_tokens(layer_class, (2, 3, 6, 8), 5, 3)


@EXERCISE.check("ConvTokenizer", "换一种尺寸和核", "补零是 kernel_size // 2;尺寸不要写死。")
def check_other_tokens(layer_class):
    compare_tokens(layer_class, (2, 1, 9, 7), 4, 5)


@EXERCISE.check("ConvTokenizer", "卷积核有梯度", "forward 里只用 Paddle 的运算,不要转成 NumPy。")
def check_token_gradients(layer_class):
    layer, _ = build_tokenizer(layer_class, 2, 4, 3)
    x = tensor(np.random.default_rng(1).standard_normal((2, 2, 6, 6)))
    expect_gradients(layer(x), dict(layer.named_parameters()))


# ---- 序列汇聚 ----


def pool_reference(x, weight, bias, wrong=()):
    scores = (x @ weight + bias)[..., 0] / (x.shape[2] ** 0.5 if "scaled" in wrong else 1)  # [B, N]
    if "no_softmax" in wrong:
        a = scores
    elif "softmax_over_one" in wrong:
        a = np.ones_like(scores)
    elif "plain_mean" in wrong:
        a = np.full_like(scores, 1 / x.shape[1])
    elif "exp_only" in wrong:
        a = np.exp(scores)
    else:
        a = softmax(scores, 0 if "softmax_over_batch" in wrong else 1)
    z = (a[..., None] * x).sum(1) / (x.shape[1] if "divided_again" in wrong else 1)  # [B, D]
    return z, a


def compare_pooling(function, B, N, D):
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((B, N, D)), rng.standard_normal((D, 1)), rng.standard_normal(1)
    got = function(tensor(x), tensor(weight), tensor(bias))
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong("应返回两样:(z, a)。", ["no_return"])
    for index, name in ((1, "a"), (0, "z")):

        def answer(wrong, index=index):
            return pool_reference(x, weight, bias, wrong)[index]

        compare(name, got[index], answer, EXERCISE.only(POOLING))


@EXERCISE.check("sequence_pool", "权重和加权平均", "scores = x @ weight + bias 是 [B, N, 1],softmax 沿 axis=1。")
def check_pooling(function):
    compare_pooling(function, 3, 5, 4)


@EXERCISE.check("sequence_pool", "换一种大小", "不要写死 B、N、D;一批只有一张图时也要对。")
def check_other_pooling(function):
    compare_pooling(function, 1, 7, 3)


# ---- 残差块 ----


def batch_norm(x, layer, use_batch):
    """按学生的 BatchNorm2D 的参数归一化;use_batch 用这一批的均值和方差,否则用累计的。"""
    mean, variance = layer["mean"], layer["variance"]
    if use_batch:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    shape = (1, -1, 1, 1)
    x = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
    return x * layer["weight"].reshape(shape) + layer["bias"].reshape(shape)


def block_reference(x, layers, stride, training, wrong=()):
    use_batch = "always_training" in wrong or (training and "always_evaluating" not in wrong)
    z = conv(x, layers["conv1"], stride, 1)
    if "relu_before_bn" in wrong:
        z = batch_norm(np.maximum(z, 0), layers["bn1"], use_batch)
    else:
        z = batch_norm(z, layers["bn1"], use_batch)
        z = z if "no_first_relu" in wrong else np.maximum(z, 0)
    z = batch_norm(conv(z, layers["conv2"], 1, 1), layers["bn1" if "one_bn" in wrong else "bn2"], use_batch)
    shortcut = x
    if "shortcut_conv" in layers:
        shortcut = batch_norm(conv(x, layers["shortcut_conv"], stride), layers["shortcut_bn"], use_batch)
    if "relu_before_add" in wrong:
        return np.maximum(z, 0) + shortcut
    z = z if "no_residual" in wrong else z + shortcut
    return z if "no_last_relu" in wrong else np.maximum(z, 0)


def build_block(layer_class, C, D, stride):
    """学生的块,和各层的数:卷积核,批归一化的四样。"""
    block = layer_class(C, D, stride)
    names = ["conv1", "bn1", "conv2", "bn2"]
    shortcut = [name for name in ("shortcut_conv", "shortcut_bn") if getattr(block, name, None) is not None]
    if stride == 1 and C == D:
        if shortcut:
            EXERCISE.fail("needless_projection")
    elif "shortcut_conv" not in shortcut:
        EXERCISE.fail("no_projection")
    elif "shortcut_bn" not in shortcut:
        EXERCISE.fail("no_shortcut_bn")
    names += shortcut
    missing = [name for name in names if not isinstance(getattr(block, name, None), paddle.nn.Layer)]
    if missing:
        raise Wrong(f"块里没有 {'、'.join(missing)}:各层的名字要与模板相同。", ["roles"])
    weights_of(block)
    return block, {name: numbers_of(name, getattr(block, name), C, D) for name in names}


def numbers_of(name, layer, C, D):
    if "bn" in name:
        if not hasattr(layer, "_variance"):
            raise Wrong(f"{name} 应是 nn.BatchNorm2D,得到 {type(layer).__name__}。", ["roles"])
        rng = np.random.default_rng(len(name) + ord(name[-1]))
        layer._mean.set_value(rng.standard_normal(D).astype("float32"))
        layer._variance.set_value(rng.uniform(0.5, 2, D).astype("float32"))
        numbers = {"weight": layer.weight, "bias": layer.bias, "mean": layer._mean, "variance": layer._variance}
        return {key: value.numpy().astype("float64") for key, value in numbers.items()}
    expected = [D, C if name != "conv2" else D, *([1, 1] if "shortcut" in name else [3, 3])]
    if list(layer.weight.shape) != expected:
        raise Wrong(f"{name} 的卷积核应为 {expected},得到 {list(layer.weight.shape)}。", ["roles"])
    if layer.bias is not None:
        EXERCISE.fail("conv_bias", f"({name})")
    return layer.weight.numpy().astype("float64")


def check_geometry(block, stride):
    """两个卷积各自的步长和补零:直接让它们算一次,看大小。"""
    x = paddle.zeros([1, block.conv1.weight.shape[1], 12, 12])
    middle = block.conv1(x)
    first, second = middle.shape[2], block.conv2(middle).shape[2]
    if first == 12 // stride and second == first:
        return
    details = f"边长 12、stride={stride}:conv1 之后是 {first},conv2 之后是 {second}。"
    if stride == 2 and (first, second) == (6, 3):
        EXERCISE.fail("stride_twice", details)
    if stride == 2 and (first, second) == (12, 6):
        EXERCISE.fail("stride_on_second", details)
    if first in (10, 5) or second == first - 2:
        EXERCISE.fail("block_padding", details)
    raise Wrong(details)


def compare_block(layer_class, C, D, stride, training):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle 的批归一化每次训练都提醒一遍
        block, layers = build_block(layer_class, C, D, stride)
        check_geometry(block, stride)
        block.train() if training else block.eval()
        x = np.random.default_rng(2).standard_normal((4, C, 6, 8))
        got = block(tensor(x))
    names = [*BLOCK, "always_evaluating" if training else "always_training"]

    def answer(wrong):
        return block_reference(x, layers, stride, training, wrong)

    compare("y", got, answer, EXERCISE.only(names))


@EXERCISE.check("ResidualBlock", "形状不变(评估时)", "z = relu(bn1(conv1(x))),z = bn2(conv2(z)),返回 relu(z + x)。")
def check_same_shape(layer_class):
    compare_block(layer_class, 5, 5, 1, False)


@EXERCISE.check(
    "ResidualBlock", "形状变了(评估时)", "stride != 1 或通道数变了时,S(x) = shortcut_bn(shortcut_conv(x))。"
)
def check_new_shape(layer_class):
    compare_block(layer_class, 3, 6, 2, False)
    compare_block(layer_class, 4, 4, 2, False)
    compare_block(layer_class, 3, 6, 1, False)


@EXERCISE.check("ResidualBlock", "训练时", "用 nn.BatchNorm2D 就行:block.train() 和 block.eval() 会切换它。")
def check_training(layer_class):
    compare_block(layer_class, 5, 5, 1, True)
    compare_block(layer_class, 3, 6, 2, True)


@EXERCISE.check("ResidualBlock", "每个参数都有梯度", "forward 里只用 Paddle 的运算,建了的层都要用上。")
def check_block_gradients(layer_class):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block, _ = build_block(layer_class, 3, 6, 2)
        x = tensor(np.random.default_rng(4).standard_normal((4, 3, 6, 6)))
        trained = {name: p for name, p in block.named_parameters() if not p.stop_gradient}  # 累计的均值和方差不算
        expect_gradients(block(x), trained)
