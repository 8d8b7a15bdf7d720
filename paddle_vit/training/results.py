"""训练留下的结果:最好的权重 ``best.safetensors`` 和 ``summary.json``。"""

from __future__ import annotations

import dataclasses
import json

import paddle

from ..family.models import count_parameters, model_class
from ..system.files import atomic_write
from ..system.run_files import BEST, SUMMARY
from ..tasks.task import Result
from ..weights.checkpoint import save_model

__all__ = ["save_best", "save_summary"]


def save_best(trainer) -> None:
    """存下当前的权重,连同怎样建模型、类别名和归一化;自己写的模型只记下类名。"""
    model, config, info = trainer.model, trainer.config, trainer.task.info
    named = type(model) is model_class(config.model)
    arguments = config.model_arguments(info) if named else {"name": type(model).__name__, "own": True}
    save_model(trainer.directory / BEST, model.state_dict(), arguments, dataclasses.asdict(info))


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
        "precision": trainer.precision or "float32",
        "paddle": paddle.__version__,
    }
    if trainer.rank == 0:
        text = json.dumps(summary, ensure_ascii=False, indent=1)
        atomic_write(trainer.directory / SUMMARY, f"{text}\n".encode())
    return summary
