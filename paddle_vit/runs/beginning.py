"""一次训练从哪里开始:从头、续训、由一个运行微调、由别处的权重微调。只在这里判断一次,别处照着做。"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..config import COMMAND_LINE, Config, make_config, option_of, tagged
from ..config_files import load_config
from ..data.info import DataInfo, load_info
from ..data.parts import Data, pixel_statistics
from ..data.splits import KeptRun, load_pictures
from ..errors import UserError
from ..family.models import create_model, full_name, model_settings
from ..system.files import quoted
from ..system.fitting import fit_named, size_setting
from ..system.run_files import CONFIG, DATA, LAST, PICTURES, SUMMARY
from ..tasks.distillation import Distillation
from ..weights import NORMALIZATION, LoadReport, WeightsInfo, describe_weights, for_channels, load_weights
from .loading import load_model
from .logs import load_metrics

__all__ = [
    "Beginning",
    "begin",
    "check_inherited",
    "choose_fit",
    "choose_normalization",
    "first_weights",
    "inherited_settings",
    "kept_run",
    "load_distillation",
    "resumed_config",
]


_UNTIL = ("patience", "max_minutes")  # 训练到什么时候为止;接着训练时重新给


@dataclasses.dataclass(frozen=True)
class Beginning:
    """一次训练从哪里开始。

    Attributes:
        directory (Path | None): 续训的运行目录;从头训练和微调时是 ``None``。
        info (DataInfo | None): 续训的运行当时的数据集说明。
        started, finished (bool): 续训的运行已经存过检查点、已经训练完。
        longer (bool): 续训时加了轮数:在新的目录里接着训练,见 ``continuing``。
        weights (WeightsInfo | None): 微调时权重的说明。
        teacher (WeightsInfo | None): 蒸馏时老师的权重的说明;训练完了就用不到。
    """

    directory: Path | None = None
    info: DataInfo | None = None
    started: bool = False
    finished: bool = False
    longer: bool = False
    weights: WeightsInfo | None = None
    teacher: WeightsInfo | None = None


def begin(config: Config) -> Beginning:
    """看清一次训练从哪里开始;读数据之前就做,文件不对时马上知道。

    Raises:
        UserError: 要继续的运行、微调的权重或老师有误。
    """
    weights = None
    if config.resume is None:
        if config.weights is not None:
            weights = describe_weights(config.weights, config.weights_table, config.model)
        return Beginning(weights=weights, teacher=_describe_teacher(config))
    directory = Path(config.resume)
    longer = config.output is None or Path(config.output).resolve() != directory.resolve()
    info = load_info(directory / DATA) if (directory / DATA).exists() else None
    started, finished = (directory / LAST).exists(), (directory / SUMMARY).exists() and not longer
    if longer and not started:
        raise UserError(f"{directory} 还没有存过检查点,没有什么可以接着的:请重新训练,或等它训练至少一轮。")
    done = len(load_metrics(directory))
    if longer and config.epochs <= done:
        raise UserError(f"--epochs {config.epochs}:{directory} 已经训练了 {done} 轮,请给更大的总轮数,如 {2 * done}。")
    if config.weights is not None and not started:  # 还没有训练过一步就断了:权重要再放一次
        weights = describe_weights(config.weights, config.weights_table, config.model)
    teacher = None if finished else _describe_teacher(config)
    return Beginning(directory, info, started, finished, longer, weights, teacher)


def _describe_teacher(config):
    """老师的权重的说明;不蒸馏时是 ``None``。"""
    if config.distillation_kind == "none":
        return None
    if not Path(config.teacher).exists():
        raise UserError(f"没有老师 {config.teacher}:请检查 --teacher 的路径;续训时要把它放回原处。")
    known = describe_weights(config.teacher, model=config.teacher_model)
    if known.model is None and config.teacher_model is None:
        raise UserError(f"{config.teacher} 是别处的权重,没有写明是哪个模型:请用 --teacher-model 写明{known.guess()}。")
    return known


def resumed_config(given: dict) -> Config:
    """要继续的运行原来的设置;命令行上只能换与结果无关的那几个。

    给了不同的 epochs,就是在新的目录里接着训练那么多轮:目录、patience、max_minutes 也由命令行上给。

    Args:
        given (dict): 命令行上给的,有 resume。

    Raises:
        UserError: 不是运行目录,或换了不能换的。
    """
    directory = given["resume"]
    saved = load_config(directory)
    others = {name: value for name, value in given.items() if name not in ("resume", "output")}
    values, may_change = {**dataclasses.asdict(saved), "resume": directory, **others}, tagged("resume")
    epochs = make_config(values, COMMAND_LINE).epochs
    ended_early = (Path(directory) / SUMMARY).exists() and len(load_metrics(directory)) < epochs
    if epochs != saved.epochs or ("epochs" in given and ended_early):
        may_change = [*may_change, "epochs", *_UNTIL]
        values.update({name: others.get(name) for name in _UNTIL}, output=given.get("output"))
    elif Path(given.get("output", directory)).resolve() != Path(directory).resolve():
        raise UserError(f"--resume {directory} 只能接着写这个目录:请去掉 --output,或用 --epochs 加轮数。")
    else:
        values["output"] = directory
    changed = make_config(values, COMMAND_LINE)
    for name, value in others.items():
        if name not in may_change and getattr(changed, name) != getattr(saved, name):
            option = option_of(name)
            raise UserError(
                f"{option} {value} 与 {directory} 原来的 {getattr(saved, name)} 不同:续训沿用原来的设置,"
                f"请去掉 {option};要换它,请从这个运行的权重开始一次新的训练:--recipe {quoted(Path(directory) / CONFIG)}"
                f" --weights {quoted(directory)} {option} {value}。"
            )
    return changed


def inherited_settings(wanted: dict) -> dict:
    """微调时从权重沿用的设置(字典):模型、它的形状、图像边长;folder 还有通道数。

    别处的权重里没有模型的名字,要由 ``--model`` 给;从它沿用的只有层归一化的 epsilon。
    """
    source = wanted["weights"]
    known = describe_weights(source, wanted.get("weights_table"))
    if known.model is None:
        if wanted.get("model") is None:
            raise UserError(f"{source} 是别处的权重,没有写明是哪个模型:请加上 --model{known.guess()}。")
        return {} if known.epsilon is None else {"epsilon": known.epsilon}
    if isinstance(known.model.get("image_size"), list):
        known.model["image_size"] = size_setting(tuple(known.model["image_size"]))
    settable = {name for name in [*tagged("shape"), *tagged("regular")]}
    usual = {name: list(value) for name, value in model_settings(known.model["name"]).items() if type(value) is tuple}
    model = {name: value for name, value in known.model.items() if name not in usual or list(value) != usual[name]}
    for name, value in model.items():
        if (name not in settable and name not in ("name", "in_channels", "num_classes")) or isinstance(value, list):
            raise UserError(
                f"{source} 的模型改过 {name}(是 {value}),训练的设置里没有它:命令行上只能微调命名的模型,"
                "这个请在 Python 里用 create_model 和 load_weights。"
            )
    values = {name: model.get(name) for name in tagged("shape")}
    values["model"] = model["name"]
    if wanted.get("dataset") == "folder":
        values["channels"] = model["in_channels"]
    return values


def check_inherited(config: Config, inherited: dict):
    """微调时改了沿用的设置,权重就放不进去了:抛出 ``UserError``;放得进去的那几个可以改。"""
    free = [*tagged("free"), "channels"]  # 卷积核换得成别的通道数
    if "model" not in inherited:  # 别处的权重:写明的 epsilon 胜过它的
        free.append("epsilon")
    for name, before in inherited.items():
        mine = getattr(config, name)
        if name in free or mine == before or (name == "model" and full_name(mine) == full_name(before)):
            continue
        raise UserError(
            f"{option_of(name)} {mine} 与 {config.weights} 的 {before} 不同,它的权重就不能用了:"
            f"微调沿用原来的模型,请去掉 {option_of(name)}。"
        )


# ---- 照着做 ----


def kept_run(beginning: Beginning) -> KeptRun | None:
    """续训的运行当时的数据;从头训练、微调时是 ``None``。"""
    if beginning.directory is None or beginning.info is None:
        return None
    pictures = load_pictures(beginning.directory / PICTURES)
    return KeptRun(beginning.directory, beginning.info, pictures, resuming=True)


def choose_fit(data: Data, config: Config, beginning: Beginning) -> Data:
    """按设置换掉图片的摆法;微调时默认与权重相同,写明了 ``--fit`` 的只沿用插值;续训时与原来相同。"""
    known = None if beginning.weights is None else beginning.weights.fit
    if beginning.info is not None:
        return data.fitted(beginning.info.fit)
    if config.fit != "auto":
        return data.fitted(fit_named(config.fit, "bicubic" if known is None else known.interpolation))
    return data if known is None else data.fitted(known)


def choose_normalization(data: Data, config: Config, beginning: Beginning) -> Data:
    """按设置换掉归一化用的均值和标准差;微调时默认与权重相同,它看惯了那样的输入;续训时与原来相同。

    Returns:
        Data: 只换了 info 里的 mean 和 std。

    Raises:
        UserError: 通道数不对。
    """
    channels, choice = data.info.channels, config.normalization
    if beginning.info is not None:
        mean, std = beginning.info.mean, beginning.info.std
    elif choice in ("half", "none"):  # 各个通道相同
        mean, std = ((values[0],) * channels for values in NORMALIZATION[choice])
    elif choice in ("imagenet", "clip"):
        mean, std = NORMALIZATION[choice]
    elif choice == "data":
        mean, std = pixel_statistics(data.train)
    elif beginning.weights is not None:
        known = beginning.weights
        known = dataclasses.replace(known, **for_channels(known, channels))  # 彩色的权重,灰度的图像
        mean, std = known.mean or data.info.mean, known.std or data.info.std
    else:
        return data
    if len(mean) != channels:
        source = config.weights if choice == "auto" else f"--normalization {choice}"
        raise UserError(
            f"{source} 的均值有 {len(mean)} 个通道,图像是 {channels} 个:请换数据;folder 的图片可以用 --channels"
            " 选几个通道。"
        )
    return dataclasses.replace(data, info=dataclasses.replace(data.info, mean=tuple(mean), std=tuple(std)))


def first_weights(model, config: Config, info: DataInfo, beginning: Beginning) -> LoadReport | None:
    """微调时,训练开始之前把权重放进模型;检查点里什么都有时不再放,返回 ``None``。

    Raises:
        UserError: 见 ``weights.load_weights``。
    """
    if beginning.weights is None or config.weights is None:
        return None
    return load_weights(
        model,
        config.weights,
        match_channels=True,
        table=config.weights_table,
        classes=info.classes,
        settings=config.given_model_arguments(),
    )


def load_distillation(config: Config, info: DataInfo, beginning: Beginning, weights=None) -> Distillation | None:
    """读蒸馏的老师;用不到时是 ``None``。

    Args:
        info (DataInfo): 学生的数据的说明。
        weights (Tensor | None): 各类的权重,见 ``label_loss``。

    Raises:
        UserError: 老师的文件已损坏,或老师与学生的类别、通道数不同。
    """
    known = beginning.teacher
    if known is None or config.teacher is None:
        return None
    if known.model is not None:
        loaded = load_model(config.teacher)
        teacher, teacher_info = loaded.model, loaded.info
    else:
        teacher, teacher_info = _foreign_teacher(config, info, known)
    settings = (config.distillation_kind, config.distillation_alpha, config.distillation_temperature)
    return Distillation(teacher, teacher_info, info, *settings, weights)


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
