"""读权重文件里的张量:safetensors、PyTorch、Paddle、NumPy 四种,不需要装 PyTorch,也不执行文件里的任何东西。

``open_tensors`` 先读出每个张量的名字、类型和形状(不到一秒,多大的文件都一样),内容在 ``read()`` 时才读,一次一个张量。
文件的种类由内容决定,与后缀无关。``.pth``、``.bin`` 和 ``.pdparams`` 都是 pickle,见 ``pickles``:只认张量,别的一律拒绝。
"""

import contextlib
import json
import math
import re
import stat
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path

from ...errors import UserError
from ...system.files import describe_os_error, matches, parse_json
from .pickled_tensors import NUMPY_TYPES, open_pickle, open_torch_zip, read_inert
from .pickles import Malformed, shown
from .stored_tensors import Region, StoredTensor, TensorFile, check_layout, element_type, fill_from

__all__ = ["open_tensors"]

MAX_HEADER = 2 << 20  # 字节;safetensors 的文件头
MAX_DIRECTORY = 1 << 20  # 字节;zip 的目录
MAX_ENTRIES = 5000  # zip 里最多几个文件
MAX_PICKLE = 64 << 20  # 字节;PyTorch 的 data.pkl,里面没有张量的内容
MAX_SHARDS = 200


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
    shard = _SHARD.search(path.name)
    if shard is not None and int(shard[1]) > 1 and path.is_file():
        return _open_whole(path)
    return _open_file(path)


def _open_file(path):
    try:
        status = path.stat()
        # 打开一个管道会一直等下去,所以先看它是什么;文件由 TensorFile.close 关闭
        file = open(path, "rb") if stat.S_ISREG(status.st_mode) else None  # noqa: SIM115
    except OSError as error:
        raise UserError(describe_os_error(error, path)) from None
    except ValueError:
        raise UserError(f"路径 {shown(path)} 里有不合法的字符:请检查路径。") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} 是目录,这里需要权重文件:请给出目录里的 .safetensors、.bin、.pdparams 等文件。")
    if file is None:
        raise UserError(f"{path} 不是普通文件(是管道或设备):请给出一个权重文件。")
    try:
        return _open(file, path, status.st_size)
    except Malformed as error:
        file.close()
        raise UserError(f"{path} 已损坏或不完整({error}):请重新下载,或换一个备份。") from None
    except OSError as error:
        file.close()
        raise UserError(describe_os_error(error, path)) from None
    except BaseException:
        file.close()
        raise


def _open(file, path, size):
    head = file.read(4096)
    if not head:
        raise UserError(f"{path} 是空的:请重新下载。")
    if (int.from_bytes(head[:8], "little") < 1 << 32 and head[8:9] == b"{") or head[8:10] == b'{"':
        return _open_safetensors(file, path, size)
    if head[:4] == b"PK\3\4":
        return _open_zip(file, path, size)
    if head[:1] == b"\x80":
        return open_pickle(file, path, size)
    if head.lstrip().startswith(b"{") and not _SHARD.search(path.name):
        index = parse_json((head + file.read(MAX_HEADER)).decode("utf-8", errors="replace"))
        if matches(index, {"weight_map": {None: str}}) and index["weight_map"]:
            return _open_shards(file, path, index["weight_map"])
    _refuse(file, path, size, head)


# 分片的权重:几个文件,和一份说明每个张量在哪个文件里的 .index.json

_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


def _open_whole(path):
    """几片里的一片:旁边有 .index.json 时,打开它说的全部。"""
    for index in sorted(path.parent.glob("*.index.json")):
        if index.stat().st_size < MAX_HEADER and path.name.encode() in index.read_bytes():
            return _open_file(index)
    raise UserError(f"{path} 只是几片权重里的一片:请把其余几片和 .index.json 也下载到同一个目录,再给出这个目录。")


def _open_shards(file, path, places):
    """``places`` 是 {张量: 片};各片都在 path 旁边。"""
    names = sorted(set(places.values()))
    if any(name != Path(name).name or not _SHARD.search(name) for name in names) or len(names) > MAX_SHARDS:
        raise UserError(f"{path} 里的文件名不像几片权重({shown(names[0])}):请重新下载。")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{path} 是分片权重的目录,共 {len(names)} 片,缺少 {len(missing)} 片({shown(missing[0])}):请都下载来。"
        )
    with contextlib.ExitStack() as opened:
        opened.enter_context(file)
        shards = {name: opened.enter_context(_open_file(path.parent / name)) for name in names}
        lost = [name for name, shard in places.items() if name not in shards[shard]]
        if lost:
            raise UserError(f"{path} 里的 {shown(lost[0])} 不在它说的那一片里:几片不是同一份权重,请重新下载。")
        tensors = {name: shards[shard][name] for name, shard in places.items()}
        return TensorFile(opened.pop_all(), path, shards[names[0]].kind, tensors)


# safetensors:8 字节的文件头长度,JSON 文件头,张量的内容

_SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


def _open_safetensors(file, path, size):
    from safetensors import SafetensorError, safe_open  # 只有 safetensors 文件要用

    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise Malformed(f"文件头说自己有 {length} 字节,文件只有 {size} 字节")
    if length > MAX_HEADER:
        raise Malformed(f"文件头有 {length} 字节,太长了")
    try:
        with safe_open(str(path), framework="numpy"):
            pass  # 它检查文件头:每个张量的长度与形状相符,首尾相接,正好到文件末尾
        header = json.loads(file.read(length).decode("utf-8"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        raise Malformed("safetensors 的文件头不合法,或与文件的长度不符") from None
    metadata, tensors = header.pop("__metadata__", None), {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise UserError(
                f"{path} 里的 {shown(name)} 是 {shown(entry['dtype'])} 类型:不支持。量化过的(8 位、4 位)另有缩放系数,"
                "请用原来的库还原(dequantize)成 float32 再存;其余的请转成 float32。"
            )
        start, end = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), _SAFETENSORS_TYPES[entry["dtype"]]
        strides = check_layout(name, (end - start) // element_type(dtype).itemsize, shape)
        tensors[name] = StoredTensor(Region(file, 8 + length + start), dtype, shape, strides)
    return TensorFile(file, path, "safetensors", tensors, metadata)


# zip:PyTorch 的 .pth,或 NumPy 的 .npz

_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, OSError)


class _Cautious:
    """``zipfile`` 用的文件:一次最多读 ``MAX_DIRECTORY`` 字节,免得一个几 GB 的假目录被整个读进内存。"""

    def __init__(self, file):
        self.seek, self.tell, self.name, self._file = file.seek, file.tell, file.name, file

    def read(self, size=-1):
        data = self._file.read(min(size, MAX_DIRECTORY + 1) if size >= 0 else MAX_DIRECTORY + 1)
        if len(data) > MAX_DIRECTORY:
            raise Malformed("zip 的目录太大")
        return data

    def seekable(self):
        return True


def _open_zip(file, path, size):
    try:
        archive = zipfile.ZipFile(_Cautious(file))
    except (*_BAD_ZIP, ValueError, struct.error):
        raise Malformed("zip 的目录不对,可能没有下载完") from None
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise Malformed(f"zip 里有 {len(infos)} 个文件,太多了")
    pickles = [info for info in infos if re.fullmatch(r"[^/]+/data\.pkl", info.filename)]
    if pickles:
        return _open_torch(file, path, size, {info.filename: info for info in infos}, pickles[0])
    if all(info.filename.endswith(".npy") for info in infos):
        return _open_npz(file, path, size, archive)
    raise UserError(f"{path} 是普通的 zip 压缩包,不是权重文件:如果权重在里面,请先解压。")


def _open_torch(file, path, size, infos, pickled):
    root = pickled.filename.partition("/")[0]
    if f"{root}/constants.pkl" in infos or any(name.startswith(f"{root}/code/") for name in infos):
        raise UserError(
            f"{path} 是 TorchScript(torch.jit.save)文件,里面有程序:请在 PyTorch 里改用 "
            "torch.save(model.state_dict(), …) 存。"
        )
    if pickled.file_size > MAX_PICKLE:
        raise Malformed("data.pkl 太大")
    order = "little"
    if f"{root}/byteorder" in infos:
        file.seek(_find_stored(file, size, infos, f"{root}/byteorder")[0])
        order = "big" if file.read(3) == b"big" else "little"
    return open_torch_zip(file, path, root, order, partial(_find_stored, file, size, infos))


def _find_stored(file, size, infos, name):
    """zip 里一个没有压缩的文件:(内容的开始, 长度, CRC-32)。"""
    if name not in infos:
        raise Malformed(f"zip 里没有 {shown(name)}")
    info = infos[name]
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise Malformed(f"zip 里的 {shown(name)} 是压缩的;PyTorch 从不压缩,可能是压缩炸弹")
    if not 0 <= info.header_offset < size:
        raise Malformed(f"zip 里没有 {shown(name)}")
    file.seek(info.header_offset)
    header = file.read(30)  # 每个文件前的说明:30 字节,再加文件名和附加信息,它们的长度在末尾
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\3\4" or start + info.file_size > size:
        raise Malformed(f"zip 里的 {shown(name)} 不完整")
    return start, info.file_size, info.CRC


# 说明的写法见 numpy.lib.format;自己匹配它,是为了不对文件里的文字求值
_NPY_HEADER = re.compile(
    r"\{'descr': '([<>|=]?)(\w+)', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}L?(?:, ?|(?=\))))*)\), \}\s*"
)
_MAX_RATIO = 100  # 压缩过的 npz 展开后最多是文件的多少倍;真的权重压缩不到一半


class _Member:
    """npz 的一个数组,跳过开头 skip 字节的说明;由 ``zipfile`` 解压和校验。"""

    def __init__(self, archive, info, skip):
        self.archive, self.info, self.skip = archive, info, skip

    def fill(self, view):
        try:
            with self.archive.open(self.info) as file:
                file.read(self.skip)
                fill_from(file, view, self.archive.filename)
                if file.read(1):
                    raise EOFError
        except _BAD_ZIP:
            name = f"{self.archive.filename} 里的 {shown(self.info.filename)}"
            raise UserError(f"{name} 已损坏(校验和不对):请重新下载,或换一个备份。") from None


def _open_npz(file, path, size, archive):
    tensors = {}
    if sum(info.file_size for info in archive.infolist()) > _MAX_RATIO * size:
        raise Malformed(f"展开后超过文件的 {_MAX_RATIO} 倍,可能是压缩炸弹")
    for info in archive.infolist():
        name = info.filename[: -len(".npy")]
        try:
            with archive.open(info) as member:
                skip, order, kind, fortran, shape = _npy_header(member)
        except (*_BAD_ZIP, ValueError):
            raise Malformed(f"数组 {shown(name)} 的说明不对") from None
        dtype = "bfloat16" if kind == "V2" else NUMPY_TYPES.get(kind)  # JAX 把 bfloat16 存成 V2
        if dtype is None:
            kind = "object,里面是 pickle" if kind == "O" else shown(kind)
            raise UserError(f"{path} 里的 {shown(name)} 不是数的数组(类型 {kind}):不支持,请只存张量。")
        count, rest = divmod(info.file_size - skip, element_type(dtype).itemsize)
        strides = check_layout(name, count, shape, fortran=fortran)
        if rest or count != math.prod(shape):
            raise Malformed(f"数组 {shown(name)} 的长度与形状 {shown(list(shape))} 不符")
        order = "big" if order == ">" else "little"
        tensors[name] = StoredTensor(_Member(archive, info, skip), dtype, shape, strides, order)
    return TensorFile(file, path, "numpy", tensors)


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

_KNOWN = (  # 开头的字节,是什么,怎么办
    (b"\x89PNG", "PNG 图片", ""),
    (b"\xff\xd8\xff", "JPEG 图片", ""),
    (b"GIF8", "GIF 图片", ""),
    (b"%PDF", "PDF 文档", ""),
    (b"\x7fELF", "程序", ""),
    (b"MZ", "程序", ""),
    (b"\x89HDF", "HDF5(.h5)文件", "请先转成 safetensors。"),
    (b"\x93NUMPY", "单个数组的 .npy 文件", "它没有张量的名字,请用 np.savez 另存。"),
    (b"PK\5\6", "空的 zip 压缩包", ""),
    (b"\x1f\x8b", "gzip 压缩包", "请先解压。"),
    (b"BZh", "bzip2 压缩包", "请先解压。"),
    (b"\xfd7zXZ", "xz 压缩包", "请先解压。"),
    (b"7z\xbc\xaf", "7z 压缩包", "请先解压。"),
    (b"Rar!", "rar 压缩包", "请先解压。"),
    (b"\x28\xb5\x2f\xfd", "zstd 压缩包", "请先解压。"),
)
_ADVICE = "支持的是 .safetensors、PyTorch 的 .pth/.bin、Paddle 的 .pdparams 和 NumPy 的 .npz"


def _refuse(file, path, size, head):
    """说明这个文件是什么,为什么不能读。"""
    for magic, what, advice in _KNOWN:
        if head.startswith(magic):
            raise UserError(f"{path} 是 {what},不是权重文件:{advice or _ADVICE + '。'}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path} 是 tar 归档,不是权重文件:请先解包。")
    if (head[:1] == b"\x08" and head[2:3] == b"\x12") or path.suffix in (".onnx", ".pdmodel", ".pdiparams"):
        raise UserError(f"{path} 是导出的推理模型(ONNX 或 Paddle 静态图),这里只读训练用的权重:{_ADVICE}。")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} 只是 Git LFS 的指针(几行文字),权重没有下载下来:请运行 git lfs pull,或在网页上下载。")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        raise UserError(f"{path} 是一个网页,不是权重文件:多半是下载链接变成了登录或出错页面,请重新下载。")
    with contextlib.suppress(Malformed):  # 协议 0、1 的 pickle 没有固定的开头:解释得下去,才知道它要执行什么
        read_inert(file, path, 0, size)
    if _is_text(head):
        raise UserError(f"{path} 是文本文件,不是权重文件:{_ADVICE}。")
    raise UserError(f"{path} 不是认识的权重文件:{_ADVICE}。")


def _is_text(data):
    try:
        text = data[:1000].decode("utf-8", errors="ignore")
    except ValueError:
        return False
    return len(text) > len(data[:1000]) * 0.3 and all(c.isprintable() or c in "\r\n\t" for c in text)
