"""读回训练好的模型:一个运行,或单独的一个权重文件。"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from paddle import nn

from ..config import Config
from ..config_files import load_config
from ..data.info import DataInfo, check_same_data, load_info, parse_info
from ..data.parts import Data
from ..data.sources import load_data, tell
from ..data.splits import KeptRun, load_pictures
from ..errors import UserError
from ..family.models import check_size, create_model
from ..system.files import read_json
from ..system.fitting import plain_size
from ..system.run_files import BEST, DATA, EXPORTED, ONNX, PICTURES, SUMMARY, resolve_latest
from ..weights.checkpoint import differences, load_state_into, read_model

__all__ = ["LoadedModel", "LoadedRun", "build_model", "load_model", "load_run", "load_run_data"]


def build_model(config: Config, info: DataInfo) -> nn.Layer:
    """按设置和数据集的说明建模型。"""
    return create_model(**config.model_arguments(info))


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
    config: Config
    info: DataInfo
    model: nn.Layer

    @property
    def arguments(self) -> dict:
        """给 ``create_model`` 的参数(字典):用它能再建出同样的模型。"""
        return self.config.model_arguments(self.info)

    @property
    def summary(self) -> dict | None:
        """summary.json 的内容:测试和验证的正确率、最好的一轮、用时等;还没训练完时是 ``None``。"""
        return read_json(self.directory / SUMMARY)


def load_run(directory: str | Path, model: nn.Layer | None = None) -> LoadedRun:
    """读回一个运行,模型处于评估状态。

    Args:
        directory (str | Path): 运行目录。
        model (nn.Layer | None): 用自己写的模型训练的,给出同样的一个,权重放进它;否则按设置建立。

    Raises:
        UserError: 不是运行目录、还没有权重、文件损坏,或权重属于另一个模型。
    """
    directory = resolve_latest(directory)
    if directory.is_file():
        raise UserError(f"{directory} 是一个文件,这里要运行目录(如 runs/…):权重文件用 scripts/predict.py 预测。")
    config, info, path = load_config(directory), load_info(directory / DATA), directory / BEST
    if not path.exists():
        raise UserError(f"没有 {path}:这个运行还没有存过权重,请先训练至少一轮。")
    tensors, arguments, _ = read_model(path)
    if model is None and arguments.get("own"):
        raise UserError(
            f"{directory} 的模型是自己写的 {arguments['name']},不能由设置建立:"
            f"请在 Python 里用 load_run(目录, model={arguments['name']}(…)) 读它。"
        )
    if model is None:
        check_size(config.model_arguments(info), [value.shape for value in tensors.values()], path)
        model = build_model(config, info)
    load_state_into(model, tensors, path)
    model.eval()
    return LoadedRun(directory, config, info, model)


def load_run_data(loaded: LoadedRun, data_dir: str | Path | None = None) -> Data:
    """载入一个运行的数据集,核对与训练时是否相同;自己的图片还在当时的那一部分,变了什么打印出来。

    Args:
        loaded (LoadedRun): ``load_run`` 的结果。
        data_dir (str | Path | None): 数据所在的目录;``None`` 用训练时的。可以是别处的图片(folder 的模型):
            没有分好部分的,都在测试部分。

    Returns:
        Data

    Raises:
        UserError: 数据缺失、损坏,或与训练时不同。
    """
    config = loaded.config if data_dir is None else dataclasses.replace(loaded.config, data_dir=str(data_dir))
    pictures = load_pictures(loaded.directory / PICTURES)
    data = load_data(config, KeptRun(loaded.directory, loaded.info, pictures, elsewhere=data_dir is not None))
    data = data.fitted(loaded.info.fit)
    check_same_data(loaded.info, data.info, loaded.directory, whole=False)
    tell(data)
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
    model: nn.Layer
    arguments: dict


def load_model(source: str | Path) -> LoadedRun | LoadedModel:
    """读回一个能预测的模型:一个运行,或单独的一个权重文件。

    Args:
        source (str | Path): 运行目录;或能说明自己的 .safetensors:运行目录里的 best.safetensors,
            或 scripts/import_weights.py 转换好的权重。

    Returns:
        LoadedRun | LoadedModel: 都有 ``model`` 和 ``info``;模型处于评估状态。

    Raises:
        UserError: 文件已损坏、没有说明,或说明里没有类别名和归一化。
    """
    source = resolve_latest(source)
    if not source.exists():
        raise UserError(f"没有 {source}:请给运行目录(如 runs/…)、导出的目录或 .safetensors 权重文件,检查路径。")
    if source.name in EXPORTED:
        raise UserError(f"{source} 只是导出的一部分:请给整个导出的目录。")
    present = [(source / name).exists() for name in EXPORTED]
    if any(present) and not all(present[:3]):
        raise UserError(f"{source} 不是完整的导出:{'、'.join(EXPORTED[:3])} 要放在一起({ONNX} 给别的程序用)。")
    if source.is_dir():
        return load_run(source)
    tensors, arguments, info = read_model(source)
    if info is None:
        raise UserError(
            f"{source} 里没有均值和标准差,不知道怎样给图片分类:请用 scripts/import_weights.py 重新转换,"
            "用 --mean、--std 写明(类别名用 --class-names)。"
        )
    info = parse_info(info, source)
    stated = {"num_classes": len(info.classes), "in_channels": info.channels, "image_size": info.image_size}
    for name, value in stated.items():
        given = arguments.get(name)
        if (plain_size(*given) if isinstance(given, list) and len(given) == 2 else given) != value:
            raise UserError(
                f"{source} 的说明自相矛盾:模型的 {name} 是 {arguments.get(name)},数据的是 {value}。请换一个备份。"
            )
    if arguments.get("own"):
        raise UserError(f"{source} 的模型是自己写的 {arguments['name']},不能由它的名字建立:请用运行目录和 load_run。")
    check_size(arguments, [value.shape for value in tensors.values()], source)
    model = create_model(**arguments)
    details = differences(model.state_dict(), tensors)
    if details:
        raise UserError(f"{source} 的权重与它自己的说明不符:{details}。请重新转换或训练。")
    model.set_state_dict(tensors)
    model.eval()
    return LoadedModel(source, info, model, arguments)
