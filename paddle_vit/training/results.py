"""训练留下的结果:最好的权重 ``best.safetensors`` 和 ``summary.json``。"""

from __future__ import annotations

import dataclasses
import json

import paddle

from ..family.models import count_parameters, create_model, model_class
from ..system.files import atomic_write
from ..system.run_files import BEST, SUMMARY
from ..system.runtime import describe_machine
from ..tasks.task import Result
from ..weights.checkpoint import save_model
from .recomputing import is_recomputed

__all__ = ["is_built_by", "save_best", "save_summary"]


def save_best(trainer) -> None:
    """存下当前的权重,连同怎样建模型、类别名和归一化;由设置建不出来的模型(自己写的、改过的)只记下类名。"""
    model, config, info = trainer.model, trainer.config, trainer.task.info
    arguments = config.model_arguments(info)
    if not is_built_by(arguments, model):
        arguments = {"name": type(model).__name__, "own": True}
    save_model(trainer.directory / BEST, model.state_dict(), arguments, dataclasses.asdict(info))


def is_built_by(arguments, model):
    """``create_model(**arguments)`` 建出的是不是同样的模型:各层的类、模型的设置相同,没有换掉 ``forward``。"""
    if type(model) is not model_class(arguments["name"]):
        return False
    with paddle.LazyGuard():  # 不初始化参数,很快,也不动随机数
        plain = create_model(**arguments)
    kinds, expected = ([(n, type(x)) for n, x in m.named_sublayers(include_self=True)] for m in (model, plain))
    same = all(_same(value, plain.settings[name]) for name, value in model.settings.items())
    return kinds == expected and same and not any(map(_has_own_forward, model.sublayers(include_self=True)))


def _same(value, other):
    """两个设置是否相同;(高, 宽) 与边长、列表与元组不分。"""
    value, other = (list(item) if isinstance(item, (list, tuple)) else item for item in (value, other))
    if isinstance(value, list) != isinstance(other, list):
        value, other = ([item] * 2 if not isinstance(item, list) else item for item in (value, other))
    return value == other


def _has_own_forward(layer):
    return "forward" in vars(layer) and not is_recomputed(layer)


def save_summary(trainer, result: Result) -> dict:
    """写 summary.json。

    Args:
        trainer (Trainer): 训练完的。
        result (Result): 测试集上的结果。

    Returns:
        dict: 它的内容。
    """
    p, config = trainer.progress, trainer.config
    summary = {
        **{f"test_{name}": value for name, value in result.measures.items()},
        **{f"val_{name}": value for name, value in p.best.items()},
        "best_epoch": p.best_epoch,
        "epochs": p.epoch,
        "seconds": round(p.seconds, 2),
        "parameters": count_parameters(trainer.model),
        "task": config.task,
        "dataset": config.dataset,
        "model": config.model,
        "seed": config.seed,
        "processes": trainer.world,
        "device": paddle.device.get_device(),
        "machine": describe_machine(paddle.device.get_device()),
        "precision": trainer.precision or "float32",
        "paddle": paddle.__version__,
    }
    if trainer.rank == 0:
        text = json.dumps(summary, ensure_ascii=False, indent=1)
        atomic_write(trainer.directory / SUMMARY, f"{text}\n".encode())
    return summary
