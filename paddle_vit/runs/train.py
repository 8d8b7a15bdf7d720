"""一次运行:由设置训练出一个运行目录(``train``),评估和预测时读回(``load_run``)。"""

import contextlib
import dataclasses
import itertools
import time
from functools import partial
from pathlib import Path

from ..config import EXPORTED, load_config, save_config
from ..data.sources import (
    DataInfo,
    check_same_data,
    image_size_of,
    load_data,
    load_info,
    parse_info,
    pixel_statistics,
    save_info,
)
from ..errors import UserError
from ..family.models import check_size, create_model, model_settings
from ..system.files import describe_os_error, read_json
from ..system.processes import one_after_another, tell_others
from ..system.runtime import autocast_dtype, describe_runtime, seed_everything, setup_runtime
from ..tasks.distillation import Distillation
from ..training.loop import fit
from ..weights import NORMALIZATION, describe_weights, load_weights, save_report
from ..weights.checkpoint import differences, load_state_into, read_model, read_weights, weights_path
from .logs import RunLog

__all__ = [
    "LoadedModel",
    "LoadedRun",
    "build_model",
    "check_teacher",
    "choose_normalization",
    "first_weights",
    "is_in_use",
    "load_distillation",
    "load_model",
    "load_run",
    "load_run_data",
    "open_run",
    "patches_per_image",
    "train",
]


def train(config):
    """由设置训练一个模型:读数据、建模型、建运行目录、训练,最后评估测试集。``scripts/train.py`` 做的就是它。

    在调用它的这一个进程里训练。几个进程一起训练时,每个进程都调用它(见 ``processes.companions``)。

    Args:
        config (Config): 全部设置,由 ``make_config`` 或 ``parse_config`` 建立。

    Returns:
        LoadedRun: 训练好的运行,模型装着最佳权重,处于评估状态,可以直接交给 ``Predictor``。

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
    check_teacher(config)
    if rank == 0:
        print(f"{describe_runtime(runtime)}\n读取数据 {config.dataset} …", flush=True)
    with one_after_another(rank, world):
        data = choose_normalization(load_data(config), config)
    seed_everything(config.seed)
    model = build_model(config, data.info)
    report = first_weights(model, config, data.info)
    distillation = load_distillation(config, data.info)
    with open_run(config, data.info, rank, world) as directory:
        if rank == 0:
            print(f"运行目录 {directory};看曲线:python scripts/board.py {directory.parent}", flush=True)
        if rank == 0 and report is not None:
            print(f"微调:{report}", flush=True)
            save_report(report, directory / "init.json")
        make_log = partial(RunLog, directory, config.epochs, every=config.log_every, enabled=rank == 0)
        fit(model, data, config, directory, make_log, precision, rank, world, distillation)
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
            for leftover in directory.glob(".*.tmp"):  # 上一次写到一半时被杀掉了
                leftover.unlink()
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
    return create_model(**config.model_arguments(info))


def choose_normalization(data, config):
    """按设置换掉归一化用的均值和标准差;微调时默认与权重相同,它看惯了那样的输入。

    Args:
        data (Data): 载入的数据。
        config (Config): 用到 normalization、weights、weights_table、resume。

    Returns:
        Data: 只换了 info 里的 mean 和 std。

    Raises:
        UserError: 通道数不对,或 weights 有误。
    """
    channels, choice = data.info.channels, config.normalization
    record = None if config.resume is None else Path(config.resume) / "data.json"
    if record is not None and record.exists():  # 续训:原来的权重可能已经不在了
        saved = load_info(record)
        mean, std = saved.mean, saved.std
    elif choice == "half":
        mean = std = (0.5,) * channels
    elif choice == "imagenet":
        mean, std = NORMALIZATION["imagenet"]
    elif choice == "data":
        mean, std = pixel_statistics(data.train)
    elif config.weights is not None:
        known = describe_weights(config.weights, config.weights_table, config.model)
        mean, std = known.mean or data.info.mean, known.std or data.info.std
    else:
        return data
    if len(mean) != channels:
        source = config.weights if choice == "auto" else f"--normalization {choice}"
        raise UserError(
            f"{source} 的均值有 {len(mean)} 个通道,图像是 {channels} 个:请换数据;folder 的图片可以用 --grayscale 或"
            " --no-grayscale 选灰度或彩色。"
        )
    return dataclasses.replace(data, info=dataclasses.replace(data.info, mean=tuple(mean), std=tuple(std)))


def first_weights(model, config, info):
    """微调时,训练开始之前把权重放进模型;续训时检查点里什么都有,不再放。

    Args:
        model (nn.Layer): 刚建好的模型。
        config (Config): 用到 weights、weights_table、resume。
        info (DataInfo): 新数据的说明,用到类别名。

    Returns:
        LoadReport | None: 哪些取来了;没有放时是 ``None``。

    Raises:
        UserError: 见 ``weights.load_weights``。
    """
    begun = config.resume is not None and (Path(config.resume) / "last.safetensors").exists()
    if config.weights is None or begun:
        return None
    return load_weights(model, config.weights, table=config.weights_table, classes=info.classes)


def check_teacher(config):
    """读数据之前先看老师在不在、是什么模型。

    Args:
        config (Config): 用到 teacher、teacher_model 和 distillation 开头的几个。

    Returns:
        WeightsInfo | None: 老师的权重的说明;用不到老师(不蒸馏,或要继续的运行已经训练完)时是 ``None``。

    Raises:
        UserError: 没有老师的文件,它已损坏,或不知道是哪个模型。
    """
    finished = config.resume is not None and (Path(config.resume) / "summary.json").exists()
    if config.distillation_kind == "none" or finished:
        return None
    if not Path(config.teacher).exists():
        raise UserError(f"没有老师 {config.teacher}:请检查 --teacher 的路径;续训时要把它放回原处。")
    known = describe_weights(config.teacher, model=config.teacher_model)
    if known.model is None and config.teacher_model is None:
        raise UserError(f"{config.teacher} 是别处的权重,没有写明是哪个模型:请用 --teacher-model 写明{known.guess()}。")
    return known


def load_distillation(config, info):
    """读蒸馏的老师。

    Args:
        config (Config): 见 ``check_teacher``。
        info (DataInfo): 学生的数据的说明。

    Returns:
        Distillation | None: 用不到老师时是 ``None``。

    Raises:
        UserError: 见 ``check_teacher``;或老师与学生的类别、通道数不同。
    """
    known = check_teacher(config)
    if known is None:
        return None
    if known.model is not None:
        loaded = load_model(config.teacher)
        teacher, teacher_info = loaded.model, loaded.info
    else:
        teacher, teacher_info = _foreign_teacher(config, info, known)
    settings = (config.distillation_kind, config.distillation_alpha, config.distillation_temperature)
    return Distillation(teacher, teacher_info, info, *settings)


def _foreign_teacher(config, info, known):
    """别处的权重作老师:写着类别名的,要与数据的相同;没有写的,只要求类别数和通道数相同。"""
    image_size = model_settings(config.teacher_model).get("image_size", info.image_size)
    shape = dict(image_size=image_size, in_channels=info.channels, num_classes=len(info.classes))
    teacher = create_model(config.teacher_model, **shape)
    report = load_weights(teacher, config.teacher)
    if report.fresh:
        raise UserError(
            f"老师 {config.teacher} 的分类头与数据的 {len(info.classes)} 类对不上({'、'.join(report.fresh)}):"
            "请先把它在这些类上微调,再作老师。"
        )
    mean, std = known.mean or info.mean, known.std or info.std
    classes = known.classes or info.classes
    return teacher, dataclasses.replace(info, classes=classes, image_size=image_size, mean=mean, std=std)


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
    def arguments(self):
        """给 ``create_model`` 的参数(字典):用它能再建出同样的模型。"""
        return self.config.model_arguments(self.info)

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
    path = weights_path(directory)
    state = read_weights(path)
    check_size(config.model_arguments(info), [value.shape for value in state.values()], path)
    model = build_model(config, info)
    load_state_into(model, state, path)
    model.eval()
    return LoadedRun(directory, config, info, model)


def load_run_data(loaded, data_dir=None):
    """载入一个运行的数据集,核对与训练时是否相同。

    Args:
        loaded (LoadedRun): ``load_run`` 的结果。
        data_dir (str | Path | None): 数据所在的目录;``None`` 用训练时的。

    Returns:
        Data

    Raises:
        UserError: 数据缺失、损坏,或与训练时不同。
    """
    config = loaded.config if data_dir is None else dataclasses.replace(loaded.config, data_dir=data_dir)
    data = load_data(config)
    check_same_data(loaded.info, data.info, loaded.directory, whole=False)
    return data


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """一个可以预测的模型。

    Attributes:
        source (Path): 从哪里读来的。
        info (DataInfo): 类别名、通道数、图像边长、均值和标准差。
        model (ViT): 装好权重,处于评估状态。
        arguments (dict): 给 ``create_model`` 的参数:用它能再建出同样的模型。
    """

    source: Path
    info: DataInfo
    model: object
    arguments: dict


def load_model(source):
    """读回一个能预测的模型:一个运行,或单独的一个权重文件。

    Args:
        source (str | Path): 运行目录;或能说明自己的 .safetensors:运行目录里的 best.safetensors,
            或 scripts/import_weights.py 转换好的权重。

    Returns:
        LoadedRun | LoadedModel: 都有 ``model`` 和 ``info``;模型处于评估状态。

    Raises:
        UserError: 文件已损坏、没有说明,或说明里没有类别名和归一化。
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"没有 {source}:请给运行目录(如 runs/…)、导出的目录或 .safetensors 权重文件,检查路径。")
    if source.name in EXPORTED:
        raise UserError(f"{source} 只是导出的一部分:请给整个导出的目录。")
    present = [(source / name).exists() for name in EXPORTED]
    if any(present) and not all(present[:3]):
        raise UserError(f"{source} 不是完整的导出:{'、'.join(EXPORTED[:3])} 要放在一起(model.onnx 给别的程序用)。")
    if source.is_dir():
        return load_run(source)
    tensors, arguments, info = read_model(source)
    if info is None:
        raise UserError(
            f"{source} 里没有类别名、均值和标准差,不知道怎样给图片分类:请用 scripts/import_weights.py 重新转换并写明。"
        )
    info = parse_info(info, source)
    stated = {"num_classes": len(info.classes), "in_channels": info.channels, "image_size": info.image_size}
    for name, value in stated.items():
        if arguments.get(name) != value:
            raise UserError(
                f"{source} 的说明自相矛盾:模型的 {name} 是 {arguments.get(name)},数据的是 {value}。请换一个备份。"
            )
    check_size(arguments, [value.shape for value in tensors.values()], source)
    model = create_model(**arguments)
    details = differences(model.state_dict(), tensors)
    if details:
        raise UserError(f"{source} 的权重与它自己的说明不符:{details}。请重新转换或训练。")
    model.set_state_dict(tensors)
    model.eval()
    return LoadedModel(source, info, model, arguments)
