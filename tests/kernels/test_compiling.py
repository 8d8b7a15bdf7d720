"""第一次编译:参数的类型说得对,几个进程编译的正是训练要用的,随时能停。"""

import inspect
import math
import os
import signal
import subprocess
import sys

import paddle
import paddle.nn.functional as F
import pytest
from support.running import PATIENCE, finish, start_training, wait_for

from paddle_vit import ViT
from paddle_vit.kernels.compiling import CONVOLUTION, TRAINING, signature_of
from paddle_vit.kernels.loading import load_kernels
from paddle_vit.training.update import AdamW, clip_gradients, move_towards

STEP = """
import paddle
from paddle_vit import ViT
from paddle_vit.kernels.compiling import CONVOLUTION, TRAINING, are_compiled, compile_for_training
from paddle_vit.kernels.loading import load_kernels

if __name__ == "__main__":
    print(are_compiled(), are_compiled(convolution=True))
    compile_for_training(2, convolution=True)
    print(are_compiled(), are_compiled(convolution=True))
    for tokenizer in ("patch", "conv"):
        model = ViT(8, 2, 1, num_classes=3, embed_dim=8, depth=1, num_heads=2, tokenizer=tokenizer)
        model(paddle.rand([2, 1, 8, 8])).sum().backward()
    print([name for name in (*CONVOLUTION, *TRAINING) if getattr(load_kernels(), name).stats.cache_misses])
"""


def one_step(tokenizer):
    model = ViT(
        image_size=8,
        patch_size=2,
        in_channels=1,
        num_classes=3,
        embed_dim=8,
        depth=1,
        num_heads=2,
        position_embedding="learnable",
        tokenizer=tokenizer,
    )
    optimizer, average = AdamW(1e-3, parameters=model.parameters()), [p.clone() for p in model.parameters()]
    F.cross_entropy(model(paddle.rand([2, 1, 8, 8])), paddle.to_tensor([0, 2])).backward()
    clip_gradients(model.parameters(), math.inf)
    optimizer.step()
    move_towards(average, model.parameters(), 0.5)


def test_the_signatures_are_those_of_a_training_step():
    """先按写明的类型准备好,训练一步不再需要别的类型。"""
    kernels = load_kernels()
    if kernels is None:
        pytest.skip("没有 numba")
    one_step("patch")
    one_step("conv")
    names = (*CONVOLUTION, *TRAINING)
    used = {name: getattr(kernels, name) for name in names if getattr(kernels, name).signatures}
    assert used.keys() == {*names}, "一步训练没有用到的,不必先编译"
    for name, kernel in used.items():
        assert signature_of(kernel) in kernel.signatures, name


def test_every_name_of_a_kernel_has_a_known_type():
    from paddle_vit.kernels import compiling

    known = {name for names in compiling._TYPES.values() for name in names}
    parameters = {p for kernel in vars(load_kernels()).values() for p in inspect.signature(kernel).parameters}
    assert known <= parameters, "多余的名字"


@pytest.mark.slow
def test_a_fresh_machine_compiles_everything_beforehand(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    script = tmp_path / "step.py"
    script.write_text(STEP, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout.split("\n")[:3] == ["False False", "True True", "[]"]


def test_ctrl_c_stops_the_first_compilation(tmp_path):
    cache = tmp_path / "cache"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    process = start_training("--epochs", 1, "--output", tmp_path / "run", env=environment)
    while "第一次在这台机器上训练" not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    wait_for(lambda: any(cache.rglob("*.nbi")), process)  # 编译好了一个,正在编译别的
    _, err = finish(process, signal.SIGINT)
    assert process.returncode == 130 and err.strip() == "已中断。"
    assert not (tmp_path / "run").exists()
    with pytest.raises(ProcessLookupError):  # 没有留下编译的进程
        os.killpg(process.pid, 0)
