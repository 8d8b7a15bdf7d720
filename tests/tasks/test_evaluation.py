import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from support.toys import INFO, small_model, toy_part

from paddle_vit.tasks.evaluation import Evaluation, evaluate


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_evaluation_does_not_depend_on_the_batch(batch_size):
    model, part = small_model(dropout=0.5), toy_part(10)
    result = evaluate(model, part, INFO, batch_size)
    images = ((part.images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype("float32")
    model.eval()
    logits = model(paddle.to_tensor(images))
    losses = F.cross_entropy(logits, paddle.to_tensor(part.labels), reduction="none").numpy().ravel()
    np.testing.assert_allclose(result.losses, losses, atol=1e-5)
    assert result.top1 == (logits.numpy().argmax(axis=1) == part.labels).mean()
    assert result.top5 == 1.0  # 只有三类
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-5)


def test_evaluation_metrics():
    result = Evaluation(
        labels=np.array([0, 1, 2, 2]),
        losses=np.array([1.0, 2.0, 3.0, 6.0]),
        classes=np.array([[0, 1], [0, 1], [2, 0], [0, 1]]),
        probabilities=np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.2], [0.8, 0.1]]),
    )
    assert (result.loss, result.top1, result.top5) == (3.0, 0.5, 0.75)
    assert result.confusion(3).tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert result.worst(5).tolist() == [3, 1]


def test_evaluation_keeps_the_mode():
    model = small_model(dropout=0.5)
    for mode in ("train", "eval"):
        getattr(model, mode)()
        evaluate(model, toy_part(10), INFO, 4)
        assert model.training == (mode == "train")


def test_balanced_accuracy_counts_every_class_alike():
    """第 0 类 8 张对了 8 张,第 2 类 2 张对了 1 张,第 1 类没有图像:(1 + 0.5) / 2。"""
    labels = np.array([0] * 8 + [2] * 2)
    guesses = np.array([[0, 1]] * 8 + [[2, 0], [0, 2]])
    result = Evaluation(labels, np.ones(10), guesses, np.full((10, 2), 0.5))
    assert (result.top1, result.top1_balanced) == (0.9, 0.75)
    np.testing.assert_array_equal(result.recall(4), [1, np.nan, 0.5, np.nan])
    assert result.measures["top1_balanced"] == 0.75


def test_balanced_accuracy_equals_the_mean_recall_of_the_confusion_matrix():
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 5, 200), rng.integers(0, 5, (200, 2))
    result = Evaluation(labels, np.ones(200), guesses, np.ones((200, 2)))
    confusion = result.confusion(5)
    assert result.top1_balanced == pytest.approx((confusion.diagonal() / confusion.sum(axis=1)).mean())
