"""类别不平衡:加重少的类、各类抽一样多,少的类就认得出来。"""

import dataclasses
import json

import numpy as np
import paddle
import pytest
from support.running import TINY, run_here
from support.toys import INFO, ToyData, small_model, toy_part

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.runs.train import train
from paddle_vit.tasks.classification import Classification, balanced_weights, label_objective
from paddle_vit.tasks.distillation import Distillation
from paddle_vit.tasks.task import Task
from paddle_vit.training.loop import Trainer


def dim_and_bright(count, share):
    """三类,亮度不同,很难分;第三类只占 share。"""
    rng = np.random.default_rng(count)
    labels = rng.choice(3, count, p=[(1 - share) / 2, (1 - share) / 2, share])
    pixels = rng.normal(90 + 12 * labels[:, None, None, None], 60, (count, 8, 8, 1))
    from paddle_vit.data.parts import ArrayPart  # 测试里只有这里用

    return ArrayPart(np.clip(pixels, 0, 255).astype("uint8"), labels)


class Imbalanced(ToyData):
    info = dataclasses.replace(INFO, counts={"train": 1200, "val": 300, "test": 300})
    train, val, test = dim_and_bright(1200, 0.03), dim_and_bright(300, 0.2), dim_and_bright(301, 0.2)


def trained(tmp_path, **settings):
    paddle.seed(0)
    config = make_config({"batch_size": 60, "label_smoothing": 0.0, "attention_images": 0, **settings})
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_weights(Imbalanced.train.labels, 3)
    objective = lambda *args: label_objective(*args, weights=weights)
    made = Trainer(small_model(embed_dim=16), Classification(Imbalanced, config, objective), config, tmp_path)
    made.model.train()
    for epoch in range(4):
        for batch in made.task.batches(epoch):
            made.train_step(batch, 0.005)
    return made.evaluate("val")


@pytest.mark.parametrize("settings", [{"class_weights": "balanced"}, {"balanced_sampling": True}], ids=str)
def test_the_small_class_is_recognised(tmp_path, settings):
    plain, balanced = trained(tmp_path), trained(tmp_path, **settings)
    assert plain.recall(3)[2] < 0.2 and balanced.recall(3)[2] > 0.35
    assert balanced.top1_balanced > plain.top1_balanced


def test_the_best_epoch_is_chosen_by_the_balanced_accuracy(tmp_path):
    plain = Classification(ToyData, make_config({}))
    caring = Classification(ToyData, make_config({"balanced_sampling": True}))
    assert (plain.best, caring.best) == ("top1", "top1_balanced")
    assert caring.is_better(0.6, 0.5) and not caring.is_better(0.4, 0.5)
    assert "平衡正确率" in caring.describe()[-1] and "平衡正确率" not in plain.describe()[-1]


def test_a_run_shows_it_everywhere(tmp_path):
    run = tmp_path / "run"
    args = [*TINY, "--epochs", "1", "--class-weights", "balanced", "--attention-images", "0"]
    done = run_here("train", *args, "--output", run)
    assert done.returncode == 0 and "平衡正确率" in done.stdout
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert 0 <= summary["test_top1_balanced"] <= 1 and 0 <= summary["val_top1_balanced"] <= 1
    from support.results import read_metrics, read_scalars  # 要 visualdl

    assert read_scalars(run, "top1_balanced/val") == [(1, pytest.approx(read_metrics(run)[0]["val_top1_balanced"]))]
    recalls = [read_scalars(run, f"recall/{digit}")[0][1] for digit in range(10)]
    assert np.mean(recalls) == pytest.approx(summary["val_top1_balanced"])
    done = run_here("evaluate", run, "--engine", "eager")
    assert f"平衡正确率 {summary['test_top1_balanced']:.2%}" in done.stdout


def test_a_teacher_and_weights_together():
    """蒸馏时,标签那一项照样加权。"""
    paddle.seed(0)
    student, teacher = small_model(), small_model()
    images, targets = paddle.randn([6, 1, 8, 8]), paddle.to_tensor(np.eye(3, dtype="float32")[[0, 0, 1, 1, 2, 2]])
    weights = paddle.to_tensor([0.5, 1.0, 3.0])
    for model in (student, teacher):
        model.eval()
    _, both = Distillation(teacher, INFO, INFO, alpha=0.4, weights=weights)(student, images, targets)
    _, taught = Distillation(teacher, INFO, INFO, alpha=1.0)(student, images, targets)
    _, labelled = label_objective(student, images, targets, weights)
    np.testing.assert_allclose(float(both), 0.6 * float(labelled) + 0.4 * float(taught), rtol=1e-5)


def test_an_own_task_weighs_its_own_loss():
    with pytest.raises(UserError, match="--class-weights"):
        train(make_config({"class_weights": "balanced"}), small_model(), Task)


def test_equal_counts_change_nothing():
    labels = toy_part(30).labels
    np.testing.assert_allclose(balanced_weights(labels, 3).numpy(), 1)
