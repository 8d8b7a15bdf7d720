import numpy as np
import pytest

from paddle_vit.deploy.onnx_conversion import tidy

onnx = pytest.importorskip("onnx", reason="没有装 paddle2onnx(它带着 onnx)")
onnxruntime = pytest.importorskip("onnxruntime", reason="没有装 ONNX Runtime")


def constant(name, value):
    tensor = onnx.numpy_helper.from_array(np.asarray(value, "float32"))
    return onnx.helper.make_node("Constant", [], [name], value=tensor)


def paddle2onnx_style(last):
    """y = 2 x W + b,像 paddle2onnx 那样写:权重是节点,到处是 Identity;last 是最后一个算子。"""
    make = onnx.helper.make_node
    nodes = [
        constant("w", [[1, 2], [3, 4]]),
        constant("b", [5, 6]),
        constant("unused", [7]),
        make("Identity", ["w"], ["w2"]),
        make("Identity", ["w2"], ["w3"]),
        make("MatMul", ["x", "w3"], ["m"]),
        make("Identity", ["m"], ["m2"]),
        make("Add", ["m2", "m"], ["s"]),
        make("Add", ["s", "b"], ["y" if last == "Add" else "z"]),
    ]
    if last == "Identity":
        nodes.append(make("Identity", ["z"], ["y"]))
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(name, kind, [axis, 2]) for name, axis in (("x", "D0"), ("y", "D1"))]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("last", ["Add", "Identity"])
def test_a_tidy_model_gives_the_same_answers(last):
    model = paddle2onnx_style(last)
    tidy(model, "logits")
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == [
        "MatMul",
        "Add",
        "Add",
        *(["Identity"][: last == "Identity"]),
    ]
    assert sorted(tensor.name for tensor in model.graph.initializer) == ["b", "w"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (x,), (y,) = session.get_inputs(), session.get_outputs()
    assert (x.name, y.name, x.shape, y.shape) == ("x", "logits", ["B", 2], ["B", 2])
    (found,) = session.run(["logits"], {"x": np.array([[1, 0], [1, 1], [0, 2]], "float32")})
    np.testing.assert_array_equal(found, [[7, 10], [13, 18], [17, 22]])
