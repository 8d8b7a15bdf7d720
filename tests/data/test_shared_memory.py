"""``/dev/shm`` 很小、没有、写不了时,图片照样读。"""

import os
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
from PIL import Image
from support.running import PATIENCE, script

from paddle_vit.data import parts
from paddle_vit.data.parts import FilePart
from paddle_vit.system import shared_memory


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """九张图片,由两个进程读。"""
    monkeypatch.setattr(parts, "FEW_IMAGES", 1)
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), "uint8")).save(path)
    return FilePart(paths, np.zeros(9, int), 16, 2)


def fetched(part, monkeypatch):
    """读到的图像,和 DataLoader 的两个参数。"""
    given, loader = [], paddle.io.DataLoader

    def watched(*args, **options):
        given.append((options["num_workers"], options["use_shared_memory"]))
        return loader(*args, **options)

    monkeypatch.setattr(paddle.io, "DataLoader", watched)
    requests = [(rows, None) for rows in np.array_split(np.arange(9), 3)]
    images = np.concatenate(list(part.fetch(requests)))
    monkeypatch.setattr(paddle.io, "DataLoader", loader)
    return images, *given


@pytest.mark.parametrize("room, used", [(1e9, True), (0, False), (2 * 6 * 3 * (768 + 4096) - 1, False)])
def test_too_little_room_goes_through_a_pipe(pictures, monkeypatch, room, used):
    monkeypatch.setattr(parts, "shared_memory_room", lambda: room)
    images, given = fetched(pictures, monkeypatch)
    assert given == (2, used)
    np.testing.assert_array_equal(images, np.stack([pictures.read(i) for i in range(9)]))


def test_a_place_that_cannot_be_written_starts_no_workers(pictures, monkeypatch):
    monkeypatch.setattr(shared_memory, "PLACE", "/dev/null/none")
    images, (workers, _) = fetched(pictures, monkeypatch)
    assert workers == 0 and len(images) == 9


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="只有 Linux 有 /dev/shm")
def test_the_room_is_shared_by_the_processes_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "PLACE", str(tmp_path))
    place = os.statvfs(tmp_path)
    assert shared_memory.shared_memory_room() == pytest.approx(place.f_bavail * place.f_frsize, rel=0.05)
    monkeypatch.setattr(shared_memory, "local_processes", lambda: 4)
    assert shared_memory.shared_memory_room() == pytest.approx(place.f_bavail * place.f_frsize / 4, rel=0.05)
    monkeypatch.setattr(shared_memory, "PLACE", str(tmp_path / "none"))
    assert shared_memory.shared_memory_room() == 0


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
    train = (
        f"{sys.executable} {script('train')} --recipe none --dataset folder --data-dir {tmp_path / 'data'} --epochs 1"
    )
    train += f" --patch-size 56 --embed-dim 8 --depth 1 --num-heads 1 --workers 2 --output {tmp_path / 'run'}"
    done = subprocess.run([*unshare, f"{command} && {train}"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
