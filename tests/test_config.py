import dataclasses
import re

import pytest
import yaml

from paddle_vit import UserError, ViT, create_model
from paddle_vit.config import Config, all_settings, make_config
from paddle_vit.config_files import load_config, save_config
from paddle_vit.data.info import DataInfo
from paddle_vit.runs.command_line import RECIPES, parse_config

INFO = DataInfo("digits", ("零", "一", "二"), 1, 8, (0.5,), (0.5,), {})


def test_flags_override_the_recipe_which_overrides_the_defaults(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("lr: 1e-2\nepochs: 7\nflip: true\ndataset: cifar10\n", encoding="utf-8")
    config = parse_config(["--recipe", str(recipe), "--epochs", "3", "--no-flip"])
    assert (config.lr, config.epochs, config.flip, config.dataset) == (0.01, 3, False, "cifar10")
    assert config.batch_size == Config().batch_size


def test_a_recipe_is_checked_with_the_dataset_of_the_command_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("flip: true\ndata_dir: x\n", encoding="utf-8")
    assert parse_config(["--recipe", str(tmp_path / "mine.yaml"), "--dataset", "cifar10"]).flip
    with pytest.raises(UserError, match="flip"):
        parse_config(["--recipe", str(tmp_path / "mine.yaml")])


def test_the_dataset_chooses_its_recipe():
    digits = yaml.safe_load((RECIPES / "digits.yaml").read_text(encoding="utf-8"))
    config = parse_config([])
    assert {name: getattr(config, name) for name in digits} == digits
    assert parse_config(["--recipe", "none"]) == Config(recipe="none")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_states_its_command(path):
    text = path.read_text(encoding="utf-8")
    make_config(yaml.safe_load(text))
    assert "scripts/train.py" in text.split("\n\n")[0]


def test_a_named_model_keeps_its_shape():
    config = parse_config(["--recipe", "cct-gpu", "--model", "vit_small", "--depth", "3"])
    shape = {"name": "vit_small_patch16_224", "image_size": 8, "in_channels": 1, "num_classes": 3, "depth": 3}
    assert config.model_arguments(INFO) == {**shape, "dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.1}
    assert config.image_size is None and config.mixup == 0.8  # 配方里的其余设置照旧


@pytest.mark.parametrize("name", ["pool", "position_embedding", "head"])
def test_the_choices_are_the_models(name):
    (setting,) = (setting for setting in all_settings() if setting.name == name)
    with pytest.raises(UserError) as error:
        ViT(**{name: "?"})
    offered = re.search("只能是 (.*) 之一", str(error.value)).group(1).split("、")
    assert list(setting.choices) == offered
    for choice in offered:
        config = parse_config(["--recipe", "none", f"--{name.replace('_', '-')}", choice])
        create_model(**{"patch_size": 4, "depth": 1, **config.model_arguments(INFO)})


def test_underscores_are_hyphens():
    assert parse_config(["--batch_size", "3", "--image_size=16"]).batch_size == 3


def test_saved_settings_are_a_recipe(tmp_path):
    config = parse_config(["--epochs", "3", "--ema", "0.5"])
    save_config(config, tmp_path / "config.yaml")
    again = parse_config(["--recipe", str(tmp_path / "config.yaml")])
    assert config.recipe == "digits" and again.recipe == str(tmp_path / "config.yaml")
    assert dataclasses.replace(again, recipe="digits") == config


def test_the_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3


def test_help_lists_every_setting_in_chinese(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    joined = "".join(text.split())
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in text
        assert field.default.description.split(";")[0].split("%")[0].replace(" ", "") in joined
    for english in ("usage", "options", "default", "show this"):
        assert english not in text
    assert "(默认0.001;digits的配方0.003)" in joined and "(默认100;digits的配方150)" in joined


def test_the_recipe_that_was_used_is_known():
    assert parse_config([]).recipe == "digits"
    assert parse_config(["--dataset", "fashion-mnist"]).recipe == "fashion-mnist"
    assert parse_config(["--dataset", "cifar100"]).recipe == (
        "cifar100" if (RECIPES / "cifar100.yaml").exists() else "none"
    )
    assert parse_config(["--recipe", "none"]).recipe == "none"
    assert make_config({}).recipe == "auto"  # 没有问过配方


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--dataset", "imagenet"], ("imagenet", "digits")),
        (["--epochs", "-1"], ("--epochs", "-1", "大于 0")),
        (["--epochs", "2.5"], ("--epochs", "2.5", "整数")),
        (["--batch-size", "0"], ("--batch-size", "0", "大于 0")),
        (["--lr", "abc"], ("--lr", "abc", "数字")),
        (["--lr", "nan"], ("--lr", "nan", "数字")),
        (["--ema", "1"], ("--ema", "小于 1")),
        (["--epoch", "3"], ("--epoch", "--epochs")),
        (["--epochs"], ("--epochs", "值")),
        (["extra"], ("extra",)),
        (["--flip", "--dataset", "digits"], ("flip", "digits")),
        (["--lr", "1e-6"], ("min_lr", "1e-06")),
        (["--threads", "999999999"], ("--threads", "1024")),
        (["--data-dir", "x", "--dataset", "digits"], ("--data-dir", "digits")),
        (["--seed", "99999999999999999999"], ("--seed", "小于")),
        (["--model", "resnet"], ("resnet", "vit_base")),
        (["--recipe", "nothing"], ("nothing", "digits")),
        (["--layer-decay", "0"], ("--layer-decay", "大于 0")),
        (["--layer-decay", "1.1"], ("--layer-decay", "小于等于 1")),
        (["--distillation", "soft"], ("soft", "--teacher")),
        (["--teacher-model", "vit_tiny"], ("--teacher-model", "--teacher")),
        (["--weights-table", "t.yaml"], ("--weights-table", "--weights")),
        (["--weights", "no/such/file"], ("no/such/file",)),
        (["--normalization", "zero"], ("zero", "imagenet")),
        (["--recipe", "no/such.yaml"], ("no/such.yaml",)),
        (["--resume", "no/such/run"], ("no/such/run", "config.yaml")),
    ],
)
def test_errors_name_the_value_and_the_expectation(argv, words):
    with pytest.raises(UserError) as error:
        parse_config(argv)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "text, words",
    [
        ("epoch: 3", ("epoch", "epochs")),
        ("qkv_biass: true", ("qkv_biass", "qkv_bias")),
        ("flip: perhaps", ("flip", "perhaps", "true", "bad.yaml")),
        ("lr: abc", ("bad.yaml", "lr", "abc")),
        ("3: 4", ("3",)),
        ("- 1", ("设置",)),
        ("epochs: 3\na: [", ("YAML", "行")),
        ("resume: runs/x", ("resume",)),
    ],
)
def test_errors_in_a_recipe(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        parse_config(["--recipe", str(tmp_path / "bad.yaml")])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_resume_keeps_the_settings(tmp_path):
    save_config(parse_config(["--epochs", "3"]), tmp_path / "config.yaml")
    config = parse_config(["--resume", str(tmp_path), "--threads", "1", "--epochs", "3", "--output", str(tmp_path)])
    assert (config.epochs, config.threads, config.output) == (3, 1, str(tmp_path))
    with pytest.raises(UserError, match="--lr"):
        parse_config(["--resume", str(tmp_path), "--lr", "1"])
    with pytest.raises(UserError, match="--output"):
        parse_config(["--resume", str(tmp_path), "--output", "elsewhere"])
    assert load_config(tmp_path).threads is None


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"model": "swin_tiny", "depth": 3}, "没有 depth"),
        ({"model": "swin_tiny", "num_heads": 3}, "num_heads=3"),
        ({"model": "vit", "window_size": 7}, "没有 window_size"),
        ({"epsilon": 0.1}, "epsilon"),
    ],
)
def test_settings_of_another_model_are_refused_before_the_data_are_read(settings, word):
    with pytest.raises(UserError, match=word):
        make_config(settings)
