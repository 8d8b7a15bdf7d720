"""把别处的权重转换成本项目能说明自己的文件:怎样建模型、类别名、怎样归一化都写在里面。"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from paddle import nn

from ..checks import as_pair, check_normalization, per_channel
from ..errors import UserError
from ..family.models import create_model, full_name, model_settings
from ..system.files import read_text
from ..system.fitting import Fit, plain_size
from .checkpoint import read_description, save_model
from .info import WeightsInfo, describe_weights, for_channels
from .loading import load_weights

__all__ = ["assumptions", "import_weights", "is_blank_head", "model_for", "parse_settings", "read_class_names"]
__all__ += ["why_not_predict"]


def import_weights(
    source: str | Path,
    output: str | Path,
    model: str | None = None,
    settings: dict | None = None,
    class_names: Sequence[str] | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    fit: Fit | None = None,
    table: str | Path | None = None,
    resize_patches: bool = False,
    strict: bool = True,
) -> tuple:
    """转换一份权重。

    Args:
        source (str | Path): 权重文件或目录。
        output (str | Path): 目标文件,.safetensors。
        model (str | None): 模型名;本项目的文件可以不给,它自己写着。
        settings (dict | None): 另外的 ``create_model`` 参数。
        class_names (Sequence[str] | None): 类别名;不给时用权重里写着的,都没有就是“类别 0”这样的编号。
        mean, std (Sequence[float] | None): 像素(0–1)各通道的均值和标准差;不给时用权重里或旁边写着的。没有它们,转换好的
            文件能用来微调,不能用来预测。
        fit (Fit | None): 图片怎样摆成模型的大小;不给时用权重旁边写着的,没有就居中裁剪。
        table (str | Path | None), resize_patches (bool), strict (bool): 见 ``load_weights``。

    Returns:
        tuple: (装好权重的模型, ``LoadReport``)。

    Raises:
        UserError: 见 ``load_weights``;类别名的个数不对,或分类头不是在几类里选一类。
    """
    if Path(output).suffix != ".safetensors":
        raise UserError(f"输出文件 {output} 应以 .safetensors 结尾。")
    info = describe_weights(source, table, model)
    network, arguments = model_for(info, model, settings)
    report = load_weights(
        network,
        source,
        strict=strict,
        table=table,
        settings=settings,
        resize_patches=resize_patches,
        match_channels="in_channels" in (settings or {}),
    )
    if any(name.startswith("head.") for name in report.fresh):
        dropped = "".join(f";{note}" for note in report.notes if note.startswith("不要预训练时用的"))
        raise UserError(
            f"{source} 的分类头装不进来({'、'.join(report.fresh)}){dropped}:转换要连分类头一起。没有分类头的权重请直接"
            "用 scripts/train.py --weights 微调,或加 --set num_classes=0 只要主干;用 --set 改过 num_classes 的,请去掉。"
        )
    _check_head(network, info, source)
    if fit is not None:
        info = dataclasses.replace(info, fit=fit)
    if mean is not None or std is not None:
        channels = arguments["in_channels"]
        mean, std = (None if values is None else per_channel(values, channels) for values in (mean, std))
        check_normalization(mean, std, channels)
        info = dataclasses.replace(info, mean=mean, std=std)
    info = dataclasses.replace(info, **for_channels(info, arguments["in_channels"]))
    if info.epsilon is not None and "epsilon" not in (settings or {}):
        arguments["epsilon"] = info.epsilon
    save_model(output, network.state_dict(), arguments, _data_info(info, arguments, class_names))
    return network, report


def _check_head(network, info, source):
    """分类头要是“几类里选一类”的,而且训练过;否则概率没有意义,抛出 ``UserError``。"""
    finetune = "要用它的骨干,请直接用 scripts/train.py --weights 微调。"
    kinds = {"multi_label_classification": "多标签(每一类各自是或否)", "regression": "回归(输出的是数,不是类)"}
    if info.problem in kinds:
        raise UserError(f"{source} 的分类头是{kinds[info.problem]},这里只会在几类里选一类(softmax):{finetune}")
    if info.num_classes == 1:
        raise UserError(f"{source} 的分类头只有一个输出,softmax 之后总是 100 %:{finetune}")
    if is_blank_head(network):
        raise UserError(f"{source} 的分类头全是零,没有训练过,每一类的概率都相同:{finetune}")


def is_blank_head(network: nn.Layer) -> bool:
    """分类头的权重是不是全是零:预训练留下的空位,没有训练过。"""
    weights = [value for name, value in network.named_parameters() if name.startswith("head.") and value.ndim == 2]
    return bool(weights) and not any(weight.any() for weight in weights)


def model_for(info: WeightsInfo, name: str | None = None, settings: dict | None = None) -> tuple[nn.Layer, dict]:
    """为一份权重建模型,参数不随机初始化两遍;返回 (模型, ``create_model`` 的全部参数)。

    Args:
        info (WeightsInfo): 权重的说明,由它定类别数、通道数。
        name (str | None), settings (dict | None): 见 ``import_weights``。

    Raises:
        UserError: 没有给模型名,或参数不合法。
    """
    own = {} if info.model is None or name is not None else dict(info.model)
    name = own.pop("name", name)
    if name is None:
        raise UserError(f"{info.path} 没有写明是哪个模型:请用 --model 给出{info.guess()}。")
    known = {"num_classes": info.num_classes, "in_channels": info.in_channels}
    arguments = {
        "name": full_name(name),
        **model_settings(name),
        **{key: value for key, value in known.items() if value is not None},
        **own,
        **(settings or {}),
    }
    arguments.setdefault("image_size", 224)
    arguments.setdefault("in_channels", 3)
    try:
        return create_model(**arguments), arguments
    except UserError as error:
        raise UserError(f"{error}import_weights.py 用 --set 名字=值 改模型的设置,如 --set patch_size=4。") from None


def _data_info(info, arguments, class_names):
    """文件里的 ``DataInfo``(字典);不知道怎样归一化时是 ``None``。"""
    count, channels, image_size = (arguments[name] for name in ("num_classes", "in_channels", "image_size"))
    if not count:  # 只要主干
        return None
    image_size = plain_size(*as_pair(image_size, "image_size"))
    names = class_names or info.classes or [f"类别 {index}" for index in range(count)]
    if len(names) != count:
        raise UserError(f"有 {len(names)} 个类别名,而分类头有 {count} 类:请检查类别名文件,一行一个。")
    if info.mean is None or len(info.mean) != channels:
        return None
    return {
        "name": info.format,
        "classes": list(names),
        "channels": channels,
        "image_size": image_size,
        "mean": list(info.mean),
        "std": list(info.std),
        "counts": {},
        "fit": dataclasses.asdict(info.fit or Fit()),
    }


def assumptions(info: WeightsInfo, options: dict[str, str]) -> str | None:
    """文件没有写明、按惯例的各项,连同改它们的选项,一行;没有时是 ``None``。

    Args:
        info (WeightsInfo): 权重的说明。
        options (dict): 哪一项 -> 改它的选项,见 ``WeightsInfo.assumed``;不在里面的不说。
    """
    parts = [f"{text}({options[fact]})" for fact, text in info.assumed if fact in options]
    return f"权重没有写明,按惯例:{';'.join(parts)}。不对的请用括号里的选项写明。" if parts else None


def why_not_predict(path: str | Path) -> str:
    """转换好的文件为什么不能用来预测,怎么办;能预测时是空的。"""
    description = read_description(path)
    if description is None or description[1] is not None:
        return ""
    arguments = description[0]
    if arguments.get("num_classes") == 0:
        return "里面没有分类头,可以微调,不能预测。"
    count = arguments.get("in_channels")
    return f"里面没有均值和标准差,可以微调,还不能预测;要预测请加 --mean 和 --std(各 {count} 个数)重新转换。"


def read_class_names(path: str | Path) -> list[str]:
    """读类别名文件:一行一个,次序就是标签。

    Raises:
        UserError: 没有这个文件,不是 UTF-8,或有空行、重名。
    """
    names = [line.strip() for line in read_text(path).splitlines()]
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(f"{path} 里有空行或重名:类别名文件一行一个类别名,次序就是标签。")
    return names


def _number_or(value):
    """YAML 把没有小数点的 1e-5 当作文字:它是数;别的原样。"""
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, str) and value.strip()[:1] in "+-.0123456789" else value
    return value


def parse_settings(pairs: Iterable[str]) -> dict:
    """命令行上的 ``名字=值`` 若干个 -> 字典;值按 YAML 读。

    Raises:
        UserError: 不是 ``名字=值``。
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            settings[name.strip().replace("-", "_")] = _number_or(yaml.safe_load(value))
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise UserError(f"--set {pair} 不合法:应为 名字=值,如 num_heads=6。")
    return settings
