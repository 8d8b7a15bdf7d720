import threading

import numpy as np
import pytest

from paddle_vit.config import make_config
from paddle_vit.data.batches import evaluation_batches, one_ahead, training_batches
from paddle_vit.data.parts import ArrayPart
from paddle_vit.data.sources import load_data
from paddle_vit.errors import UserError


@pytest.mark.parametrize("n, batch, world", [(10, 4, 1), (10, 3, 2), (7, 64, 3), (5, 5, 1)])
def test_evaluation_uses_each_image_once(n, batch, world):
    data = load_data(make_config({}))
    part = ArrayPart(data.test.images[:n], data.test.labels[:n])
    seen = [
        i
        for rank in range(world)
        for indices, _ in evaluation_batches(part, data.info, batch, rank, world)
        for i in indices
    ]
    assert sorted(seen) == list(range(n))


def test_training_batches_are_the_same_from_any_step_and_any_process_count():
    data = load_data(make_config({}))
    settings = {"batch_size": 128, "crop_padding": 1, "mixup": 0.4, "random_erasing": 0.5, "rand_augment": 2, "seed": 3}
    config = make_config(settings)
    whole = list(training_batches(data.train, config, data.info, epoch=2))
    assert len(whole) == 1295 // 128
    later = list(training_batches(data.train, config, data.info, epoch=2, start=7))
    for ours, reference in zip(later, whole[7:]):
        np.testing.assert_array_equal(ours[0], reference[0])
    for rank in range(2):
        for ours, reference in zip(training_batches(data.train, config, data.info, 2, 0, rank, 2), whole):
            np.testing.assert_array_equal(ours[0], reference[0][rank::2])
            np.testing.assert_array_equal(ours[1], reference[1][rank::2])
    other = next(training_batches(data.train, config, data.info, epoch=3))
    assert not np.array_equal(other[0], whole[0][0])


def test_targets_are_smoothed():
    data = load_data(make_config({}))
    _, targets = next(training_batches(data.train, make_config({"label_smoothing": 0.1}), data.info, 0))
    np.testing.assert_allclose(np.sort(targets, axis=1)[:, -1], 0.91, atol=1e-6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)


def test_a_part_smaller_than_a_batch_is_one_batch():
    data = load_data(make_config({}))
    part = ArrayPart(data.train.images[:10], data.train.labels[:10])
    batches = list(training_batches(part, make_config({"batch_size": 64}), data.info, 0))
    assert [len(images) for images, _ in batches] == [10]


def test_folder_batches_do_not_depend_on_the_workers(picture_folder):
    settings = {"dataset": "folder", "data_dir": str(picture_folder), "image_size": 16, "batch_size": 4}
    settings.update(crop_scale=0.5, flip=True, rand_augment=1)
    results = []
    for workers in (0, 2):
        config = make_config({**settings, "workers": workers})
        data = load_data(config)
        results.append(np.concatenate([images for images, _ in training_batches(data.train, config, data.info, 0)]))
    np.testing.assert_array_equal(*results)


def test_random_streams_differ():
    from paddle_vit.data.batches import _rng

    firsts = [_rng(0, *key).random() for key in (("order", 0), ("order", 1), ("augment", 0, 0), ("augment", 0, 1))]
    firsts += [_rng(0, "mix", 0, 0).random(), _rng(1, "order", 0).random()]
    assert len(set(firsts)) == len(firsts)


def test_the_next_item_is_made_while_one_is_in_use():
    made, threads = [threading.Event() for _ in range(4)], []

    def items():
        for number, event in enumerate(made):
            threads.append(threading.current_thread() is threading.main_thread())
            event.set()
            yield number

    for number in one_ahead(items()):
        if number < 3:
            assert made[number + 1].wait(60)  # 手上的还没有用完,下一个已经做好
        assert number >= 2 or not made[number + 2].is_set()  # 只提前一个
    assert number == 3 and threads == [True, False, False, False]


def test_an_error_in_the_next_item_comes_after_this_one():
    def items():
        yield 1
        raise UserError("坏图")

    got = []
    with pytest.raises(UserError, match="坏图"):
        for item in one_ahead(items()):
            got.append(item)
    assert got == [1] and list(one_ahead(iter([]))) == []


def test_stopping_early_leaves_no_thread():
    before, items = threading.active_count(), one_ahead(iter(range(10)))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before
