"""保存和续训。每个文件都先写到旁边的临时文件,落盘之后再改名:任何时刻被杀掉,旧文件都完好。

一个运行目录里:``best.pdparams`` 是验证集上最好的权重(``paddle.load`` 可读),
``last.safetensors`` 是续训所需的一切:权重、优化器状态、EMA 和训练到哪里。
"""

import contextlib
import io
import json
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import paddle
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from .cli import describe_os_error
from .errors import UserError

__all__ = ["atomic_write", "differences", "load_weights_into", "matches", "read_json", "read_state", "read_weights"]
__all__ += ["save_weights", "write_state"]


def atomic_write(path, data):
    """把字节写进文件:要么完整地换成新内容,要么旧文件原样。

    Raises:
        UserError: 磁盘满、没有权限等。
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # 目录不可写时,临时文件本来就没有
            temporary.unlink()
        raise UserError(describe_os_error(error, path)) from None


def read_json(path, pattern=None, advice="请换一个备份,或重新训练"):
    """读一个 JSON 文件(字典);没有这个文件时是 ``None``。

    Args:
        path (Path): 文件。
        pattern (dict | None): 应有的样子,见 ``matches``;``None`` 是任意的字典。
        advice (str): 文件损坏时怎么办,写进提示。

    Raises:
        UserError: 文件已损坏,或不是应有的样子。
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not matches(value, pattern or {}):
        raise UserError(f"{path} 已损坏:{advice}。")
    return value


def matches(value, pattern):
    """读回的 JSON 是不是应有的样子。

    Args:
        value (Any): ``json.loads`` 的结果。
        pattern (Any): 类型(``float`` 也收整数);``[样子]`` 是列表,每一项都是它;``{名字: 样子}`` 是字典,这些名字都要有;
            ``{None: 样子}`` 是名字任意的字典。

    Returns:
        bool
    """
    if isinstance(pattern, list):
        return isinstance(value, list) and all(matches(item, pattern[0]) for item in value)
    if isinstance(pattern, dict):
        wanted = pattern if None not in pattern or not isinstance(value, dict) else dict.fromkeys(value, pattern[None])
        return isinstance(value, dict) and all(k in value and matches(value[k], wanted[k]) for k in wanted)
    if isinstance(value, bool):
        return pattern is bool
    if isinstance(value, int) and value.bit_length() > 63:  # 太大的整数不能当小数来算
        return False
    return isinstance(value, (int, float) if pattern is float else pattern)


def save_weights(path, state):
    """按 Paddle 的格式保存权重;state 是 ``model.state_dict()``。末尾附 CRC-32,``paddle.load`` 会忽略它。"""
    buffer = io.BytesIO()
    paddle.save(state, buffer)
    data = buffer.getvalue()
    atomic_write(path, data + struct.pack("<I", zlib.crc32(data)))


# 读一份残缺的 pickle 时,Python 和 Paddle 可能抛出的错误
_BAD_PICKLE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, ImportError)
_BAD_PICKLE += (OverflowError, MemoryError, SystemError)


def read_weights(path, plain=False):
    """读一个权重文件。

    Args:
        path (str | Path): ``save_weights`` 存的文件。
        plain (bool): 也接受直接由 ``paddle.save`` 存的文件;它没有校验和,损坏了不一定看得出来。

    Returns:
        dict: 名字 -> Tensor。

    Raises:
        UserError: 文件不存在,或已损坏。
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"没有 {path}:这个运行还没有存过权重,请先训练至少一轮。")
    data = path.read_bytes()
    if struct.pack("<I", zlib.crc32(data[:-4])) == data[-4:]:
        return paddle.load(io.BytesIO(data[:-4]))
    if plain:
        stream = io.BytesIO(data)
        with contextlib.suppress(*_BAD_PICKLE):
            state = paddle.load(stream)
            # 后面还有字节的,是 save_weights 存的、校验和对不上的文件
            if stream.tell() == len(data) and isinstance(state, dict) and all(map(paddle.is_tensor, state.values())):
                return state
    raise UserError(f"{path} 已损坏,或不是 scripts/train.py 存的权重:请换一个备份,或重新训练。")


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
    return ";".join(f"{kind} {len(names)} 个({_first_few(names)})" for kind, names in kinds if names)


def _first_few(names):
    return "、".join(names[:3]) + ("…" if len(names) > 3 else "")


def load_weights_into(model, path):
    """把 ``best.pdparams`` 读进模型;名字和形状必须全部对上。

    Raises:
        UserError: 文件不存在、已损坏,或属于另一个模型。
    """
    state = read_weights(path)
    details = differences(model.state_dict(), state)
    if details:
        raise UserError(f"{path} 属于另一个模型:{details}。请检查 config.yaml 里的模型设置。")
    model.set_state_dict(state)


def write_state(path, tensors, metadata):
    """保存续训状态。

    Args:
        path (str | Path): 目标文件。
        tensors (dict): 名字 -> numpy 数组。
        metadata (dict): 能写成 JSON 的其余状态。
    """
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    state = json.dumps(metadata, ensure_ascii=False)
    atomic_write(path, to_safetensors(tensors, {"state": state, "crc32": str(_checksum(tensors, state))}))


def read_state(path):
    """读回 ``write_state`` 保存的 (tensors, metadata)。

    Raises:
        UserError: 文件已损坏。
    """
    damaged = UserError(f"{path} 已损坏,无法续训:请换一个备份,或用 --output 开一个新的运行;best.pdparams 不受影响。")
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open 不是字典
    except (SafetensorError, OSError, ValueError, TypeError, KeyError):
        raise damaged from None
    if header.get("crc32") != str(_checksum(tensors, header.get("state", ""))):
        raise damaged
    return tensors, json.loads(header["state"])


def _checksum(tensors, state):
    """名字、类型、形状、内容和其余状态的 CRC-32。"""
    checksum = zlib.crc32(state.encode())
    for name in sorted(tensors):
        value = tensors[name]
        checksum = zlib.crc32(f"{name} {value.dtype} {value.shape}".encode(), checksum)
        checksum = zlib.crc32(value.tobytes(), checksum)
    return checksum
