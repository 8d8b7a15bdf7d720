import errno
import json
import os
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.running import ROOT

from paddle_vit import UserError, ViT
from paddle_vit.system.files import atomic_write
from paddle_vit.weights.checkpoint import (
    load_weights_into,
    read_description,
    read_model,
    read_state,
    save_model,
    write_state,
)

SMALL = dict(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)


MODEL = {"name": "vit", **SMALL}


def saved(path, model):
    save_model(path, model.state_dict(), MODEL, {"classes": ["猫", "狗", "鸟"]})
    return path


def test_a_model_round_trip(tmp_path):
    first, second = ViT(**SMALL), ViT(**SMALL)
    path = saved(tmp_path / "best.safetensors", first)
    assert path.read_bytes() == saved(tmp_path / "again.safetensors", first).read_bytes()
    load_weights_into(second, path)
    tensors, model, info = read_model(path)
    assert read_description(path) == (model, info) == (MODEL, {"classes": ["猫", "狗", "鸟"]})
    others = load_file(path)  # safetensors 自己读
    assert tensors.keys() == others.keys() == first.state_dict().keys()
    for name, value in first.state_dict().items():
        for found in (tensors[name], others[name], second.state_dict()[name].numpy()):
            np.testing.assert_array_equal(found, value.numpy())


def test_a_file_without_a_description(tmp_path):
    save_file({"a": np.zeros(3, "float32")}, tmp_path / "plain.safetensors")
    write_state(tmp_path / "state.safetensors", {"a": np.zeros(3)}, {"epoch": 1})
    for name in ("plain", "state"):
        assert read_description(tmp_path / f"{name}.safetensors") is None
        with pytest.raises(UserError, match=r"import_weights\.py"):
            read_model(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(embed_dim=16), ("形状不同", "[8, 1, 4, 4]", "[16, 1, 4, 4]")),
        (dict(depth=2), ("缺少", "encoders.1")),
        (dict(pool="cls"), ("缺少", "class_token")),
    ],
)
def test_weights_of_another_model(tmp_path, options, words):
    path = saved(tmp_path / "best.safetensors", ViT(**SMALL))
    with pytest.raises(UserError) as error:
        load_weights_into(ViT(**{**SMALL, **options}), path)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "longer"])
def test_damaged_weights(tmp_path, damage):
    path = saved(tmp_path / "best.safetensors", ViT(**SMALL))
    data = path.read_bytes()
    damaged = {"truncated": data[: len(data) // 2], "noise": os.urandom(500), "empty": b"", "longer": data + b"1"}
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"best\.safetensors 已损坏"):
        load_weights_into(ViT(**SMALL), path)


def flipped(data, count):
    """依次翻转各处的一个二进制位,大约 count 个;文件头的每个字节都在内。"""
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for position in [*range(header), *range(header, len(data), max(1, len(data) // count))]:
        yield data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]


def test_any_flipped_bit_is_noticed(tmp_path):
    model = ViT(**SMALL)
    path = saved(tmp_path / "best.safetensors", model)
    for damaged in flipped(path.read_bytes(), 300):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="损坏"):
            load_weights_into(model, path)
    path = tmp_path / "last.safetensors"
    write_state(path, {"a/b": np.arange(9, dtype="float32"), "c": np.zeros((2, 2), "int64")}, {"epoch": 3, "lr": 0.1})
    for damaged in flipped(path.read_bytes(), 300):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="损坏"):
            read_state(path)


def test_state_round_trip(tmp_path):
    tensors = {"a/b": np.arange(6, dtype="float32").reshape(2, 3), "c": np.array(3, "int64")}
    write_state(tmp_path / "last.safetensors", tensors, {"epoch": 3, "名": [1.5, None]})
    read, metadata = read_state(tmp_path / "last.safetensors")
    assert metadata == {"epoch": 3, "名": [1.5, None]}
    for name, value in tensors.items():
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "noise", "empty"])
def test_damaged_state(tmp_path, damage):
    path = tmp_path / "last.safetensors"
    write_state(path, {"a": np.arange(100, dtype="float32")}, {})
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-7] ^= 1
    path.write_bytes({"truncated": data[:-50], "noise": os.urandom(200), "empty": b""}.get(damage, data))
    with pytest.raises(UserError, match="损坏"):
        read_state(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="磁盘已满"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def pieces():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, pieces())
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_two_programs_writing_the_same_file(tmp_path):
    """后写完的留下,内容不会混在一起,先写完的也不报错。"""
    path = tmp_path / "file"
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from paddle_vit.weights.checkpoint import atomic_write
atomic_write({str(path)!r}, b"other")
"""

    def pieces():
        yield b"first "
        subprocess.run([sys.executable, "-c", code], check=True)
        assert path.read_bytes() == b"other"
        yield b"second"

    atomic_write(path, pieces())
    assert path.read_bytes() == b"first second"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 没有 resource")
def test_a_write_over_the_size_limit_leaves_the_old_file(tmp_path):
    """真的写不下(进程的文件大小上限),不是模拟的错误。"""
    path = tmp_path / "file"
    atomic_write(path, b"old")
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from paddle_vit.weights.checkpoint import atomic_write
from paddle_vit.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.RLIM_INFINITY}))
try:
    atomic_write({str(path)!r}, b"x" * 5000)
except UserError:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 7
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("state", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "", "3", "null"])
def test_a_description_with_a_good_checksum_that_is_no_description(tmp_path, monkeypatch, state):
    """校验和只防意外的损坏:改文件的人也会算它。"""
    path, dumps = tmp_path / "best.safetensors", json.dumps
    with monkeypatch.context() as patch:
        patch.setattr("json.dumps", lambda value, **options: state if value is None else dumps(value, **options))
        write_state(path, ViT(**SMALL).state_dict(), None)
    assert safe_open(path, framework="numpy").metadata()["state"] == state
    assert read_description(path) is None
    for read in (read_model, read_state):
        with pytest.raises(UserError, match="已损坏"):
            read(path)


def test_paths_that_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "best.safetensors")
    for path in (tmp_path / "best.safetensors", tmp_path, tmp_path / "none"):
        for read in (read_model, read_state):
            with pytest.raises(UserError, match="已损坏"):
                read(path)
