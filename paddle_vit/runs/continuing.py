"""接着训练(``--resume 运行 --epochs 更多``):在新的运行目录里,从原来停下的地方接着走;原来的目录一个字节也不动。"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..config import Config, result_settings
from ..errors import UserError
from ..system.files import describe_os_error
from ..system.run_files import BEST, GRAPH, HEALTH, INIT, LAST, METRICS, VISUALDL
from ..training.resume import check_progress
from ..weights.checkpoint import read_state, write_state

__all__ = ["copy_run"]

_COPIED = (BEST, METRICS, VISUALDL, GRAPH, HEALTH, INIT)  # 曲线接着画,最好的权重接着比


def copy_run(source: Path, directory: Path, config: Config) -> None:
    """把 source 里的训练抄到 directory,学习率的计划从停下的地方重新开始。

    Args:
        source (Path): 原来的运行目录,训练完了或中断了的都行。
        directory (Path): 新的运行目录,已经建好。
        config (Config): 新的设置,epochs 是新的总轮数。

    Raises:
        UserError: 检查点已损坏,磁盘满等。
    """
    tensors, metadata = read_state(source / LAST)
    progress = check_progress(source / LAST, metadata)
    progress.update(first_epoch=progress["epoch"], first_seconds=progress["seconds"], total_steps=0)
    metadata = {**metadata, "progress": progress, "config": result_settings(config)}
    try:
        for name in _COPIED:
            if (source / name).exists():
                shutil.copyfile(source / name, directory / name)
    except OSError as error:
        raise UserError(describe_os_error(error, directory)) from None
    write_state(directory / LAST, tensors, metadata)
