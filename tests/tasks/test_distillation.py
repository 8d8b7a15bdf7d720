import dataclasses
import json
import shutil
import signal

import numpy as np
import paddle
import pytest
from PIL import Image
from support.results import assert_same_end
from support.running import TINY, assert_one_chinese_line, finish, run_here, run_script, start_training, wait_for

from paddle_vit import UserError, ViT
from paddle_vit.config import make_config
from paddle_vit.data.augment import normalize
from paddle_vit.data.info import DataInfo, load_info
from paddle_vit.runs.beginning import begin, load_distillation
from paddle_vit.runs.loading import load_run
from paddle_vit.tasks.classification import label_objective
from paddle_vit.tasks.distillation import Distillation, distillation_loss, teacher_input
from paddle_vit.weights.checkpoint import read_model, save_model

SMALL = dict(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)
CLASSES = ("猫", "狗", "鸟")
INFO = DataInfo("test", CLASSES, 1, 8, (0.3,), (0.2,), {})
DISTILLED = [*TINY, "--pool", "cls", "--distillation-token"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(seed, K=5):
    return np.random.default_rng(seed).standard_normal((7, K)).astype("float32") * 3


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_soft_loss_is_the_scaled_divergence(temperature):
    student, teacher = logits(0), logits(1)
    p, q = (softmax(x.astype("float64") / temperature) for x in (student, teacher))
    expected = temperature**2 * (q * (np.log(q) - np.log(p))).sum(-1).mean()
    found = distillation_loss(paddle.to_tensor(student), paddle.to_tensor(teacher), "soft", temperature)
    np.testing.assert_allclose(float(found), expected, rtol=1e-5)
    same = distillation_loss(paddle.to_tensor(teacher), paddle.to_tensor(teacher), "soft", temperature)
    assert abs(float(same)) < 1e-5


def test_the_hard_loss_is_the_cross_entropy_with_the_teachers_choice():
    student, teacher = logits(0), logits(1)
    expected = -np.log(softmax(student))[np.arange(7), teacher.argmax(-1)].mean()
    found = distillation_loss(paddle.to_tensor(student), paddle.to_tensor(teacher), "hard")
    np.testing.assert_allclose(float(found), expected, rtol=1e-5)


def test_the_gradient_of_the_soft_loss_does_not_shrink_with_the_temperature():
    norms = []
    for temperature in (10.0, 1000.0):
        student = paddle.to_tensor(logits(0), stop_gradient=False)
        distillation_loss(student, paddle.to_tensor(logits(1)), "soft", temperature).backward()
        norms.append(float(student.grad.norm()))
    np.testing.assert_allclose(norms[0], norms[1], rtol=0.2)


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_objective_equals_numpy(kind, distilled):
    teacher = ViT(**SMALL, position_embedding="learnable")
    student = ViT(**{**SMALL, "embed_dim": 16}, pool="cls", distillation_token=distilled)
    images, targets = paddle.randn([6, 1, 8, 8]), softmax(logits(2, 3)[:6])
    objective = Distillation(teacher, INFO, INFO, kind, alpha=0.3, temperature=2.0)
    prediction, loss = objective(student, images, paddle.to_tensor(targets))
    np.testing.assert_allclose(prediction.numpy(), student(images).numpy(), atol=1e-6)
    taught = teacher(images).numpy()
    mine, for_teacher = (x.numpy() for x in student.forward_heads(images)) if distilled else [prediction.numpy()] * 2
    label_loss = -(targets * np.log(softmax(mine))).sum(-1).mean()
    if kind == "hard":
        teacher_loss = -np.log(softmax(for_teacher))[np.arange(6), taught.argmax(-1)].mean()
    else:
        p, q = softmax(for_teacher / 2), softmax(taught / 2)
        teacher_loss = 4 * (q * np.log(q / p)).sum(-1).mean()
    np.testing.assert_allclose(float(loss), 0.7 * label_loss + 0.3 * teacher_loss, rtol=1e-5)


def test_the_teacher_is_frozen_and_does_not_drop_out():
    teacher, student = ViT(**SMALL, dropout=0.5), ViT(**SMALL)
    teacher.train()
    objective = Distillation(teacher, INFO, INFO)
    images, targets = paddle.randn([4, 1, 8, 8]), paddle.to_tensor(np.eye(3, dtype="float32")[[0, 1, 2, 0]])
    losses = [objective(student, images, targets)[1] for _ in range(2)]
    assert float(losses[0]) == float(losses[1])
    losses[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_each_head_learns_its_own_part():
    teacher, student = ViT(**SMALL), ViT(**SMALL, pool="cls", distillation_token=True)
    images, targets = paddle.randn([4, 1, 8, 8]), paddle.to_tensor(np.eye(3, dtype="float32")[[0, 1, 2, 0]])
    for alpha, silent, learning in ((0.0, "distillation_head", "head"), (1.0, "head", "distillation_head")):
        student.clear_gradients()
        Distillation(teacher, INFO, INFO, "hard", alpha)(student, images, targets)[1].backward()
        assert float(getattr(student, silent).weight.grad.abs().sum()) == 0
        assert float(getattr(student, learning).weight.grad.abs().sum()) > 0


def test_without_a_teacher_the_mean_of_the_heads_learns_the_labels():
    student = ViT(**SMALL, pool="cls", distillation_token=True)
    images, targets = paddle.randn([4, 1, 8, 8]), np.eye(3, dtype="float32")[[0, 1, 2, 0]]
    prediction, loss = label_objective(student, images, paddle.to_tensor(targets))
    mean = sum(x.numpy() for x in student.forward_heads(images)) / 2
    np.testing.assert_allclose(prediction.numpy(), mean, atol=1e-6)
    np.testing.assert_allclose(float(loss), -(targets * np.log(softmax(mean))).sum(-1).mean(), rtol=1e-5)


def test_the_teacher_sees_its_own_normalisation_and_size():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype="uint8")
    other = DataInfo("test", CLASSES, 1, 8, (0.5,), (0.4,), {})
    seen = teacher_input(paddle.to_tensor(normalize(pixels, INFO.mean, INFO.std)), INFO, other)
    np.testing.assert_allclose(seen.numpy(), normalize(pixels, other.mean, other.std), atol=1e-5)
    flat = np.full((1, 8, 8, 1), 77, "uint8")
    large = DataInfo("test", CLASSES, 1, 16, (0.5,), (0.4,), {})
    seen = teacher_input(paddle.to_tensor(normalize(flat, INFO.mean, INFO.std)), INFO, large)
    np.testing.assert_allclose(seen.numpy(), np.full([1, 1, 16, 16], (77 / 255 - 0.5) / 0.4), atol=1e-5)
    ramp = np.tile(np.arange(0, 256, 32, dtype="uint8"), (8, 1))  # 与 Pillow 的双三次插值相同(边缘除外)
    seen = teacher_input(paddle.to_tensor(normalize(ramp[None, ..., None], INFO.mean, INFO.std)), INFO, large)
    expected = np.asarray(Image.fromarray(ramp.astype("float32")).resize((16, 16), Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(seen.numpy()[0, 0, 4:-4, 4:-4] * 0.4 + 0.5, expected[4:-4, 4:-4], atol=0.01)


@pytest.mark.parametrize(
    "changes, word",
    [(dict(classes=("猫", "狗")), "2 类"), (dict(classes=("狗", "猫", "鸟")), "次序"), (dict(channels=3), "通道")],
)
def test_a_teacher_of_something_else(changes, word):
    with pytest.raises(UserError, match=word):
        Distillation(ViT(**SMALL), dataclasses.replace(INFO, **changes), INFO)


def distillation(settings, info):
    config = make_config(settings)
    return load_distillation(config, info, begin(config))


def test_bad_teachers(tiny_run, tmp_path):
    info = load_info(tiny_run / "data.json")
    tensors, model, saved = read_model(tiny_run / "best.safetensors")
    save_model(tmp_path / "other.safetensors", tensors, model, {**saved, "classes": list("abcdefghij")})
    (tmp_path / "text.safetensors").write_text("text")
    for name, word in (("none", "--teacher"), ("text.safetensors", "文本文件"), ("other.safetensors", "次序")):
        with pytest.raises(UserError, match=word):
            distillation({"teacher": str(tmp_path / name)}, info)
    assert distillation({"teacher": str(tiny_run), "distillation": "none"}, info) is None
    assert distillation({}, info) is None
    found = distillation({"teacher": str(tiny_run / "best.safetensors")}, info)
    assert (found.kind, found.alpha, found.temperature) == ("hard", 0.5, 3.0) and not found.teacher.training
    images = paddle.randn([2, 1, 8, 8])
    np.testing.assert_array_equal(found.teacher(images).numpy(), load_run(tiny_run).model(images).numpy())


@pytest.mark.slow
def test_distilling_in_training_and_resuming(tiny_run, tmp_path):
    teacher, whole, killed = tmp_path / "teacher", tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(tiny_run, teacher)
    args = [*DISTILLED, "--teacher", teacher, "--distillation", "soft", "--accumulate", "2", "--batch-size", "16"]
    args += ["--checkpoint-minutes", "0.0001", "--processes", "1"]
    done = run_script("train", *args, "--output", whole, check=0)
    assert "蒸馏(soft):老师" in done.stdout
    process = start_training(*args, "--output", killed)
    wait_for((killed / "last.safetensors").exists, process)
    finish(process, signal.SIGKILL)
    teacher.rename(tmp_path / "moved")
    assert_one_chinese_line(run_here("train", "--resume", killed), "--teacher", teacher)
    (tmp_path / "moved").rename(teacher)
    run_script("train", "--resume", killed, check=0)
    assert_same_end(whole, killed)
    shutil.rmtree(teacher)  # 训练完的运行用不到老师
    assert "训练已完成" in run_script("train", "--resume", killed, check=0).stdout
    assert load_run(whole).model.distillation_head.weight.shape == [8, 10]


@pytest.mark.slow
def test_two_processes_distil_like_one(tiny_run, tmp_path):
    args = [*DISTILLED, "--mixup", "0", "--dropout", "0", "--teacher", tiny_run]
    losses = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        run_script("train", *args, "--processes", processes, "--output", run, check=0)
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line)["train_loss"] for line in lines])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
