import json
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from support.running import ROOT

from paddle_vit import UserError
from paddle_vit.system import runtime as runtime_module
from paddle_vit.system.runtime import autocast_dtype, describe_runtime, setup_runtime


def run_code(code, **env):
    """在新进程里执行,返回最后一行 JSON。"""
    environ = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**environ, **env}, cwd=ROOT, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


SNAPSHOT = """
import ctypes, json, os, paddle
omp = ctypes.CDLL(os.path.join(os.path.dirname(paddle.__file__), "libs", "libiomp5.so"))
def snapshot():
    flag = paddle.get_flags("FLAGS_use_stride_kernel")["FLAGS_use_stride_kernel"]
    return [omp.omp_get_max_threads(), flag, os.environ.get("MKL_DEBUG_CPU_TYPE"), paddle.get_device()]
"""


def test_import_has_no_side_effect():
    code = SNAPSHOT + "before = snapshot()\nimport paddle_vit\nprint(json.dumps([before, snapshot()]))"
    before, after = run_code(code)
    assert before == after
    for threads in ("1", "2"):
        environ = {**os.environ, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", "import paddle_vit"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=environ)
        assert done.stdout == "" and done.stderr == ""


def test_import_is_light():
    heavy = "('visualdl', 'matplotlib', 'pydantic', 'einops')"
    assert run_code(f"import json, sys, paddle_vit\nprint(json.dumps([m for m in {heavy} if m in sys.modules]))") == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="只有 Linux 的 Paddle 自带 libiomp5.so")
def test_settings_take_effect():
    code = (
        SNAPSHOT
        + "from paddle_vit.system.runtime import setup_runtime\n"
        + "print(json.dumps([setup_runtime('cpu', 2), snapshot()]))"
    )
    settings, (threads, stride, mkl, device) = run_code(code)
    assert threads == settings["threads"] == 2
    assert stride is False and settings["stride_kernel"] is False
    assert mkl == settings["mkl_path"]
    assert device == "cpu"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="只有 Linux 的 Paddle 自带 libiomp5.so")
def test_the_users_environment_wins():
    code = (
        SNAPSHOT
        + "from paddle_vit.system.runtime import setup_runtime\ns = setup_runtime('cpu')\nprint(json.dumps(snapshot()))"
    )
    threads, stride, mkl, _ = run_code(code, OMP_NUM_THREADS="3", FLAGS_use_stride_kernel="1", MKL_DEBUG_CPU_TYPE="5")
    assert (threads, stride, mkl) == (3, True, "5")
    # Paddle 导入时把 OMP_NUM_THREADS=1 写进环境,子进程继承到的 1 不是使用者的意思
    cores = len(os.sched_getaffinity(0))
    assert run_code(code, OMP_NUM_THREADS="1")[0] == cores
    endpoints = [f"127.0.0.1:{6000 + i}" for i in range(cores)]
    launched = {"PADDLE_CURRENT_ENDPOINT": endpoints[0], "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints)}
    assert run_code(code, **launched)[0] == 1
    two_hosts = "127.0.0.1:6000,127.0.0.2:6000"
    assert run_code(code, **{**launched, "PADDLE_TRAINER_ENDPOINTS": two_hosts})[0] == cores


@pytest.mark.parametrize(
    "vendor, flags, expected",
    [
        ("AuthenticAMD", {"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl"}, "7"),
        ("AuthenticAMD", {"avx2", "fma"}, "5"),
        ("AuthenticAMD", {"sse4_2"}, None),
        ("GenuineIntel", {"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl"}, None),
        ("", set(), None),
    ],
)
def test_mkl_path_fits_the_cpu(monkeypatch, vendor, flags, expected):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setattr(runtime_module, "_cpu_flags", lambda: (vendor, flags))
    monkeypatch.setattr(runtime_module.platform, "machine", lambda: "x86_64")
    try:
        assert runtime_module._set_mkl_path()[0] == expected
        assert os.environ.get("MKL_DEBUG_CPU_TYPE") == expected
    finally:
        os.environ.pop("MKL_DEBUG_CPU_TYPE", None)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"avx", "avx2", "fma"}, "AVX2"),
        ({"avx2", "avx512f", "avx512_bf16"}, "AVX-512、BF16"),
        ({"avx2", "avx512f", "avx512_bf16", "amx_tile"}, "AVX-512、BF16、AMX"),
        ({"sse4_2"}, ""),
    ],
)
def test_vector_instructions(monkeypatch, flags, expected):
    monkeypatch.setattr(runtime_module, "_cpu_flags", lambda: ("", flags))
    assert runtime_module.vector_instructions() == expected


def test_results_change_by_rounding_only():
    code = """
import json, paddle
from paddle_vit import ViT
if {tuned}:
    from paddle_vit.system.runtime import setup_runtime
    setup_runtime("cpu")
paddle.seed(0)
model = ViT(image_size=28, patch_size=7, in_channels=1, embed_dim=32)
out = model(paddle.randn([4, 1, 28, 28]))
out.square().sum().backward()
print(json.dumps([out.tolist(), model.encoders[0].attn.qkv.weight.grad.tolist()]))
"""
    plain, tuned = (run_code(code.format(tuned=tuned)) for tuned in (False, True))
    for reference, ours in zip(plain, tuned):
        np.testing.assert_allclose(ours, reference, rtol=1e-3, atol=1e-4)


TRAIN_200_STEPS = """
import json, sys
import paddle, paddle.nn.functional as F
import numpy as np
tuned = {tuned}
architecture = dict(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=48, depth=3, num_heads=4)
if tuned:
    from paddle_vit import ViT
    from paddle_vit.system.runtime import setup_runtime
    setup_runtime("cpu")
    model = ViT(**architecture, qkv_bias=True, position_embedding="learnable")
else:
    sys.path.insert(0, "benchmark/contenders")
    from lesson_vit import LessonViT
    model = LessonViT(**architecture, pool="avg")
rng = np.random.default_rng(0)
for name, value in sorted(model.named_parameters()):
    if value.ndim > 1:
        scale = 0.5 if name == "position_embedding" else 0.1
        value.set_value(scale * rng.standard_normal(value.shape).astype("float32"))
    else:
        value.set_value(np.full(value.shape, float(name.endswith("weight")), "float32"))
digits = np.load("paddle_vit/assets/digits.npz")
images, labels = digits["images"].reshape(-1, 1, 8, 8).astype("float32") / 16 - 0.5, digits["labels"].astype("int64")
optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters(), weight_decay=0.05)
losses = []
for step in range(200):
    rows = rng.integers(0, len(images), 32)
    loss = F.cross_entropy(model(paddle.to_tensor(images[rows])), paddle.to_tensor(labels[rows]))
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()
    losses.append(float(loss))
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_the_losses_of_200_steps_are_those_of_plain_paddle():
    """一边是课程的写法和默认设置,一边是全部加速:同样的初值和数据,损失只差舍入。"""
    plain, tuned = (run_code(TRAIN_200_STEPS.format(tuned=tuned)) for tuned in (False, True))
    assert len(plain) == 200 and plain[-1] < 0.6 * plain[0]
    np.testing.assert_allclose(tuned[:20], plain[:20], rtol=1e-5)
    np.testing.assert_allclose(tuned, plain, rtol=2e-3, atol=1e-4)  # 舍入之差随步数放大


@pytest.mark.skipif(runtime_module.platform.libc_ver()[0] != "glibc", reason="只有 glibc 有 mallopt")
def test_malloc_keeps_its_pages():
    """反复申请、释放 64 MiB:保留内存页之后不再缺页。"""
    code = """
import json, resource, paddle
if {tuned}:
    from paddle_vit.system.runtime import setup_runtime
    setup_runtime("cpu")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    paddle.full([16 << 20], 1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
counts = [faults() for _ in range(6)]
print(json.dumps(counts[-1]))
"""
    pages = (64 << 20) // 4096
    assert run_code(code.format(tuned=False)) > pages / 600  # 大页(2 MiB)时缺页的次数少得多
    assert run_code(code.format(tuned=True)) < pages / 600
    assert run_code(code.format(tuned=True), MALLOC_TOP_PAD_="0") > pages / 600


def test_the_mkl_path_makes_products_faster():
    vendor, flags = runtime_module._cpu_flags()
    if vendor != "AuthenticAMD" or "avx512f" not in flags:
        pytest.skip("只有带 AVX-512 的 AMD CPU 差得够多")
    code = """
import json, time, paddle
from paddle_vit.system.runtime import setup_runtime
settings = setup_runtime("cpu", 1)
x = paddle.randn([1024, 1024])
def seconds():
    start = time.perf_counter()
    paddle.matmul(x, x)
    return time.perf_counter() - start
print(json.dumps(min(seconds() for _ in range(15))))
"""
    assert run_code(code, MKL_DEBUG_CPU_TYPE="0") > 1.5 * run_code(code)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="别的系统上看不到这些变量")
@pytest.mark.parametrize("quiet, expected", [({}, ""), ({"GLOG_minloglevel": "0"}, "oneDNN")])
def test_paddles_info_lines_are_silenced(quiet, expected):
    code = (
        "from paddle_vit.system.runtime import setup_runtime\nsetup_runtime('cpu')\n"
        "import paddle\npaddle._legacy_C_ops.gelu(paddle.ones([4]), 'approximate', False, 'use_mkldnn', True)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "GLOG_minloglevel"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**environ, **quiet}, cwd=ROOT, check=True
    )
    assert (expected in done.stderr) and (expected or done.stderr == "")


def test_what_does_not_apply_is_said(monkeypatch):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setattr(runtime_module, "_cpu_flags", lambda: ("GenuineIntel", {"avx2", "fma"}))
    monkeypatch.setattr(runtime_module.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(runtime_module, "paddle_library", lambda *names: None)
    settings = setup_runtime("cpu")
    assert settings["threads"] is settings["mkl_path"] is settings["malloc"] is None
    assert set(settings["skipped"]) == {"threads", "mkl_path", "malloc"}
    text = describe_runtime(settings)
    assert "不是 AMD" in text and "不是 glibc" in text and "OMP_NUM_THREADS" in text and "\n" not in text


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="这台机器的 Paddle 支持 GPU")
def test_a_missing_gpu_is_a_clear_error():
    with pytest.raises(UserError, match="--device cpu"):
        setup_runtime("gpu")
    with pytest.raises(UserError, match="tpu"):
        setup_runtime("tpu")


def test_precision():
    assert autocast_dtype("auto", "cpu") is None
    assert autocast_dtype("float32", "gpu") is None
    assert autocast_dtype("float16", "gpu") == "float16"
    with pytest.raises(UserError, match="GPU"):
        autocast_dtype("bfloat16", "cpu")


def test_the_description_is_one_line():
    settings = dict(
        device="cpu", threads=2, mkl_path="7", malloc=True, stride_kernel=False, skipped={}, rank=0, processes=2
    )
    text = describe_runtime(settings)
    assert "\n" not in text and all(word in text for word in ("线程 2", "AVX-512", "2 个进程"))


OWN_PROGRAM = """
import paddle
from paddle_vit import ViT
model = ViT(image_size=8, patch_size=2, in_channels=1, embed_dim=16, depth=1)
model(paddle.randn([2, 1, 8, 8])).sum().backward()
model.eval()
with paddle.no_grad():
    model(paddle.randn([2, 1, 8, 8]))
"""


def test_an_own_program_prints_nothing():
    environ = {name: value for name, value in os.environ.items() if name != "GLOG_minloglevel"}
    command = [sys.executable, "-W", "ignore", "-c", OWN_PROGRAM]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
