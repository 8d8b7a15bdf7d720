"""文件里的张量:名字、类型和形状已经知道,内容还在文件里,``read()`` 时才读。各种文件格式都归结到这里。"""

import codecs
import math
import zlib
from collections.abc import Mapping

import numpy as np

from ...errors import UserError
from .pickles import Malformed, shown

__all__ = ["Checksum", "Joined", "Latin1", "Region", "StoredTensor", "TensorFile", "Text"]
__all__ += ["check_layout", "element_type", "fill_from", "row_major"]

CHUNK = 1 << 20  # 字节;读和校验时一次处理这么多


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
        if not tensors:
            raise UserError(f"{path} 里没有张量:请换一个权重文件。")
        for name in tensors:
            if not name.isprintable() or not name or len(name) > 500:
                raise UserError(f"{path} 里有名字不合法的张量({shown(name)}):这不是正常的权重文件,请换一个。")
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

    def __init__(self, source, dtype, shape, strides, order="little", checksum=None):
        """source 的 ``fill(view)`` 把内容填满 uint8 数组 view;strides 以元素为单位,已经由 ``check_layout`` 检查过。"""
        self.shape, self.dtype = shape, dtype
        self._source, self._strides, self._checksum = source, strides, checksum
        self._element = element_type(dtype).newbyteorder(order)

    def read(self):
        """读出内容;浮点数(16、32、64 位)一律成为 float32,其余类型不变。

        Returns:
            np.ndarray: 形状为 ``shape``,行优先,可写。

        Raises:
            UserError: 文件不完整,或校验和对不上。
        """
        data = np.empty(_span(self.shape, self._strides), self._element)
        self.fill(data.view(np.uint8))
        steps = [stride * self._element.itemsize for stride in self._strides]
        values = np.lib.stride_tricks.as_strided(data, self.shape, steps)  # [span] -> shape
        if self.dtype == "bfloat16":  # float32 的高 16 位
            return (values.astype(np.uint32, order="C") << 16).view(np.float32)
        if self.dtype == "bool":
            return values != 0
        wanted = np.dtype(np.float32) if values.dtype.kind == "f" else values.dtype.newbyteorder("=")
        with np.errstate(over="ignore", invalid="ignore"):  # float64 里超出 float32 范围的数成为无穷大
            return values.astype(wanted, order="C", copy=False)

    def fill(self, view):
        """把文件里的字节原样填进 view(uint8 数组),先校验。"""
        if self._checksum is not None:
            self._checksum.verify()
        self._source.fill(view)


def element_type(dtype):
    """类型名 -> 文件里一个元素的 NumPy 类型。"""
    return np.dtype({"bfloat16": "uint16", "bool": "uint8"}.get(dtype, dtype))


def row_major(shape):
    """行优先(C 顺序)的步长(元素)。"""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides[: len(shape)]))


def _span(shape, strides):
    """从第一个元素到最后一个元素,跨过几个元素。"""
    return 0 if 0 in shape else 1 + sum((length - 1) * stride for length, stride in zip(shape, strides))


def check_layout(name, available, shape, strides=None, offset=0, fortran=False):
    """检查形状、步长和偏移都是非负整数,而且都在文件存着的 available 个元素之内。

    Args:
        name (str): 张量的名字,写进提示。
        available (int): 存着几个元素。
        shape (Any): 文件里说的形状。
        strides (Any): 文件里说的步长(元素);``None`` 是行优先(fortran 时列优先)的。
        offset (Any): 从第几个元素开始。
        fortran (bool): 列优先。

    Returns:
        tuple: 步长(元素)。

    Raises:
        Malformed: 不合法。
    """
    if not _are_sizes(shape):
        raise Malformed(f"张量 {shown(name)} 的形状不合法")
    if strides is None:
        strides = row_major(shape[::-1])[::-1] if fortran else row_major(shape)
    elif not _are_sizes(strides) or not _are_sizes((offset,)) or len(strides) != len(shape):
        raise Malformed(f"张量 {shown(name)} 的步长不合法")
    if math.prod(max(length, 1) for length in shape) > max(available, CHUNK):
        raise Malformed(f"张量 {shown(name)} 的形状 {list(shape)} 与文件里的 {available} 个元素不符")
    if math.prod(shape) > available or offset + _span(shape, strides) > available:
        raise Malformed(f"张量 {shown(name)} 超出了文件里的 {available} 个元素")
    return strides


def _are_sizes(numbers):
    return (
        isinstance(numbers, tuple)
        and len(numbers) <= 16
        and all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
    )


# 内容在文件里的几种存法


class Region:
    """文件里从 start 开始的连续字节。"""

    def __init__(self, file, start):
        self.file, self.start = file, start

    def fill(self, view):
        self.file.seek(self.start)
        fill_from(self.file, view, self.file.name)


class Checksum:
    """文件里一段(可能由几个张量共用)的 CRC-32,只校验一次;0 是写的时候没有算(PyTorch 可以关掉它)。"""

    def __init__(self, file, start, length, crc):
        self.file, self.start, self.length, self.crc, self.verified = file, start, length, crc, False

    def verify(self):
        if self.crc and not self.verified and self._compute() != self.crc:
            raise UserError(f"{self.file.name} 已损坏(校验和不对):请重新下载,或换一个备份。")
        self.verified = True

    def _compute(self):
        self.file.seek(self.start)
        crc, left = 0, self.length
        while left > 0:
            chunk = self.file.read(min(CHUNK, left))
            crc, left = zlib.crc32(chunk, crc), left - (len(chunk) or left)
        return crc


class Latin1:
    """协议 2 的 pickle 把一个字节存成一个字符(latin-1);这是其中一段文字,UTF-8 编码。"""

    def __init__(self, file, start, length):
        self.file, self.start, self.length = file, start, length

    def fill(self, view):
        decoder, position, left = codecs.getincrementaldecoder("utf-8")(), 0, self.length
        self.file.seek(self.start)
        try:
            while left:
                chunk = self.file.read(min(CHUNK, left))
                left -= len(chunk) or left
                part = np.frombuffer(decoder.decode(chunk, not left).encode("latin-1"), np.uint8)
                view[position : position + len(part)] = part
                position += len(part)
        except ValueError:  # 不是 UTF-8,有 latin-1 以外的字符,或比 view 长
            position = -1
        if position != len(view):
            raise UserError(f"{self.file.name} 已损坏(数组的长度与形状不符):请重新下载,或换一个备份。")


class Text:
    """已经读出来的一小段 latin-1 文字。"""

    def __init__(self, text):
        if not all(character <= "\xff" for character in text):
            raise Malformed("数组里有 latin-1 以外的字符")
        self.data = np.frombuffer(text.encode("latin-1"), np.uint8)

    def fill(self, view):
        view[:] = self.data[: len(view)]


class Joined:
    """首尾相接的几个一维数组,写成 (StoredTensor, 字节数) 的列表。"""

    def __init__(self, parts):
        self.parts = parts

    def fill(self, view):
        start = 0
        for tensor, length in self.parts:
            tensor.fill(view[start : start + length])
            start += length


def fill_from(file, view, name):
    """从文件的当前位置读,填满 view。"""
    done = 0
    while done < len(view):
        count = file.readinto(memoryview(view)[done : done + CHUNK])
        if not count:
            raise UserError(f"{name} 不完整:请重新下载。")
        done += count
