"""Muon:正交化与奇异值分解比,更新与 NumPy 写的公式比,没有用到它的参数与 AdamW 比,续训逐位相同。"""

import signal

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from support.results import assert_same_end
from support.running import TINY, finish, run_script, start_training, wait_for

from paddle_vit import ViT, create_model
from paddle_vit.config import make_config
from paddle_vit.training.optimizer import make_optimizer
from paddle_vit.training.update import AdamW, Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (4, 20), (30, 8), (1, 5)])
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    got = orthogonal(paddle.to_tensor(matrix.astype("float32"))).numpy()
    inside = u.T @ got @ v.T  # 在奇异向量的坐标里
    off = inside - np.diag(np.diag(inside))
    assert np.abs(off).max() < 1e-4
    assert np.diag(inside).min() > 0.6 and np.diag(inside).max() < 1.3
    assert len(values) == 1 or values.max() / values.min() > 1.5


def newton_schulz(x):
    turned = x.T if x.shape[0] > x.shape[1] else x
    turned = turned / np.linalg.norm(turned)
    for _ in range(5):
        u, s, v = np.linalg.svd(turned, full_matrices=False)
        turned = u @ np.diag(3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5) @ v
    return turned.T if x.shape[0] > x.shape[1] else turned


def steps_of(model, optimizer, count=3):
    """几步的梯度(字典的列表)和每步之后的参数。"""
    paddle.seed(3)
    images, labels = paddle.randn([6, 1, 8, 8]), paddle.to_tensor([0, 1, 2, 0, 1, 2])
    gradients, values = [], []
    for _ in range(count):
        F.cross_entropy(model(images), labels).backward()
        gradients.append({name: p.grad.numpy().astype("float64") for name, p in model.named_parameters()})
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        values.append({name: p.numpy().astype("float64") for name, p in model.named_parameters()})
    return gradients, values


def small_model():
    paddle.seed(0)
    sizes = dict(image_size=8, patch_size=4, in_channels=1, embed_dim=12, depth=2, num_heads=2, num_classes=3)
    return ViT(**sizes, qkv_bias=True)


def test_the_update_is_the_formula():
    model = small_model()
    before = {name: p.numpy().astype("float64") for name, p in model.named_parameters()}
    config = make_config({"optimizer": "muon", "lr": 0.01, "weight_decay": 0.1})
    gradients, values = steps_of(model, make_optimizer(model, config))
    for name in ("encoders.0.attn.qkv.weight", "encoders.1.attn.proj.weight", "encoders.0.mlp.fc1.weight"):
        weight, momentum = before[name], 0.0
        for gradient, after in zip(gradients, values):
            momentum = 0.95 * momentum + gradient[name]
            change = gradient[name] + 0.95 * momentum
            pieces = np.split(change, 3, axis=1) if "qkv" in name else [change]
            turned = [newton_schulz(piece) * 0.2 * np.sqrt(max(piece.shape)) for piece in pieces]
            weight = weight * (1 - 0.01 * 0.1) - 0.01 * np.concatenate(turned, axis=1)
            np.testing.assert_allclose(after[name], weight, rtol=2e-3, atol=2e-5, err_msg=name)
            weight = after[name]


def test_the_first_step_of_the_others_is_adamw():
    models = {"muon": small_model(), "adamw": small_model()}
    values = {}
    for name, model in models.items():
        optimizer = make_optimizer(model, make_config({"optimizer": name, "lr": 0.01}))
        assert isinstance(optimizer, Muon if name == "muon" else AdamW)
        values[name] = steps_of(model, optimizer, 1)[1][0]
    moved = {name for name in values["muon"] if not np.allclose(values["muon"][name], values["adamw"][name], atol=1e-7)}
    inner = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert moved == {f"encoders.{i}.{name}" for i in (0, 1) for name in inner}


@pytest.mark.parametrize("name", ["vit_tiny", "swin_tiny"])
def test_every_matrix_inside_a_block_and_nothing_else(name):
    with paddle.LazyGuard():
        model = create_model(name)
    used = make_optimizer(model, make_config({"optimizer": "muon"}))._matrices
    names = {parameter.name: full for full, parameter in model.named_parameters()}
    chosen = {names[parameter] for parameter in used}
    blocks = [
        full for full, p in model.named_parameters() if ("encoders." in full or ".blocks." in full) and p.ndim == 2
    ]
    assert chosen == {full for full in blocks if "bias_table" not in full}
    assert {names[key] for key, parts in used.items() if parts == 3} == {n for n in chosen if n.endswith("qkv.weight")}


def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path):
    arguments = [*TINY, "--optimizer", "muon"]
    run_script("train", *arguments, "--output", tmp_path / "whole", check=0)
    process = start_training(*arguments, "--output", tmp_path / "cut")
    wait_for((tmp_path / "cut" / "last.safetensors").exists, process)
    finish(process, signal.SIGKILL)
    run_script("train", "--resume", tmp_path / "cut", check=0)
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
