"""保存和续训。每个文件都先写到旁边的临时文件,落盘之后再改名:任何时刻被杀掉,旧文件都完好。

一个运行目录里:``best.pdparams`` 是验证集上最好的权重(``paddle.load`` 可读),
``last.safetensors`` 是续训所需的一切:权重、优化器状态、EMA 和训练到哪里。
"""

import contextlib
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import paddle
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from .cli import describe_os_error
from .errors import UserError

__all__ = ["atomic_write", "load_weights_into", "read_state", "save_weights", "write_state"]


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


def save_weights(path, state):
    """按 Paddle 的格式保存权重;state 是 ``model.state_dict()``。末尾附 CRC-32,``paddle.load`` 会忽略它。"""
    buffer = io.BytesIO()
    paddle.save(state, buffer)
    data = buffer.getvalue()
    atomic_write(path, data + struct.pack("<I", zlib.crc32(data)))


def load_weights_into(model, path):
    """把 ``best.pdparams`` 读进模型;名字和形状必须全部对上。

    Raises:
        UserError: 文件不存在、已损坏,或属于另一个模型。
    """
    if not Path(path).exists():
        raise UserError(f"没有 {path}:这个运行还没有存过权重,请先训练至少一轮。")
    data = Path(path).read_bytes()
    if struct.pack("<I", zlib.crc32(data[:-4])) != data[-4:]:
        raise UserError(f"{path} 已损坏,或不是 scripts/train.py 存的权重:请换一个备份,或重新训练。")
    state = paddle.load(io.BytesIO(data[:-4]))
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    given = {name: list(value.shape) for name, value in state.items()}
    missing = sorted(expected.keys() - given.keys())
    extra = sorted(given.keys() - expected.keys())
    wrong = [name for name in expected if name in given and expected[name] != given[name]]
    if missing or extra or wrong:
        details = []
        if missing:
            details.append(f"缺少 {len(missing)} 个({'、'.join(missing[:3])}…)")
        if extra:
            details.append(f"多出 {len(extra)} 个({'、'.join(extra[:3])}…)")
        if wrong:
            name = wrong[0]
            details.append(f"形状不同 {len(wrong)} 个({name}:文件 {given[name]},模型 {expected[name]})")
        raise UserError(f"{path} 属于另一个模型:{';'.join(details)}。请检查 config.yaml 里的模型设置。")
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
