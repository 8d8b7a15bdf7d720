"""CPU 上的快速预测:把模型写成静态图(static graph),交给 Paddle Inference 执行。

动态图(eager)逐个执行算子;静态图先把全部算子列出来,推理引擎就能把相邻的合并、选好内存布局,所以快得多。
引擎有两个,依次试:OpenVINO(Paddle 的 Linux x86 安装包自带)和 oneDNN(只用 float32)。
建好之后先与动态图对一次答案,不一致就不用。
写图不到一秒,所以每次用时现写,不留文件:权重换了也不会用到旧图。
"""

import tempfile
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from . import runtime
from .errors import UserError
from .layers import LayerScale, NormalizedAttention
from .vit import ViT

__all__ = ["FastModel", "add_engine_arguments", "prediction_model"]

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # 与动态图之差的上限,相对于最大的 |logit|
WORTH_IMAGES = 500  # engine='auto' 时,图片少于这个数就不建静态图:建图的时间比省下的多
# 别的版本的 Paddle 缺少某个接口、引擎不支持某个算子、学生改过模型,都会是这几种异常
_FAILURES = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class _Graph:
    """一张静态图:算子的列表,加上常量(权重)。

    用的是 Paddle 2 的旧格式(.pdmodel):OpenVINO 只读它。每个方法追加一个算子,返回它的输出。
    """

    def __init__(self):
        self.program = paddle.static.Program()
        self.block = self.program.global_block()
        self.constants = {}  # 名字 -> float32 数组
        self.count = 0

    def _variable(self, **settings):
        self.count += 1
        return self.block.create_var(name=f"v{self.count:06d}", dtype="float32", **settings)

    def input(self, shape):
        return self._variable(shape=shape, need_check_feed=True, stop_gradient=True)

    def constant(self, value):
        array = np.ascontiguousarray(value, "float32")
        variable = self._variable(shape=array.shape, persistable=True)
        self.constants[variable.name] = array
        return variable

    def op(self, kind, inputs, output="Out", unused=(), **attributes):
        """追加一个算子;unused 是它必须有、而这里用不着的输出。"""
        outputs = {name: [self._variable()] for name in (output, *unused)}
        self.block.append_op(type=kind, inputs=inputs, outputs=outputs, attrs=attributes)
        return outputs[output][0]

    def add(self, x, y, axis=-1):
        return self.op("elementwise_add", {"X": x, "Y": y}, axis=axis)

    def matmul(self, x, y):
        return self.op("matmul_v2", {"X": x, "Y": y}, trans_x=False, trans_y=False)

    def linear(self, x, weight, bias):
        y = self.matmul(x, self.constant(weight))
        return y if bias is None else self.add(y, self.constant(bias))

    def gelu(self, x):
        return self.op("gelu", {"X": x}, approximate=False)

    def layer_norm(self, x, layer, factor=1.0):
        """层归一化;输出再乘以 factor。"""
        weight, bias = layer.weight.numpy() * factor, layer.bias.numpy() * factor  # 这里 Tensor 不能直接运算
        inputs = {"X": x, "Scale": self.constant(weight), "Bias": self.constant(bias)}
        settings = dict(epsilon=layer._epsilon, begin_norm_axis=len(x.shape) - 1)
        return self.op("layer_norm", inputs, output="Y", unused=("Mean", "Variance"), **settings)

    def reshape(self, x, shape):
        """shape 里的 0 表示这一轴不变。"""
        return self.op("reshape2", {"X": x}, unused=("XShape",), shape=shape)

    def transpose(self, x, axes):
        return self.op("transpose2", {"X": x}, unused=("XShape",), axis=axes)

    def slice(self, x, axis, start, end, drop_axis=False):
        """沿 axis 取第 start 到 end - 1 个;drop_axis 时去掉这一轴(只取一个)。"""
        settings = dict(axes=[axis], starts=[start], ends=[end], infer_flags=[1])
        return self.op("slice", {"Input": x}, decrease_axis=[axis] if drop_axis else [], **settings)

    def pick(self, x, axis, index):
        """沿 axis 取第 index 个,去掉这一轴。"""
        return self.slice(x, axis, index, index + 1, drop_axis=True)

    def scale(self, x, factor):
        return self.op("scale", {"X": x}, scale=factor, bias=0.0)

    def serialize(self, inputs, outputs):
        program = paddle.static.normalize_program(self.program, inputs, outputs)
        return program.desc.serialize_to_string()


def _write_linear(graph, x, layer, gamma=1.0):
    """线性层;输出再乘以 gamma(数,或 [D])。"""
    return graph.linear(x, layer.weight.numpy() * gamma, layer.bias.numpy() * gamma)


def _gamma(layer):
    """``LayerScale`` 的 gamma;没有(``Identity``)时是 1。"""
    return layer.gamma.numpy() if isinstance(layer, LayerScale) else 1.0


def _write_encoder(graph, x, layer, outputs=None):
    """一个 EncoderLayer,[B, N, D] -> [B, N, D];给了 outputs 就只算前这么多个 token 的输出,[B, outputs, D]。"""
    attention = layer.attn
    h, d, D = attention.num_heads, attention.attn_head_size, attention.all_head_size
    N = x.shape[1]
    # 缩放系数并进 q 的权重(QK norm 时是 q_norm 的),LayerScale 并进 proj 和 fc2 的,图里就少几个算子
    normalized = isinstance(attention, NormalizedAttention)
    scales = np.repeat([1 if normalized else attention.scales, 1, 1], D).astype("float32")  # [3D]
    weight = attention.qkv.weight.numpy() * scales  # [D, 3D]
    bias = None if attention.qkv.bias is None else attention.qkv.bias.numpy() * scales  # [3D]

    y = graph.layer_norm(x, layer.attn_norm)
    if outputs is not None:
        x, first = (graph.slice(tokens, 1, 0, outputs) for tokens in (x, y))  # [B, outputs, D]
        q = graph.linear(first, weight[:, :D], None if bias is None else bias[:D])
        q = graph.transpose(graph.reshape(q, [0, outputs, h, d]), [0, 2, 1, 3])  # [B, h, outputs, d]
        kv = graph.linear(y, weight[:, D:], None if bias is None else bias[D:])  # [B, N, 2D]
        kv = graph.transpose(graph.reshape(kv, [0, N, 2, h, d]), [2, 0, 3, 1, 4])  # [2, B, h, N, d]
        k, v = (graph.pick(kv, 0, i) for i in range(2))
        N = outputs
    else:
        qkv = graph.linear(y, weight, bias)  # [B, N, 3D]
        qkv = graph.transpose(graph.reshape(qkv, [0, N, 3, h, d]), [2, 0, 3, 1, 4])  # [3, B, h, N, d]
        q, k, v = (graph.pick(qkv, 0, i) for i in range(3))
    if normalized:
        q, k = graph.layer_norm(q, attention.q_norm, attention.scales), graph.layer_norm(k, attention.k_norm)
    weights = graph.op("softmax", {"X": graph.matmul(q, graph.transpose(k, [0, 1, 3, 2]))}, axis=-1)
    z = graph.transpose(graph.matmul(weights, v), [0, 2, 1, 3])  # [B, N, h, d]
    z = graph.reshape(z, [0, N, D])
    x = graph.add(x, _write_linear(graph, z, attention.proj, _gamma(layer.attn_scale)))
    y = graph.gelu(_write_linear(graph, graph.layer_norm(x, layer.mlp_norm), layer.mlp.fc1))
    return graph.add(x, _write_linear(graph, y, layer.mlp.fc2, _gamma(layer.mlp_scale)))


def _write_head(graph, x, head):
    for layer in head if isinstance(head, nn.Sequential) else [head]:
        if isinstance(layer, nn.Linear):
            x = _write_linear(graph, x, layer)
        elif isinstance(layer, nn.LayerNorm):
            x = graph.layer_norm(x, layer)
        elif isinstance(layer, nn.GELU):
            x = graph.gelu(x)
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


def _write_vit(graph, image, model):
    """评估状态的 ``ViT.forward``:[B, C, H, W] -> [B, K]。"""
    patches = model.patch_embed
    convolution = patches.patch_embedding
    D = convolution.weight.shape[0]
    settings = dict(strides=list(patches.patch_size), paddings=[0, 0], dilations=[1, 1], groups=1)
    inputs = {"Input": image, "Filter": graph.constant(convolution.weight)}
    x = graph.op("conv2d", inputs, output="Output", data_format="NCHW", **settings)  # [B, D, H/P, W/P]
    x = graph.add(x, graph.constant(convolution.bias), axis=1)
    x = graph.transpose(graph.reshape(x, [0, D, patches.num_patches]), [0, 2, 1])  # [B, N, D]
    prefix, positions = _prefix_and_positions(model)
    if positions is not None:
        x = graph.add(x, graph.constant(positions))
    if prefix:
        zeros = graph.scale(graph.slice(x, 1, 0, 1), 0.0)  # [B, 1, D]
        tokens = [graph.add(zeros, graph.constant(token)) for token in prefix]  # 各 [B, 1, D]
        x = graph.op("concat", {"X": [*tokens, x]}, axis=1)  # [B, M + R + N, D]
    heads = [model.head] if model.distillation_token is None else [model.head, model.distillation_head]
    for i, layer in enumerate(model.encoders):  # 最后一层之后只用到 class token(和蒸馏 token),其余 token 不必算
        last = i == len(model.encoders) - 1
        x = _write_encoder(graph, x, layer, len(heads) if last and model.pool == "cls" else None)
    if isinstance(model.norm, nn.LayerNorm):
        x = graph.layer_norm(x, model.norm)
    if model.pool == "cls":
        pooled = [graph.pick(x, 1, i) for i in range(len(heads))]  # 各 [B, D]
    else:
        if prefix:
            x = graph.slice(x, 1, len(prefix), x.shape[1])  # [B, N, D]
        pooled = [graph.op("reduce_mean", {"X": x}, dim=[1], keep_dim=False, reduce_all=False)]  # [B, D]
    if isinstance(model.pool_norm, nn.LayerNorm):
        pooled = [graph.layer_norm(x, model.pool_norm) for x in pooled]
    logits = [_write_head(graph, x, head) for x, head in zip(pooled, heads)]  # 各 [B, K]
    return logits[0] if len(logits) == 1 else graph.scale(graph.add(*logits), 0.5)


def _create_predictor(model, engine, precision, threads):
    """写出静态图,让推理引擎读进内存;文件只在这期间存在于临时目录。"""
    from paddle import inference
    from paddle.base import core
    from paddle.pir_utils import OldIrGuard

    patches = model.patch_embed
    with OldIrGuard():
        graph = _Graph()
        image = graph.input([-1, patches.in_channels, *patches.image_size])
        ticket = graph.input([1])
        logits = _write_vit(graph, image, model)
        echo = graph.op("scale", {"X": ticket}, scale=1.0, bias=0.0)
        program = graph.serialize([image, ticket], [logits, echo])
    names = sorted(graph.constants)  # 引擎按名字的顺序读权重
    tensors = [paddle.to_tensor(graph.constants[name]) for name in names]

    with tempfile.TemporaryDirectory(prefix="paddle_vit-") as directory:
        program_path, weights_path = Path(directory, "vit.pdmodel"), Path(directory, "vit.pdiparams")
        program_path.write_bytes(program)
        weights = [tensor.value().get_tensor() for tensor in tensors]
        core.save_combine_func(weights, names, str(weights_path), True, False, False)
        config = inference.Config(str(program_path), str(weights_path))
        config.set_optim_cache_dir(directory)  # 否则 OpenVINO 在当前目录里留下 __cache__
        config.disable_gpu()
        config.disable_glog_info()
        if threads:
            config.set_cpu_math_library_num_threads(threads)
        if engine == "OpenVINO":
            types = {"float32": inference.PrecisionType.Float32, "bfloat16": inference.PrecisionType.Bfloat16}
            config.enable_openvino_engine(types[precision])
            if not config.openvino_engine_enabled():
                raise RuntimeError("这个 Paddle 没有编译 OpenVINO")
        else:
            config.enable_onednn()
            if not config.onednn_enabled():
                raise RuntimeError("这个 Paddle 没有编译 oneDNN")
        return inference.create_predictor(config)


class FastModel(nn.Layer):
    """用推理引擎执行的模型,调用方式与原来的模型相同:Tensor [B, C, H, W] -> logits Tensor [B, K],B 随意。

    只能预测,不能训练;权重是建立时的,之后再改原来的模型对它没有影响。

    Args:
        model (ViT): 模型,按评估状态(没有随机失活)写成静态图。
        engine (str): ``'OpenVINO'`` 或 ``'oneDNN'``。
        precision (str): ``'float32'``;``'bfloat16'`` 只用于 OpenVINO。
        threads (int | None): CPU 线程数;``None`` 由引擎决定。
    """

    def __init__(self, model, engine="OpenVINO", precision="float32", threads=None):
        super().__init__()
        self.input_shape = (model.patch_embed.in_channels, *model.patch_embed.image_size)
        self._predictor = _create_predictor(model, engine, precision, threads)
        self._inputs = [self._predictor.get_input_handle(name) for name in self._predictor.get_input_names()]
        self._outputs = [self._predictor.get_output_handle(name) for name in self._predictor.get_output_names()]
        self._batches = 0
        self.eval()

    def forward(self, images):
        if tuple(images.shape[1:]) != self.input_shape:
            raise UserError(
                f"输入图像的形状是 {list(images.shape)},应为 [B, {', '.join(map(str, self.input_shape))}];请缩放图像。"
            )
        # OpenVINO 出错时 Paddle 只打印,不抛异常,还留着上一批的输出;所以每批带一个编号,核对它是否原样回来
        self._batches = self._batches % 1_000_000 + 1
        for handle, value in zip(self._inputs, (images.numpy(), np.array([self._batches], "float32"))):
            handle.reshape(value.shape)
            handle.copy_from_cpu(value)
        self._predictor.run()
        logits, ticket = (handle.copy_to_cpu() for handle in self._outputs)
        if len(logits) != len(images) or ticket[0] != self._batches:
            raise UserError("推理引擎没有算完这一批(多半是内存不够):请减小批的大小,或用 --engine eager。")
        return paddle.to_tensor(logits)


@paddle.no_grad()
def _disagreement(model, fast):
    """两个模型在几张随机图像上的差,相对于最大的 |logit|;两种批的大小。"""
    images = np.random.default_rng(0).standard_normal((3, *fast.input_shape)).astype("float32")
    model.eval()
    expected = model(paddle.to_tensor(images)).numpy()
    found = np.concatenate([fast(paddle.to_tensor(part)).numpy() for part in (images[:1], images[1:])])
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))


def _fast_model(model, precision, threads):
    """依次试各个引擎,返回 (FastModel, 引擎的名字);都不行时返回 (None, 原因)。"""
    if not isinstance(model, ViT):
        return None, f"静态图只写得了 ViT,这是 {type(model).__name__}"
    reasons = []
    for engine in ("OpenVINO", "oneDNN") if precision == "float32" else ("OpenVINO",):
        try:
            fast = FastModel(model, engine, precision, threads)
            error = _disagreement(model, fast)
        except _FAILURES as failure:
            lines = str(failure).strip().splitlines() or [type(failure).__name__]
            reasons.append(f"{engine}:{lines[0][:200]}")
            continue
        if error <= TOLERANCE[precision]:
            return fast, engine
        reasons.append(f"{engine}:与动态图相差 {error:.1e},上限 {TOLERANCE[precision]:.0e}")
    return None, ";".join(reasons)


def prediction_model(model, settings, images, engine="auto", precision="float32"):
    """为预测选一个模型:能用、也值得用推理引擎时是 ``FastModel``,否则就是原来的模型。

    Args:
        model (ViT): 装好权重的模型。
        settings (dict): ``setup_runtime`` 的结果,用到 ``device`` 和 ``threads``。
        images (int): 要预测多少张;``engine='auto'`` 用它判断值不值得。
        engine (str): ``'auto'``、``'inference'``(推理引擎)或 ``'eager'``(动态图)。
        precision (str): ``'float32'`` 或 ``'bfloat16'``;后者快一半以上,logits 约有百分之一的误差,要 CPU 支持。

    Returns:
        tuple: (模型, 引擎的名字, 说明);想用推理引擎而没能用上时,说明是一行中文,否则是 ``None``。

    Raises:
        UserError: 要求 bfloat16,而设备、引擎或 CPU 不支持。
    """
    if precision == "bfloat16":
        if settings["device"] == "gpu" or engine == "eager":
            raise UserError("--precision bfloat16 只用于 CPU 上的推理引擎:请加 --device cpu,并去掉 --engine eager。")
        if not {"avx512_bf16", "amx_bf16"} & runtime._cpu_flags()[1]:
            raise UserError("这个 CPU 没有 bfloat16 指令(avx512_bf16 或 amx_bf16):请用 --precision float32。")
        engine = "inference"
    if engine == "eager" or (engine == "auto" and (images < WORTH_IMAGES or settings["device"] == "gpu")):
        return model, "动态图", None
    if settings["device"] == "gpu":
        return model, "动态图", "推理引擎只用于 CPU,改用动态图。"
    fast, text = _fast_model(model, precision, settings["threads"])
    if fast is None:
        return model, "动态图", f"推理引擎用不上,改用 float32 动态图({text})。"
    return fast, f"{text} {precision}", None


def add_engine_arguments(parser):
    """给脚本加上 ``--engine`` 和 ``--precision``,含义见 ``prediction_model``。"""
    parser.add_argument(
        "--engine",
        choices=("auto", "inference", "eager"),
        default="auto",
        help="inference 静态图推理引擎(只用于 CPU),eager 动态图;\n"
        f"auto(默认)在 CPU 上有 {WORTH_IMAGES} 张以上时用推理引擎,张数少时建静态图不合算",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="数值类型(默认 float32);bfloat16 更快,误差约百分之一,要 CPU 有 bfloat16 指令,且只用推理引擎",
    )
