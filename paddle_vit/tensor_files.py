"""读权重文件里的张量:safetensors、PyTorch、Paddle、NumPy 四种,不需要装 PyTorch,也不执行文件里的任何东西。

``open_tensors`` 先读出每个张量的名字、类型和形状(不到一秒,多大的文件都一样),内容在 ``read()`` 时才读,一次一个张量。
文件的种类由内容决定,与后缀无关。``.pth``、``.bin`` 和 ``.pdparams`` 都是 pickle,见 ``pickles``:只认张量,别的一律拒绝。
"""

import codecs
import contextlib
import json
import math
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from .cli import describe_os_error
from .errors import UserError
from .pickles import Inert, Malformed, Name, Payload, read_pickle, shown

__all__ = ["StoredTensor", "TensorFile", "open_tensors"]

CHUNK = 1 << 20  # 字节;读和校验时一次处理这么多
MAX_HEADER = 16 << 20  # 字节;safetensors 的文件头、zip 的目录
MAX_PICKLE = 64 << 20  # 字节;PyTorch 的 data.pkl,里面没有张量的内容

# 训练检查点里权重所在的键,靠前的优先;平常的权重先于滑动平均(EMA)的
STATE_KEYS = "model state_dict model_state_dict model_state net network module params weights".split()
STATE_KEYS += "teacher student model_ema state_dict_ema ema_state_dict ema".split()
_NOT_STATE = re.compile("optim|sched|scaler|^lr|loss|rng|amp", re.IGNORECASE)


def open_tensors(path):
    """打开一个权重文件,读出其中张量的名字、类型和形状。

    Args:
        path (str | Path): ``.safetensors``,PyTorch 的 ``.pth``、``.bin``,Paddle 的 ``.pdparams``,NumPy 的 ``.npz``。

    Returns:
        TensorFile: 名字 -> ``StoredTensor``;用 ``with`` 打开。

    Raises:
        UserError: 没有这个文件、不是权重文件、已损坏,或含有要执行的东西。
    """
    path = Path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} 是目录,这里需要权重文件:请给出目录里的 .safetensors、.bin、.pdparams 等文件。")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} 不是普通文件(是管道或设备):请给出一个权重文件。")
        if status.st_size == 0:
            raise UserError(f"{path} 是空的:请重新下载。")
        file = open(path, "rb")  # noqa: SIM115  由 TensorFile.close 关闭
    except OSError as error:
        raise UserError(describe_os_error(error, path)) from None
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError("路径里有不合法的字符:请检查路径。") from None
    try:
        return _open(file, path, status.st_size)
    except Malformed as error:
        file.close()
        raise UserError(f"{path} 已损坏或不完整({error}):请重新下载,或换一个备份。") from None
    except BaseException:
        file.close()
        raise


def _open(file, path, size):
    head = file.read(4096)
    if (int.from_bytes(head[:8], "little") < 1 << 32 and head[8:9] == b"{") or head[8:10] == b'{"':
        return _open_safetensors(file, path, size)
    if head[:4] == b"PK\3\4":
        return _open_zip(file, path, size)
    if head[:1] == b"\x80":
        return _open_pickle(file, path, size)
    _refuse(file, path, size, head)


class TensorFile(Mapping):
    """一个打开的权重文件:名字 -> ``StoredTensor``,顺序与文件里的相同。

    Attributes:
        path (Path): 文件。
        kind (str): ``safetensors``、``torch``、``paddle`` 或 ``numpy``。
        metadata (dict): safetensors 文件头里的文字(str -> str);别的种类是空的。
        inside (str): 权重在检查点的哪个键里,如 ``model``;就在最外层时是空的。
        others (tuple[str]): 检查点里没有选用的其他几组权重,如 ``model_ema``。
    """

    def __init__(self, file, path, kind, tensors, metadata=None, inside="", others=()):
        self._file, self._tensors = file, tensors
        self.path, self.kind, self.metadata, self.inside, self.others = path, kind, metadata or {}, inside, others

    def __getitem__(self, name):
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """关闭文件;之后不能再 ``read``。"""
        self._file.close()


class StoredTensor:
    """文件里的一个张量,内容还没有读。

    Attributes:
        shape (tuple[int]): 形状。
        dtype (str): NumPy 的类型名,或 ``bfloat16``。
    """

    def __init__(self, source, dtype, shape, order="little", offset=0, strides=None):
        """offset、strides 以元素为单位;strides 不给时是行优先。调用前已用 ``_check_layout`` 检查过。"""
        self.shape, self.dtype = shape, dtype
        self._source, self._offset = source, offset
        self._strides = _row_major(shape) if strides is None else strides
        self._element = _element(dtype).newbyteorder(order)

    def read(self):
        """读出内容;浮点数(16、32、64 位)一律成为 float32,其余类型不变。

        Returns:
            np.ndarray: 形状为 ``shape``,行优先,可写。

        Raises:
            UserError: 文件不完整,或校验和对不上。
        """
        span = _span(self.shape, self._strides)
        data = np.empty(span, self._element)
        self._source.fill(data.view(np.uint8), self._offset * self._element.itemsize)
        steps = [stride * self._element.itemsize for stride in self._strides]
        values = np.lib.stride_tricks.as_strided(data, self.shape, steps)  # [span] -> shape
        if self.dtype == "bfloat16":  # float32 的高 16 位
            return (values.astype(np.uint32, order="C") << 16).view(np.float32)
        if self.dtype == "bool":
            return values != 0
        wanted = np.dtype(np.float32) if values.dtype.kind == "f" else values.dtype.newbyteorder("=")
        with np.errstate(over="ignore", invalid="ignore"):  # float64 里超出 float32 范围的数成为无穷大
            return values.astype(wanted, order="C", copy=False)


def _element(dtype):
    """类型名 -> 文件里一个元素的 NumPy 类型。"""
    return np.dtype({"bfloat16": "uint16", "bool": "uint8"}.get(dtype, dtype))


def _row_major(shape):
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides[: len(shape)]))


def _span(shape, strides):
    """从第一个元素到最后一个元素,在文件里跨过几个元素。"""
    return 0 if 0 in shape else 1 + sum((length - 1) * stride for length, stride in zip(shape, strides))


def _check_layout(name, shape, strides, offset, available):
    """形状、步长和偏移是否都在 available 个元素之内。"""
    numbers = [*shape, *strides, offset] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers) or len(shape) != len(strides):
        raise Malformed(f"张量 {shown(name)} 的形状不合法")
    if len(shape) > 16 or math.prod(max(length, 1) for length in shape) > max(available, 1 << 20):
        raise Malformed(f"张量 {shown(name)} 的形状 {shown(list(shape))} 与文件大小不符")
    if offset + _span(shape, strides) > available:
        raise Malformed(f"张量 {shown(name)} 超出了存储的 {available} 个元素")
    if math.prod(shape) > available:
        raise Malformed(f"张量 {shown(name)} 是展开(expand)的,有 {math.prod(shape)} 个元素,只存了 {available} 个")


# 内容在文件里的几种存法;fill(view, start) 把从 start 开始的字节填满 view(uint8 数组)


class _Region:
    """文件里连续的一段,原样;给了 crc 时,第一次读之前先校验整段。"""

    def __init__(self, file, start, length, crc=None):
        self.file, self.start, self.length, self.crc = file, start, length, crc

    def fill(self, view, start):
        if self.crc is not None and _checksum(self.file, self.start, self.length) != self.crc:
            raise UserError(f"{self.file.name} 已损坏(校验和不对):请重新下载,或换一个备份。")
        self.crc = None
        self.file.seek(self.start + start)
        _fill(self.file, view, self.file.name)


class _Latin1:
    """协议 2 的 pickle 里,一个字节存成一个字符(latin-1)的一段 UTF-8 文字。"""

    def __init__(self, file, start, length):
        self.file, self.start, self.length = file, start, length

    def fill(self, view, start):
        decoder, position, left = codecs.getincrementaldecoder("utf-8")(), -start, self.length
        self.file.seek(self.start)
        try:
            while left:
                chunk = self.file.read(min(CHUNK, left))
                left -= len(chunk) or left
                part = np.frombuffer(decoder.decode(chunk, not left).encode("latin-1"), np.uint8)
                view[position : position + len(part)] = part
                position += len(part)
        except ValueError:
            position = -1
        if position != len(view):
            raise UserError(f"{self.file.name} 已损坏(数组的长度与形状不符):请重新下载,或换一个备份。")


class _Text:
    """已经读出来的一小段 latin-1 文字。"""

    def __init__(self, text):
        self.data = np.frombuffer(text.encode("latin-1"), np.uint8)

    def fill(self, view, start):
        view[:] = self.data[start : start + len(view)]


class _Member:
    """zip 里的一个文件(npz 的一个数组),去掉开头 skip 字节的说明;由 ``zipfile`` 解压和校验。"""

    def __init__(self, archive, info, skip):
        self.archive, self.info, self.skip = archive, info, skip

    def fill(self, view, start):
        try:
            with self.archive.open(self.info) as file:
                file.read(self.skip + start)
                _fill(file, view, self.archive.filename)
                if file.read(1):
                    raise EOFError
        except _BAD_ZIP:
            name = f"{self.archive.filename} 里的 {shown(self.info.filename)}"
            raise UserError(f"{name} 已损坏:请重新下载,或换一个备份。") from None


class _Joined:
    """首尾相接的几段。"""

    def __init__(self, tensors):
        self.tensors = tensors

    def fill(self, view, start):
        for tensor in self.tensors:
            length = math.prod(tensor.shape) * tensor._element.itemsize
            tensor._source.fill(view[start : start + length], 0)
            start += length


def _fill(file, view, name):
    """从文件的当前位置读,填满 view。"""
    done = 0
    while done < len(view):
        count = file.readinto(memoryview(view)[done : done + CHUNK])
        if not count:
            raise UserError(f"{name} 不完整:请重新下载。")
        done += count


def _checksum(file, start, length):
    """文件里一段的 CRC-32。"""
    file.seek(start)
    crc = 0
    while length > 0:
        chunk = file.read(min(CHUNK, length))
        crc, length = zlib.crc32(chunk, crc), length - (len(chunk) or length)
    return crc


# safetensors:8 字节的文件头长度,JSON 文件头,张量的内容

_SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


def _open_safetensors(file, path, size):
    from safetensors import SafetensorError, safe_open

    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise Malformed(f"文件头说自己有 {length} 字节,文件只有 {size} 字节")
    if length > MAX_HEADER:
        raise Malformed(f"文件头有 {length} 字节,太长了")
    try:
        with safe_open(str(path), framework="numpy"):
            pass  # 它检查文件头:每个张量的长度与形状相符,首尾相接,正好到文件末尾
        header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise Malformed(f"safetensors 的文件头不对:{shown(error)}") from None
    metadata, tensors = header.pop("__metadata__", None), {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise UserError(f"{path} 里的 {shown(name)} 是 {shown(entry['dtype'])} 类型:不支持,请先转成 float32。")
        start, end = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), _SAFETENSORS_TYPES[entry["dtype"]]
        _check_layout(name, shape, _row_major(shape), 0, (end - start) // _element(dtype).itemsize)
        tensors[name] = StoredTensor(_Region(file, 8 + length + start, end - start), dtype, shape)
    return TensorFile(file, path, "safetensors", _not_empty(tensors, path), metadata)


def _not_empty(tensors, path):
    if not tensors:
        raise UserError(f"{path} 里没有张量:请换一个权重文件。")
    return tensors


# pickle 里的张量


class _Type:
    """NumPy 或 PyTorch 的元素类型;dtype 是 ``None`` 的不支持。"""

    def __init__(self, dtype, order="little"):
        self.dtype, self.order = dtype, order

    def set_state(self, state):
        """``numpy.dtype`` 的状态:第二项是字节序。"""
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = "big"


class _Array:
    """``numpy.ndarray``:先建立空的,再由状态给出形状、类型和内容。"""

    def __init__(self, state=None):
        self.state = state

    def set_state(self, state):
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            raise Malformed("numpy 数组的状态不对")
        self.state = state[1:]  # 形状、类型、是否列优先、内容


class _Storage:
    """PyTorch 的一段存储;几个张量可以共用一段。"""

    def __init__(self, dtype, count):
        self.dtype, self.count, self.source, self.order = dtype, count, None, "little"


class _Tensor:
    """PyTorch 的张量:存储里的一段,有自己的形状和步长。"""

    def __init__(self, storage, offset, shape, strides):
        if not isinstance(storage, _Storage):
            raise Malformed("张量没有存储")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


_STORAGE_TYPES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
}  # fmt: skip
_NUMPY_TYPE = re.compile(r"[fiu][1248]|b1|\?")


def _numpy_type(text, *_):
    if isinstance(text, Name):  # 写成类的类型,如 numpy.float32
        text = text.text.rpartition(".")[2]
    if text == "O" or text == "O8":
        return _Type("object")
    return _Type(np.dtype(text).name if isinstance(text, str) and _NUMPY_TYPE.fullmatch(text) else None)


def _tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, shape, strides)


def _subclass(function, _, args, *__):
    """张量的子类:当作张量。"""
    if not isinstance(function, Name) or not isinstance(args, tuple):
        raise Malformed("张量的子类不对")
    return _call_known(function.text, args)


# 允许调用的全部名字,和它们在这里的含义
_CALLS = {
    "collections.OrderedDict": lambda *_: {},
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": lambda *_: {},
    "builtins.tuple": lambda items=(): items,  # Paddle 的张量:(名字, 数组)
    "_codecs.encode": lambda text, *_: text,  # 字节串,协议 2 写成 latin-1 文字
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": lambda *_: Inert(),
    "numpy.core.numeric._frombuffer": lambda data, kind, shape, order: _Array((shape, kind, order == "F", data)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}
# 训练检查点里常见、与权重无关的对象:不建立,也不报错
_INERT = set(
    "argparse.Namespace types.SimpleNamespace collections.Counter collections.deque builtins.set builtins.frozenset "
    "builtins.complex builtins.slice builtins.range builtins.bytearray builtins.bytes torch.Size torch.device "
    "pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath "
    "pathlib._local.PosixPath pathlib._local.WindowsPath datetime.datetime datetime.date datetime.timedelta "
    "easydict.EasyDict addict.addict.Dict yacs.config.CfgNode fvcore.common.config.CfgNode "
    "mmcv.utils.config.ConfigDict mmengine.config.config.ConfigDict ml_collections.config_dict.config_dict.ConfigDict "
    "omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata "
    "omegaconf.base.Metadata omegaconf.nodes.AnyNode".split()
)


def _call_known(name, args):
    """“调用 name”的结果;不认识的名字,抛出 ``_Refused``。"""
    name = name.replace("__builtin__.", "builtins.", 1).replace("numpy._core.", "numpy.core.", 1)
    if name == "copyreg._reconstructor" and args and isinstance(args[0], Name):  # 协议 0、1 建立对象的写法
        name = args[0].text
    if name in _INERT:
        return Inert()
    if name not in _CALLS:
        raise _Refused(name)
    try:
        return _CALLS[name](*args)
    except TypeError:
        raise Malformed(f"{name} 的参数不对") from None


class _Refused(Exception):
    """pickle 要调用一个不认识的名字。"""


def _read(file, path, start, end, persistent=None):
    """``read_pickle``,不认识的调用说成一句中文。"""
    try:
        return read_pickle(file, start, end, _call_known, persistent)
    except _Refused as refused:
        name = shown(refused)
    if name.startswith("torch._utils._rebuild_"):
        raise UserError(f"{path} 里有稀疏、量化等特殊的张量({name}):不支持,请先转成 float32 的普通张量再存。")
    if name.startswith(("torch.", "timm.", "transformers.")):
        raise UserError(
            f"{path} 里有 {name} 对象(多半存的是整个模型),读它要执行它的代码:请在原来的环境里改存 model.state_dict()。"
        )
    raise UserError(f"{path} 含有要执行的 {name}:这不是单纯的权重,可能是恶意文件,请勿使用。")


def _open_pickle(file, path, size):
    """Paddle 的 .pdparams,或 PyTorch 1.6 之前的 .pth。"""
    value, end = _read(file, path, 0, size)
    if value == _LEGACY_MAGIC:
        return _open_legacy_torch(file, path, end, size)
    if end != size and not (size - end == 4 and size <= _MAX_CHECKED and _ends_with_checksum(file, end)):
        raise Malformed(f"pickle 之后的 {size - end} 字节不是它的校验和")
    state, inside, others = _find_state(value, path)
    return TensorFile(file, path, "paddle", _paddle_tensors(file, state, path), inside=inside, others=others)


_MAX_CHECKED = 4 << 30  # 字节


def _ends_with_checksum(file, end):
    """``checkpoint.save_weights`` 在末尾附了 4 字节的 CRC-32。"""
    crc = _checksum(file, 0, end)
    return file.read(4) == crc.to_bytes(4, "little")


def _is_tensor(value):
    if isinstance(value, tuple) and len(value) == 2:  # Paddle 的张量:(名字, 数组)
        value = value[1]
    return isinstance(value, (_Array, _Tensor))


def _holds_tensors(value):
    return isinstance(value, dict) and any(map(_is_tensor, value.values()))


def _find_state(value, path):
    """在检查点里找到权重所在的字典,返回 (字典, 它的键, 其余几组权重的键)。"""
    inside, others = [], []
    while isinstance(value, dict) and len(inside) < 4:
        found = [key for key in STATE_KEYS if isinstance(value.get(key), dict) and _leads_to_tensors(value[key])]
        if not found and _holds_tensors(value):
            return value, ".".join(inside), tuple(others)
        if not found:
            found = [k for k, v in value.items() if not _NOT_STATE.search(k) and _leads_to_tensors(v)]
            if len(found) > 1:
                names = "、".join(shown(name) for name in found[:5])
                raise UserError(f"{path} 里有几组张量({names}),不知道哪一组是权重:请只把其中一组存成文件。")
        if not found:
            break
        others += [".".join([*inside, key]) for key in found[1:]]
        inside.append(found[0])
        value = value[found[0]]
    raise UserError(f"{path} 里没有张量的字典(state_dict):请换一个权重文件,或改存 model.state_dict()。")


def _leads_to_tensors(value, depth=3):
    return _holds_tensors(value) or (
        depth > 0 and isinstance(value, dict) and any(_leads_to_tensors(v, depth - 1) for v in value.values())
    )


# Paddle:{名字: numpy 数组},加上两个名字特殊的项

_PADDLE_SPLIT = "UnpackBigParamInfor@@"  # 协议 2、3 把很大的数组切成几段:{名字: {"OriginShape": …, "slices": […]}}


def _paddle_tensors(file, state, path):
    tensors = {name: _array_tensor(file, name, value, path) for name, value in state.items() if _is_tensor(value)}
    split = state.get(_PADDLE_SPLIT)
    for name, info in split.items() if isinstance(split, dict) else ():
        slices = info.get("slices") if isinstance(info, dict) else None
        if not isinstance(slices, list) or not slices or not all(type(s) is str and s in tensors for s in slices):
            raise Malformed(f"张量 {shown(name)} 缺少分段")
        parts, shape = [tensors.pop(part) for part in slices], info.get("OriginShape")
        _check_layout(name, shape, _row_major(shape), 0, sum(math.prod(part.shape) for part in parts))
        tensors[name] = StoredTensor(_Joined(parts), parts[0].dtype, shape)
    return _not_empty(tensors, path)


def _array_tensor(file, name, value, path):
    if isinstance(value, tuple):
        value = value[1]
    if not isinstance(value, _Array) or value.state is None:
        raise Malformed(f"张量 {shown(name)} 没有内容")
    shape, kind, fortran, data = value.state
    if kind.dtype in (None, "object"):
        raise UserError(f"{path} 里的 {shown(name)} 不是数的数组(dtype=object 等):不支持,请只存张量。")
    dtype = "bfloat16" if kind.dtype == "uint16" else kind.dtype  # Paddle 没有 uint16 的张量,bfloat16 存成它
    if isinstance(data, str):
        source, length = _Text(data), len(data)
    elif isinstance(data, Payload):
        source = (_Latin1 if data.is_text else _Region)(file, data.start, data.length)
        length = data.length
    else:
        raise Malformed(f"张量 {shown(name)} 没有内容")
    available = length // _element(dtype).itemsize
    strides = None
    if isinstance(shape, tuple):
        strides = _row_major(shape[::-1])[::-1] if fortran else _row_major(shape)
    _check_layout(name, shape, strides, 0, available)
    return StoredTensor(source, dtype, shape, kind.order, strides=strides)


# PyTorch:pickle 里是张量的形状,内容(storage)在 pickle 之外

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _storage_of(storages, identity):
    """pickle 里的 ("storage", 类型, 编号, 设备, 元素个数, …) -> ``_Storage``,记在 storages[编号] 里。"""
    kind, name, key, _, count = (*identity, *[None] * 5)[:5] if isinstance(identity, tuple) else [None] * 5
    if kind == "module" and isinstance(name, Name):  # 旧格式存整个模型:("module", 类, 源文件, 源码)
        return _call_known(name.text, ())
    if kind != "storage" or not isinstance(name, Name) or not isinstance(key, str):
        raise Malformed("storage 不对")
    if type(count) is not int or not 0 <= count < 1 << 48 or (len(identity) > 5 and identity[5] is not None):
        raise Malformed("storage 不对")
    match = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name.text)
    return storages.setdefault(key, _Storage(_STORAGE_TYPES.get(match.group(1)) if match else None, count))


def _torch_tensors(state, path):
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, _Tensor):
            continue
        storage = value.storage
        if storage.dtype is None:
            raise UserError(f"{path} 里的 {shown(name)} 是不支持的类型(如 float8、复数、量化):请先转成 float32。")
        _check_layout(name, value.shape, value.strides, value.offset, storage.count)
        tensors[name] = StoredTensor(
            storage.source, storage.dtype, value.shape, storage.order, value.offset, value.strides
        )
    return _not_empty(tensors, path)


def _open_legacy_torch(file, path, start, size):
    """PyTorch 1.6 之前的格式:魔数、版本、系统信息、对象、storage 的编号各是一个 pickle,后面依次是各段内容。"""
    version, start = _read(file, path, start, size)
    system, start = _read(file, path, start, size)
    if version != 1001 or not isinstance(system, dict):
        raise Malformed("PyTorch 旧格式的开头不对")
    order = "big" if system.get("little_endian") is False else "little"
    storages = {}
    value, start = _read(file, path, start, size, partial(_storage_of, storages))
    keys, start = _read(file, path, start, size)
    for key in keys if isinstance(keys, list) else [None]:
        if not isinstance(key, str) or key not in storages:
            raise Malformed("storage 的编号不对")
        storage = storages[key]
        file.seek(start)
        count = int.from_bytes(file.read(8), order)
        if storage.dtype is None:
            raise UserError(f"{path} 里有不支持的类型(如复数、量化)的张量:请先转成 float32。")
        length = count * _element(storage.dtype).itemsize
        if count != storage.count or start + 8 + length > size:
            raise Malformed("storage 的长度不对")
        storage.source, storage.order = _Region(file, start + 8, length), order
        start += 8 + length
    if start != size or any(storage.source is None for storage in storages.values()):
        raise Malformed("storage 的总长与文件不符")
    state, inside, others = _find_state(value, path)
    return TensorFile(file, path, "torch", _torch_tensors(state, path), inside=inside, others=others)


# zip:PyTorch 的 .pth,或 NumPy 的 .npz

_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, OSError)


class _Cautious:
    """``zipfile`` 用的文件:一次最多读 ``MAX_HEADER`` 字节,免得一个几 GB 的假目录被整个读进内存。"""

    def __init__(self, file):
        self.seek, self.tell, self.name, self._file = file.seek, file.tell, file.name, file

    def read(self, size=-1):
        data = self._file.read(min(size, MAX_HEADER + 1) if size >= 0 else MAX_HEADER + 1)
        if len(data) > MAX_HEADER:
            raise Malformed("zip 的目录太大")
        return data

    def seekable(self):
        return True


def _open_zip(file, path, size):
    try:
        archive = zipfile.ZipFile(_Cautious(file))
    except (*_BAD_ZIP, ValueError, struct.error):
        raise Malformed("zip 的目录不对,可能没有下载完") from None
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if pickles:
        return _open_torch(file, path, size, entries, pickles)
    if all(name.endswith(".npy") for name in entries):
        return _open_npz(file, path, size, archive)
    raise UserError(f"{path} 是普通的 zip 压缩包,不是权重文件:如果权重在里面,请先解压。")


def _open_torch(file, path, size, entries, pickles):
    root = pickles[0].partition("/")[0]
    if f"{root}/constants.pkl" in entries or any(name.startswith(f"{root}/code/") for name in entries):
        raise UserError(
            f"{path} 是 TorchScript(torch.jit.save)文件,里面有程序:请在 PyTorch 里用 "
            "torch.save(model.state_dict(), …) 另存。"
        )
    order = "little"
    if f"{root}/byteorder" in entries:
        region = _zip_region(file, size, entries, f"{root}/byteorder")
        file.seek(region.start)
        order = "big" if file.read(3) == b"big" else "little"
    region = _zip_region(file, size, entries, pickles[0])
    if region.length > MAX_PICKLE:
        raise Malformed("data.pkl 太大")
    region.fill(np.empty(0, np.uint8), 0)  # 校验
    storages = {}
    value, _ = _read(file, path, region.start, region.start + region.length, partial(_storage_of, storages))
    for key, storage in storages.items():
        storage.order = order
        if storage.dtype is not None:
            storage.source = _zip_region(file, size, entries, f"{root}/data/{key}")
            if storage.source.length != storage.count * _element(storage.dtype).itemsize:
                raise Malformed(f"storage {shown(key)} 的长度不对")
    state, inside, others = _find_state(value, path)
    return TensorFile(file, path, "torch", _torch_tensors(state, path), inside=inside, others=others)


def _zip_region(file, size, entries, name):
    """zip 里一个没有压缩的文件在哪里。"""
    if name not in entries:
        raise Malformed(f"zip 里没有 {shown(name)}")
    info = entries[name]
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise Malformed(f"zip 里的 {shown(name)} 是压缩的;PyTorch 从不压缩,这可能是压缩炸弹")
    file.seek(info.header_offset)
    header = file.read(30)  # 每个文件前的说明:30 字节,再加文件名和附加信息
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\3\4" or start + info.file_size > size:
        raise Malformed(f"zip 里的 {shown(name)} 不完整")
    return _Region(file, start, info.file_size, info.CRC)


# 说明的写法见 numpy.lib.format;自己匹配它,是为了不对文件里的文字求值
_NPY_HEADER = re.compile(
    r"\{'descr': '([<>|=]?)(\w+)', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}L?(?:, ?|(?=\))))*)\), \}\s*"
)
_MAX_RATIO = 100  # 压缩过的 npz 展开后最多是文件的多少倍;真的权重压缩不到一半


def _open_npz(file, path, size, archive):
    tensors = {}
    infos = archive.infolist()
    if sum(info.file_size for info in infos) > _MAX_RATIO * size:
        raise Malformed(f"展开后超过文件的 {_MAX_RATIO} 倍,可能是压缩炸弹")
    for info in infos:
        name = info.filename[: -len(".npy")]
        try:
            with archive.open(info) as member:
                skip, order, kind, fortran, shape = _npy_header(member)
        except (*_BAD_ZIP, ValueError):
            raise Malformed(f"{shown(name)} 的说明不对") from None
        if kind == "O":
            raise UserError(f"{path} 里的 {shown(name)} 是对象数组(dtype=object),里面是 pickle:不支持,请只存张量。")
        if kind == "V2":  # JAX 的 bfloat16
            kind = "bfloat16"
        elif _NUMPY_TYPE.fullmatch(kind):
            kind = np.dtype(kind).name
        else:
            raise UserError(f"{path} 里的 {shown(name)} 是 {shown(kind)} 类型:不支持,请只存数的数组。")
        count, rest = divmod(info.file_size - skip, _element(kind).itemsize)
        strides = _row_major(shape[::-1])[::-1] if fortran else _row_major(shape)
        _check_layout(name, shape, strides, 0, count)
        if rest or count != math.prod(shape):
            raise Malformed(f"{shown(name)} 的长度与形状 {shown(list(shape))} 不符")
        order = "big" if order == ">" else "little"
        tensors[name] = StoredTensor(_Member(archive, info, skip), kind, shape, order, strides=strides)
    return TensorFile(file, path, "numpy", _not_empty(tensors, path))


def _npy_header(file):
    """.npy 开头的说明 -> (长度, 字节序, 类型, 是否列优先, 形状)。"""
    magic = file.read(8)
    size = 2 if magic[6:7] == b"\1" else 4
    length = int.from_bytes(file.read(size), "little")
    match = None
    if magic[:6] == b"\x93NUMPY" and length <= 10_000:
        match = _NPY_HEADER.fullmatch(file.read(length).decode("latin-1"))
    if not match:
        raise EOFError
    order, kind, fortran, shape = match.groups()
    shape = tuple(int(number) for number in re.findall(r"\d+", shape))
    return 8 + size + length, order, kind, fortran == "True", shape


# 不是权重文件的,说清楚它是什么

_KNOWN = (
    (b"\x89PNG", "PNG 图片"),
    (b"\xff\xd8\xff", "JPEG 图片"),
    (b"GIF8", "GIF 图片"),
    (b"%PDF", "PDF 文档"),
    (b"\x89HDF", "HDF5(.h5)文件,请先转成 safetensors"),
    (b"\x1f\x8b", "gzip 压缩包,请先解压"),
    (b"BZh", "bzip2 压缩包,请先解压"),
    (b"\xfd7zXZ", "xz 压缩包,请先解压"),
    (b"7z\xbc\xaf", "7z 压缩包,请先解压"),
    (b"Rar!", "rar 压缩包,请先解压"),
    (b"\x28\xb5\x2f\xfd", "zstd 压缩包,请先解压"),
    (b"PK\5\6", "空的 zip 压缩包"),
    (b"\x93NUMPY", "单个数组的 .npy 文件,没有张量的名字,请用 np.savez 另存"),
    (b"\x7fELF", "程序"),
    (b"MZ", "程序"),
)
_ADVICE = "支持的是 .safetensors、PyTorch 的 .pth/.bin、Paddle 的 .pdparams 和 NumPy 的 .npz"


def _refuse(file, path, size, head):
    """说明这个文件是什么,为什么不能读。"""
    for magic, what in _KNOWN:
        if head.startswith(magic):
            raise UserError(f"{path} 是{what},不是权重文件:{_ADVICE}。")
    if head[257:262] == b"ustar":
        raise UserError(f"{path} 是 tar 归档,不是权重文件:请先解包。")
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        raise UserError(f"{path} 像是 ONNX 模型,里面有计算图:这里只读权重。{_ADVICE}。")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} 只是 Git LFS 的指针(几行文字),权重没有下载下来:请运行 git lfs pull,或在网页上下载。")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        raise UserError(f"{path} 是一个网页,不是权重文件:多半是下载链接变成了登录或出错页面,请重新下载。")
    if text.startswith(b"{") and b'"weight_map"' in head + file.read(MAX_HEADER):
        raise UserError(f"{path} 是分片权重的目录,权重在它列出的几个文件里:请先合并成一个 .safetensors 文件。")
    with contextlib.suppress(Malformed):  # 协议 0、1 的 pickle 没有固定的开头:解释得下去,才知道它要执行什么
        _read(file, path, 0, size)
    if _is_text(head):
        raise UserError(f"{path} 是文本文件,不是权重文件:{_ADVICE}。")
    raise UserError(f"{path} 不是认识的权重文件:{_ADVICE}。")


def _is_text(data):
    try:
        text = data[:1000].decode("utf-8", errors="ignore")
    except ValueError:
        return False
    return len(text) > len(data[:1000]) * 0.3 and all(c.isprintable() or c in "\r\n\t" for c in text)
