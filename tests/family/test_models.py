import time

import paddle
import pytest

from paddle_vit import UserError, ViT, count_parameters, create_model, list_models
from paddle_vit.family.models import full_name, is_head, model_class, model_settings
from paddle_vit.family.swin import SwinTransformer
from paddle_vit.runs.loading import load_model
from paddle_vit.weights import describe_weights
from paddle_vit.weights.checkpoint import save_model
from paddle_vit.weights.conversion import model_for

TINY = dict(image_size=8, patch_size=4, in_channels=1, num_classes=2, embed_dim=8, depth=1, num_heads=2)

# torchvision 文档里各个模型的 num_params;vit_b_16 就是这里的 vit_base_patch16_224,其余类推
TORCHVISION = {
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch32_224": 88_224_232,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch32_224": 306_535_400,
    "vit_huge_patch14_224": 632_045_800,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
}
# timm 的 results/results-imagenet.csv 里同名模型的 param_count,百万
TIMM = {
    "vit_tiny_patch16_224": 5.72,
    "vit_tiny_patch16_384": 5.79,
    "vit_small_patch16_224": 22.05,
    "vit_small_patch32_224": 22.88,
    "vit_small_patch16_384": 22.20,
    "vit_small_patch32_384": 22.92,
    "vit_base_patch16_224": 86.57,
    "vit_base_patch32_224": 88.22,
    "vit_base_patch8_224": 86.58,
    "vit_base_patch16_384": 86.86,
    "vit_base_patch32_384": 88.30,
    "vit_large_patch16_224": 304.33,
    "vit_large_patch16_384": 304.72,
    "vit_large_patch32_384": 306.63,
    "deit_tiny_patch16_224": 5.72,
    "deit_small_patch16_224": 22.05,
    "deit_base_patch16_224": 86.57,
    "deit_base_patch16_384": 86.86,
    "deit_tiny_distilled_patch16_224": 5.91,
    "deit_small_distilled_patch16_224": 22.44,
    "deit_base_distilled_patch16_224": 87.34,
    "deit_base_distilled_patch16_384": 87.63,
    "swin_tiny_patch4_window7_224": 28.29,
    "swin_small_patch4_window7_224": 49.61,
    "swin_base_patch4_window7_224": 87.77,
    "swin_base_patch4_window12_384": 87.90,
}
# timm 里用到这几个选项的模型,尺寸照它的 timm/models/vision_transformer.py,个数(百万)照同一张表
REGISTERS = dict(layer_scale=1e-5, norm_after_pool=True, qkv_bias=True)
TIMM_OPTIONS = {
    "vit_wee_patch16_reg1_gap_256": (
        13.42,
        dict(embed_dim=256, depth=14, num_heads=4, mlp_ratio=5, register_tokens=1, **REGISTERS),
    ),
    "vit_little_patch16_reg4_gap_256": (
        22.52,
        dict(embed_dim=320, depth=14, num_heads=5, mlp_ratio=5.6, register_tokens=4, **REGISTERS),
    ),
    "vit_medium_patch16_reg4_gap_256": (
        38.88,
        dict(embed_dim=512, depth=12, num_heads=8, register_tokens=4, **REGISTERS),
    ),
    "vit_medium_patch16_gap_256": (38.86, dict(embed_dim=512, depth=12, num_heads=8, layer_scale=1e-6)),
}
SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "huge": (1280, 32)}
SWIN_SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
NAMED = [name for name in list_models() if name != "vit" and not name.startswith("cct")]  # CCT 在 test_compact


def count(name, **overrides):
    """参数个数;不真的分配和初始化,huge 也只要一瞬间。"""
    with paddle.LazyGuard():
        return count_parameters(create_model(name, **overrides))


def block(D, hidden):
    """一层的参数:两个层归一化,qkv,proj,fc1,fc2。"""
    return 4 * D + (3 * D * D + 3 * D) + (D * D + D) + (D * hidden + hidden) + (hidden * D + D)


def closed_form(name):
    """由名字手算的参数个数,1000 类、3 通道。"""
    kind, size, *words = name.split("_")
    patch = next(int(word[5:]) for word in words if word.startswith("patch"))
    image, K = int(words[-1]), 1000
    if kind != "swin":
        D, L = SIZES[size]
        tokens = 0 if "gap" in words else 2 if "distilled" in words else 1
        heads = 2 if "distilled" in words else 1
        embedding = patch * patch * 3 * D + D + tokens * D + (tokens + (image // patch) ** 2) * D
        return embedding + L * block(D, 4 * D) + 2 * D + heads * (D * K + K)
    D, depths, num_heads = SWIN_SIZES[size]
    window = next(int(word[6:]) for word in words if word.startswith("window"))
    total = patch * patch * 3 * D + D + 2 * D
    for i, (depth, heads) in enumerate(zip(depths, num_heads)):
        total += depth * (block(D, 4 * D) + (2 * window - 1) ** 2 * heads)
        if i < 3:
            total += 2 * 4 * D + 4 * D * 2 * D
            D *= 2
    return total + 2 * D + D * K + K


@pytest.mark.parametrize("name", NAMED)
def test_parameter_counts_equal_the_published_ones(name):
    parameters = count(name)
    assert parameters == closed_form(name)
    assert TORCHVISION.get(name, parameters) == parameters
    if "gap" in name:  # 没有公布的;比有 class token 的少它和它的位置
        parameters += 2 * SIZES[name.split("_")[1]][0]
        name = name.replace("gap_", "")
    assert name in TIMM or name in TORCHVISION
    assert TIMM.get(name, round(parameters / 1e6, 2)) == round(parameters / 1e6, 2)


@pytest.mark.parametrize("name", TIMM_OPTIONS)
def test_options_equal_the_published_counts_of_models_that_use_them(name):
    published, options = TIMM_OPTIONS[name]
    settings = dict(image_size=256, patch_size=16, num_classes=1000, position_embedding="learnable", **options)
    assert round(count("vit", **settings) / 1e6, 2) == published


def test_lazily_built_models_have_the_same_count():
    assert count("deit_tiny_distilled") == count_parameters(create_model("deit_tiny_distilled")) > 0


@pytest.mark.parametrize(
    "short, full",
    [
        ("vit", "vit"),
        ("vit_tiny", "vit_tiny_patch16_224"),
        ("vit_base", "vit_base_patch16_224"),
        ("vit_huge", "vit_huge_patch14_224"),
        ("vit_base_gap", "vit_base_patch16_gap_224"),
        ("vit_base_patch16_gap_224", "vit_base_patch16_gap_224"),
        ("deit_small", "deit_small_patch16_224"),
        ("deit_base", "deit_base_patch16_224"),
        ("deit_small_distilled", "deit_small_distilled_patch16_224"),
        ("deit_base_distilled_patch16_384", "deit_base_distilled_patch16_384"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("swin_base", "swin_base_patch4_window7_224"),
    ],
)
def test_short_names(short, full):
    assert full_name(short) == full and full in list_models()
    assert model_settings(short) == model_settings(full)


def test_names_say_what_the_models_are():
    assert len(set(list_models())) == len(list_models())
    for name in NAMED:
        settings = model_settings(name)
        assert name.endswith(f"_{settings['image_size']}") and f"_patch{settings['patch_size']}_" in name
        if name.startswith("swin"):
            assert model_class(name) is SwinTransformer and f"_window{settings['window_size']}_" in name
            continue
        assert model_class(name) is ViT and settings["epsilon"] == 1e-6
        with paddle.LazyGuard():
            model = create_model(name, depth=1)
        assert (model.class_token is None) == ("_gap_" in name) == (model.pool == "avg")
        assert (model.distillation_token is not None) == ("_distilled_" in name)
        assert model.encoders[0].attn.num_heads == SIZES[name.split("_")[1]][0] // (80 if "huge" in name else 64)


def test_settings_are_a_copy():
    model_settings("vit_tiny")["depth"] = 99
    assert model_settings("vit_tiny")["depth"] == 12
    assert model_settings("vit") == {}


def test_overrides():
    model = create_model("vit_tiny", depth=1, num_classes=7, image_size=32)
    assert model(paddle.zeros([1, 3, 32, 32])).shape == [1, 7]
    model = create_model("deit_tiny_distilled", depth=1, num_classes=7, image_size=32, register_tokens=2)
    assert model(paddle.zeros([1, 3, 32, 32])).shape == [1, 7] and model.num_prefix_tokens == 4
    model = create_model("swin_tiny", embed_dim=12, depths=(1, 1), num_heads=(1, 2), image_size=28, num_classes=7)
    assert model(paddle.zeros([1, 3, 28, 28])).shape == [1, 7]


def test_head_parameters():
    with paddle.LazyGuard():
        models = [create_model(name) for name in ("vit", "deit_tiny_distilled", "swin_tiny")]
    heads = [[name for name, _ in model.named_parameters() if is_head(name)] for model in models]
    both = ["head.weight", "head.bias"], ["distillation_head.weight", "distillation_head.bias"]
    assert heads == [both[0], [*both[0], *both[1]], both[0]]


@pytest.mark.parametrize(
    "name, overrides, words",
    [
        ("vit_giant", {}, ("vit_giant", "vit_tiny", "swin_base", "deit_base_distilled")),
        ("deit_tinny", {}, ("deit_tinny", "是不是 deit_tiny?")),
        ("vit_base_patch16_225", {}, ("是不是 vit_base_patch16_224?",)),
        ("vit_", {}, ("vit_",)),
        ("", {}, ("''",)),
        (None, {}, ("None",)),
        ("vit_tiny", {"dept": 1}, ("vit_tiny_patch16_224", "dept", "是不是 depth?")),
        ("vit_tiny", {"zzz": 1}, ("zzz", "depth", "num_heads", "epsilon")),
        ("swin_tiny", {"depht": 1}, ("depht", "是不是 depths?")),
        ("vit_tiny", {"window_size": 7}, ("vit_tiny_patch16_224", "window_size", "请去掉")),
        ("swin_tiny", {"depth": 1}, ("swin_tiny_patch4_window7_224 没有 depth", "请去掉", "depths")),
        ("swin_tiny", {"pool": "cls"}, ("swin_tiny_patch4_window7_224", "pool", "window_size")),
        ("deit_tiny_distilled", {"pool": "avg"}, ("distillation", "pool='cls'")),
        ("vit_tiny", {"num_classes": "3"}, ("num_classes='3'", "应为整数")),
        ("vit_tiny", {"layer_scale": "x"}, ("layer_scale='x'", "应为数")),
        ("swin_tiny", {"depths": "2,2"}, ("depths='2,2'", "一列整数")),
    ],
)
def test_errors(name, overrides, words):
    with pytest.raises(UserError) as error:
        create_model(name, **overrides)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 10**9},
        {"embed_dim": 10**6},
        {"image_size": 10**9},
        {"image_size": 10**30},
        {"num_classes": 10**9},
        {"register_tokens": 10**9},
        {"mlp_ratio": 1e9},
        {"mlp_ratio": float("nan")},
        {"class_token": 10**9},
        {"qk_scale": "x"},
        {"position_std": []},
        {"in_channels": -1},
        {"name": "vit_huge", "embed_dim": 1280, "depth": 32, "num_heads": 16},
        {"name": "swin_base"},
        {"name": "swin_tiny", "depths": [-(10**9), 10**9], "num_heads": [1, 1]},
    ],
    ids=str,
)
def test_a_file_that_describes_a_huge_model_is_refused_at_once(tmp_path, changes):
    model, path = ViT(**TINY), tmp_path / "model.safetensors"
    info = {
        "name": "x",
        "classes": ["a", "b"],
        "channels": 1,
        "image_size": 8,
        "mean": [0.5],
        "std": [0.5],
        "counts": {},
    }
    save_model(path, model.state_dict(), {"name": "vit", **TINY, **changes}, info)
    start = time.process_time()
    for read in (load_model, describe_and_build):
        with pytest.raises(UserError) as error:
            read(path)
        assert "\n" not in str(error.value)
    assert time.process_time() - start < 1


def describe_and_build(path):
    return model_for(describe_weights(path))


@pytest.mark.parametrize("name, value", [("embed_dim", "x"), ("depth", 1.5), ("mlp_ratio", None), ("qkv_bias", 1)])
def test_settings_of_another_kind_are_named(name, value):
    with pytest.raises(UserError, match=f"{name}="):
        create_model("vit_tiny", **{name: value})
