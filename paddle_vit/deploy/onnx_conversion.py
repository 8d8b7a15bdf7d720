"""静态图 -> ONNX(paddle2onnx)。

paddle2onnx 遇到不会的算子会让整个进程退出,所以在自己的进程里做:``python -m paddle_vit.deploy.onnx_conversion 目录``。
"""

import sys
import tempfile
from pathlib import Path

from ..system.run_files import CONSTANTS, ONNX, PROGRAM

__all__ = ["convert", "tidy"]


def convert(directory):
    """目录里的 model.pdmodel 和 model.pdiparams -> model.onnx。

    不用 paddle2onnx 的 optimize_tool:它会悄悄用 pip 装别的包,还多占内存。

    Args:
        directory (str | Path): 目录。
    """
    import onnx
    import paddle2onnx

    program, weights, target = (str(Path(directory, name)) for name in (PROGRAM, CONSTANTS, ONNX))
    tempfile.tempdir = str(directory)  # paddle2onnx 的中间文件也放在这里
    content = paddle2onnx.export(program, weights, opset_version=17, optimize_tool="None")
    model = onnx.load_from_string(content)
    del content
    tidy(model, "logits")
    onnx.checker.check_model(model)
    onnx.save(model, target)


def tidy(model, output):
    """整理 paddle2onnx 写的模型:输出改名,批大小叫 B,去掉没有用的节点,权重由节点改成 initializer(量化等工具才认得)。

    Args:
        model (onnx.ModelProto): 只有一个输入和一个输出,就地修改。
        output (str): 输出的名字。
    """
    graph = model.graph
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    before = graph.output[0].name
    for node in graph.node:
        node.input[:] = [_origin(name, same) for name in node.input]
        node.output[:] = [output if name == before else name for name in node.output]
    graph.output[0].name = output
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "B"
    same.pop(before, None)
    used = {output}.union(*(node.input for node in graph.node if node.output[0] not in same))
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if used.isdisjoint(node.output):
            del graph.node[i]
        elif node.op_type == "Constant":
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            del graph.node[i]


def _origin(name, same):
    """跟着 Identity 一直找到头。"""
    while name in same:
        name = same[name]
    return name


if __name__ == "__main__":
    convert(sys.argv[1])
