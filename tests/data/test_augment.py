import numpy as np
import pytest
from PIL import Image

from paddle_vit import UserError
from paddle_vit.config import Config
from paddle_vit.data import augment


def test_random_crop_shifts_by_its_numbers():
    images = np.arange(2 * 3 * 4 * 1, dtype="uint8").reshape(2, 3, 4, 1) + 1
    out = augment.random_crop(images, 1, np.array([[0.0, 0.0], [0.5, 0.99]]))
    np.testing.assert_array_equal(out[0, 1:, 1:], images[0, :-1, :-1])  # 起点 (0, 0):内容右下移一格
    assert not out[0, 0].any() and not out[0, :, 0].any()
    np.testing.assert_array_equal(out[1, :, :-1], images[1, :, 1:])  # 起点 (1, 2):左移一格
    assert not out[1, :, -1].any()


def test_random_flip_flips_half():
    images = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 1), "uint8")
    out = augment.random_flip(images, np.array([0.49, 0.5]))
    np.testing.assert_array_equal(out[0], images[0, :, ::-1])
    np.testing.assert_array_equal(out[1], images[1])


def test_random_erasing_erases_the_stated_share():
    rng = np.random.default_rng(0)
    images = np.ones((4000, 2, 16, 16), "float32")
    out = augment.random_erasing(images, 0.25, rng.random((4000, 5)))
    erased = (out == 0).reshape(4000, -1).mean(axis=1)
    assert abs((erased > 0).mean() - 0.25) < 0.02
    assert 0.1 < erased[erased > 0].mean() < 0.2  # 2 %–33 % 的平均是 17.5 %,长条碰到边时少一些
    assert erased.max() < 0.4


def test_random_resized_crop_covers_the_stated_area():
    pixels = np.arange(40, dtype="uint8")[None, :].repeat(30, axis=0)
    for numbers in np.random.default_rng(0).random((50, 4)):
        out = np.asarray(augment.random_resized_crop(Image.fromarray(pixels), 16, 0.25, numbers))
        assert out.shape == (16, 16)
        width = (int(out.max()) - int(out.min()) + 2) / 40
        assert width >= 0.25**0.5 * 0.75
    whole = augment.random_resized_crop(Image.new("L", (10, 10), 7), 10, 1.0, np.array([0, 0.5, 0, 0]))
    assert set(np.asarray(whole).ravel()) == {7}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_rand_augment_operations(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), "uint8")).convert(mode)
    changed = set()
    for kind, (name, operation) in enumerate(augment._RAND_AUGMENT.items()):
        numbers = np.array([(kind + 0.5) / len(augment._RAND_AUGMENT), 0.0, 1.0])
        out = augment.rand_augment(image, 1, 9.0, numbers)
        assert (out.size, out.mode) == (image.size, mode)
        np.testing.assert_array_equal(np.asarray(out), np.asarray(operation(image, 0.9, 1)))
        if (np.asarray(out) != np.asarray(image)).any():
            changed.add(name)
    same = set(augment._RAND_AUGMENT) - changed
    assert same == ({"identity", "color"} if mode == "L" else {"identity"}) | (same & {"auto_contrast"})


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
def test_geometric_operations_keep_the_centre(name):
    pixels = np.zeros((21, 21), "uint8")
    pixels[9:12, 9:12] = 200
    out = np.asarray(augment._RAND_AUGMENT[name](Image.fromarray(pixels), 0.9, -1))
    assert out[10, 10] == 200


def test_normalize_is_the_formula():
    images = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 3), "uint8")
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    out = augment.normalize(images, mean, std)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_mixup_mixes_images_and_labels_alike():
    images, targets = np.random.default_rng(0).random((6, 1, 2, 2)).astype("float32"), np.eye(6, dtype="float32")
    mixed, labels = augment.mix_batch(images, targets, 1.0, 0.0, np.random.default_rng(3))
    keep = labels[0, 0]
    assert 0 < keep < 1
    np.testing.assert_allclose(labels, keep * targets + (1 - keep) * np.roll(targets, 3, axis=0), atol=1e-6)
    np.testing.assert_allclose(mixed, np.einsum("ij,jchw->ichw", labels, images), atol=1e-6)


def test_cutmix_labels_are_the_areas():
    images = np.arange(4, dtype="float32")[:, None, None, None] * np.ones((1, 1, 16, 16), "float32")
    for seed in range(20):
        mixed, labels = augment.mix_batch(images, np.eye(4, dtype="float32"), 0.0, 1.0, np.random.default_rng(seed))
        for i in range(4):
            share = [(mixed[i] == j).mean() for j in range(4)]
            np.testing.assert_allclose(labels[i], share, atol=1e-6)


def test_mixing_does_not_depend_on_the_number_of_processes():
    images, targets = np.random.default_rng(0).random((8, 1, 4, 4)).astype("float32"), np.eye(8, dtype="float32")
    whole = augment.mix_batch(images, targets, 0.5, 0.5, np.random.default_rng(1))
    for rank in range(2):
        part = augment.mix_batch(images[rank::2], targets[rank::2], 0.5, 0.5, np.random.default_rng(1))
        for ours, all_of_them in zip(part, whole):
            np.testing.assert_array_equal(ours, all_of_them[rank::2])


def test_without_settings_nothing_changes():
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 1), "uint8")
    numbers = np.random.default_rng(0).random((2, augment.NUMBERS))
    out = augment.augment_batch(images, Config(), [0.0], [1.0], numbers)
    np.testing.assert_allclose(out, images.transpose(0, 3, 1, 2) / 255, atol=1e-6)
    image = Image.fromarray(images[0, ..., 0])
    assert augment.augment_image(image, 8, Config(), numbers[0]) is image


def test_pixels_come_back_from_normalized_images():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 2), "uint8")
    mean, std = (0.1, 0.5), (0.2, 0.3)
    inputs = augment.normalize(images, mean, std)
    np.testing.assert_array_equal(augment.to_pixels(inputs, mean, std), images)
    assert augment.to_pixels(inputs + 10, mean, std).min() == 255  # 超出范围的取最近的


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 8), (8, 8, 3), (2, 8, 8)])
def test_normalize_refuses_what_is_no_batch_with_channels_last(shape):
    with pytest.raises(UserError, match=r"应为 \[B, H, W, 3\]"):
        augment.normalize(np.zeros(shape, "uint8"), [0.5] * 3, [0.5] * 3)
