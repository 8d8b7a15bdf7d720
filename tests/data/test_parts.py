import numpy as np
import pytest

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data.parts import stratified_split
from paddle_vit.data.sources import load_data


def pixels_of(part):
    return np.concatenate(list(part.fetch([(np.arange(len(part)), None)])))


def test_parts_do_not_depend_on_the_training_seed():
    first, second = (load_data(make_config({"seed": seed})) for seed in (0, 1))
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(pixels_of(getattr(first, name)), pixels_of(getattr(second, name)))


def test_stratified_split():
    labels = np.repeat([0, 1, 2], [100, 50, 3])
    first, second = stratified_split(labels, 0.1)
    assert sorted([*first, *second]) == list(range(153))
    assert np.bincount(labels[second]).tolist() == [10, 5, 1]
    with pytest.raises(UserError, match="1 张"):
        stratified_split([0, 0, 1], 0.1)
