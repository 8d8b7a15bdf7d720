"""命令行 -> 设置。取值的先后:字段的默认值 < 配方(recipe)< 沿用的(微调)< 命令行。"""

from __future__ import annotations

import difflib
import os
from argparse import SUPPRESS, BooleanOptionalAction
from pathlib import Path

from ..config import COMMAND_LINE, Config, all_settings, make_config, option_of, tagged
from ..config_files import read_settings
from ..errors import UserError
from ..family.models import full_name
from ..system.cli import ArgumentParser
from .beginning import check_inherited, inherited_settings, resumed_config

__all__ = ["RECIPES", "parse_config"]

RECIPES = Path(__file__).parents[1] / "recipes"


def _parser():
    parser = ArgumentParser(
        "训练一个视觉 Transformer。不带参数时在自带的 digits 手写数字上训练,不用联网。\n"
        "括号里是默认值;有与数据集同名的配方时用配方的(digits 的写在括号里,见 --recipe),命令行上给的最优先。",
        usage="python scripts/train.py [选项]",
    )
    groups, recipe = {}, read_settings(RECIPES / "digits.yaml")
    for setting in all_settings():
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(setting.group)
        group, option = groups[setting.group], option_of(setting.name)
        help_text = f"{setting.description}{_default(setting, recipe)}".replace("%", "%%")
        if setting.is_bool:
            group.add_argument(option, action=BooleanOptionalAction, default=SUPPRESS, help=help_text)
        else:
            metavar = "{" + ",".join(setting.choices) + "}" if setting.choices else setting.value_name
            group.add_argument(option, default=SUPPRESS, metavar=metavar, help=help_text)
    return parser


def _default(setting, recipe):
    """帮助里写的默认值;digits 的配方改了它,就两个都写。"""
    values = [] if setting.default is None else [f"默认 {setting.default}"]
    if setting.name in recipe and recipe[setting.name] != setting.default:
        values.append(f"digits 的配方 {recipe[setting.name]}")
    return f"({';'.join(values)})" if values else ""


def _recipe_path(name, dataset, fine_tuning):
    if name == "none":
        return None
    if name == "auto":
        path = RECIPES / ("finetune.yaml" if fine_tuning else f"{dataset}.yaml")
        return path if path.exists() else None
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return Path(name)
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        known = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"是不是 {close[0]}?" if close else ""
        raise UserError(f"没有名为 {name!r} 的配方:{hint}内置的有 {'、'.join(known)};自己的配方请给 .yaml 文件的路径。")
    return path


def parse_config(argv: list[str] | None = None) -> Config:
    """由命令行参数(和它指定的配方,或要继续的运行)得到 ``Config``。

    Raises:
        UserError: 参数、配方或要继续的运行有误。
    """
    given = vars(_parser().parse_args(argv))
    if given.get("resume") is not None:
        return resumed_config(given)
    path = _recipe_path(given.get("recipe", "auto"), given.get("dataset", "digits"), "weights" in given)
    recipe = {}
    if path is not None:
        recipe = read_settings(path)
        for name in ("resume", "recipe"):
            if name in recipe:
                raise UserError(f"配方 {path} 里不能有 {name}:它只能在命令行上给。")
        dataset = given.get("dataset", recipe.get("dataset", "digits"))
        make_config({**recipe, "dataset": dataset}, f"配方 {path} ")
        if full_name(given.get("model", "vit")) != "vit":
            recipe = {name: value for name, value in recipe.items() if name not in tagged("shape")}
    if given.get("weights") is not None:
        recipe = {name: value for name, value in recipe.items() if name not in ("model", *tagged("shape"))}
    used = "none" if path is None else path.stem if path.parent == RECIPES else str(path)
    wanted = {**recipe, **given, "recipe": used}
    if wanted.get("weights") is None:
        return make_config(wanted, COMMAND_LINE)
    inherited = inherited_settings(wanted)
    config = make_config({**inherited, **wanted}, COMMAND_LINE)
    check_inherited(config, inherited)
    return config
