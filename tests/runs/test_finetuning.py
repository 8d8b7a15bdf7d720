"""微调:从哪里开始、怎样归一化、逐层的学习率、少量图像。"""

import dataclasses
import json
import shutil
import signal

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file
from support.results import assert_same_end
from support.running import ROOT, TINY, assert_one_chinese_line, finish, run_here, run_script, start_training, wait_for

from paddle_vit import UserError, ViT, create_model
from paddle_vit.config import make_config
from paddle_vit.data.info import DataInfo, load_info
from paddle_vit.data.parts import pixel_statistics
from paddle_vit.data.sources import load_data
from paddle_vit.family.models import model_settings
from paddle_vit.runs.beginning import Beginning, begin, choose_normalization, load_distillation
from paddle_vit.runs.command_line import parse_config
from paddle_vit.runs.loading import load_model, load_run
from paddle_vit.training.optimizer import choose_trained, is_decayed, layers_of, learning_rate_scales, make_optimizer
from paddle_vit.weights import export_weights
from paddle_vit.weights.checkpoint import save_model

SMALL = dict(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=2, num_heads=2, num_classes=3)
SWIN = dict(image_size=32, embed_dim=8, depths=(1, 2), num_heads=(2, 2), window_size=4, num_classes=3)


def swin():
    return create_model("swin_tiny", **SWIN)


# ---- 权重和它的设置 ----


def test_recipes_of_fine_tuning(tiny_run):
    assert parse_config(["--weights", str(tiny_run)]).epochs == 30
    args = ["--weights", str(tiny_run), "--recipe"]
    assert parse_config([*args, "finetune-layer-decay"]).layer_decay == 0.75
    assert parse_config([*args, "linear-probe"]).train_only == "head"
    config = parse_config([*args, "finetune-resolution", "--image-size", "12"])
    assert (config.image_size, config.embed_dim, config.lr) == (12, 8, 1e-4)
    assert parse_config([*args, "none"]).epochs == 100


def foreign(directory, model):
    """别处的权重:同样的张量,没有说明。"""
    path = directory / "foreign.safetensors"
    save_file({name: value.numpy() for name, value in model.state_dict().items()}, path)
    return path


def test_foreign_weights_need_the_name_of_the_model(tmp_path):
    path = foreign(tmp_path, create_model("vit_tiny", depth=1, num_classes=3))
    with pytest.raises(UserError, match="--model"):
        parse_config(["--weights", str(path)])
    config = parse_config(["--weights", str(path), "--model", "vit_tiny", "--depth", "1"])
    assert config.model == "vit_tiny" and config.epochs == 30


def test_fine_tuning_at_another_resolution(tiny_run, tmp_path):
    args = ["--weights", tiny_run, "--image-size", "12", "--epochs", "1", "--batch-size", "256"]
    done = run_script("train", *args, "--output", tmp_path / "run", check=0)
    assert "position_embedding" in done.stdout
    tuned = load_run(tmp_path / "run")
    assert tuned.model.position_embedding.shape == [1, 9, 8] and tuned.info.image_size == 12
    assert load_model(tmp_path / "run" / "best.safetensors").info.image_size == 12


def test_model_settings_reach_the_model(tmp_path):
    args = "--register-tokens 2 --layer-scale 0.1 --qk-norm --epsilon 1e-4 --norm-after-pool --pool avg --class-token"
    run = tmp_path / "run"
    run_script("train", *TINY, *args.split(), "--epochs", "1", "--output", run, check=0)
    for loaded in (load_run(run), load_model(run / "best.safetensors")):
        names = loaded.model.state_dict().keys()
        assert {"register_tokens", "class_token", "encoders.0.attn_scale.gamma", "pool_norm.weight"} <= names
        assert "encoders.0.attn.q_norm.weight" in names and loaded.model.encoders[0].mlp_norm.epsilon == 1e-4
    assert parse_config(["--weights", str(run / "best.safetensors")]).register_tokens == 2


def test_settings_that_swin_does_not_have(tmp_path):
    args = ["--recipe", "none", "--model", "swin_tiny", "--image-size", "32", "--output", tmp_path / "run"]
    assert_one_chinese_line(run_here("train", *args, "--depth", "3"), "depth", "swin_tiny")
    assert_one_chinese_line(
        run_script("train", *TINY, "--window-size", "3", "--output", tmp_path / "run"), "window_size"
    )
    assert not (tmp_path / "run").exists()


REFERENCE = ROOT / "tests" / "reference" / "cases"


@pytest.mark.slow
def test_foreign_weights_on_ones_own_pictures(picture_folder, tmp_path):
    """Hugging Face 的 DeiT:归一化、epsilon 随权重,类别不同,两个头都重新开始学;得到的文件自己就能预测和微调。"""
    data = ["--dataset", "folder", "--data-dir", picture_folder, "--epochs", "1", "--lr", "1e-12", "--min-lr", "0"]
    shape = "--model deit_tiny_distilled --embed-dim 6 --depth 2 --num-heads 3".split()
    run, again = tmp_path / "run", tmp_path / "again"
    args = ["--weights", REFERENCE / "hf_deit_distilled" / "model.safetensors", *shape, *data]
    done = run_script("train", *args, "--output", run, check=0)
    assert "distillation_head.weight" in done.stdout
    loaded = load_run(run)
    assert loaded.info.mean == (0.485, 0.456, 0.406) and loaded.info.classes == ("狗", "猫", "鸟")
    assert loaded.config.epsilon == 1e-12 == loaded.model.encoders[1].mlp_norm.epsilon
    stored = load_file(REFERENCE / "hf_deit_distilled" / "model.safetensors")
    key = next(name for name in stored if name.endswith("distillation_token"))
    np.testing.assert_allclose(loaded.model.distillation_token.numpy(), stored[key], atol=1e-6)
    args = ["--weights", run / "best.safetensors", "--train-only", "head", *data, "--output", again]
    done = run_script("train", *args, check=0)
    assert "分类头也取来了" in done.stdout and "骨干是随机" not in done.stdout
    images = paddle.randn([2, 3, 224, 224])
    np.testing.assert_allclose(load_run(again).model(images).numpy(), loaded.model(images).numpy(), atol=1e-5)
    wrong = run_script("train", *args[:1], REFERENCE / "hf_deit_distilled" / "model.safetensors", *data, check=2)
    assert_one_chinese_line(wrong, "--model")


def test_a_frozen_backbone_without_weights_is_pointed_out(tmp_path):
    done = run_script("train", *TINY, "--train-only", "head", "--epochs", "1", "--output", tmp_path / "run", check=0)
    assert "骨干是随机" in done.stdout


def test_a_shape_that_the_settings_do_not_have(tmp_path):
    path, model = tmp_path / "swin.safetensors", swin()
    save_model(path, model.state_dict(), {"name": "swin_tiny", "in_channels": 3, **SWIN}, None)
    with pytest.raises(UserError, match=r"depths.*create_model"):
        parse_config(["--weights", str(path)])


def test_a_converted_swin_is_fine_tuned_like_its_name(tmp_path):
    """转换好的 Swin 写着各级的层数和头数;与它的名字相同时,命令行上可以微调。"""
    path, model = tmp_path / "swin.safetensors", create_model("swin_tiny", num_classes=2, embed_dim=24)
    settings = {"image_size": 224, "in_channels": 3, **model_settings("swin_tiny"), "num_classes": 2, "embed_dim": 24}
    save_model(path, model.state_dict(), {"name": "swin_tiny_patch4_window7_224", **settings}, None)
    config = parse_config(["--weights", str(path), "--dataset", "folder", "--data-dir", str(tmp_path)])
    assert config.model == "swin_tiny_patch4_window7_224" and config.num_heads is None and config.window_size == 7


# ---- 归一化 ----


@pytest.mark.parametrize("choice, expected", [("half", ((0.5,), (0.5,))), ("data", None), ("auto", "source")])
def test_normalization(tiny_run, choice, expected):
    config = make_config({"normalization": choice, "weights": str(tiny_run), "val_fraction": 0.3})
    data = load_data(config)
    info = choose_normalization(data, config, begin(config)).info
    if expected == "source":
        expected = (load_info(tiny_run / "data.json").mean, load_info(tiny_run / "data.json").std)
    np.testing.assert_allclose((info.mean, info.std), expected or (data.info.mean, data.info.std), atol=2e-6)


def test_normalization_of_pictures(picture_folder):
    values = {"dataset": "folder", "data_dir": str(picture_folder), "image_size": 8}
    data = load_data(make_config(values))
    info = choose_normalization(data, make_config({**values, "normalization": "imagenet"}), Beginning()).info
    assert info.mean == (0.485, 0.456, 0.406) and info.std == (0.229, 0.224, 0.225)
    pixels = np.concatenate(list(data.train.fetch([(np.arange(len(data.train)), None)]))) / 255
    mean, std = pixel_statistics(data.train)
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), atol=1e-5)
    with pytest.raises(UserError, match="通道"):
        choose_normalization(load_data(make_config({})), make_config({"normalization": "imagenet"}), Beginning())


# ---- 逐层的学习率 ----


def test_layers_are_counted_from_the_input():
    model = ViT(
        **SMALL, pool="cls", distillation_token=True, register_tokens=1, position_embedding="learnable", head="mlp"
    )
    layers = layers_of(name for name, _ in model.named_parameters())
    for name, layer in layers.items():
        expected = 1 + int(name.split(".")[1]) if name.startswith("encoders") else 3 if "norm" in name else 0
        assert layer == (3 if "head" in name else expected), name
    assert set(layers.values()) == {0, 1, 2, 3}
    layers = layers_of(name for name, _ in swin().named_parameters())
    for start_of_name, expected in (
        ("patch_embed.", 0),
        ("embed_norm.", 0),
        ("stages.0.blocks.0.", 1),
        ("stages.0.downsample.", 1),
        ("stages.1.blocks.0.", 2),
        ("stages.1.blocks.1.", 3),
        ("norm.", 4),
        ("head.", 4),
    ):
        found = {layer for name, layer in layers.items() if name.startswith(start_of_name)}
        assert found == {expected}, start_of_name


@pytest.mark.parametrize("make", [lambda: ViT(**SMALL, position_embedding="learnable"), swin], ids=["vit", "swin"])
def test_layer_decay_equals_numpy_adamw(make):
    """每个参数每一步的大小:学习率和权重衰减都乘它那一层的数,换学习率之后也是。"""
    model = make()
    config = make_config({"lr": 0.1, "weight_decay": 0.3, "beta2": 0.98, "layer_decay": 0.5})
    optimizer, scales = make_optimizer(model, config), learning_rate_scales(model, 0.5)
    parameters, rng = dict(model.named_parameters()), np.random.default_rng(0)
    assert scales["head.weight"] == 1 and min(scales.values()) == scales["patch_embed.patch_embedding.weight"]
    values = {name: parameter.numpy().astype("float64") for name, parameter in parameters.items()}
    m, v = ({name: 0.0 for name in values} for _ in range(2))
    for t, lr in enumerate((0.1, 0.04, 0.2), 1):
        optimizer.set_lr(lr)
        for name, parameter in parameters.items():
            gradient = rng.standard_normal(parameter.shape).astype("float32")
            parameter.grad = paddle.to_tensor(gradient)
            m[name], v[name] = 0.9 * m[name] + 0.1 * gradient, 0.98 * v[name] + 0.02 * gradient**2
            step = lr * scales[name]
            if is_decayed(name, parameter):
                values[name] *= 1 - step * 0.3
            values[name] -= step * (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.98**t)) + 1e-8)
        optimizer.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(parameter.numpy(), values[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_published_scales():
    """BEiT 的 base(12 层,0.65):图块嵌入是 0.65 ** 13,最后一个编码器是 0.65。"""
    scales = learning_rate_scales(create_model("vit_tiny", image_size=32), 0.65)
    assert scales["class_token"] == scales["position_embedding"] == 0.65**13
    assert scales["encoders.11.attn.qkv.weight"] == 0.65 and scales["norm.weight"] == scales["head.bias"] == 1


def test_both_heads_are_trained_above_a_frozen_backbone():
    model = ViT(**SMALL, pool="cls", distillation_token=True)
    assert len(choose_trained(model, "head")) == 4
    trained = {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    assert trained == {f"{head}.{kind}" for head in ("head", "distillation_head") for kind in ("weight", "bias")}


# ---- 少量图像 ----


def pixels_of(part):
    return np.concatenate(list(part.fetch([(np.arange(len(part)), None)])))


@pytest.mark.parametrize("classes", ["5,3,9", " 5, 3 ,9", "5,3，9"])
def test_some_classes(classes):
    whole, some = load_data(make_config({})), load_data(make_config({"classes": classes}))
    assert some.info.classes == ("5", "3", "9")
    for name in ("train", "val", "test"):
        all_of, part = getattr(whole, name), getattr(some, name)
        for label, digit in enumerate((5, 3, 9)):
            found, expected = pixels_of(part)[part.labels == label], pixels_of(all_of)[all_of.labels == digit]
            np.testing.assert_array_equal(found, expected)
        assert some.info.counts[name] == len(part) == np.isin(all_of.labels, (5, 3, 9)).sum()
    np.testing.assert_allclose(some.info.mean, pixels_of(some.train).mean() / 255, atol=1e-5)


def test_a_few_images_of_each_class(picture_folder):
    data = load_data(make_config({"train_per_class": 4, "classes": "0,1"}))
    assert np.bincount(data.train.labels).tolist() == [4, 4] and np.bincount(data.val.labels).tolist() == [4, 4]
    assert data.info.counts["test"] == len(data.test) > 60
    again = load_data(make_config({"train_per_class": 4, "classes": "0,1", "seed": 1}))
    np.testing.assert_array_equal(pixels_of(data.train), pixels_of(again.train))
    values = {"dataset": "folder", "data_dir": str(picture_folder), "image_size": 8, "classes": "鸟,猫"}
    data = load_data(make_config({**values, "train_per_class": 2}))
    assert data.info.classes == ("鸟", "猫") and np.bincount(data.train.labels).tolist() == [2, 2]
    assert {path.parent.name for path, label in zip(data.train.paths, data.train.labels) if label == 0} == {"鸟"}


@pytest.mark.parametrize("classes", ["5", "5,5", "5,10", "5,cat", "5,-1", ""])
def test_bad_classes(classes):
    with pytest.raises(UserError, match="--classes"):
        load_data(make_config({"classes": classes}))


@pytest.mark.slow
def test_few_shot_fine_tuning_from_other_classes(tmp_path):
    args = ["--batch-size", "64", "--epochs", "1", "--attention-images", "0"]
    first, second = tmp_path / "first", tmp_path / "second"
    run_script("train", *TINY, "--classes", "0,1,2", *args, "--output", first, check=0)
    few = ["--weights", first, "--classes", "7,8,9", "--train-per-class", "10", *args, "--layer-decay", "0.8"]
    done = run_script("train", *few, "--output", second, check=0)
    assert "head.weight" in done.stdout  # 个数相同,类别不同:头不取
    info = load_info(second / "data.json")
    assert info.classes == ("7", "8", "9") and info.counts["train"] == 30
    assert info.mean == load_info(first / "data.json").mean
    assert_one_chinese_line(run_here("train", "--resume", second, "--classes", "7,8"), "--classes")
    record = json.loads((second / "data.json").read_text(encoding="utf-8"))
    (second / "data.json").write_text(json.dumps({**record, "classes": ["7", "8", "6"]}), encoding="utf-8")
    assert_one_chinese_line(run_here("train", "--resume", second), "类别")


@pytest.mark.slow
def test_resume_when_the_weights_have_gone(tiny_run, tmp_path):
    source, whole, killed = (tmp_path / name for name in ("source.safetensors", "whole", "killed"))
    shutil.copy(tiny_run / "best.safetensors", source)
    args = ["--weights", source, "--epochs", "2", "--batch-size", "32", "--checkpoint-minutes", "0.0001"]
    args += ["--layer-decay", "0.7", "--processes", "1"]
    run_script("train", *args, "--output", whole, check=0)
    process = start_training(*args, "--output", killed)
    wait_for((killed / "last.safetensors").exists, process)
    finish(process, signal.SIGKILL)
    source.unlink()
    run_script("train", "--resume", killed, check=0)
    assert_same_end(whole, killed)


# ---- 别处的老师 ----


def test_a_foreign_teacher(tmp_path):
    info = DataInfo("folder", ("猫", "狗", "鸟"), 3, 8, (0.5,) * 3, (0.5,) * 3, {})
    teacher = create_model("vit_tiny_patch16_224", num_classes=3, epsilon=1e-5).eval()
    config = make_config({"teacher": str(foreign(tmp_path, teacher))})
    with pytest.raises(UserError, match="--teacher-model"):
        load_distillation(config, info, begin(config))
    config = dataclasses.replace(config, teacher_model="vit_tiny")
    found = load_distillation(config, info, begin(config))
    assert found.teacher_info.image_size == 224 and found.teacher_info.classes == info.classes
    images = paddle.randn([1, 3, 224, 224])
    np.testing.assert_allclose(found.teacher(images).numpy(), teacher(images).numpy(), atol=1e-5)
    prediction, loss = found(ViT(**{**SMALL, "in_channels": 3}), paddle.randn([2, 3, 8, 8]), paddle.eye(3)[:2])
    assert prediction.shape == [2, 3] and np.isfinite(float(loss))
    with pytest.raises(UserError, match="4 类"):
        load_distillation(config, dataclasses.replace(info, classes=("猫", "狗", "鸟", "鱼")), begin(config))


def test_a_foreign_teacher_that_names_its_classes(tmp_path):
    """类别数相同、名字不同的老师教的是别的东西:拒绝。"""
    info = DataInfo("folder", ("猫", "狗", "鸟"), 3, 8, (0.5,) * 3, (0.5,) * 3, {})
    export_weights(create_model("vit_tiny_patch16_224", num_classes=3), tmp_path / "model.safetensors")
    config = make_config({"teacher": str(tmp_path / "model.safetensors"), "teacher_model": "vit_tiny"})
    for names, same in ((["猫", "狗", "鸟"], True), (["狗", "猫", "鸟"], False)):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny", "label_names": names}))
        if same:
            assert load_distillation(config, info, begin(config)).teacher_info.classes == info.classes
        else:
            with pytest.raises(UserError, match="狗、猫、鸟"):
                load_distillation(config, info, begin(config))
