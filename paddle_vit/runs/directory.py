"""运行目录:建立、上锁、看有没有在用。里面有哪些文件见 ``system.run_files``。"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from ..config import Config
from ..config_files import save_config
from ..data.info import check_same_data, save_info
from ..data.parts import Data
from ..data.splits import save_pictures
from ..errors import UserError
from ..system.files import describe_os_error, quoted
from ..system.processes import tell_others
from ..system.run_files import CONFIG, DATA, LOCK, PICTURES
from .beginning import Beginning
from .continuing import copy_run

__all__ = ["is_in_use", "open_run"]


@contextlib.contextmanager
def open_run(config: Config, data: Data, beginning: Beginning, rank: int = 0, world: int = 1) -> Iterator[Path]:
    """建立(或续训时打开)运行目录并上锁,写好 config.yaml、data.json 和 pictures.csv,在 with 里给出它的路径。

    续训时加了轮数,就建立一个新的,把原来的记录抄过来。

    Args:
        config (Config): 用到 output、dataset。
        data (Data): 数据集;续训时核对与当时是否相同。
        beginning (Beginning): 从哪里开始。
        rank, world (int): 本进程的序号和进程总数;只有 0 号进程建目录、上锁,再把路径告诉其余进程。

    Raises:
        UserError: 目录里已经有一个运行、正被另一个训练使用,或不可写。
    """
    if rank:
        yield Path(str(tell_others(None, world)))
        return
    source, is_new = beginning.directory, beginning.directory is None or beginning.longer
    if source is not None and beginning.info is not None:
        check_same_data(beginning.info, data.info, source)
    if source is not None and beginning.longer and is_in_use(source):
        raise UserError(f"{source} 还在训练:请等它结束,或先停下它。")
    directory = Path(config.output) if config.output else _new_directory(config.dataset)
    with _locked(directory):
        if is_new and (directory / CONFIG).exists():
            raise UserError(
                f"{directory} 里已经有一个运行:继续它请用 --resume {quoted(directory)},"
                "重新训练请用 --output 换一个目录。"
            )
        if source is not None and beginning.longer:
            copy_run(source, directory, config)
        if is_new or beginning.info is None:
            if data.pictures:
                save_pictures(data.pictures, directory / PICTURES)
            save_info(data.info, directory / DATA)
        if is_new:
            save_config(config, directory / CONFIG)  # 最后写:有它才是一个运行
        tell_others(str(directory), world)
        yield directory


def _new_directory(dataset):
    """runs/<数据集>-<月日-时分秒>;同一秒里已经有了就加序号。"""
    name = f"runs/{dataset}-{time.strftime('%m%d-%H%M%S')}"
    for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))):
        directory = Path(name + suffix)
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(describe_os_error(error, directory)) from None


@contextlib.contextmanager
def _locked(directory):
    from filelock import FileLock, Timeout  # 只有训练要用

    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(describe_os_error(error, directory)) from None
    try:
        with FileLock(str(path), timeout=0):
            for leftover in directory.glob(".*.tmp"):  # 上一次写到一半时被杀掉了
                leftover.unlink()
            yield
    except Timeout:
        raise UserError(f"{directory} 正被另一个训练使用:请等它结束,或用 --output 换一个目录。") from None


def is_in_use(directory: str | Path) -> bool:
    """这个运行目录是否正被一个训练使用。"""
    from filelock import FileLock, Timeout  # 只有训练要用

    path = Path(directory) / LOCK
    try:
        if path.exists():
            with FileLock(str(path), timeout=0):
                pass
    except Timeout:
        return True
    except OSError:  # 只读的目录里锁不了,也就没有训练在写
        return False
    return False
