import json
import shutil
import signal

import numpy as np
import paddle
import pytest
from PIL import Image
from safetensors.numpy import load_file
from support.results import assert_same_end
from support.running import assert_one_chinese_line, finish, run_script, start_training, wait_for

from paddle_vit import UserError, ViT
from paddle_vit.config import Config, make_config, result_settings
from paddle_vit.config_files import load_config
from paddle_vit.data.info import load_info
from paddle_vit.data.sources import load_data
from paddle_vit.runs.beginning import Beginning, begin, choose_normalization
from paddle_vit.runs.command_line import parse_config
from paddle_vit.runs.loading import build_model, load_run
from paddle_vit.training.optimizer import choose_trained
from paddle_vit.weights import load_weights
from paddle_vit.weights.checkpoint import read_model, save_model

SMALL = dict(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)
HEAD = ("head.weight", "head.bias")
# 几乎不动的一轮
STILL = "--epochs 1 --batch-size 128 --lr 1e-12 --min-lr 1e-13 --mixup 0 --crop-padding 0 --ema 0".split()


def values_of(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def saved(directory, **options):
    """存下一个模型的权重,返回模型和文件。"""
    model = ViT(**{**SMALL, **options})
    save_model(directory / "source.safetensors", model.state_dict(), {"name": "vit", **SMALL, **options}, None)
    return model, directory / "source.safetensors"


def test_another_number_of_classes_keeps_everything_but_the_head(tmp_path):
    source, path = saved(tmp_path, pool="cls", position_embedding="learnable")
    model = ViT(**{**SMALL, "num_classes": 5}, pool="cls", position_embedding="learnable")
    before = values_of(model)
    report = load_weights(model, path)
    after, expected = values_of(model), values_of(source)
    assert set(report.fresh) == set(HEAD) and report.source == str(path)
    assert {*report.loaded, *report.fresh} == set(after) and not {*report.loaded} & {*report.fresh}
    for name in report.loaded:
        assert (after[name] == expected[name]).all()
    for name in report.fresh:
        assert (after[name] == before[name]).all()
    assert (before["encoders.0.attn.qkv.weight"] != after["encoders.0.attn.qkv.weight"]).any()


def test_the_same_head_is_loaded_too(tmp_path):
    source, path = saved(tmp_path)
    model = ViT(**SMALL)
    images = paddle.randn([4, 1, 8, 8])
    assert load_weights(model, path).fresh == ()
    np.testing.assert_array_equal(model(images).numpy(), source(images).numpy())


@pytest.mark.parametrize("options", [dict(head="mlp"), dict(num_classes=0)])
def test_another_kind_of_head_starts_afresh(tmp_path, options):
    source, path = saved(tmp_path)
    model = ViT(**{**SMALL, **options})
    report = load_weights(model, path)
    assert set(report.fresh) == {name for name in model.state_dict() if name.startswith("head.")}
    images = paddle.randn([4, 1, 8, 8])
    np.testing.assert_array_equal(model.forward_features(images).numpy(), source.forward_features(images).numpy())


def test_class_names_decide_about_the_head(tiny_run):
    run = load_run(tiny_run)
    same, other = (build_model(run.config, run.info) for _ in range(2))
    assert load_weights(same, tiny_run, classes=run.info.classes).fresh == ()
    assert set(load_weights(other, tiny_run, classes=[f"{name}号" for name in run.info.classes]).fresh) == set(HEAD)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            dict(embed_dim=16),
            ("形状不同", "patch_embed.patch_embedding.weight:文件 [8, 1, 4, 4],模型 [16, 1, 4, 4]", "…"),
        ),
        (dict(in_channels=3), ("形状不同 1 个", "[8, 1, 4, 4]", "[8, 3, 4, 4]", "通道")),
        (dict(depth=2), ("缺少 11 个", "encoders.1.", "--depth 1", "--set depth=1")),
        (dict(pool="cls"), ("缺少 1 个(class_token)",)),
    ],
)
def test_another_shape_is_an_error_and_changes_nothing(tmp_path, options, words):
    _, path = saved(tmp_path, position_embedding="learnable")
    model = ViT(**{**SMALL, "position_embedding": "learnable", **options})
    before = values_of(model)
    with pytest.raises(UserError) as error:
        load_weights(model, path)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert all((before[name] == value).all() for name, value in values_of(model).items())


def test_surplus_tensors_are_an_error(tmp_path):
    _, path = saved(tmp_path, depth=2)
    with pytest.raises(UserError, match=r"多出 11 个\(encoders\.1\."):
        load_weights(ViT(**SMALL), path)


def test_a_file_of_paddle_save_is_accepted(tmp_path):
    source = ViT(**SMALL)
    paddle.save(source.state_dict(), str(tmp_path / "plain.pdparams"))
    model = ViT(**SMALL)
    load_weights(model, tmp_path / "plain.pdparams")
    for name, value in values_of(source).items():
        np.testing.assert_array_equal(values_of(model)[name], value)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "text"])
def test_damaged_files(tmp_path, damage):
    _, path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1  # 在权重的数字里:读得出来,校验和对不上
    changed = {"truncated": data[: len(data) // 2], "empty": b"", "text": "不是权重".encode()}.get(damage, data)
    path.write_bytes(changed)
    with pytest.raises(UserError, match={"empty": "是空的", "text": "是文本文件"}.get(damage, "损坏")):
        load_weights(ViT(**SMALL), path)


# ---- 设置 ----


def test_the_shape_comes_from_the_source(tiny_run):
    config = parse_config(["--weights", str(tiny_run)])  # 与数据集同名的配方里是另一种形状
    source = load_config(tiny_run)
    for name in ("model", "patch_size", "embed_dim", "depth", "num_heads", "position_embedding", "pool", "head"):
        assert getattr(config, name) == getattr(source, name), name
    assert config.image_size == 8 and config.epochs == 30  # 其余的来自微调的配方
    assert result_settings(config)["weights"] == str(tiny_run)
    assert build_model(config, load_info(tiny_run / "data.json")).encoders[0].attn.num_heads == 2


@pytest.mark.parametrize("given", [["--num-heads", "4"], ["--model", "vit_tiny"], ["--pool", "cls"]])
def test_another_model_is_refused(tiny_run, given):
    with pytest.raises(UserError, match=f"{given[0]} {given[1]} .*去掉 {given[0]}"):
        parse_config(["--weights", str(tiny_run), *given])


def test_a_weight_file_alone_knows_the_shape(tiny_run, tmp_path):
    shutil.copy(tiny_run / "best.safetensors", tmp_path / "alone.safetensors")
    for path in (tmp_path / "alone.safetensors", tiny_run / "best.safetensors"):
        config = parse_config(["--weights", str(path)])
        assert (config.patch_size, config.embed_dim, config.image_size) == (4, 8, 8)
    with pytest.raises(UserError, match=r"--embed-dim 16 .*去掉 --embed-dim"):
        parse_config(["--weights", str(path), "--embed-dim", "16"])


def test_a_missing_source(tmp_path):
    with pytest.raises(UserError, match=r"没有 .*nothing"):
        parse_config(["--weights", str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="不是运行目录"):
        parse_config(["--weights", str(tmp_path)])


def test_channels_are_for_folders(picture_folder):
    values = {"dataset": "folder", "data_dir": str(picture_folder), "image_size": 8}
    assert load_data(make_config(values)).info.channels == 3
    data = load_data(make_config({**values, "channels": 1}))
    assert data.info.channels == len(data.info.mean) == 1
    pixels = next(data.train.fetch([(np.arange(2), None)]))
    assert pixels.shape == (2, 8, 8, 1)
    expected = Image.open(data.train.paths[0]).convert("RGB").convert("L")
    assert abs(pixels[0].mean() - np.asarray(expected).mean()) < 5
    np.testing.assert_array_equal(data.train.read(0), pixels[0])
    with pytest.raises(UserError, match="channels"):
        make_config({"channels": 1})


def test_statistics_of_the_source(tiny_run):
    data = load_data(Config(dataset="digits", val_fraction=0.3))
    info = load_info(tiny_run / "data.json")
    assert data.info.mean != info.mean
    config = Config(weights=str(tiny_run))
    kept = choose_normalization(data, config, begin(config))
    assert (kept.info.mean, kept.info.std, kept.info.counts) == (info.mean, info.std, data.info.counts)
    assert choose_normalization(data, Config(), Beginning()) is data


# ---- 训练 ----


def test_a_still_fine_tuning_is_the_source(tiny_run, tmp_path):
    done = run_script("train", "--weights", tiny_run, *STILL, "--output", tmp_path / "run", check=0)
    assert f"微调:从 {tiny_run} 取来 18 个张量,分类头也取来了" in done.stdout
    source, tuned = load_run(tiny_run), load_run(tmp_path / "run")
    images = paddle.randn([16, 1, 8, 8])
    np.testing.assert_allclose(tuned.model(images).numpy(), source.model(images).numpy(), rtol=1e-5, atol=1e-6)
    first, second = (json.loads((run / "summary.json").read_text("utf-8")) for run in (tiny_run, tmp_path / "run"))
    assert second["test_top1"] == first["test_top1"]
    np.testing.assert_allclose(second["test_loss"], first["test_loss"], rtol=1e-5)


def test_fine_tuning_on_a_folder(tiny_run, picture_folder, tmp_path):
    """灰度、8 像素的模型用在彩色的大图片上:不必重复任何形状。"""
    run = tmp_path / "run"
    args = ["--dataset", "folder", "--data-dir", picture_folder, "--epochs", "1", "--lr", "1e-12", "--min-lr", "0"]
    done = run_script("train", "--weights", tiny_run, *args, "--ema", "0", "--output", run, check=0)
    assert "取来 16 个张量,分类头重新开始学(head.weight、head.bias)" in done.stdout
    report = json.loads((run / "init.json").read_text(encoding="utf-8"))
    assert report["source"] == str(tiny_run) and report["fresh"] == list(HEAD)
    source, tuned = load_run(tiny_run), load_run(run)
    assert (tuned.info.channels, tuned.info.image_size) == (1, 8) and tuned.info.mean == source.info.mean
    images = paddle.randn([4, 1, 8, 8])
    np.testing.assert_allclose(
        tuned.model.forward_features(images).numpy(), source.model.forward_features(images).numpy(), atol=1e-5
    )
    done = run_script("evaluate", run, "--part", "train", check=0)
    assert "top-5" not in done.stdout  # 只有三类
    assert "top-1" in done.stdout
    done = run_script("predict", run, picture_folder / "train" / "猫", check=0)
    assert len(done.stdout.splitlines()) == 6


@pytest.mark.slow
def test_resume(tiny_run, tmp_path):
    source, whole, killed, started = (tmp_path / name for name in ("source", "whole", "killed", "started"))
    shutil.copytree(tiny_run, source)
    args = ["--weights", source, "--epochs", "2", "--batch-size", "32", "--checkpoint-minutes", "0.0001"]
    run_script("train", *args, "--output", whole, check=0)
    started.mkdir()
    for name in ("config.yaml", "data.json"):
        shutil.copy(whole / name, started)
    done = run_script("train", "--resume", started, check=0)  # 还没有检查点:重新放一次权重
    assert "微调:" in done.stdout
    assert_same_end(whole, started)
    assert (whole / "init.json").read_bytes() == (started / "init.json").read_bytes()
    process = start_training(*args, "--output", killed)
    wait_for((killed / "last.safetensors").exists, process)
    finish(process, signal.SIGKILL)
    shutil.rmtree(source)  # 有了检查点:原来的运行不在了也能接着训练
    done = run_script("train", "--resume", killed, check=0)
    assert "微调:" not in done.stdout
    assert_same_end(whole, killed)


def test_weights_and_resume_conflict(tiny_run):
    with pytest.raises(UserError, match=r"--weights .*请去掉 --weights"):
        parse_config(["--resume", str(tiny_run), "--weights", str(tiny_run)])


def test_a_wrong_source_leaves_no_run(tiny_run, tmp_path):
    tensors, model, info = read_model(tiny_run / "best.safetensors")
    del tensors["norm.weight"]
    save_model(tmp_path / "part.safetensors", tensors, model, info)
    args = ["--weights", tmp_path / "part.safetensors", "--batch-size", "128", "--processes", "2"]
    done = run_script("train", *args, "--output", tmp_path / "run")
    assert_one_chinese_line(done, "norm.weight")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("train_only", ["all", "head"])
def test_two_processes_fine_tune_like_one(tiny_run, tmp_path, train_only):
    runs = [tmp_path / name for name in ("one", "two")]
    for processes, run in enumerate(runs, 1):
        args = ["--epochs", "2", "--batch-size", "128", "--ema", "0.9", "--mixup", "0", "--processes", processes]
        args += ["--train-only", train_only]
        run_script("train", "--weights", tiny_run, *args, "--output", run, check=0)
    first, second = (load_file(run / "last.safetensors") for run in runs)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=1e-5, err_msg=name)
    if train_only == "head":
        moved = {name.split("/", 1)[1] for name in first if name.startswith("optimizer/")}
        assert {name.rsplit("/", 1)[0] for name in moved} == set(HEAD)  # 优化器里只有分类头


@pytest.mark.parametrize("head", [pytest.param("linear", marks=pytest.mark.slow), "mlp"])
def test_linear_probing_moves_only_the_head(tiny_run, tmp_path, head):
    args = ["--weights", tiny_run, "--head", head, "--train-only", "head", "--epochs", "2", "--batch-size", "32"]
    args += ["--dropout", "0.1", "--weight-decay", "0.5", "--ema", "0.9", "--checkpoint-minutes", "0.0001"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run_script("train", *args, "--output", whole, check=0)
    assert f"只训练分类头:{90 if head == 'linear' else 634} 个参数" in done.stdout  # 8·10+10;16+8·32+32+32·10+10
    before, after = values_of(load_run(tiny_run).model), values_of(load_run(whole).model)
    for name in after:
        same = name in before and (before[name] == after[name]).all()
        assert same != name.startswith("head."), name
    averages = load_file(whole / "last.safetensors")
    np.testing.assert_array_equal(averages["ema/norm.weight"], averages["model/norm.weight"])
    if head == "linear":
        process = start_training(*args, "--output", killed)
        wait_for((killed / "last.safetensors").exists, process)
        finish(process, signal.SIGKILL)
        run_script("train", "--resume", killed, check=0)
        assert_same_end(whole, killed)


def test_the_head_learns_above_a_frozen_backbone(tiny_run):
    """只训练分类头的梯度,与全部训练时分类头的梯度相同。"""
    images, labels = paddle.randn([8, 1, 8, 8]), paddle.arange(8)
    gradients = {}
    for train_only in ("all", "head"):
        model = load_run(tiny_run).model
        trained = choose_trained(model, train_only)
        paddle.nn.functional.cross_entropy(model(images), labels).backward()
        assert len(trained) == (18 if train_only == "all" else 2)
        assert all((p.grad is not None) == (not p.stop_gradient) for p in model.parameters())
        gradients[train_only] = [p.grad.numpy() for p in model.head.parameters()]
    for mine, expected in zip(gradients["head"], gradients["all"]):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-6)
