"""PyTorch 模型的公共部分:换上随机权重、求输出、检查敏感度、记下这个例子。"""

import contextlib

import numpy as np
import torch
from common import add_case, case_folder, check_sensitivity, random_values

CLASSES = ["斑马", "tiger cat", "n02084071", "dog, canine", "鸟"]


def to_torch(state):
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def to_numpy(state):
    return {name: value.numpy() for name, value in state.items()}


@contextlib.contextmanager
def epsilon(model, value):
    """暂时换掉所有层归一化的 epsilon。"""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    before = [layer.eps for layer in layers]
    for layer in layers:
        layer.eps = value
    yield
    for layer, old in zip(layers, before):
        layer.eps = old


def class_names():
    return dict(enumerate(CLASSES))


def logits(model, x):
    """{输出名: Tensor};Hugging Face 的蒸馏模型有三个,其余只有 logits。"""
    output = model(x)
    if isinstance(output, torch.Tensor):
        return {"logits": output}
    return {name: output[name] for name in output if name.endswith("logits")}


class _Reader(torch.nn.Module):
    """让 functional_call 调用 outputs(model, x)。"""

    def __init__(self, model, outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, x):
        return self.outputs(self.model, x)


def make(case, model, x, seed, wrong_epsilon, entry, outputs=logits):
    """换上随机权重,检查敏感度,把期望的输出写进例子的文件夹。

    Args:
        case (str): 例子的名字。
        model (torch.nn.Module): 参考模型;换上的权重留在里面,由调用者保存成文件。
        x (numpy.ndarray): 输入。
        wrong_epsilon (float | None): 检查层归一化的 epsilon 时换成这个值;``None`` 表示没有层归一化。
        entry (dict): cases.json 里的其余各项。
        outputs: (model, Tensor) -> {输出名: Tensor}。

    Returns:
        dict: cases.json 里的这一项。
    """
    model.eval()
    model.load_state_dict(to_torch(random_values(to_numpy(model.state_dict()), seed)))
    reader, images = _Reader(model, outputs), torch.from_numpy(x)

    def run(state):
        tensors = {f"model.{name}": value for name, value in to_torch(state).items()}
        with torch.no_grad():
            found = torch.func.functional_call(reader, tensors, images)
        return np.concatenate([value.numpy().ravel() for value in found.values()])

    state = to_numpy(model.state_dict())
    sensitivity, wrong = {}, []
    if wrong_epsilon is not None:
        with epsilon(model, wrong_epsilon):
            wrong = [(f"epsilon {wrong_epsilon}", run(state))]
    if entry.get("loads", True):  # 装不进我们的模型的,不用查
        sensitivity = check_sensitivity(run, state, wrong)
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in reader(images).items()}
    np.savez(case_folder(case) / "expected.npz", **expected)
    entry = {
        "loads": True,
        **entry,
        "input": list(x.shape),
        "expected": f"cases/{case}/expected.npz",
        "outputs": sorted(expected),
        "sensitivity": sensitivity,
    }
    add_case(case, **entry)
    return entry


def also(case, entry, **changes):
    """另一个例子:同样的权重和输出,存成另一个文件(名字或容器不同)。"""
    add_case(case, **{**entry, "sensitivity": {}, **changes})
