"""设置的文件:配方(recipe)和运行目录里的 ``config.yaml``,都是 YAML。"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import yaml

from .config import Config, make_config
from .errors import UserError
from .system.files import atomic_write, read_yaml
from .system.run_files import CONFIG, DESCRIPTION

__all__ = ["load_config", "read_settings", "save_config"]


def read_settings(path: str | Path) -> dict:
    """读一个 YAML 文件里的设置(字典),还没有检查。"""
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} 的内容不是 设置: 值 的列表:请参照 paddle_vit/recipes 里的配方。")
    return values


def save_config(config: Config, path: str | Path) -> None:
    """把全部设置写成 YAML,可以再作 ``--recipe`` 用。"""
    values = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("output", "resume", "recipe")
    }
    if config.data_dir is not None:  # 换一个目录来续训、评估时也找得到
        values["data_dir"] = os.path.abspath(config.data_dir)
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    atomic_write(path, f"# 这次运行的全部设置;可以用 --recipe 再跑一次\n{text}".encode())


def load_config(directory: str | Path) -> Config:
    """读运行目录里的 ``config.yaml``。

    Raises:
        UserError: 不是运行目录,或文件损坏。
    """
    path = Path(directory) / CONFIG
    if not path.exists():
        if (Path(directory) / DESCRIPTION).exists():
            raise UserError(
                f"{directory} 是导出的目录,这里要的是它所属的运行目录(在 scripts/train.py 建立的 runs/… 里)。"
            )
        raise UserError(f"{directory} 不是一个运行目录(里面没有 {CONFIG}):请给 scripts/train.py 建立的目录,如 runs/…。")
    return make_config(read_settings(path), f"{path} ")
