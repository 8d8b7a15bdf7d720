"""读图片时出的任何事都带着文件名回到主进程。"""

import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.running import PATIENCE, script

from paddle_vit import UserError
from paddle_vit.data import images, parts
from paddle_vit.data.batches import one_ahead
from paddle_vit.data.parts import FilePart
from paddle_vit.data.reading import read_batches

ERRORS = [MemoryError(), RuntimeError("decoder"), struct.error("x"), RecursionError(), KeyError("y"), OSError("z")]


@pytest.fixture
def part(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "FEW_IMAGES", 0)
    for i in range(8):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / f"{i}.png")
    return FilePart([tmp_path / f"{i}.png" for i in range(8)], np.arange(8) % 2, 8, 2, 1)


def fetch(part):
    return list(part.fetch([(np.arange(i, i + 2), None) for i in range(0, 8, 2)]))


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 9])
def test_batches_come_in_order(part, workers):
    part.workers = workers
    assert [int(batch[0, 0, 0, 0]) for batch in fetch(part)] == [0, 20, 40, 60]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_names_the_file(part, monkeypatch, workers, error):
    decode = images._decode

    def fails(path, quick=False):
        if Path(path).name == "5.png":
            raise error
        return decode(path, quick)

    monkeypatch.setattr(images, "_decode", fails)
    part.workers = workers
    with pytest.raises(UserError, match=r"5\.png") as caught:
        fetch(part)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("x")], ids=lambda error: type(error).__name__)
def test_an_error_after_decoding_names_the_file(part, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(parts, "at_size", fails)
    with pytest.raises(UserError, match=r"0\.png"):
        fetch(part)


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3)])
def test_a_reader_that_dies_ends_the_reading(part, monkeypatch, end):
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda path, quick=False: end() if "6" in path.name else decode(path))
    with pytest.raises(UserError, match=r"6\.png.*--workers"):
        fetch(part)


def test_no_reader_is_left(part):
    import multiprocessing

    batches = part.fetch([(np.arange(2), None)] * 50)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []
    assert list(read_batches(len, [], 2)) == []


def test_the_item_ahead_is_not_waited_for_when_interrupted():
    stuck = threading.Event()

    def items():
        yield 1
        stuck.wait(60)  # 一个读不完的文件
        yield 2

    ahead = one_ahead(items())
    assert next(ahead) == 1
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(ahead)
    assert time.monotonic() - started < 20
    stuck.set()


def test_one_ahead_hands_errors_on():
    def items():
        yield 1
        raise UserError("坏了")

    ahead = one_ahead(items())
    next(ahead)
    with pytest.raises(UserError, match="坏了"):
        next(ahead)
    assert list(one_ahead(iter(range(5)))) == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=64m", "size=1m", "ro"])
def test_training_with_the_shared_memory_of_docker(tmp_path, options):
    """64 MB、每批 64 张 224 像素:从前是 SIGBUS 和一屏 C++ 的调用栈。"""
    command = f"mount -t tmpfs -o {options} tmpfs /dev/shm"
    unshare = ["unshare", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, command], capture_output=True).returncode:
        pytest.skip("这里不能另挂 /dev/shm(需要 root)")
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "data" / "train" / label).mkdir(parents=True)
        for i in range(300):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), "uint8"))
            image.save(tmp_path / "data" / "train" / label / f"{i}.png")
    train = [sys.executable, script("train"), "--dataset", "folder", "--data-dir", tmp_path / "data"]
    train += "--recipe none --epochs 1 --patch-size 56 --embed-dim 8 --depth 1 --num-heads 1 --workers 2".split()
    train += ["--output", tmp_path / "run"]
    train = shlex.join(map(str, train))
    done = subprocess.run([*unshare, f"{command} && {train}"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
