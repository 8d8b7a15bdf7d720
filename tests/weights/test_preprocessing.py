"""权重旁边写着的预处理:像素与 Hugging Face、timm 自己算的比;办不到的拒绝,没有写的说出来。"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image
from support.running import ROOT

from paddle_vit.data.images import to_input
from paddle_vit.data.info import DataInfo
from paddle_vit.errors import UserError
from paddle_vit.system.fitting import Fit, plain_size
from paddle_vit.weights import describe_weights
from paddle_vit.weights.checkpoint import read_description
from paddle_vit.weights.conversion import assumptions, import_weights
from paddle_vit.weights.preprocessing import processor_facts, timm_preprocessing

REFERENCE = ROOT / "tests" / "reference"
sys.path.insert(0, str(REFERENCE))
from images import photo  # noqa: E402  tests/reference 不是包

PIXELS = json.loads((REFERENCE / "pixels.json").read_text(encoding="utf-8"))
# 别的版本的 Pillow 缩放时取整不同,一些点差一级灰度:结果是 0–255 的像素时,一级就是 1
SAME_PILLOW = PIL.__version__ == PIXELS["packages"]["pillow"]
LIMIT, LIMIT_OF_PIXELS = (1e-3, 1e-3) if SAME_PILLOW else (5e-3, 0.3)
FILE = Path("preprocessor_config.json")
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2}
VIT |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def facts_of(case):
    read = processor_facts if case["kind"] == "huggingface" else timm_preprocessing
    return read(case["values"], FILE, *([3] if case["kind"] == "huggingface" else []))


@pytest.mark.parametrize("name", PIXELS["cases"])
def test_pixels_equal_the_reference(name):
    facts = facts_of(PIXELS["cases"][name])
    mean, std = (facts.get(key, default) for key, default in (("mean", (0.485, 0.456, 0.406)), ("std", None)))
    std = std or (0.229, 0.224, 0.225)  # timm 没有写时是 ImageNet 的
    info = DataInfo("x", ("a",), 3, plain_size(*facts["image_size"]), mean, std, {}, facts["fit"])
    limit = LIMIT if PIXELS["cases"][name]["values"].get("do_rescale", True) else LIMIT_OF_PIXELS
    with np.load(REFERENCE / "pixels.npz") as expected:
        for width, height in PIXELS["sizes"]:
            found = to_input([Image.fromarray(photo(width, height))], info)[0]  # [C, H, W]
            wanted = expected[f"{name} {width}x{height}"]
            difference = np.abs(found[:, :: PIXELS["step"], :: PIXELS["step"]] - wanted) * min(1, 255 * min(std))
            assert difference.mean() <= limit, (width, height, difference.max())


@pytest.mark.parametrize(
    "change",
    [
        {"do_pad": True},
        {"size_divisor": 32},
        {"do_flip_channel_order": True},
        {"rescale_offset": True},
        {"do_something_new": True},
        {"size": {"longest_edge": 224}},
        {"size": {"shortest_edge": 224}},
        {"do_center_crop": True, "crop_size": 256},
        {"do_resize": False, "do_center_crop": True, "crop_size": 224},
        {"image_processor_type": "DonutImageProcessor"},
        {"resample": 6},
        {"resample": "bilinear"},
        {"do_normalize": "no"},
        {"image_mean": ["a"]},
        {"rescale_factor": 0},
        {"crop_pct": 0.9},
    ],
)
def test_what_cannot_be_obeyed_is_refused(change):
    with pytest.raises(UserError) as error:
        processor_facts({**VIT, **change}, FILE, 3)
    assert "preprocessor_config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"crop_mode": "zoom"}, {"interpolation": "random"}, {"crop_pct": 1.5}])
def test_what_timm_has_and_we_have_not_is_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        timm_preprocessing({"crop_pct": 0.9, **change}, Path("config.json"))


@pytest.mark.parametrize(
    "change", [{"do_convert_rgb": None}, {"do_pad": False}, {"size_divisor": None}, {"data_format": 1}]
)
def test_what_changes_no_pixel_is_accepted(change):
    assert processor_facts({**VIT, **change}, FILE, 3)["fit"] == Fit("squash", "bilinear")


@pytest.mark.parametrize("name", ["image_mean", "size", "image_processor_type"])
def test_what_the_processor_leaves_out_is_named(name):
    facts = processor_facts({key: value for key, value in VIT.items() if key != name}, FILE, 3)
    assert len(facts["assumed"]) == 1 and facts["fit"] == Fit("squash", "bilinear")


# ---- 随权重走 ----


def copy_of(case, folder, name="model.safetensors"):
    source = REFERENCE / "cases" / case
    for file in ("config.json", "preprocessor_config.json"):
        if (source / file).exists():
            shutil.copy(source / file, folder / file)
    shutil.copy(source / "model.safetensors", folder / name)
    return folder / name


def change_json(path, **values):
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**old, **values}), encoding="utf-8")


def test_do_normalize_false_is_obeyed(tmp_path):
    file = copy_of("hf_vit_patch16_224", tmp_path)
    change_json(tmp_path / FILE, do_normalize=False)
    info = describe_weights(file)
    assert (info.mean, info.std) == ((0.0,) * 3, (1.0,) * 3)
    assert info.fit == Fit("squash", "bilinear") and "normalization" not in dict(info.assumed)


@pytest.mark.parametrize(
    "name, mean",
    [
        ("mae_pretrain_vit_base.safetensors", 0.485),
        ("vit_small_patch16_224.dino.safetensors", 0.485),
        ("dinov2_vits14.safetensors", 0.485),
        ("vit_base_patch16_clip_224.safetensors", 0.48145466),
        ("vit_base_patch16_siglip_224.safetensors", 0.5),
        ("dinosaurs.safetensors", 0.5),
        ("my_weights.safetensors", 0.5),
    ],
)
def test_names_of_methods_decide_the_normalization_and_it_is_said(tmp_path, name, mean):
    file = copy_of("timm_vit", tmp_path, name)
    (tmp_path / "config.json").unlink()
    info = describe_weights(file)
    assert info.mean[0] == mean
    line = assumptions(info, {"normalization": "--mean、--std", "fit": "--fit"})
    assert f"{mean:g}" in line and "(--mean、--std)" in line and "(--fit)" in line


def test_nothing_is_assumed_where_all_is_written(tmp_path):
    file = copy_of("timm_vit", tmp_path)
    assert assumptions(describe_weights(file), {"normalization": "--mean", "fit": "--fit"}) is None


TINY = dict(embed_dim=12, depth=2, num_heads=3, qkv_bias=True, epsilon=1e-6)


def test_one_number_stands_for_every_channel(tmp_path):
    """别处的模型,像素 0–1,不减均值。"""
    file, output = copy_of("timm_vit", tmp_path), tmp_path / "out.safetensors"
    import_weights(file, output, "vit_base_patch16_224", TINY, mean=[0.0], std=[1.0])
    info = read_description(output)[1]
    assert (info["mean"], info["std"]) == ([0.0] * 3, [1.0] * 3)
    for wrong in ([0.0, 0.0], []):
        with pytest.raises(UserError, match="3 个通道"):
            import_weights(file, output, "vit_base_patch16_224", TINY, mean=wrong, std=[1.0])


def test_the_preprocessing_travels_into_the_converted_file(tmp_path):
    from paddle_vit.deploy.predictor import Predictor

    file = copy_of("timm_vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"].update(
        crop_mode="squash", crop_pct=0.9, interpolation="bilinear", mean=[0, 0, 0], std=[1, 1, 1]
    )
    change_json(tmp_path / "config.json", **config)
    import_weights(file, tmp_path / "out.safetensors", "vit_base_patch16_224", TINY)
    info = Predictor(tmp_path / "out.safetensors", "eager").info
    assert info.fit == Fit("squash", "bilinear", 0.9, "round") and info.mean == (0.0,) * 3
    import_weights(file, tmp_path / "b.safetensors", "vit_base_patch16_224", TINY, fit=Fit("pad", rounding="round"))
    assert Predictor(tmp_path / "b.safetensors", "eager").info.fit.kind == "pad"


# ---- 分类头的含义 ----


@pytest.mark.parametrize("problem, word", [("multi_label_classification", "多标签"), ("regression", "回归")])
def test_a_head_that_is_no_choice_is_not_converted(tmp_path, problem, word):
    file = copy_of("hf_vit_patch16_224", tmp_path)
    change_json(tmp_path / "config.json", problem_type=problem)
    with pytest.raises(UserError, match=word):
        import_weights(file, tmp_path / "out.safetensors", "vit_base_patch16_224", TINY)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("classes, fill, word", [(7, 0.0, "全是零"), (1, 0.3, "只有一个输出")])
def test_an_empty_head_is_not_converted(tmp_path, classes, fill, word):
    from safetensors.numpy import load_file, save_file

    file = copy_of("timm_vit", tmp_path)
    (tmp_path / "config.json").unlink()
    tensors = load_file(file)
    tensors["head.weight"] = np.full((classes, 12), fill, "float32")
    tensors["head.bias"] = np.zeros(classes, "float32")
    save_file(tensors, file)
    with pytest.raises(UserError, match=word):
        import_weights(file, tmp_path / "out.safetensors", "vit_base_patch16_224", TINY)
