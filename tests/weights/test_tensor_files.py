import io
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import save as to_safetensors
from support.running import ROOT

from paddle_vit import UserError
from paddle_vit.weights.files import open_tensors

SECONDS = 5  # CPU 时间;平常远不到一秒,机器却可能慢几倍
FILES = Path(__file__).parents[1] / "reference" / "files"
RANDOM = np.random.default_rng(0)
ARRAYS = {
    "weight": RANDOM.standard_normal((30, 20)).astype("float32"),
    "bias": RANDOM.standard_normal(3).astype("float32"),
    "half": RANDOM.standard_normal((2, 3)).astype("float16"),
    "double": RANDOM.standard_normal((2, 3)),
    "count": np.arange(-2, 2),
    "flag": np.array([True, False]),
    "scalar": np.array(2.5, "float32"),
    "empty": np.zeros((0, 4), "float32"),
}


def read_all(path):
    with open_tensors(path) as file:
        values = {name: tensor.read() for name, tensor in file.items()}
        for name, value in values.items():
            assert value.shape == file[name].shape and value.flags.c_contiguous and value.flags.writeable
        return values


def check(path, expected):
    """The same names in the same order, and the same values (floating point as float32)."""
    values = read_all(path)
    assert list(values) == list(expected)
    for name, value in expected.items():
        wanted = np.asarray(value)
        wanted = wanted.astype("float32") if wanted.dtype.kind == "f" else wanted
        assert values[name].dtype == wanted.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(values[name], wanted, name)


def refused(path, *words):
    """A UserError of one line that says these words, within a few seconds."""
    start = time.process_time()
    with pytest.raises(UserError) as error:
        read_all(path)
    assert time.process_time() - start < SECONDS
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def write(path, data):
    path.write_bytes(data)
    return path


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# Files of the real writers


@pytest.mark.parametrize("name", ["torch_zip", "torch_legacy", "torch_zip_protocol4", "torch_zip_without_crc"])
def test_pytorch_state_dict(name):
    with np.load(FILES / "torch_expected.npz") as expected:
        check(FILES / f"{name}.pth", dict(expected))
    with open_tensors(FILES / f"{name}.pth") as file:
        assert (file.kind, file.inside, file.others) == ("torch", "", ())
        dtypes = {tensor.dtype for tensor in file.values()}
    assert dtypes >= {"bfloat16", "float16", "float32", "float64", "int64", "int8", "uint8", "bool"}


@pytest.mark.parametrize("name", ["torch_checkpoint_zip", "torch_checkpoint_legacy"])
def test_pytorch_training_checkpoint(name):
    with np.load(FILES / "torch_expected.npz") as expected:
        check(FILES / f"{name}.pth", dict(expected))
    with open_tensors(FILES / f"{name}.pth") as file:
        assert (file.inside, file.others) == ("model", ("model_ema",))


@pytest.mark.parametrize(
    "name, word",
    [
        ("torch_module_zip.pth", "torch.nn.modules.container.Sequential"),
        ("torch_module_legacy.pth", "torch.nn.modules.container.Sequential"),
        ("torch_script.pt", "TorchScript"),
        ("torch_pickle.pth", "torch.save"),
        ("torch_expanded.pth", "张量 x"),
        ("torch_float8.pth", "float8"),
        ("torch_sparse.pth", "稀疏"),
        ("torch_complex.pth", "复数"),
    ],
)
def test_pytorch_files_that_are_not_plain_weights(name, word):
    refused(FILES / name, name, word)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_state_dict(tmp_path, protocol):
    tensors = {name: paddle.to_tensor(value) for name, value in ARRAYS.items()}
    tensors["bfloat16"] = paddle.to_tensor([1.5, -2.0, 3e38]).astype("bfloat16")
    expected = {name: value.astype("float32").numpy() for name, value in tensors.items() if value.is_floating_point()}
    expected = {name: expected.get(name, tensors[name].numpy()) for name in tensors}
    path = tmp_path / "a.pdparams"
    paddle.save(tensors, str(path), protocol=protocol)
    check(path, expected)
    with open_tensors(path) as file:
        assert file.kind == "paddle" and file["bfloat16"].dtype == "bfloat16" and file["half"].dtype == "float16"
    paddle.save({"opt": {"moment": tensors["weight"]}, "epoch": 3, "model": tensors}, str(path), protocol=protocol)
    check(path, expected)
    with open_tensors(path) as file:
        assert file.inside == "model"


def test_paddle_state_dict_of_a_layer(tmp_path):
    layer = paddle.nn.Linear(3, 5)
    paddle.save(layer.state_dict(), str(tmp_path / "a.pdparams"))
    check(tmp_path / "a.pdparams", {name: value.numpy() for name, value in layer.state_dict().items()})


def test_paddle_arrays_split_in_slices(tmp_path):
    state = {"a": ARRAYS["bias"], "w@@.0": np.arange(4.0), "w@@.1": np.arange(4.0, 6.0)}
    state["UnpackBigParamInfor@@"] = {"w": {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}}
    path = write(tmp_path / "a.pdparams", pickle.dumps(state, protocol=2))
    expected = paddle.load(str(path), return_numpy=True)
    assert list(expected) == ["a", "w"] and expected["w"].shape == (2, 3)
    check(path, expected)
    state["UnpackBigParamInfor@@"]["w"]["OriginShape"] = (2, 4)
    refused(write(path, pickle.dumps(state, protocol=2)), "w")
    state["UnpackBigParamInfor@@"]["w"]["slices"].append("w@@.2")
    refused(write(path, pickle.dumps(state, protocol=2)), "w")


def test_the_checksum_after_a_paddle_pickle(tmp_path):
    data = pickle.dumps(ARRAYS, protocol=4)
    path = write(tmp_path / "best.pdparams", data + struct.pack("<I", zlib.crc32(data)))
    check(path, ARRAYS)
    refused(write(path, data + struct.pack("<I", zlib.crc32(data) ^ 1)), "校验和")
    refused(write(path, data + b"\0"), "1 字节")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("change", [np.asfortranarray, lambda a: a.astype(a.dtype.newbyteorder(">")), lambda a: a.T])
def test_pickled_arrays_of_any_layout(tmp_path, protocol, change):
    arrays = {name: change(value) for name, value in ARRAYS.items()}
    check(write(tmp_path / "a", pickle.dumps(arrays, protocol=protocol)), arrays)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("change", [np.asarray, np.asfortranarray, lambda a: a.astype(a.dtype.newbyteorder(">"))])
def test_numpy_archive(tmp_path, save, change):
    arrays = {f"Transformer/encoderblock_0/{name}": change(value) for name, value in ARRAYS.items()}
    save(tmp_path / "a.npz", **arrays)
    check(tmp_path / "a.npz", arrays)


def test_numpy_archive_with_bfloat16_of_jax(tmp_path):
    data = npz(x=np.frombuffer(struct.pack("<2H", 0x3FC0, 0xC000), "V2"))
    path = write(tmp_path / "a.npz", data)
    check(path, {"x": np.array([1.5, -2.0], "float32")})
    with open_tensors(path) as file:
        assert (file.kind, file["x"].dtype) == ("numpy", "bfloat16")


def safetensors_file(header, data=b""):
    text = header if isinstance(header, bytes) else __import__("json").dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors(tmp_path):
    path = write(tmp_path / "a.safetensors", to_safetensors(ARRAYS, {"format": "pt"}))
    with open_tensors(path) as file:
        assert (file.kind, file.metadata) == ("safetensors", {"format": "pt"})
    check(path, {name: ARRAYS[name] for name in open_tensors(path)})
    header = {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    check(write(path, safetensors_file(header, struct.pack("<2H", 0x3FC0, 0xC000))), {"x": np.float32([1.5, -2])})
    header = {"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    refused(write(path, safetensors_file(header, b"abcd")), "F8_E4M3")


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pdparams", ".npz", ".safetensors", ""])
def test_the_kind_comes_from_the_content_not_the_suffix(tmp_path, suffix):
    data = {
        "safetensors": to_safetensors(ARRAYS),
        "torch": (FILES / "torch_legacy.pth").read_bytes(),
        "paddle": pickle.dumps(ARRAYS),
        "numpy": npz(**ARRAYS),
    }
    for kind, content in data.items():
        with open_tensors(write(tmp_path / f"weights{suffix}", content)) as file:
            assert file.kind == kind


# Which dictionary of a checkpoint


A, B = {"w": np.ones(1, "float32")}, {"w": np.zeros(1, "float32")}


@pytest.mark.parametrize(
    "checkpoint, inside, others",
    [
        (A, "", ()),
        ({"model": A}, "model", ()),
        ({"model_ema": B, "model": A, "epoch": 3}, "model", ("model_ema",)),
        ({"state_dict_ema": B, "state_dict": A, "optimizer": {"x": B}}, "state_dict", ("state_dict_ema",)),
        ({"state_dict": {"model": A, "lr": 1}}, "state_dict.model", ()),
        ({"student": B, "teacher": A}, "teacher", ("student",)),
        ({"mine": A, "optimizer": {"x": B}, "epoch": 3}, "mine", ()),
        ({"model": A, "loss": np.ones(2)}, "model", ()),
        ({"model": "vit_base", "w": A["w"], "args": {"lr": 1}}, "", ()),
    ],
)
def test_where_the_weights_are_in_a_checkpoint(tmp_path, checkpoint, inside, others):
    path = write(tmp_path / "a", pickle.dumps(checkpoint))
    check(path, A)
    with open_tensors(path) as file:
        assert (file.inside, file.others) == (inside, others)


def test_a_checkpoint_with_several_unnamed_groups(tmp_path):
    refused(write(tmp_path / "a", pickle.dumps({"generator": A, "discriminator": B})), "generator", "discriminator")


# Files that are not weights


def lying_zip(**changes):
    """A PyTorch file whose one tensor is described by these numbers."""
    return zipped({"a/data.pkl": torch_pickle(**changes), "a/data/0": b"\0" * 24})


def number(value):
    return b"I%d\n" % value


def torch_pickle(shape=(2, 3), strides=(3, 1), offset=0, count=6, kind="Float", key="0", extra=b""):
    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"((U\x07storagectorch\n%sStorage\nU\x01%sU\x03cpu" % (kind.encode(), key.encode())
    return (
        b"\x80\x02}U\x01x(ctorch._utils\n_rebuild_tensor_v2\n" + storage[1:] + number(count) + b"tQ" + number(offset)
        + numbers(shape) + numbers(strides) + b"\x89" + (extra or b"}") + b"t"
    ).replace(b"(ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v2\n(", 1) + b"Rs."  # fmt: skip


def test_the_handmade_pytorch_file_is_good(tmp_path):
    check(write(tmp_path / "a", lying_zip()), {"x": np.zeros((2, 3), "float32")})
    values = np.arange(6, dtype=">f4").reshape(2, 3)
    members = {"a/data.pkl": torch_pickle(), "a/byteorder": b"big", "a/data/0": values.tobytes()}
    check(write(tmp_path / "a", zipped(members)), {"x": values})


@pytest.mark.parametrize(
    "changes",
    [
        dict(shape=(10**6, 10**6)),
        dict(shape=(2**40, 0, 2**40), strides=(1, 1, 1)),
        dict(shape=(2, -3)),
        dict(strides=(-3, 1)),
        dict(strides=(3, 2)),
        dict(strides=(3,)),
        dict(strides=(2**62, 2**62)),
        dict(shape=(100, 100), strides=(0, 0)),
        dict(offset=-1),
        dict(offset=1),
        dict(offset=10**30),
        dict(count=5),
        dict(count=7),
        dict(count=-6),
        dict(count=10**30),
        dict(kind="Double"),
        dict(key="1"),
        dict(key="."),
        dict(shape=(1,) * 40, strides=(1,) * 40),
    ],
)
def test_tensors_outside_their_storage(tmp_path, changes):
    refused(write(tmp_path / "a.pth", lying_zip(**changes)), "a.pth")


NOT_WEIGHTS = {
    "empty": (b"", "空的"),
    "one byte": (b"\x80", "损坏"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 346284714\n", "Git LFS"),
    "web page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "网页"),
    "text": ("权重\n".encode() * 10, "文本"),
    "english text": (b"import os\nprint(1)\n" * 10, "文本"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}', "分片"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
    "gzip": (b"\x1f\x8b" + bytes(50), "gzip"),
    "tar": (b"a.txt".ljust(257, b"\0") + b"ustar\x0000".ljust(600, b"\0"), "tar"),
    "npy": (b"\x93NUMPY\1\0" + bytes(50), ".npy"),
    "onnx": (b"\x08\x07\x12\x07pytorch" + bytes(50), "ONNX"),
    "zeros": (bytes(5000), "不是"),
    "noise": (np.random.default_rng(3).bytes(5000), "不是"),
    "ordinary zip": (zipped({"readme.txt": b"hi"}), "zip"),
    "zip without end": (zipped({"a/data.pkl": b"N."})[:-10], "zip"),
    "pickled list": (pickle.dumps([1, 2]), "state_dict"),
    "pickled number": (pickle.dumps(3), "state_dict"),
    "pickled array": (pickle.dumps(np.ones(3)), "state_dict"),
    "pickled scalars": (pickle.dumps({"a": 1, "b": {"c": "x"}}), "state_dict"),
    "list of arrays": (pickle.dumps([np.ones(3)]), "state_dict"),
    "object array": (pickle.dumps({"a": np.array([None, {}], object)}), "object"),
    "text array": (pickle.dumps({"a": np.array(["x", "y"])}), "数的数组"),
    "object npz": (npz(a=np.array([None, 3], object)), "pickle"),
    "text npz": (npz(a=np.array(["x"])), "U1"),
    "empty npz": (zipped({}), "zip"),
    "no tensors": (to_safetensors({}), "没有张量"),
    "npz of not npy": (zipped({"a.npy": b"hello" * 100}), "说明"),
    "safetensors of nothing": (struct.pack("<Q", 2**60) + b'{"a"', "文件头"),
    "safetensors outside": (
        safetensors_file({"x": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, bytes(8)),
        "文件头",
    ),
    "safetensors overflow": (
        safetensors_file({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, bytes(8)),
        "文件头",
    ),
    "safetensors nested": (safetensors_file(b'{"a":' + b"[" * 50_000), "文件头"),
    "deflated pytorch": (zipped({"a/data.pkl": b"}." * 9}, zipfile.ZIP_DEFLATED), "压缩"),
    "npz bomb": (zipped({"a.npy": bytes(10**7)}, zipfile.ZIP_DEFLATED), "炸弹"),
    "nested tuples": (b"\x80\x04" + b"N" + b"\x85" * 200_000 + b".", "state_dict"),
    "nested lists": (b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".", "state_dict"),
    "endless pickle": (b"\x80\x04" + b"N0" * 400_000 + b"N.", "步"),
    "no memo": (b"\x80\x02h\x05.", "损坏"),
    "empty stack": (b"\x80\x02000.", "损坏"),
    "no mark": (b"\x80\x02NNt.", "损坏"),
    "odd items": (b"\x80\x02}(Nu.", "损坏"),
    "huge string": (b"\x80\x04\x8d" + b"\xff" * 8 + b"x.", "损坏"),
    "huge number": (b"\x80\x02\x8b" + b"\xff\xff\xff\x7f" + b"x.", "损坏"),
    "huge memo": (b"\x80\x02Np%d\n." % 10**30, "损坏"),
}


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_files_that_are_not_weights(tmp_path, name):
    data, word = NOT_WEIGHTS[name]
    refused(write(tmp_path / "weights.bin", data), "weights.bin", word)


def npy_header(text):
    text = text.encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (999999, 999999, 999999), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f1', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').getpid(),), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 5000,
    ],
)
def test_lying_npz_headers(tmp_path, text):
    refused(write(tmp_path / "a.npz", zipped({"x.npy": npy_header(text) + bytes(8)})), "a.npz")


def test_paths_that_are_not_files(tmp_path):
    refused(tmp_path / "none.pth", "none.pth")
    refused(tmp_path, "目录")
    refused(f"{tmp_path}/a\0b", "不合法")
    refused(tmp_path / ("x" * 300), "太长")
    if os.name == "posix":
        os.mkfifo(tmp_path / "fifo")
        refused(tmp_path / "fifo", "管道")
        refused("/dev/zero", "设备")
    if Path("/proc/self/mem").exists():
        refused("/proc/self/mem", "mem")


@pytest.mark.skipif(os.name != "posix", reason="Windows 和 macOS 的文件系统不一定有稀疏文件")
@pytest.mark.parametrize(
    "head",
    [
        b"",
        struct.pack("<Q", 90 << 30) + b'{"a',
        struct.pack("<Q", 1 << 20) + b'{"a',
        b"PK\3\4",
        b"\x80\x04\x8e" + struct.pack("<Q", 90 << 30),
        b"\x80\x04}\x8c\1w\x8e" + struct.pack("<Q", 90 << 30),
        b"V",
        b"{",
    ],
)
def test_a_sparse_file_of_100_gigabytes(tmp_path, head):
    path = write(tmp_path / "huge.bin", head)
    with open(path, "r+b") as file:
        file.truncate(100 << 30)
    refused(path, "huge.bin")


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_checkpoint_zip.pth", "torch_legacy.pth"])
def test_truncated_anywhere(tmp_path, name):
    data = (FILES / name).read_bytes()
    for length in range(0, len(data), 97):
        refused(write(tmp_path / "a.pth", data[:length]), "a.pth")
    for data in (pickle.dumps(ARRAYS), pickle.dumps(ARRAYS, 2), npz(**ARRAYS), to_safetensors(ARRAYS)):
        for length in range(0, len(data), 97):
            refused(write(tmp_path / "a.pth", data[:length]), "a.pth")


# Files that would run something


@pytest.fixture
def marker(tmp_path):
    """A file that the hostile pickles would create."""
    return tmp_path / "was_run"


class Calls:
    """Pickles as a call of function(*args)."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def command(marker):
    return f'{sys.executable} -c "open({str(marker)!r}, str(chr(119)))"' if os.name == "nt" else f"echo > {marker}"


# Name -> (what the message must say, the pickle); pickle.loads runs every one of them
LIVE = {
    "os.system": (os.system.__module__ + ".system", lambda m, p: pickle.dumps(Calls(os.system, command(m)), p)),
    "eval": ("builtins.eval", lambda m, p: pickle.dumps(Calls(eval, f"open({str(m)!r}, 'w')"), p)),
    "exec": ("builtins.exec", lambda m, p: pickle.dumps(Calls(exec, f"open({str(m)!r}, 'w')"), p)),
    "open": ("open", lambda m, p: pickle.dumps(Calls(open, str(m), "w"), p)),
    "Popen": ("Popen", lambda m, p: pickle.dumps(Calls(subprocess.Popen, ["touch", str(m)]), p)),
    "touch": ("pathlib.Path.touch", lambda m, p: pickle.dumps(Calls(Path.touch, m), 4)),
    "numpy": ("numpy.", lambda m, p: pickle.dumps(Calls(np.savetxt, str(m), [1.0]), p)),
}
for _name, _code in {
    "INST": lambda m: b"(S'%s'\nios\nsystem\n." % command(m).encode(),
    "OBJ": lambda m: b"(cos\nsystem\nS'%s'\no." % command(m).encode(),
    "STACK_GLOBAL": lambda m: b"\x80\x04" + text("os") + text("system") + b"\x93" + text(command(m)) + b"\x85R.",
    "getattr": lambda m: b"\x80\x02cbuiltins\ngetattr\nq\0(h\0(cos\npath\n" + text("os")
    + b"tR" + text("system") + b"tR"
    + text(command(m)) + b"\x85R.",
    "memo": lambda m: b"\x80\x02cos\nsystem\nq\0" + text(command(m)) + b"\x85q\1" + b"00h\0h\1R.",
    "after a tensor": lambda m: pickle.dumps(ARRAYS, 2)[:-1] + b"cos\nsystem\n" + text(command(m)) + b"\x85R0.",
    "__setstate__": lambda m: b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb"
    + text(command(m)) + b"b.",
}.items():  # fmt: skip
    LIVE[_name] = ("builtins.getattr" if _name == "getattr" else "os.system", lambda m, p, code=_code: code(m))


def bare(data):
    return data


def in_dictionary(data):
    """The value of a key."""
    return b"\x80\x02}" + text("x") + data[2 if data[:1] == b"\x80" else 0 : -1] + b"s."


def in_tensor(data):
    body = data[2 if data[:1] == b"\x80" else 0 : -1]
    return zipped({"a/data.pkl": torch_pickle(extra=body), "a/data/0": bytes(24)})


def in_pytorch_zip(data):
    return zipped({"archive/data.pkl": data, "archive/version": b"3\n"})


def in_legacy_pytorch(data):
    return b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + data


def in_object_array(data):
    return zipped({"a.npy": npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + data})


def unframed(data):
    """Without the frame of protocol 4, whose length would be wrong inside another pickle."""
    return data[:2] + data[11:] if data[:3] == b"\x80\x04\x95" else data


@pytest.mark.parametrize("where", [bare, in_dictionary, in_tensor, in_pytorch_zip, in_legacy_pytorch])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", LIVE)
def test_a_hostile_pickle_is_refused_by_name_and_nothing_runs(tmp_path, marker, name, protocol, where):
    word, make = LIVE[name]
    path = write(tmp_path / "weights.pth", where(unframed(make(marker, protocol))))
    refused(path, "weights.pth", word, "请勿使用")
    assert not marker.exists()


@pytest.mark.skipif(os.name != "posix", reason="shell commands")
@pytest.mark.parametrize("name", LIVE)
def test_the_hostile_pickles_are_live(marker, name):
    """Otherwise the test above would prove nothing."""
    result = subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"],
                            input=LIVE[name][1](marker, 2), capture_output=True)  # fmt: skip
    for _ in range(50):
        if marker.exists():
            return
        time.sleep(0.1)
    raise AssertionError(result.stderr)


def test_a_hostile_object_array_is_not_loaded(tmp_path, marker):
    data = pickle.dumps(Calls(os.system, command(marker)))
    refused(write(tmp_path / "a.npz", in_object_array(data)), "pickle")
    refused(write(tmp_path / "a.npz", npz(a=np.array([Calls(os.system, command(marker))], object))), "pickle")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    "os.system nt.system subprocess.run builtins.__import__ __builtin__.eval importlib.import_module webbrowser.open "
    "torch.load torch.hub.load torch.jit.load functools.partial operator.attrgetter operator.methodcaller pty.spawn "
    "shutil.rmtree pathlib.Path.unlink pickle.loads marshal.loads types.FunctionType types.CodeType socket.socket "
    "copyreg.__newobj__ runpy.run_path code.interact numpy.load numpy.core._internal.os.system numpy.f2py.compile "
    "collections.OrderedDict.fromkeys paddle.load builtins.dict.update torch._utils._element_size "
    "__main__.Net".split(),
)
@pytest.mark.parametrize("code", [b"%sN\x85R.", b"%s)\x81.", b"%s)}\x92.", b"%s}b.", b"(%sNo."])
def test_no_other_name_can_be_called(tmp_path, name, code):
    module, attribute = name.rsplit(".", 1)
    pushed = b"\x80\x04" + text(module) + text(attribute) + b"\x93"
    data = code.replace(b"(%s", b"(" + pushed[2:]).replace(b"%s", pushed[2:])
    refused(write(tmp_path / "a.pdparams", b"\x80\x04" + data), name.replace("__builtin__", "builtins"))


@pytest.mark.parametrize(
    "code", [b"\x82\x01", b"\x83\x01\0", b"\x84\x01\0\0\0", b"Pos.system\n", b"NQ", b"\x97", b"\x98"]
)
def test_operations_that_reach_outside_the_pickle(tmp_path, code):
    refused(write(tmp_path / "a.pdparams", b"\x80\x04" + code + b"."), "损坏")


def test_names_cannot_spoil_the_terminal(tmp_path):
    data = b"\x80\x04" + text("os\n\x1b[2J\r") + text("s" * 450) + b"\x93)R."
    with pytest.raises(UserError) as error:
        open_tensors(write(tmp_path / "a", data))
    assert str(error.value).isprintable() and len(str(error.value)) < 300 + len(str(tmp_path))
    for data in (
        pickle.dumps({"a\x1b[2J": np.ones(2)}),
        to_safetensors({"a\n": np.ones(2)}),
        npz(**{"a\r": np.ones(2)}),
    ):
        refused(write(tmp_path / "a", data), "名字")


def test_a_class_that_is_only_named_is_harmless(tmp_path):
    state = {"w": np.ones(2, "float32"), "act": os.system, "kind": np.float32}
    check(write(tmp_path / "a", pickle.dumps(state)), {"w": state["w"]})


# Small files that would take for ever


def repeated(prepare, step, times=60_000):
    """A pickle that prepares a big object in memo 0 and then uses it again and again."""
    return b"\x80\x04(" + b"N" * 60_000 + prepare + b"q\0" + b"0" + step * times + b"N."


SLOW = {
    "huge tuple as a storage": b"\x80\x04(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    + b"K\1" + b"N" * 60_000 + b"tq\0" + b"0" + b"h\0Q0" * 50_000 + b"N.",
    "huge tuple of arguments": repeated(b"t", b"cnumpy\nndarray\n0ccollections\ndefaultdict\nh\0R0", 25_000),
    "huge tuple as a state": repeated(b"t", b"cargparse\nNamespace\n)\x81h\0b0", 25_000),
    "huge list in a dictionary": repeated(b"l", b"ccollections\nOrderedDict\nh\0\x85R0", 25_000),
    "shared dictionaries": b"\x80\x04"
    + b"".join(
        b"}(" + b"".join(text(str(j)) + (b"h%c" % (i - 1) if i else b"N") for j in range(2000)) + b"uq%c" % i
        for i in range(20)
    )
    + b".",
    "many keys": b"\x80\x04}(" + b"".join(text(f"{i:0300}") + b"N" for i in range(60_000)) + b"u.",
    "long numbers": b"\x80\x04" + (b"L" + b"9" * 400 + b"L\n0") * 80_000 + b"N.",
    "deep arrays": b"\x80\x04N" + (b"cnumpy.core.numeric\n_frombuffer\nq\0" + b"0")
    + b"".join(b"q\1" + b"0h\0(h\1NNNtR" for _ in range(25_000)) + b".",
    "deep subclasses": b"\x80\x04" + b"ctorch._tensor\n_rebuild_from_type_v2\nq\0" + b"0)"
    + b"q\1" + b"0(h\0Nh\1Nt" * 20_000 + b"q\1" + b"0h\0h\1R.",
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_small_pickles_that_would_take_for_ever(tmp_path, name):
    refused(write(tmp_path / "a.pth", SLOW[name]), "a.pth")
    refused(write(tmp_path / "a.pth", in_pytorch_zip(SLOW[name])), "a.pth")


def test_archives_with_very_many_entries(tmp_path):
    refused(write(tmp_path / "a.npz", zipped({f"{i}.npy": b"" for i in range(6000)})), "太多")
    refused(write(tmp_path / "a.npz", zipped({f"{i:0200}.npy": b"" for i in range(6000)})), "太大")


def test_a_safetensors_header_with_very_many_tensors(tmp_path):
    header = {str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    start = time.process_time()
    assert len(open_tensors(write(tmp_path / "a", safetensors_file(header)))) == 20_000
    assert time.process_time() - start < SECONDS
    refused(write(tmp_path / "a", safetensors_file(b'{"a":"' + b"x" * (5 << 20) + b'"}')), "太长")


# Random damage


def small_files():
    arrays = {"w": ARRAYS["weight"][:3, :4], "b": ARRAYS["half"], "n": ARRAYS["count"]}
    deflated = io.BytesIO()
    np.savez_compressed(deflated, **arrays)
    return {
        "torch_zip": (FILES / "torch_zip.pth").read_bytes(),
        "torch_legacy": (FILES / "torch_legacy.pth").read_bytes(),
        "checkpoint": (FILES / "torch_checkpoint_legacy.pth").read_bytes(),
        "pickle2": pickle.dumps(arrays, 2),
        "pickle4": pickle.dumps(arrays, 4),
        "pickle5": pickle.dumps(arrays, 5),
        "npz": npz(**arrays),
        "compressed npz": deflated.getvalue(),
        "safetensors": to_safetensors(arrays, {"a": "b"}),
        "handmade": lying_zip(),
    }


def damaged(data, random):
    """One of several kinds of damage at random places."""
    data, kind = bytearray(data), random.randrange(6)
    where = random.randrange(len(data))
    if kind == 0:
        del data[where:]
    elif kind == 1:
        del data[where : where + random.choice([1, 2, 8, 100])]
    elif kind == 2:
        data[where:where] = random.randbytes(random.choice([1, 4, 8]))
    elif kind == 3:
        data[where : where + 8] = random.choice([b"\xff", b"\0", b"\x7f"]) * random.choice([1, 2, 4, 8])
    elif kind == 4:
        source = random.randrange(len(data))
        data[where : where + 16] = data[source : source + 16]
    else:
        for _ in range(random.choice([1, 1, 3])):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def reads_or_refuses(path):
    """Either arrays of the declared shapes, no larger than the file allows, or a UserError of one line; never slow."""
    start, size = time.process_time(), path.stat().st_size
    try:
        with open_tensors(path) as file:
            for tensor in file.values():
                assert np.prod(tensor.shape, dtype=object) <= 100 * size
                try:
                    assert tensor.read().shape == tensor.shape
                except UserError as error:
                    assert "\n" not in str(error)
    except UserError as error:
        assert "\n" not in str(error)
    assert time.process_time() - start < SECONDS


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", small_files())
def test_random_damage(tmp_path, kind):
    random_places, data = random.Random(kind), small_files()[kind]
    for _ in range(200):
        reads_or_refuses(write(tmp_path / "a", damaged(data, random_places)))


def random_operations(random):
    """A random program of plausible operations with plausible arguments."""
    pieces = [bytes([code]) for code in b"()tl]}dNK0215aesu.\x85\x86\x87\x88\x89\x94\x81Rbo\x90\x91\x8f\x92Q"]
    pieces += [text(word) for word in ("w", "model", "f4", "<", "storage", "0", "cpu", "latin1", "__setstate__", "é")]
    pieces += [
        b"K\x01",
        b"K\x03",
        b"J\xff\xff\xff\xff",
        b"h\0",
        b"h\1",
        b"q\0",
        b"q\1",
        b"G" + bytes(8),
        b"B\4\0\0\0abcd",
    ]
    names = "collections OrderedDict,_codecs encode,numpy dtype,numpy ndarray,numpy.core.multiarray _reconstruct"
    names += ",numpy.core.multiarray scalar,torch._utils _rebuild_tensor_v2,torch._utils _rebuild_parameter"
    names += ",torch FloatStorage,argparse Namespace,torch._tensor _rebuild_from_type_v2,builtins tuple"
    names += ",numpy.core.numeric _frombuffer"
    pieces += ["c{}\n{}\n".format(*name.split()).encode() for name in names.split(",")]
    return b"\x80\x04}" + b"".join(random.choices(pieces, k=random.randrange(1, 60))) + b"."


@pytest.mark.filterwarnings("error")
def test_random_programs(tmp_path):
    source = random.Random(0)
    for _ in range(500):
        program = random_operations(source)
        reads_or_refuses(write(tmp_path / "a", program))
        reads_or_refuses(write(tmp_path / "a", in_pytorch_zip(program)))


@pytest.mark.filterwarnings("error")
def test_damaged_operations_inside_a_valid_zip(tmp_path):
    """The CRC hides damage inside data.pkl from the tests above: here it is right."""
    source, program = random.Random(1), torch_pickle()
    for _ in range(500):
        data = {"a/data.pkl": damaged(program, source), "a/data/0": bytes(24)}
        reads_or_refuses(write(tmp_path / "a", zipped(data)))


# Time and memory


MEASURE = """
import resource, sys, time
from paddle_vit.weights.files import open_tensors
import safetensors
for path in sys.argv[1:]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with open_tensors(path) as file:
        for tensor in file.values():
            tensor.read()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(peak // (1024 if sys.platform == "linux" else 1 << 20), time.process_time() - start)
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows 没有 resource")
def test_one_tensor_at_a_time_in_memory(tmp_path):
    arrays = {f"blocks.{i}.weight": RANDOM.standard_normal(1 << 20, "float32") for i in range(8)}  # 8 x 4 MB
    paths = [tmp_path / name for name in ("a.npz", "a.safetensors", "2.pdparams", "4.pdparams", "a.pth")]
    np.savez(paths[0], **arrays)
    paths[1].write_bytes(to_safetensors(arrays))
    for path, protocol in zip(paths[2:4], (2, 4)):
        path.write_bytes(pickle.dumps(arrays, protocol))
    one = torch_pickle(shape=(1 << 20,), strides=(1,), count=1 << 20)
    program = b"\x80\x02}" + b"".join(
        one[3:-2].replace(b"U\x01x", text(name)).replace(b"U\x010", text(str(i))) + b"s"
        for i, name in enumerate(arrays)
    )
    storages = {f"a/data/{i}": value.tobytes() for i, value in enumerate(arrays.values())}
    paths[4].write_bytes(zipped({"a/data.pkl": program + b".", **storages}))
    check(paths[4], arrays)
    result = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, cwd=ROOT)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == len(paths), result.stderr
    for (megabytes, seconds), path in zip(lines, paths):
        assert int(megabytes) < 20 and float(seconds) < 5, (path.name, megabytes, seconds)
