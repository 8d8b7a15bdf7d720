"""各类抽一样多,和按张数加权的损失。"""

import numpy as np
import paddle
import pytest
from support.toys import INFO

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data.batches import training_batches
from paddle_vit.data.parts import ArrayPart
from paddle_vit.tasks.classification import balanced_weights, label_loss

COUNTS = (90, 24, 6)
LABELS = np.repeat([0, 1, 2], COUNTS)


def part(labels=LABELS):
    """像素就是图像的号码,认得出是哪一张。"""
    images = np.zeros((len(labels), 8, 8, 1), "uint8")
    images[:] = np.arange(len(labels))[:, None, None, None]
    return ArrayPart(images, labels)


def drawn(epoch, labels=LABELS, start=0, rank=0, world=1, **settings):
    config = make_config({"balanced_sampling": True, "batch_size": 12, **settings})
    info = INFO.__class__(**{**vars(INFO), "mean": (0.0,), "std": (1 / 255,)})
    batches = training_batches(part(labels), config, info, epoch, start, rank, world)
    return [np.rint(images[:, 0, 0, 0]).astype(int) for images, _ in batches]


def test_each_class_is_drawn_equally_often():
    rows = np.concatenate(drawn(0))
    assert len(rows) == sum(COUNTS) and np.bincount(LABELS[rows]).tolist() == [40, 40, 40]
    assert set(rows[LABELS[rows] == 2]) == set(range(114, 120))  # 少的类每张都用到,而且一样多
    assert max(np.bincount(rows)[114:]) - min(np.bincount(rows)[114:]) <= 1
    assert len(set(rows[LABELS[rows] == 0])) == 40  # 多的类没有重复


def test_another_epoch_draws_other_images_and_a_resumed_one_the_same():
    first, second = np.concatenate(drawn(0)), np.concatenate(drawn(1))
    assert set(first[LABELS[first] == 0]) != set(second[LABELS[second] == 0])
    for ours, whole in zip(drawn(0, start=4), drawn(0)[4:]):
        np.testing.assert_array_equal(ours, whole)
    for rank in range(2):
        for ours, whole in zip(drawn(0, rank=rank, world=2), drawn(0)):
            np.testing.assert_array_equal(ours, whole[rank::2])


def test_a_class_without_images_and_a_count_that_does_not_divide():
    labels = np.repeat([0, 2], [13, 3])
    rows = np.concatenate(drawn(0, labels, batch_size=16))
    assert np.bincount(labels[rows]).tolist() == [8, 0, 8]


def test_weights_are_inverse_to_the_counts():
    weights = balanced_weights(LABELS, 4).numpy()
    np.testing.assert_allclose(weights, [120 / 3 / 90, 120 / 3 / 24, 120 / 3 / 6, 0], rtol=1e-6)
    np.testing.assert_allclose(weights[LABELS].mean(), 1, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_equals_numpy(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((10, 3)).astype("float32"), rng.integers(0, 3, 10)
    targets = (np.eye(3)[labels] * (1 - smoothing) + smoothing / 3).astype("float32")
    weights = np.array([0.5, 1.0, 4.0], "float32")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = ((targets @ weights) * -(targets * log_p).sum(axis=1)).mean()
    tensors = [paddle.to_tensor(array) for array in (logits, targets, weights)]
    np.testing.assert_allclose(float(label_loss(*tensors)), expected, rtol=1e-5)
    plain = float(label_loss(*tensors[:2]))
    np.testing.assert_allclose(float(label_loss(*tensors[:2], paddle.ones([3]))), plain, rtol=1e-6)


def test_both_together_would_compensate_twice():
    with pytest.raises(UserError, match="补偿两次"):
        make_config({"balanced_sampling": True, "class_weights": "balanced"})
