import paddle
import pytest

from paddle_vit import UserError, count_parameters, create_model, list_models
from paddle_vit.models import full_name

# 论文、timm 和 torchvision 公布的参数个数(1000 类,class token,可学习的位置编码)
PUBLISHED = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch32_224": 22_878_952,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch16_384": 86_859_496,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch32_224": 306_535_400,
    "vit_huge_patch14_224": 632_045_800,
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "huge" not in name])
def test_published_parameter_counts(name):
    assert count_parameters(create_model(name)) == PUBLISHED[name]


@pytest.mark.slow
def test_published_parameter_count_of_huge():
    assert count_parameters(create_model("vit_huge_patch14_224")) == PUBLISHED["vit_huge_patch14_224"]


@pytest.mark.parametrize(
    "short, full",
    [
        ("vit", "vit"),
        ("vit_base", "vit_base_patch16_224"),
        ("vit_huge", "vit_huge_patch14_224"),
        ("vit_base_gap", "vit_base_patch16_gap_224"),
        ("deit_small", "deit_small_patch16_224"),
        ("deit_small_distilled", "deit_small_distilled_patch16_224"),
        ("deit_base_distilled_patch16_384", "deit_base_distilled_patch16_384"),
    ],
)
def test_short_names(short, full):
    assert full_name(short) == full and full in list_models()


def test_overrides():
    model = create_model("vit_tiny", depth=1, num_classes=7, image_size=32)
    assert model(paddle.zeros([1, 3, 32, 32])).shape == [1, 7]


@pytest.mark.parametrize(
    "name, overrides, words",
    [
        ("vit_giant", {}, ("vit_giant", "vit_tiny")),
        ("deit_tinny", {}, ("deit_tinny", "是不是 deit_tiny?")),
        ("vit_tiny", {"dept": 1}, ("dept", "是不是 depth?")),
        ("vit_tiny", {"zzz": 1}, ("zzz", "depth", "num_heads")),
    ],
)
def test_errors(name, overrides, words):
    with pytest.raises(UserError) as error:
        create_model(name, **overrides)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
