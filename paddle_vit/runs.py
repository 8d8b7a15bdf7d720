"""一次运行:由设置训练出一个运行目录(``train``),评估和预测时读回(``load_run``)。"""

import contextlib
import dataclasses
import itertools
import time
from functools import partial
from pathlib import Path

from .checkpoint import load_weights_into, read_json
from .cli import describe_os_error
from .config import load_config, save_config
from .data import DataInfo, check_same_data, image_size_of, load_data, load_info, save_info
from .errors import UserError
from .logs import RunLog
from .models import create_model, model_settings
from .processes import one_after_another, tell_others
from .runtime import autocast_dtype, describe_runtime, seed_everything, setup_runtime
from .training import fit
from .weights import run_of, save_report, start_from

__all__ = [
    "LoadedRun",
    "build_model",
    "first_weights",
    "is_in_use",
    "load_run",
    "open_run",
    "patches_per_image",
    "source_statistics",
    "train",
]


def train(config):
    """由设置训练一个模型:读数据、建模型、建运行目录、训练,最后评估测试集。``scripts/train.py`` 做的就是它。

    在调用它的这一个进程里训练。几个进程一起训练时,每个进程都调用它(见 ``processes.companions``)。

    Args:
        config (Config): 全部设置,由 ``make_config`` 或 ``parse_config`` 建立。

    Returns:
        LoadedRun: 训练好的运行,模型装着最佳权重,处于评估状态,可以直接交给 ``predict``。

    Raises:
        UserError: 数据、设置或运行目录有误,损失变成 NaN,磁盘满等;或者要几个进程而只有这一个。
    """
    runtime = setup_runtime(config.device, config.threads)
    rank, world = runtime["rank"], runtime["processes"]
    if config.processes != "auto" and config.processes > world:
        raise UserError(
            f"processes={config.processes},而这里只有 {world} 个进程:在笔记本里请去掉它,"
            "要几个进程请用 python scripts/train.py。"
        )
    precision = autocast_dtype(config.precision, runtime["device"])
    if rank == 0:
        print(f"{describe_runtime(runtime)}\n读取数据 {config.dataset} …", flush=True)
    with one_after_another(rank, world):
        data = source_statistics(load_data(config), config)
    seed_everything(config.seed)
    model = build_model(config, data.info)
    report = first_weights(model, config, data.info)
    with open_run(config, data.info, rank, world) as directory:
        if rank == 0:
            print(f"运行目录 {directory};看曲线:python scripts/board.py {directory.parent}", flush=True)
        if rank == 0 and report is not None:
            print(report, flush=True)
            save_report(report, directory / "init.json")
        make_log = partial(RunLog, directory, config.epochs, every=config.log_every, enabled=rank == 0)
        fit(model, data, config, directory, make_log, precision, rank, world)
    model.eval()
    return LoadedRun(directory, config, data.info, model)


@contextlib.contextmanager
def open_run(config, info, rank=0, world=1):
    """建立(或续训时打开)运行目录并上锁,写好 config.yaml 和 data.json,在 with 里给出它的路径。

    Args:
        config (Config): 用到 output、resume、dataset。
        info (DataInfo): 数据集的说明;续训时核对与当时是否相同。
        rank, world (int): 本进程的序号和进程总数;只有 0 号进程建目录、上锁,再把路径告诉其余进程。

    Raises:
        UserError: 目录里已经有一个运行、正被另一个训练使用,或不可写。
    """
    if rank:
        yield Path(tell_others(None, world))
        return
    directory = Path(config.output) if config.output else _new_directory(config.dataset)
    with _locked(directory):
        if config.resume is None:
            if (directory / "config.yaml").exists():
                raise UserError(
                    f"{directory} 里已经有一个运行:继续它请用 --resume {directory},重新训练请用 --output 换一个目录。"
                )
            save_config(config, directory / "config.yaml")
        if (directory / "data.json").exists():
            check_same_data(load_info(directory / "data.json"), info, directory)
        else:
            save_info(info, directory / "data.json")
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
    from filelock import FileLock, Timeout

    path = directory / ".lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(describe_os_error(error, directory)) from None
    try:
        with FileLock(str(path), timeout=0):
            yield
    except Timeout:
        raise UserError(f"{directory} 正被另一个训练使用:请等它结束,或用 --output 换一个目录。") from None


def is_in_use(directory):
    """这个运行目录是否正被一个训练使用。"""
    from filelock import FileLock, Timeout

    path = Path(directory) / ".lock"
    try:
        if path.exists():
            with FileLock(str(path), timeout=0):
                pass
    except Timeout:
        return True
    except OSError:  # 只读的目录里锁不了,也就没有训练在写
        return False
    return False


def patches_per_image(config):
    """一张图像切成多少个图块(不用先载入数据)。"""
    patch_size = config.patch_size or model_settings(config.model).get("patch_size", 7)
    return (image_size_of(config) // patch_size) ** 2


def build_model(config, info):
    """按设置和数据集的说明建模型。"""
    return create_model(
        config.model,
        image_size=info.image_size,
        in_channels=info.channels,
        num_classes=len(info.classes),
        **config.model_overrides(),
    )


def source_statistics(data, config):
    """微调时,让图像的均值和标准差与原来的运行相同:它的权重看惯了那样的输入。

    Args:
        data (Data): 载入的数据。
        config (Config): 用到 init_from、resume。

    Returns:
        Data: 只换了 info 里的 mean 和 std;不是微调,或从单独的权重文件开始时,原样返回。
    """
    if config.init_from is None:
        return data
    if config.resume is not None and (Path(config.resume) / "data.json").exists():
        directory = Path(config.resume)  # 续训:原来的运行可能已经不在了
    else:
        directory = run_of(config.init_from)
    if directory is None:
        return data
    source = load_info(directory / "data.json")
    return dataclasses.replace(data, info=dataclasses.replace(data.info, mean=source.mean, std=source.std))


def first_weights(model, config, info):
    """微调时,训练开始之前把原来的运行的权重放进模型;续训时检查点里什么都有,不再放。

    Args:
        model (ViT): 刚建好的模型。
        config (Config): 用到 init_from、resume。
        info (DataInfo): 新数据的说明,用到类别名。

    Returns:
        StartReport | None: 哪些取来了;没有放时是 ``None``。

    Raises:
        UserError: 见 ``weights.start_from``。
    """
    begun = config.resume is not None and (Path(config.resume) / "last.safetensors").exists()
    if config.init_from is None or begun:
        return None
    return start_from(model, config.init_from, info.classes)


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """训练好的运行。

    Attributes:
        directory (Path): 运行目录。
        config (Config): 设置。
        info (DataInfo): 数据集的说明。
        model (ViT): 装好最佳权重,处于评估状态。
    """

    directory: Path
    config: object
    info: DataInfo
    model: object

    @property
    def summary(self):
        """summary.json 的内容:测试和验证的正确率、最好的一轮、用时等;还没训练完时是 ``None``。"""
        return read_json(self.directory / "summary.json")


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
