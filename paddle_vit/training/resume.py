"""续训的检查点 ``last.safetensors``:权重、EMA、优化器、混合精度的缩放和进度,从任何一步接着训练结果都一样。"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import paddle

from ..config import all_settings, result_settings
from ..errors import UserError
from ..system.files import matches
from ..weights.checkpoint import differences, read_state, write_state
from .progress import Progress

__all__ = ["check_progress", "read_checkpoint", "write_checkpoint"]

_METADATA = {"progress": dict, "ema_updates": int, "scaler": dict, "log": (dict, type(None)), "config": dict}
_KINDS: dict = {"int": int, "float": float, "dict": {None: float}}
_ADDED = {"improved_epoch", "first_epoch", "first_seconds", "total_steps"}  # 0.1.0 的检查点里还没有
_PROGRESS = {field.name: _KINDS[field.type] for field in dataclasses.fields(Progress)}  # 见 files.matches


def write_checkpoint(path: Path, trainer, log_position: dict | None) -> None:
    """存续训状态。

    Args:
        path (Path): 目标文件。
        trainer (Trainer): 见 ``loop.Trainer``。
        log_position (dict | None): 记录写到了哪里。

    Raises:
        UserError: 磁盘满、没有权限等。
    """
    tensors = {f"model/{name}": value.numpy() for name, value in trainer.model.state_dict().items()}
    tensors.update({f"ema/{name}": value.numpy() for name, value in trainer.ema.averages.items()})
    tensors.update({f"optimizer/{name}": value.numpy() for name, value in _optimizer_state(trainer).items()})
    metadata = {
        "progress": dataclasses.asdict(trainer.progress),
        "ema_updates": trainer.ema.updates,
        "scaler": {name: np.asarray(value).tolist() for name, value in trainer.scaler.state_dict().items()},
        "log": log_position,
        "config": result_settings(trainer.config),
    }
    write_state(path, tensors, metadata)


def _optimizer_state(trainer):
    """优化器状态,名字从 Paddle 自动起的(随进程里建过多少层而变)换成模型里的参数名。"""
    names = {parameter.name: name for name, parameter in trainer.model.named_parameters()}
    state = {}
    for key, value in trainer.optimizer.state_dict().items():
        owner = next((auto for auto in names if key.startswith(f"{auto}_")), None)
        if owner is not None:
            state[f"{names[owner]}/{key[len(owner) + 1 :]}"] = value
    return state


def read_checkpoint(path: Path, trainer) -> dict | None:
    """把续训状态读回 trainer。

    Returns:
        dict | None: 当时记录写到了哪里。

    Raises:
        UserError: 文件已损坏,或不属于这个运行。
    """
    tensors, metadata = read_state(path)
    parts: dict[str, dict] = {"model": {}, "ema": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = value
    _check(path, trainer, parts, metadata)
    trainer.model.set_state_dict(parts["model"])
    for name, average in trainer.ema.averages.items():
        average.set_value(parts["ema"][name])
    trainer.ema.updates = metadata["ema_updates"]
    auto_names = {name: parameter.name for name, parameter in trainer.model.named_parameters()}
    state = {}
    for key, value in parts["optimizer"].items():
        name, kind = key.rsplit("/", 1)
        state[f"{auto_names[name]}_{kind}"] = paddle.to_tensor(value)
    trainer.optimizer.set_state_dict(state)
    if metadata["scaler"]:
        scaler = {name: np.asarray(value, "float32") for name, value in metadata["scaler"].items()}
        trainer.scaler.load_state_dict(scaler)
    trainer.progress = Progress(**metadata["progress"])
    return metadata["log"]


def check_progress(path: Path, metadata: dict) -> dict:
    """检查点里的进度(字典);较早的版本没有存的项补上。

    Raises:
        UserError: 它不是进度应有的样子。
    """
    if matches(metadata, _METADATA):
        progress = {**dict.fromkeys(_ADDED, 0), **metadata["progress"]}
        if matches(progress, _PROGRESS) and progress.keys() == _PROGRESS.keys():
            return progress
    raise _not_of_this_run(path, "训练的进度")


def _not_of_this_run(path, details):
    return UserError(f"{path} 与这个运行对不上({details}):它可能被改过,请换一个备份,或用 --output 开一个新的运行。")


def _check(path, trainer, parts, metadata):
    """检查点与这个运行对不上时抛出 ``UserError``;校验和只防意外的损坏,改过的文件也可以有对的校验和。"""
    before = metadata["config"] if matches(metadata, {"config": dict}) else {}
    settings = result_settings(trainer.config)
    for name, now in settings.items():
        if name in before and before[name] != now:
            raise UserError(
                f"config.yaml 里的 {name} 是 {now},检查点里是 {before[name]}:"
                "续训要沿用原来的设置,请改回来,或用 --output 开一个新的运行。"
            )
    # 存它的版本也许还没有某个设置:现在用的是默认值就行
    defaults = {setting.name: setting.default for setting in all_settings()}
    missing = settings.keys() - before.keys()
    if not before.keys() <= settings.keys() or not all(settings[name] == defaults[name] for name in missing):
        raise _not_of_this_run(path, "设置")
    check_progress(path, metadata)
    shapes = {name: tuple(value.shape) for name, value in trainer.model.state_dict().items()}
    details = differences(trainer.model.state_dict(), parts["model"]) or differences(trainer.ema.averages, parts["ema"])
    for key, value in parts["optimizer"].items():
        name = key.rpartition("/")[0]
        if name not in shapes or value.shape not in (shapes[name], (1,), ()):
            details = details or f"优化器的状态 {key}"
    if len(parts) > 3 or details:
        raise _not_of_this_run(path, details or "多出来的张量")
