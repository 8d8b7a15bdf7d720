"""权重文件的说明:格式、像素归一化、层归一化的 epsilon、头数、类别名等,名字和形状以外的事实都在这里查。

来自文件自己(本项目的)、旁边的 config.json 和 preprocessor_config.json(见 ``neighbours``),其余由换名表给出。
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

from paddle import nn

from ..activations import ACTIVATIONS
from ..checks import as_pair
from ..errors import UserError
from ..family.models import check_size, model_class, model_settings
from ..system.files import matches, parse_json
from ..system.fitting import Fit, parse_fit
from ..system.run_files import BEST, CONFIG
from .checkpoint import DESCRIPTION
from .files import TensorFile, open_tensors
from .neighbours import neighbour_facts
from .preprocessing import NORMALIZATION, normalization_of_name
from .shapes import candidates, find_shape, heads_of_flax, image_size_of, in_channels_of, num_classes_of, pool_of_norm
from .tables import FACTS, UNKNOWN, Table, read_table, recognise

__all__ = ["NORMALIZATION", "WeightsInfo", "describe_file", "describe_weights", "find_weights", "for_channels"]
__all__ += ["heads_of"]

# 别处对激活函数的叫法 -> 我们的
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quickgelu": "quick_gelu"}
MAX_EPSILON = 1e-3  # 再大的,Paddle 的 layer_norm 不接受
# 目录里先找哪个文件
_FILES = ("model.safetensors", "pytorch_model.bin", "model.pdparams", "weights.npz")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # 分片的


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """权重的说明;不知道的是 ``None``。

    Attributes:
        path (Path): 文件。
        format (str): 格式,即换名表的 name。
        mean, std (tuple[float] | None): 训练时像素(0–1)怎样归一化。
        epsilon (float | None): 层归一化里加在方差上的小数。
        num_heads (int | tuple[int] | None): 头数;Swin 是每级一个。
        classes (tuple[str] | None): 类别名。
        model (dict | None): 本项目的文件:``create_model`` 的全部参数。
        image_size ((int, int) | None): 训练时图像的 (高, 宽),像素。
        num_classes, in_channels (int | None): 分类头的类别数,图像的通道数。
        norm_first, trunk_norm, activation, scale, pool: 见 ``tables``。
        position_embedding (str | None): 本项目的文件:位置编码的种类。
        qkv_bias (bool | None): q、k、v 有没有偏置。
        fit (Fit | None): 训练时图片怎样摆成模型的大小。
        problem (str | None): 分类头的含义,Hugging Face 的 problem_type。
        assumed (tuple[(str, str)]): 文件没有写明、按惯例的:(哪一项, 一句话),
            哪一项是 normalization、fit、epsilon、classes。
        candidates (tuple[str]): 尺寸与它相同的命名模型,图像大小也相同的在前。
        unstated (tuple[str]): 文件和旁边都没有写、只按自带的换名表假定的几个事实的名字;使用者写明的胜过它们。
        notes (tuple[str]): 其他要知道的事。
    """

    path: Path
    format: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    epsilon: float | None = None
    num_heads: int | tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    model: dict | None = None
    image_size: tuple[int, int] | None = None
    num_classes: int | None = None
    in_channels: int | None = None
    norm_first: bool | None = None
    trunk_norm: bool | None = None
    activation: str | None = None
    scale: float | None = None
    pool: str | None = None
    position_embedding: str | None = None
    qkv_bias: bool | None = None
    fit: Fit | None = None
    problem: str | None = None
    assumed: tuple = ()
    candidates: tuple = ()
    unstated: tuple = ()
    notes: tuple = ()

    def guess(self) -> str:
        """请使用者写明模型时,接在后面的一句。"""
        if self.candidates:
            return f",它像是 {'、'.join(self.candidates[:3])}"
        return ",如 vit_base_patch16_224"


def find_weights(path: str | Path) -> Path:
    """权重文件的路径;给的是目录时,是其中的权重。

    Args:
        path (str | Path): 权重文件,运行目录,或从 Hugging Face 下载的目录。

    Raises:
        UserError: 路径不存在,或目录里没有权重。
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / CONFIG).exists():
        best = path / BEST
        if not best.exists():
            raise UserError(f"没有 {best}:这个运行还没有存过权重,请先训练至少一轮。")
        return best
    found = [path / name for name in (*_FILES, *_INDEXES) if (path / name).exists()]
    found = found or sorted(path.glob("*-00001-of-*"))  # 只有几片,没有 .index.json:由 open_tensors 说明
    if not found:
        raise UserError(
            f"{path} 不是运行目录,里面也没有 {'、'.join(_FILES)}:请给出权重文件本身(导出的目录不行,请给运行目录)。"
        )
    return found[0]


def describe_weights(path: str | Path, table: str | Path | None = None, model: str | None = None) -> WeightsInfo:
    """读出权重文件的说明,不读张量的内容。

    Args:
        path (str | Path): 权重文件,运行目录,或从 Hugging Face 下载的目录。
        table (str | Path | None): 使用者的换名表;``None`` 表示由名字认出格式。
        model (str | None): 要装的模型的名字;名字与 ViT 相同的 DeiT 靠它认出来,像素归一化不同。

    Returns:
        WeightsInfo

    Raises:
        UserError: 文件有误、认不出格式,或旁边的 config.json 与它不符。
    """
    with open_tensors(find_weights(path)) as tensors:
        if table is None:
            return describe_file(tensors, recognise(tensors), model=model)
        return describe_file(tensors, read_table(table), given=True, model=model)


def describe_file(tensors: TensorFile, table: Table, given: bool = False, model: str | None = None) -> WeightsInfo:
    """打开的权重文件的说明,参数和返回值见 ``describe_weights``;given 表示换名表是使用者给的。"""
    plain = table.plain_names(tensors)
    shapes = {name: tuple(tensors[file_name].shape) for name, file_name in plain.items()}
    info = WeightsInfo(
        path=tensors.path,
        format=table.name,
        epsilon=table.epsilon,
        num_heads=_as_tuple(table.num_heads) or heads_of_flax(table, shapes),
        norm_first=table.norm_first,
        trunk_norm=None if table.name == "paddle_vit" else table.trunk_norm,
        activation=table.activation,
        scale=table.scale,
        pool=table.pool or pool_of_norm(table, shapes),
        num_classes=num_classes_of(table, shapes),
        in_channels=in_channels_of(table, shapes),
        candidates=candidates(table, shapes),
    )
    normalization, why = _normalization(tensors.path, table, plain, model)
    mean, std = NORMALIZATION.get(normalization, (None, None))
    info = dataclasses.replace(info, mean=mean, std=std, image_size=image_size_of(table, shapes))
    if table.name == "paddle_vit":
        return dataclasses.replace(info, **_own_facts(tensors, shapes.values()))
    facts = {**_metadata_facts(tensors), **neighbour_facts(tensors.path, table, info, shapes)}
    stated_facts = set(facts)
    for name in FACTS:
        stated = getattr(info, name)
        if given and stated not in (None, UNKNOWN) and facts.get(name, stated) != stated:
            path = tensors.path.with_name("config.json")
            raise UserError(f"换名表里 {name} 是 {stated},{path} 里是 {facts[name]}:请改正其中一个。")
    facts["activation"] = facts.get("activation", info.activation)
    facts["activation"] = _ACTIVATIONS.get(str(facts["activation"]).lower(), facts["activation"])
    if table.family in ("vit", "swin"):
        facts["assumed"] = (*facts.get("assumed", ()), *_assumed(info, facts, given, why))
    unstated = [] if given else [name for name in (*FACTS, "scale") if name not in stated_facts]
    info = dataclasses.replace(info, **facts, unstated=tuple(unstated))
    if info.epsilon not in (None, UNKNOWN) and not 0 < info.epsilon <= MAX_EPSILON:
        raise UserError(f"{tensors.path} 的层归一化的 epsilon 是 {info.epsilon:g}:应大于 0,不超过 {MAX_EPSILON:g}。")
    if not all(0 < value < math.inf for value in info.std or ()) or not all(map(math.isfinite, info.mean or ())):
        raise UserError(
            f"{tensors.path} 旁边写的归一化不合法:均值 {info.mean},标准差 {info.std}。"
            "标准差要大于 0,请改正,或把 preprocessor_config.json 移走。"
        )
    return info


def for_channels(info: WeightsInfo, channels: int) -> dict:
    """均值和标准差换成 channels 个通道的(字典):彩色换灰度取平均,灰度换彩色照抄;彩色加第四个通道,它的都是 0.5。

    不用换、不能换时是空的。
    """
    if info.mean is None or info.std is None:
        return {}
    if (len(info.mean), channels) == (3, 4):
        return {"mean": (*info.mean, 0.5), "std": (*info.std, 0.5)}
    if len(info.mean) == channels or 1 not in (len(info.mean), channels):
        return {}
    return {name: (sum(v) / len(v),) * channels for name, v in (("mean", info.mean), ("std", info.std))}


def _own_facts(tensors, shapes):
    """文件头里 ``save_model`` 写的说明。"""
    state = parse_json(tensors.metadata.get("state", "null"))
    if not matches(state, DESCRIPTION):
        return {}
    info, facts = state["info"], {}
    if matches(info, {"classes": [str], "mean": [float], "std": [float]}):
        facts = {name: tuple(info[name]) for name in ("classes", "mean", "std")}
        with contextlib.suppress(ValueError, TypeError):
            facts["fit"] = parse_fit(info.get("fit"))
    return {**facts, **_facts_of_model(state["model"], shapes, tensors.path)}


def _facts_of_model(model, shapes, path):
    """``create_model`` 的参数里,张量的名字和形状看不出来的那些。"""
    check_size(model, shapes, path)
    settings = {name: value.default for name, value in inspect.signature(model_class(model["name"])).parameters.items()}
    settings.update(model_settings(model["name"]))
    settings.update({name: value for name, value in model.items() if name != "name"})
    heads = settings["num_heads"]
    known = {"epsilon": float, "num_heads": (int, list, tuple), "qkv_bias": bool, "num_classes": int}
    if not matches(settings, known):
        raise UserError(f"{path} 里关于模型的说明已损坏:请换一个备份,或重新转换。")
    return {
        "model": model,
        "image_size": as_pair(settings["image_size"], "image_size"),
        "epsilon": settings["epsilon"],
        "num_heads": tuple(heads) if isinstance(heads, (list, tuple)) else heads,
        "scale": settings["qk_scale"],
        "pool": settings.get("pool"),
        "trunk_norm": settings.get("trunk_norm", False),
        "position_embedding": settings.get("position_embedding"),
        "num_classes": settings["num_classes"],
        "in_channels": settings["in_channels"],
    }


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _normalization(path, table, plain, model):
    """(像素怎样归一化, 凭什么)。DeiT、MAE、DINO 与 ViT 的张量名字相同,靠模型、文件、目录的名字和多出的张量认出来。"""
    if table.deit_normalization:
        if find_shape(table, plain, "distillation_token") is not None:
            return table.deit_normalization, "有蒸馏 token"
        known = normalization_of_name([*path.absolute().parts[-2:], model or ""], plain)
        if known is not None:
            return known
    return table.normalization, f"{table.name} 的惯例"


def _assumed(info, facts, given, why):
    """名字、形状和旁边的文件都没有写明、按惯例的那些;given 表示换名表是使用者给的,里面写着的不算。"""
    assumed = []
    if "mean" not in facts and info.mean is not None and not given:
        mean, std = ("、".join(f"{value:g}" for value in values) for values in (info.mean, info.std))
        assumed.append(("normalization", f"均值按 {mean},标准差按 {std}({why})"))
    elif "mean" not in facts and info.mean is None:
        assumed.append(("normalization", "均值和标准差不知道"))
    if "fit" not in facts:
        assumed.append(("fit", "图片按短边缩放后居中裁剪(bicubic)"))
    if "epsilon" not in facts and info.epsilon not in (None, UNKNOWN) and not given:
        assumed.append(("epsilon", f"层归一化的 epsilon 按 {info.epsilon:g}"))
    if "classes" not in facts and info.num_classes:
        assumed.append(("classes", "类别名用编号"))
    return assumed


def _metadata_facts(tensors):
    """``export_weights`` 写在文件头里的 epsilon、头数、汇聚方式和激活函数。"""
    facts = {name: parse_json(tensors.metadata[name]) for name in ("epsilon", "num_heads") if name in tensors.metadata}
    heads = facts.get("num_heads")
    facts["num_heads"] = _as_tuple(heads) if matches(heads, int) or matches(heads, [int]) else None
    if not matches(facts.get("epsilon"), float) or not 0 < facts["epsilon"] < 1:
        facts["epsilon"] = None
    for name, known in (("pool", ("cls", "avg")), ("activation", ACTIVATIONS)):
        facts[name] = tensors.metadata.get(name) if tensors.metadata.get(name) in known else None
    return {name: value for name, value in facts.items() if value is not None}


def heads_of(model: nn.Layer) -> Any:
    """模型的头数:整数;Swin 是每级一个的元组。"""
    heads = model.settings["num_heads"] if hasattr(model, "settings") else model.num_heads
    return tuple(heads) if isinstance(heads, (list, tuple)) else heads
