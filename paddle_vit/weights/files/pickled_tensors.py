"""pickle 里的张量:Paddle 的 .pdparams,PyTorch 的 .pth、.bin(zip 的和 1.6 之前的)。

pickle 由 ``pickles`` 解释;这里给出允许调用的全部名字(``_CALLS``)和它们的含义,再把结果变成 ``StoredTensor``。
"""

import math
import re
from functools import partial

from ...errors import UserError
from .pickles import Inert, Malformed, Name, Payload, read_pickle, shown
from .stored_tensors import Checksum, Joined, Latin1, Region, StoredTensor, TensorFile, Text, check_layout, element_type
from .suspicion import is_ordinary, real_name

__all__ = ["NUMPY_TYPES", "STATE_KEYS", "open_pickle", "open_torch_zip", "read_inert"]

# 训练检查点里权重所在的键,靠前的优先:平常的权重先于滑动平均(EMA)的,自监督的教师先于学生
STATE_KEYS = "model state_dict model_state_dict model_state net network module params weights".split()
STATE_KEYS += "teacher student model_ema state_dict_ema ema_state_dict ema".split()
_NOT_STATE = re.compile("optim|^opt|sched|scaler|^lr|loss|rng|amp", re.IGNORECASE)


class _Type:
    """NumPy 的元素类型;dtype 是 ``None`` 的不支持。"""

    def __init__(self, dtype):
        self.dtype, self.order = dtype, "little"

    def set_state(self, state):
        """第二项是字节序。"""
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = "big"


class _Array:
    """``numpy.ndarray``:先建立空的,再由状态给出形状、类型、是否列优先和内容。"""

    def __init__(self, state=None):
        self.state = state

    def set_state(self, state):
        if not isinstance(state, tuple) or len(state) != 5:
            raise Malformed("numpy 数组的状态不对")
        self.state = state[1:]


class _Storage:
    """PyTorch 的一段存储(storage);几个张量可以共用一段。start 是它在文件里的位置,pickle 读完以后才知道。"""

    def __init__(self, dtype, count):
        self.dtype, self.count = dtype, count
        self.start, self.order, self.checksum = None, "little", None

    @property
    def length(self):
        """字节数。"""
        return self.count * element_type(self.dtype).itemsize


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
NUMPY_TYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "b1": "bool", "i8": "int64", "i4": "int32", "i2": "int16",
    "i1": "int8", "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8",
}  # fmt: skip


def _tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, shape, strides)


def _subclass(function, _, args, *__):
    """张量的子类,当作张量:function(*args)。"""
    if not isinstance(function, Name) or not isinstance(args, tuple) or _CALLS.get(function.text) is _subclass:
        raise Malformed("张量的子类不对")
    return _call(function.text, args)


# 允许调用的全部名字,和它们在这里的含义
_CALLS = {
    "collections.OrderedDict": lambda: {},
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": lambda: {},
    "builtins.bytes": lambda *_: "",  # 协议 2 里空的字节串
    "builtins.tuple": lambda items=(): items,  # Paddle 的张量:(名字, 数组)
    "_codecs.encode": lambda text, *_: text,  # 字节串;协议 2 写成 latin-1 文字
    "numpy.dtype": lambda text, *_: _Type(NUMPY_TYPES.get(text) if isinstance(text, str) else None),
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
    "builtins.complex builtins.slice builtins.range builtins.bytearray torch.Size torch.device "
    "pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath "
    "pathlib._local.PosixPath pathlib._local.WindowsPath datetime.datetime datetime.date datetime.timedelta "
    "easydict.EasyDict addict.addict.Dict yacs.config.CfgNode fvcore.common.config.CfgNode "
    "lightning_fabric.utilities.data.AttributeDict pytorch_lightning.utilities.parsing.AttributeDict "
    "mmcv.utils.config.ConfigDict mmengine.config.config.ConfigDict ml_collections.config_dict.config_dict.ConfigDict "
    "omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata "
    "omegaconf.base.Metadata omegaconf.nodes.AnyNode".split()
)
# Python 2 和 NumPy 1 里的旧名字 -> 现在的;NumPy 2 的 numpy._core 与 numpy.core 相同
_RENAMED = (("__builtin__.", "builtins."), ("copy_reg.", "copyreg."), ("numpy._core.", "numpy.core."))


class _Refused(Exception):
    """pickle 要调用一个不认识的名字。"""


def _call(name, args):
    """“调用 name”的结果;不认识的名字抛出 ``_Refused``。"""
    for old, new in _RENAMED:
        name = new + name[len(old) :] if name.startswith(old) else name
    if name == "copyreg._reconstructor" and args and isinstance(args[0], Name):  # 协议 0、1 建立对象的写法
        name = args[0].text
    if name in _INERT:
        return Inert()
    if name not in _CALLS:
        raise _Refused(real_name(name, args))
    try:
        return _CALLS[name](*args[:9])
    except TypeError:
        raise Malformed(f"{name} 的参数不对") from None


def read_inert(file, path, start, end, persistent=None):
    """``read_pickle``,只认上面的名字;返回 (值, 结束的位置)。

    Raises:
        Malformed: 不是完整的 pickle。
        UserError: 要调用别的名字。
    """
    try:
        return read_pickle(file, start, end, _call, persistent)
    except _Refused as refused:
        name = shown(refused)
    if name.startswith(("torch._utils._rebuild_", "torch.serialization._get_layout")):
        raise UserError(f"{path} 里有稀疏、float8 等特殊的张量({name}):不支持,请先转成普通的 float32 张量再存。")
    if name == "torch.storage._load_from_bytes":
        raise UserError(f"{path} 是用 pickle.dump 存的 PyTorch 张量,里面又是 pickle:请改用 torch.save 另存。")
    if name.startswith(("torch.nn.", "timm.", "transformers.", "torchvision.", "paddle.nn.")):
        raise UserError(
            f"{path} 里有 {name} 对象(多半存的是整个模型),读它要执行它的代码:请在原来的环境里改存 model.state_dict()。"
        )
    if is_ordinary(name):
        raise UserError(
            f"{path} 里除了权重还有 {name}(自己写的类、枚举、包装过的函数等):这里只认张量,什么也没有执行。"
            "请在原来的环境里只存权重:torch.save(model.state_dict(), 'weights.pth')(Paddle 用 paddle.save)。"
        )
    raise UserError(f"{path} 含有要执行的 {name}:这不是单纯的权重,可能是恶意文件,请勿使用。")


# 在检查点里找权重


def _is_tensor(value):
    if isinstance(value, tuple) and len(value) == 2:  # Paddle 的张量:(名字, 数组)
        value = value[1]
    return isinstance(value, (_Array, _Tensor))


def _leads_to_tensors(value, seen):
    """字典里,或它里面的字典里,有没有张量;seen 是已经看过的,同一个字典可能被引用很多次。"""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            if any(map(_is_tensor, value.values())):
                return True
            left += value.values()
    return False


def _find_state(value, path):
    """在检查点里找到权重所在的字典,返回 (字典, 它的键, 其余几组权重的键)。

    先按 ``STATE_KEYS`` 的顺序找;都没有时,本身就有张量的是它;再没有时,里面唯一的一组张量(优化器等的不算)是它。
    """
    inside, others = [], []
    while isinstance(value, dict) and len(inside) < 4:
        found = [key for key in STATE_KEYS if _leads_to_tensors(value.get(key), set())]
        if not found and any(map(_is_tensor, value.values())):
            return value, shown(".".join(inside)), tuple(others)
        if not found:
            seen = set()
            found = [key for key in value if _leads_to_tensors(value[key], seen) and not _NOT_STATE.search(key)]
            if len(found) > 1:
                names = "、".join(shown(name) for name in found[:5])
                raise UserError(f"{path} 里有几组张量({names}),不知道哪一组是权重:请只把其中一组存成文件。")
        if not found:
            break
        others += [".".join([*inside, key]) for key in found[1:]]
        inside.append(found[0])
        value = value[found[0]]
    raise UserError(f"{path} 里没有由张量组成的字典(state_dict):请换一个权重文件,或改存 model.state_dict()。")


# Paddle:{名字: numpy 数组}

_SPLIT = "UnpackBigParamInfor@@"  # 协议 2、3 把很大的数组切成几段:{名字: {"OriginShape": …, "slices": […]}}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # PyTorch 旧格式的第一个 pickle 是这个数


def open_pickle(file, path, size):
    """Paddle 的 .pdparams,或 PyTorch 1.6 之前的 .pth。

    Args:
        file (BinaryIO): 打开的文件。
        path (Path): 它的路径,写进提示。
        size (int): 它的长度(字节)。

    Returns:
        TensorFile

    Raises:
        Malformed, UserError: 见 ``files.open_tensors``。
    """
    value, end = read_inert(file, path, 0, size)
    if type(value) is int and value == _LEGACY_MAGIC:
        return _open_legacy_torch(file, path, end, size)
    checksum = None
    if size - end == 4:  # 本项目从前的 best.pdparams 在末尾附了 CRC-32
        file.seek(end)
        checksum = Checksum(file, 0, end, int.from_bytes(file.read(4), "little"))
    elif size != end:
        raise Malformed(f"末尾多出 {size - end} 字节")
    state, inside, others = _find_state(value, path)
    tensors = {
        name: _array_tensor(file, path, name, value, checksum) for name, value in state.items() if _is_tensor(value)
    }
    if isinstance(state.get(_SPLIT), dict):
        _join_slices(tensors, state[_SPLIT])
    return TensorFile(file, path, "paddle", tensors, inside=inside, others=others)


def _array_tensor(file, path, name, value, checksum):
    array = value[1] if isinstance(value, tuple) else value
    if not isinstance(array, _Array) or array.state is None:
        raise Malformed(f"张量 {shown(name)} 没有内容")
    shape, kind, fortran, data = array.state
    if not isinstance(kind, _Type) or kind.dtype is None:
        raise UserError(f"{path} 里的 {shown(name)} 不是数的数组(如 dtype=object):不支持,请只存张量。")
    dtype = "bfloat16" if kind.dtype == "uint16" else kind.dtype  # Paddle 没有 uint16 的张量,bfloat16 存成它
    if isinstance(data, str):
        source, length = Text(data), len(data)
    elif isinstance(data, Payload):
        source = Latin1(file, data.start, data.length) if data.is_text else Region(file, data.start)
        length = data.length
    else:
        raise Malformed(f"张量 {shown(name)} 没有内容")
    strides = check_layout(name, length // element_type(dtype).itemsize, shape, fortran=bool(fortran))
    return StoredTensor(source, dtype, shape, strides, kind.order, checksum)


def _join_slices(tensors, split):
    """把切成几段的数组接起来;tensors 里的各段换成整个的。"""
    for name, info in split.items():
        slices = info.get("slices") if isinstance(info, dict) else None
        if not isinstance(slices, list) or not slices or not all(type(s) is str and s in tensors for s in slices):
            raise Malformed(f"张量 {shown(name)} 缺少分段")
        parts = [tensors.pop(part) for part in slices]
        counts, item = [math.prod(part.shape) for part in parts], element_type(parts[0].dtype).itemsize
        strides = check_layout(name, sum(counts), info.get("OriginShape"))
        source = Joined([(part, count * item) for part, count in zip(parts, counts)])
        tensors[name] = StoredTensor(source, parts[0].dtype, info["OriginShape"], strides)


# PyTorch:pickle 里是张量的形状,内容(storage)在 pickle 之外


def _storage_of(storages, identity):
    """pickle 里的 ("storage", 类型, 编号, 设备, 元素个数, …) -> ``_Storage``,记在 storages[编号] 里。"""
    kind, name, key, _, count, view = [*identity[:6], *[None] * 6][:6] if isinstance(identity, tuple) else [None] * 6
    if kind == "module" and isinstance(name, Name):  # 旧格式存的整个模型:("module", 类, 源文件, 源码)
        raise _Refused(name.text)
    if kind != "storage" or not isinstance(name, Name) or not isinstance(key, str) or view is not None:
        raise Malformed("storage 不对")
    if type(count) is not int or not 0 <= count < 1 << 48:
        raise Malformed("storage 的长度不对")
    match = re.fullmatch(r"torch\.(?:cuda\.)?(\w+)Storage", name.text)
    return storages.setdefault(key, _Storage(_STORAGE_TYPES.get(match.group(1)) if match else None, count))


def _torch_file(file, path, value):
    """检查点 -> ``TensorFile``;各段 storage 的位置已经知道。"""
    state, inside, others = _find_state(value, path)
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(tensor, _Tensor):
            continue
        storage = tensor.storage
        if storage.dtype is None:
            raise UserError(f"{path} 里的 {shown(name)} 是不支持的类型(如复数、量化):请先转成 float32。")
        strides = check_layout(name, storage.count, tensor.shape, tensor.strides, tensor.offset)
        start = storage.start + tensor.offset * element_type(storage.dtype).itemsize
        source = Region(file, start)
        tensors[name] = StoredTensor(source, storage.dtype, tensor.shape, strides, storage.order, storage.checksum)
    return TensorFile(file, path, "torch", tensors, inside=inside, others=others)


def _open_legacy_torch(file, path, start, size):
    """PyTorch 1.6 之前的格式:魔数、版本、系统信息、对象、storage 的编号各是一个 pickle,后面依次是各段内容。"""
    version, start = read_inert(file, path, start, size)
    system, start = read_inert(file, path, start, size)
    if version != 1001 or not isinstance(system, dict):
        raise Malformed("PyTorch 旧格式的开头不对")
    order = "big" if system.get("little_endian") is False else "little"
    storages = {}
    value, start = read_inert(file, path, start, size, partial(_storage_of, storages))
    keys, start = read_inert(file, path, start, size)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise Malformed("storage 的编号不对")
    for key in keys:
        storage = storages[key]
        if storage.dtype is None:
            raise UserError(f"{path} 里有不支持的类型(如复数、量化)的张量:请先转成 float32。")
        file.seek(start)
        if int.from_bytes(file.read(8), order) != storage.count:
            raise Malformed("storage 的长度不对")
        storage.start, storage.order = start + 8, order
        start += 8 + storage.length
        if start > size:
            raise Malformed("文件提前结束")
    if start != size:
        raise Malformed(f"末尾多出 {size - start} 字节")
    return _torch_file(file, path, value)


def open_torch_zip(file, path, root, order, find):
    """PyTorch 的 zip:``root/data.pkl`` 是 pickle,``root/data/编号`` 是各段 storage。

    Args:
        file (BinaryIO): 打开的文件。
        path (Path): 它的路径,写进提示。
        root (str): zip 里的目录名。
        order (str): 字节序,``little`` 或 ``big``。
        find (Callable): ``find(名字)`` 给出 zip 里一个文件的 (开始, 长度, CRC-32)。

    Returns:
        TensorFile

    Raises:
        Malformed, UserError: 见 ``files.open_tensors``。
    """
    start, length, crc = find(f"{root}/data.pkl")
    Checksum(file, start, length, crc).verify()
    storages = {}
    value, _ = read_inert(file, path, start, start + length, partial(_storage_of, storages))
    for key, storage in storages.items():
        if storage.dtype is not None:
            storage.start, length, crc = find(f"{root}/data/{key}")
            storage.order, storage.checksum = order, Checksum(file, storage.start, length, crc)
            if length != storage.length:
                raise Malformed(f"storage {shown(key)} 的长度不对")
    return _torch_file(file, path, value)
