import errno
import os
import resource
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT

from paddle_vit import UserError, ViT
from paddle_vit.checkpoint import atomic_write, load_weights_into, read_state, save_weights, write_state

SMALL = dict(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)


def test_weights_round_trip_and_are_readable_by_paddle(tmp_path):
    first, second = ViT(**SMALL), ViT(**SMALL)
    save_weights(tmp_path / "best.pdparams", first.state_dict())
    load_weights_into(second, tmp_path / "best.pdparams")
    for name, value in paddle.load(str(tmp_path / "best.pdparams")).items():
        np.testing.assert_array_equal(second.state_dict()[name].numpy(), value.numpy())
        np.testing.assert_array_equal(first.state_dict()[name].numpy(), value.numpy())


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(embed_dim=16), ("形状不同", "[8, 1, 4, 4]", "[16, 1, 4, 4]")),
        (dict(depth=2), ("缺少", "encoders.1")),
        (dict(pool="cls"), ("缺少", "class_token")),
    ],
)
def test_weights_of_another_model(tmp_path, options, words):
    save_weights(tmp_path / "best.pdparams", ViT(**SMALL).state_dict())
    with pytest.raises(UserError) as error:
        load_weights_into(ViT(**{**SMALL, **options}), tmp_path / "best.pdparams")
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "foreign"])
def test_damaged_weights(tmp_path, damage):
    path = tmp_path / "best.pdparams"
    save_weights(path, ViT(**SMALL).state_dict())
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "noise": os.urandom(500), "empty": b""}.get(damage, data))
    if damage == "foreign":
        paddle.save([1, 2], str(path))
    with pytest.raises(UserError, match=r"best\.pdparams"):
        load_weights_into(ViT(**SMALL), path)


def flipped(data):
    """依次翻转各处的一个二进制位。"""
    for position in range(0, len(data), max(1, len(data) // 300)):
        yield data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]


def test_any_flipped_bit_is_noticed(tmp_path):
    path, model = tmp_path / "best.pdparams", ViT(**SMALL)
    save_weights(path, model.state_dict())
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="损坏"):
            load_weights_into(model, path)
    path = tmp_path / "last.safetensors"
    write_state(path, {"a/b": np.arange(9, dtype="float32"), "c": np.zeros((2, 2), "int64")}, {"epoch": 3, "lr": 0.1})
    good, noticed = read_state(path), 0
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        try:
            tensors, metadata = read_state(path)
        except UserError:
            noticed += 1
        else:  # 只有不影响内容的位(如文件头里的空格)可以不被发现
            assert metadata == good[1] and all((tensors[name] == good[0][name]).all() for name in good[0])
    assert noticed > 250


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows 没有 resource")
def test_a_write_over_the_size_limit_leaves_the_old_file(tmp_path):
    """真的写不下(进程的文件大小上限),不是模拟的错误。"""
    path = tmp_path / "file"
    atomic_write(path, b"old")
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from paddle_vit.checkpoint import atomic_write
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
