"""旧格式的静态图(legacy program):一个算子一个算子地写,存成 Paddle Inference 读的文件。"""

import contextlib
import struct

import numpy as np
import paddle

from ..activations import QuickGELU, TanhGELU

__all__ = ["ENGINE_ERRORS", "StaticGraph", "save_weights", "serialize", "with_ticket"]


# 写图和建引擎时,别的版本的 Paddle 缺少某个接口、引擎不支持某个算子、学生改过模型,都会是这几种异常
ENGINE_ERRORS = (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class StaticGraph:
    """一张静态图:算子的列表,加上常量(权重)。每个方法追加一个算子,返回它的输出。

    Args:
        keep_constants (bool): ``False`` 时只要结构,``constants`` 是空的。

    Attributes:
        constants (dict): 名字 -> float32 数组(下标是 int64)。
    """

    def __init__(self, keep_constants=True):
        self.keep_constants = keep_constants
        self.program = paddle.static.Program()
        self.block = self.program.global_block()
        self.constants = {}
        self.count = 0
        self.place = "/"

    def _variable(self, dtype="float32", **settings):
        self.count += 1
        return self.block.create_var(name=f"v{self.count:06d}", dtype=dtype, **settings)

    def input(self, name, shape):
        return self.block.create_var(name=name, dtype="float32", shape=shape, need_check_feed=True, stop_gradient=True)

    def constant(self, value, dtype="float32"):
        array = np.ascontiguousarray(value, dtype)
        variable = self._variable(dtype, shape=array.shape, persistable=True)
        if self.keep_constants:
            self.constants[variable.name] = array
        return variable

    @contextlib.contextmanager
    def inside(self, layer, name):
        """这期间追加的算子属于这一层:VisualDL 的“网络结构”把它们画成一个可以展开的框。"""
        outer, self.place = self.place, f"{self.place}{type(layer).__name__}[{name}]/"
        try:
            yield
        finally:
            self.place = outer

    def op(self, kind, inputs, output="Out", unused=(), name=None, **attributes):
        """追加一个算子;unused 是它必须有、而这里用不着的输出,name 是输出的名字。"""
        outputs = {key: [self._variable()] for key in unused}
        outputs[output] = [self._variable() if name is None else self.block.create_var(name=name, dtype="float32")]
        op = self.block.append_op(type=kind, inputs=inputs, outputs=outputs, attrs=attributes)
        op._set_attr("op_namescope", self.place)
        return outputs[output][0]

    def add(self, x, y, axis=-1):
        return self.op("elementwise_add", {"X": x, "Y": y}, axis=axis)

    def matmul(self, x, y):
        return self.op("matmul_v2", {"X": x, "Y": y}, trans_x=False, trans_y=False)

    def linear(self, x, weight, bias):
        y = self.matmul(x, self.constant(weight))
        return y if bias is None else self.add(y, self.constant(bias))

    def conv2d(self, x, weight, strides, paddings):
        """没有偏置的卷积:[B, C, H, W] -> [B, D, H', W']。"""
        settings = dict(strides=strides, paddings=paddings, dilations=[1, 1], groups=1, data_format="NCHW")
        return self.op("conv2d", {"Input": x, "Filter": self.constant(weight)}, output="Output", **settings)

    def max_pool2d(self, x, size, stride, padding):
        settings = dict(ksize=[size] * 2, strides=[stride] * 2, paddings=[padding] * 2, pooling_type="max")
        return self.op("pool2d", {"X": x}, data_format="NCHW", **settings)

    def activation(self, x, layer):
        """激活函数:GELU,或它的两种近似。"""
        if isinstance(layer, QuickGELU):
            slope = self.op("sigmoid", {"X": self.scale(x, 1.702)})
            return self.op("elementwise_mul", {"X": x, "Y": slope}, axis=-1)
        return self.op("gelu", {"X": x}, approximate=isinstance(layer, TanhGELU))

    def layer_norm(self, x, layer, factor=1.0):
        """层归一化;输出再乘以 factor。"""
        weight, bias = layer.weight.numpy() * factor, layer.bias.numpy() * factor  # 这里 Tensor 不能直接运算
        inputs = {"X": x, "Scale": self.constant(weight), "Bias": self.constant(bias)}
        settings = dict(epsilon=layer.epsilon, begin_norm_axis=len(x.shape) - 1)
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

    def gather(self, x, index):
        """沿第 1 轴按下标取:[B, N, D] -> [B, M, D],index 是 [M] 的 numpy 数组。"""
        return self.op("gather", {"X": x, "Index": self.constant(index, "int64")}, axis=1)

    def zero_token(self, x):
        """全零的一个 token,批大小同 x:[B, 1, D]。"""
        return self.scale(self.slice(x, 1, 0, 1), 0.0)

    def concat(self, parts, axis):
        return self.op("concat", {"X": parts}, axis=axis)

    def mean_of_tokens(self, x):
        """[B, N, D] -> [B, D]。"""
        return self.op("reduce_mean", {"X": x}, dim=[1], keep_dim=False, reduce_all=False)

    def scale(self, x, factor):
        return self.op("scale", {"X": x}, scale=factor, bias=0.0)


def serialize(program, inputs, outputs):
    program = paddle.static.normalize_program(program, inputs, outputs)
    for op in program.global_block().ops:
        op._remove_attr("op_callstack")  # 写图的代码所在的路径,与别人无关
    return program.desc.serialize_to_string()


def save_weights(constants, path):
    """把静态图的权重存成 .pdiparams:按名字的次序(引擎这样读),每个数组先是类型和形状,再是内容。

    Paddle 自己的 ``save_combine_func`` 在磁盘满时不报错。

    Args:
        constants (dict): ``write_model`` 的第二项。
        path (str | Path): 目标文件。

    Raises:
        OSError: 写不进去。
    """
    from paddle.base.proto.framework_pb2 import VarType  # 只有核对图时要用

    types = {"float32": VarType.FP32, "int64": VarType.INT64}
    with open(path, "wb") as file:
        for name in sorted(constants):
            array = constants[name]
            description = VarType.TensorDesc(data_type=types[array.dtype.name], dims=array.shape).SerializeToString()
            file.write(struct.pack("<IQIi", 0, 0, 0, len(description)))  # 前三个是格式的版本、LoD 的级数、张量的版本
            file.write(description)
            file.write(array)


def with_ticket(program):
    """给静态图添一个输入(票号,[1])和一个原样送回它的输出。

    OpenVINO 出错时 Paddle 只打印,不抛异常,还留着上一批的输出;每批带一个票号,核对它回来了没有,才知道算过。

    Args:
        program (bytes): .pdmodel 的内容。

    Returns:
        tuple: (新的 program, 图像输入的形状 [-1, C, H, W])。
    """
    from paddle.pir_utils import OldIrGuard  # Paddle 3 才有

    with OldIrGuard():
        program = paddle.static.Program.parse_from_string(program)
        block = program.global_block()
        inputs = [block.var(op.output("Out")[0]) for op in block.ops if op.type == "feed"]
        outputs = [block.var(op.input("X")[0]) for op in block.ops if op.type == "fetch"]
        ticket = block.create_var(name="ticket", dtype="float32", shape=[1], need_check_feed=True, stop_gradient=True)
        echo = block.create_var(name="echo", dtype="float32")
        block.append_op(type="scale", inputs={"X": ticket}, outputs={"Out": [echo]}, attrs={"scale": 1.0, "bias": 0.0})
        return serialize(program, [*inputs, ticket], [*outputs, echo]), list(inputs[0].shape)
