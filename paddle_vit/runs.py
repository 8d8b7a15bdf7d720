"""运行目录:训练时建立和上锁,评估和预测时读回。"""

import contextlib
import dataclasses
import time
from pathlib import Path

from .checkpoint import load_weights_into
from .cli import describe_os_error
from .config import load_config, save_config
from .data import DataInfo, load_info
from .errors import UserError
from .vit import create_model

__all__ = ["LoadedRun", "build_model", "load_run", "open_run"]


@contextlib.contextmanager
def open_run(config, write=True):
    """建立(或续训时打开)运行目录并上锁,在 with 里给出它的路径。

    Args:
        config (Config): 用到 output、resume、dataset。
        write (bool): 多进程时只有 0 号进程建目录、上锁。

    Raises:
        UserError: 目录里已经有一个运行、正被另一个训练使用,或不可写。
    """
    from filelock import FileLock, Timeout

    directory = Path(config.output or f"runs/{config.dataset}-{time.strftime('%Y%m%d-%H%M%S')}")
    if not write:
        yield directory
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".lock"
        with open(probe, "a"):
            pass
    except OSError as error:
        raise UserError(describe_os_error(error, directory)) from None
    lock = FileLock(str(probe))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{directory} 正被另一个训练使用:请等它结束,或用 --output 换一个目录。") from None
    try:
        if config.resume is None:
            if (directory / "config.yaml").exists():
                raise UserError(
                    f"{directory} 里已经有一个运行:继续它请用 --resume {directory},重新训练请用 --output 换一个目录。"
                )
            save_config(config, directory / "config.yaml")
        yield directory
    finally:
        lock.release()


def build_model(config, info):
    """按设置和数据集的说明建模型。"""
    return create_model(
        config.model,
        image_size=info.image_size,
        in_channels=info.channels,
        num_classes=len(info.classes),
        **config.model_overrides(),
    )


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """读回的运行:设置、数据集的说明、装好最佳权重的模型。"""

    directory: Path
    config: object
    info: DataInfo
    model: object


def load_run(directory):
    """读回一个运行,模型处于评估状态。

    Args:
        directory (str | Path): 运行目录。

    Returns:
        LoadedRun

    Raises:
        UserError: 不是运行目录、还没有权重、文件损坏,或权重属于另一个模型。
    """
    directory = Path(directory)
    config = load_config(directory)
    info = load_info(directory / "data.json")
    model = build_model(config, info)
    load_weights_into(model, directory / "best.pdparams")
    model.eval()
    return LoadedRun(directory, config, info, model)
