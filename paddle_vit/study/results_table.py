"""训练完的运行列成一张表:同样的设置、几个种子是一行,写明怎样再跑一次。README 里的结果表由它来。"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import statistics
from pathlib import Path

from ..config import Config, option_of, result_settings
from ..config_files import load_config
from ..errors import UserError
from ..runs.command_line import RECIPES, parse_config
from ..system.files import quoted, read_json
from ..system.run_files import CONFIG, SUMMARY

__all__ = ["command_of", "find_runs", "results_table"]


def find_runs(paths: list[str | Path]) -> list[Path]:
    """给出的目录里训练完的运行:目录自己就是,或它下面一层的。

    Raises:
        UserError: 一个也没有。
    """
    candidates = [found for path in paths for found in ([Path(path)], sorted(Path(path).glob("*")))]
    runs = [path for found in candidates for path in found if (path / CONFIG).exists() and (path / SUMMARY).exists()]
    if not runs:
        raise UserError(
            f"{'、'.join(map(quoted, paths))} 里没有训练完的运行:请给运行目录,或装着运行目录的目录,如 runs。"
        )
    return list(dict.fromkeys(runs))


def command_of(config: Config) -> str:
    """再跑一次的命令:与最相近的内置配方不同的设置都写出来;种子不写。

    Args:
        config (Config): 运行目录里的设置。
    """
    data = [] if config.dataset == "digits" else ["--dataset", config.dataset]
    model = [] if config.model == "vit" else ["--model", config.model]
    recipes = [[], *(["--recipe", name] for name in ("none", *sorted(path.stem for path in RECIPES.glob("*.yaml"))))]
    candidates = [[*data, *recipe, *model] for recipe in recipes]
    commands = [words + changes for words in candidates if (changes := _changes(config, words)) is not None]
    return shlex.join(["python", "scripts/train.py", *min(commands, key=len)])


def _changes(config, words):
    """与命令行 words 的设置不同的,写成选项;写不出来(如这个配方不能用于这个数据集)时是 ``None``。"""
    before, changes = _settings_of(tuple(words)), []
    if before is None:
        return None
    for name, value in result_settings(config).items():
        if name == "seed" or value == before[name]:
            continue
        if value is None:
            return None
        if isinstance(value, bool):
            changes.append(option_of(name) if value else option_of(f"no_{name}"))
        else:
            changes += [option_of(name), _word(value)]
    return changes


def _word(value):
    """一个值在命令行上的写法;小数写到能读回同一个数为止。"""
    if isinstance(value, (list, tuple)):  # 图像的高和宽
        return "x".join(map(str, value))
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


@functools.cache
def _settings_of(words):
    """命令行的全部设置(字典);不合法的是 ``None``。每个运行都要与各个配方比,只读一次。"""
    try:
        return dataclasses.asdict(parse_config(list(words)))
    except UserError:
        return None


def results_table(runs: list[Path]) -> list[list[str]]:
    """一组同样设置的运行一行,第一行是表头;用时是平均,含评估,不含导入和读数据。

    Args:
        runs (list[Path]): ``find_runs`` 的结果。
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for run in runs:
        config = load_config(run)
        summary = read_json(run / SUMMARY)
        groups.setdefault((command_of(config), summary["machine"]), []).append(summary)
    table = [["命令", "参数", "轮数", "分钟", "验证 top-1", "测试 top-1", "种子", "机器"]]
    for (command, machine), summaries in groups.items():
        cells = [command, f"{summaries[0]['parameters']:,}", _span([s["epochs"] for s in summaries], "{:g}")]
        cells.append(f"{statistics.mean(s['seconds'] for s in summaries) / 60:.1f}")
        cells += [_span([100 * s[f"{part}_top1"] for s in summaries], "{:.2f}") for part in ("val", "test")]
        table.append([*cells, "、".join(str(s["seed"]) for s in summaries), machine])
    return table


def _span(values, form):
    """平均(最低–最高);只有一个或都相同时就是它。"""
    mean = form.format(statistics.mean(values))
    if min(values) == max(values):
        return mean
    return f"{mean}({form.format(min(values))}–{form.format(max(values))})"
