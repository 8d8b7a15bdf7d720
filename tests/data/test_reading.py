"""读图片时出的任何事都带着文件名回到主进程。"""

import os
import signal
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
