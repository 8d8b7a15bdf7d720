"""保存和续训。每个文件都先写到旁边的临时文件,落盘之后再改名:任何时刻被杀掉,旧文件都完好。

一个运行目录里:``best.safetensors`` 是验证集上最好的权重,单独拿走也能用——怎样建模型、类别名、怎样归一化都写在里面;
``last.safetensors`` 是续训所需的一切:权重、优化器状态、EMA 和训练到哪里。两个都是 safetensors 格式,末尾没有代码,
只有数字和文字,读它们不会执行任何东西。
"""

import contextlib
import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..system.files import atomic_write, first_few, matches, parse_json
from .files import open_tensors

__all__ = [
    "DESCRIPTION",
    "add_to_checksum",
    "differences",
    "load_state_into",
    "load_weights_into",
    "read_description",
    "read_model",
    "read_state",
    "save_model",
    "write_state",
    "write_tensors",
]


def differences(expected, given):
    """比较两组张量的名字和形状。

    Args:
        expected, given (dict): 名字 -> Tensor,模型里的和文件里的。

    Returns:
        str: 一句话说明缺少、多出、形状不同的各有几个,列出前几个;全都相同时是空的。
    """
    missing = sorted(expected.keys() - given.keys())
    extra = sorted(given.keys() - expected.keys())
    wrong = [
        f"{name}:文件 {list(given[name].shape)},模型 {list(value.shape)}"
        for name, value in expected.items()
        if name in given and list(given[name].shape) != list(value.shape)
    ]
    kinds = (("缺少", missing), ("多出", extra), ("形状不同", wrong))
    return ";".join(f"{kind} {len(names)} 个({first_few(names)})" for kind, names in kinds if names)


def load_weights_into(model, path):
    """把一个运行的权重文件读进模型;名字和形状必须全部对上。

    Raises:
        UserError: 文件不存在、已损坏,或属于另一个模型。
    """
    if not Path(path).exists():
        raise UserError(f"没有 {path}:这个运行还没有存过权重,请先训练至少一轮。")
    load_state_into(model, read_model(path)[0], path)


def load_state_into(model, state, path):
    """``load_weights_into``,权重(名字 -> numpy 数组)已经从 path 读出来了。"""
    details = differences(model.state_dict(), state)
    if details:
        raise UserError(f"{path} 属于另一个模型:{details}。请检查 config.yaml 里的模型设置。")
    model.set_state_dict(state)


def save_model(path, tensors, model, info):
    """存一个能说明自己的(self-describing)权重文件:单凭它就能建出模型、给图片分类。

    Args:
        path (str | Path): 目标文件,.safetensors。
        tensors (dict): 名字 -> Tensor 或 numpy 数组,名字是 ``model.state_dict()`` 里的。
        model (dict): ``create_model`` 的全部参数,包括 name、image_size、in_channels、num_classes。
        info (dict | None): ``DataInfo`` 的各项(类别名、均值、标准差等);不知道时是 ``None``。

    Raises:
        UserError: 磁盘满、没有权限等。
    """
    write_state(path, tensors, {"model": model, "info": info})


def read_model(path):
    """读回 ``save_model`` 存的 (tensors, model, info),tensors 里是 numpy 数组。

    Raises:
        UserError: 文件已损坏,或是没有说明的 safetensors。
    """
    if read_description(path) is None:
        raise UserError(
            f"{path} 已损坏,或不是 scripts/train.py 存的权重:请换一个备份;"
            "别处来的权重请先用 scripts/import_weights.py 转换。"
        )
    tensors, metadata = _read(path, UserError(f"{path} 已损坏:请换一个备份,或重新训练。"))
    return tensors, metadata["model"], metadata["info"]


def read_description(path):
    """只读文件头里的说明 (model, info),很快,不核对校验和;不是 ``save_model`` 存的文件时是 ``None``。"""
    with contextlib.suppress(UserError), open_tensors(path) as tensors:
        metadata = parse_json(tensors.metadata.get("state", ""))
        return (metadata["model"], metadata["info"]) if matches(metadata, DESCRIPTION) else None
    return None


def write_state(path, tensors: dict, metadata: dict):
    """按 safetensors 格式保存张量,连同能写成 JSON 的其余状态和它们的 CRC-32;同样的内容写出同样的字节。

    Args:
        path (str | Path): 目标文件。
        tensors (dict): 名字 -> Tensor 或 numpy 数组。
        metadata (dict): 其余状态。
    """
    state = json.dumps(metadata, ensure_ascii=False)
    checksum = zlib.crc32(state.encode())
    for name in sorted(tensors):
        checksum = add_to_checksum(checksum, name, np.asarray(tensors[name]))
    write_tensors(path, {name: tensors[name] for name in sorted(tensors)}, {"state": state, "crc32": str(checksum)})


def write_tensors(path, tensors, metadata: dict[str, str]):
    """写一个 safetensors 文件。一次只取一个张量,不必在内存里另放一份。

    Args:
        path (str | Path): 目标文件。
        tensors (Mapping): 名字 -> Tensor 或 numpy 数组,按它的次序写;每个取两次。
        metadata (dict): 文件头里的文字。
    """
    entries: dict = {"__metadata__": metadata}
    offset = 0
    for name in tensors:
        value = np.asarray(tensors[name])
        place = [offset, offset + value.nbytes]
        entries[name] = {"dtype": _DTYPES[value.dtype.name], "shape": list(value.shape), "data_offsets": place}
        offset += value.nbytes
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    data = (np.asarray(tensors[name]).tobytes() for name in tensors)
    atomic_write(path, itertools.chain([struct.pack("<Q", len(header)), header], data))


DESCRIPTION = {"model": {"name": str}, "info": (dict, type(None))}  # 能说明自己的文件里 state 的样子,见 matches
# numpy 的类型 -> safetensors 的叫法
_DTYPES = {"float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64"}


def read_state(path):
    """读回 ``write_state`` 保存的 (tensors, metadata)。

    Raises:
        UserError: 文件已损坏。
    """
    advice = "请换一个备份,或用 --output 开一个新的运行;best.safetensors 不受影响。"
    return _read(path, UserError(f"{path} 已损坏,无法续训:{advice}"))


def _read(path, damaged):
    try:
        with open_tensors(path):  # 管道、很长的文件头等,在这里就拒绝
            pass
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open 不是字典
    except (UserError, SafetensorError, OSError, ValueError, TypeError, KeyError):
        raise damaged from None
    checksum = zlib.crc32(header.get("state", "").encode())
    for name in sorted(tensors):
        checksum = add_to_checksum(checksum, name, tensors[name])
    metadata = parse_json(header.get("state", ""))
    if header.get("crc32") != str(checksum) or not isinstance(metadata, dict):
        raise damaged
    return tensors, metadata


def add_to_checksum(checksum, name, value):
    """把一个张量的名字、类型、形状和内容计入 CRC-32。"""
    checksum = zlib.crc32(f"{name} {value.dtype} {value.shape}".encode(), checksum)
    return zlib.crc32(value.tobytes(), checksum)
