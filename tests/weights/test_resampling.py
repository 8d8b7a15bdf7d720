from pathlib import Path

import numpy as np
import pytest
from images import image_batch

from paddle_vit.weights.resampling import bicubic_matrix, resize_bias_table, resize_patch_kernel, resize_positions

REFERENCE = Path(__file__).parents[1] / "reference"

RESIZED = dict(np.load(REFERENCE / "resize.npz"))


def sizes(key):
    """'position 14x14 24x24' -> ((14, 14), (24, 24))。"""
    return [tuple(map(int, size.split("x"))) for size in key.split()[1:]]


@pytest.mark.parametrize("key", sorted(RESIZED))
def test_the_reference_implementations(key):
    old, new = sizes(key)
    expected = RESIZED[key]
    if key.startswith("position"):
        table = image_batch(1, 2, *old)[0].reshape(2, -1).T  # [N, D]
        given, expected = resize_positions(table, old, new), expected[0, 1:]
    elif key.startswith("bias"):
        table = image_batch(1, 2, *old)[0].reshape(2, -1).T
        given = resize_bias_table(table, new[0] * new[1])
    else:
        given = resize_patch_kernel(image_batch(2, 3, *old), new)
    assert given.dtype == np.float32 and given.shape == expected.shape
    assert np.abs(given - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("antialias", [True, False])
def test_bicubic_interpolation_in_closed_form(antialias):
    matrix = bicubic_matrix(12, 12, antialias)
    np.testing.assert_allclose(matrix, np.eye(12), atol=1e-12)
    for new in (5, 30):
        np.testing.assert_allclose(bicubic_matrix(12, new, antialias).sum(axis=1), 1)
    line = bicubic_matrix(40, 20, antialias) @ np.arange(40.0)  # 直线放在两倍的间隔上仍是直线,两端除外
    np.testing.assert_allclose(line[4:-4], 2 * np.arange(20.0)[4:-4] + 0.5, atol=1e-10)


def test_an_enlarged_patch_gives_the_same_token():
    """FlexiViT 的性质:卷积核与图块一起放大,token 不变。"""
    rng = np.random.default_rng(0)
    kernel, patch = rng.normal(size=(4, 1, 8, 8)), rng.normal(size=(8, 8))
    matrix = bicubic_matrix(8, 16, antialias=True)
    larger = matrix @ patch @ matrix.T
    tokens = np.einsum("dchw,hw->d", kernel, patch)
    np.testing.assert_allclose(
        np.einsum("dchw,hw->d", resize_patch_kernel(kernel, (16, 16)), larger), tokens, atol=1e-4
    )
