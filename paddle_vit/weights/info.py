"""权重文件的说明:格式、像素归一化、层归一化的 epsilon、头数、类别名等,名字和形状以外的事实都在这里查。

来自文件自己(本项目的)、旁边的 config.json 和 preprocessor_config.json(Hugging Face、timm),其余由换名表给出。
"""

import dataclasses
import json
import math
import re
from pathlib import Path

from ..errors import UserError
from ..system.files import matches, parse_json, read_json
from .checkpoint import DESCRIPTION, weights_path
from .files import open_tensors
from .tables import FACTS, UNKNOWN, read_table, recognise

__all__ = ["NORMALIZATION", "WeightsInfo", "describe_file", "describe_weights", "find_weights"]

NORMALIZATION = {  # (均值, 标准差),像素值在 0–1
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# timm 里张量名字相同、算法不同的那些:旋转位置编码,别的激活,归一化在后的(rpn)
_OTHER_BLOCKS = re.compile("rope|quickgelu|rpn|so400m|giantopt")
MAX_EPSILON = 1e-3  # 再大的,Paddle 的 layer_norm 不接受
# 目录里先找哪个文件
_FILES = ("model.safetensors", "pytorch_model.bin", "model.pdparams", "weights.npz")


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
        norm_first, activation, scale, pool: 见 ``tables``。
        position_embedding (str | None): 本项目的文件:位置编码的种类。
        qkv_bias (bool | None): q、k、v 有没有偏置。
        candidates (tuple[str]): 尺寸与它相同的命名模型,图像大小也相同的在前。
        notes (tuple[str]): 其他要知道的事。
    """

    path: Path
    format: str
    mean: object = None
    std: object = None
    epsilon: object = None
    num_heads: object = None
    classes: object = None
    model: object = None
    image_size: object = None
    num_classes: object = None
    in_channels: object = None
    norm_first: object = None
    activation: object = None
    scale: object = None
    pool: object = None
    position_embedding: object = None
    qkv_bias: object = None
    candidates: tuple = ()
    notes: tuple = ()

    def guess(self):
        """请使用者写明模型时,接在后面的一句。"""
        if self.candidates:
            return f",它像是 {'、'.join(self.candidates[:3])}"
        return ",如 vit_base_patch16_224"


def find_weights(path):
    """权重文件的路径;给的是目录时,是其中的权重。

    Args:
        path (str | Path): 权重文件,运行目录,或从 Hugging Face 下载的目录。

    Raises:
        UserError: 路径不存在,或目录里没有权重。
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / "config.yaml").exists():
        best = weights_path(path)
        if not best.exists():
            raise UserError(f"没有 {best}:这个运行还没有存过权重,请先训练至少一轮。")
        return best
    found = [path / name for name in _FILES if (path / name).exists()]
    if not found:
        raise UserError(
            f"{path} 不是运行目录,里面也没有 {'、'.join(_FILES)}:请给出权重文件本身(导出的目录不行,请给运行目录)。"
        )
    return found[0]


def describe_weights(path, table=None, model=None):
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


def describe_file(tensors, table, given=False, model=None):
    """打开的权重文件的说明,参数和返回值见 ``describe_weights``;given 表示换名表是使用者给的。"""
    plain = table.plain_names(tensors)
    shapes = {name: tuple(tensors[file_name].shape) for name, file_name in plain.items()}
    info = WeightsInfo(
        path=tensors.path,
        format=table.name,
        epsilon=table.epsilon,
        num_heads=_as_tuple(table.num_heads) or _heads_of_flax(table, shapes),
        norm_first=table.norm_first,
        activation=table.activation,
        scale=table.scale,
        pool=table.pool or _pool_of_norm(table, shapes),
        num_classes=_num_classes(table, shapes),
        in_channels=_in_channels(table, shapes),
        candidates=candidates(table, shapes),
    )
    mean, std = NORMALIZATION.get(_normalization(tensors.path, table, shapes, model), (None, None))
    info = dataclasses.replace(info, mean=mean, std=std, image_size=_image_size(table, shapes))
    if table.name == "paddle_vit":
        return dataclasses.replace(info, **_own_facts(tensors, shapes.values()))
    facts = {**_metadata_facts(tensors), **_neighbours(tensors.path, table, info, shapes)}
    for name in FACTS:
        stated = getattr(info, name)
        if given and stated not in (None, UNKNOWN) and facts.get(name, stated) != stated:
            path = tensors.path.with_name("config.json")
            raise UserError(f"换名表里 {name} 是 {stated},{path} 里是 {facts[name]}:请改正其中一个。")
    info = dataclasses.replace(info, **facts)
    if info.epsilon not in (None, UNKNOWN) and not 0 < info.epsilon <= MAX_EPSILON:
        raise UserError(f"{tensors.path} 的层归一化的 epsilon 是 {info.epsilon:g}:应大于 0,不超过 {MAX_EPSILON:g}。")
    if not all(0 < value < math.inf for value in info.std or ()) or not all(map(math.isfinite, info.mean or ())):
        raise UserError(
            f"{tensors.path} 旁边写的归一化不合法:均值 {info.mean},标准差 {info.std}。"
            "标准差要大于 0,请改正,或把 preprocessor_config.json 移走。"
        )
    return info


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _find(table, shapes, ours):
    """我们的一个张量在文件里的形状;没有时是 ``None``。"""
    for option in table.sources(ours):
        if option[0] in shapes:
            return shapes[option[0]]
    return None


def _heads_of_flax(table, shapes):
    """Flax 的 query/kernel 是 [D, h, d],看得出头数。"""
    shape = _find(table, shapes, "encoders.0.attn.qkv.weight")
    return shape[1] if table.layout == "flax" and shape is not None and len(shape) == 3 else None


def _pool_of_norm(table, shapes):
    """timm 的 fc_norm 在平均之后;没有写明汇聚方式的,有它就是取平均。"""
    averaged = table.family == "vit" and _find(table, shapes, "pool_norm.weight") is not None
    return "avg" if averaged else None


def _num_classes(table, shapes):
    shape = _find(table, shapes, "head.bias")
    return None if shape is None or len(shape) != 1 else shape[0]


def _in_channels(table, shapes):
    kernel = _find(table, shapes, "patch_embed.patch_embedding.weight")
    return None if kernel is None or len(kernel) != 4 else kernel[2 if table.layout == "flax" else 1]


def _normalization(path, table, shapes, model):
    """DeiT 与 ViT 的名字相同:有蒸馏 token,或模型名、文件名、目录名里写着 deit 的是 DeiT。"""
    named_deit = any("deit" in part.lower() for part in (*path.absolute().parts[-2:], model or ""))
    if table.deit_normalization and (named_deit or _find(table, shapes, "distillation_token") is not None):
        return table.deit_normalization
    return table.normalization


def _image_size(table, shapes):
    """由位置编码的行数和图块边长推出正方形图像的边长。"""
    kernel = _find(table, shapes, "patch_embed.patch_embedding.weight")
    positions = _find(table, shapes, "position_embedding")
    if positions is None or kernel is None or len(kernel) != 4 or len(positions) < 2:
        return None
    patch = kernel[:2] if table.layout == "flax" else kernel[2:]
    prefix = sum(_find(table, shapes, name) is not None for name in ("class_token", "distillation_token"))
    for count in (prefix, 0):
        side = int(max(positions[-2] - count, 0) ** 0.5 + 0.5)
        if side and side * side == positions[-2] - count:
            return side * patch[0], side * patch[1]
    return None


def _metadata_facts(tensors):
    """``export_weights`` 写在文件头里的 epsilon、头数和汇聚方式。"""
    facts = {name: parse_json(tensors.metadata[name]) for name in ("epsilon", "num_heads") if name in tensors.metadata}
    heads = facts.get("num_heads")
    facts["num_heads"] = _as_tuple(heads) if matches(heads, int) or matches(heads, [int]) else None
    if not matches(facts.get("epsilon"), float) or not 0 < facts["epsilon"] < 1:
        facts["epsilon"] = None
    facts["pool"] = tensors.metadata.get("pool") if tensors.metadata.get("pool") in ("cls", "avg") else None
    return {name: value for name, value in facts.items() if value is not None}


# ---- 本项目的文件 ----


def _own_facts(tensors, shapes):
    """文件头里的说明;旧版的 best.pdparams 没有,看同一目录的 config.yaml 和 data.json。"""
    from ..config import load_config
    from ..data.sources import load_info

    directory, facts = tensors.path.parent, {}
    model = info = None
    state = parse_json(tensors.metadata.get("state", "null"))
    if matches(state, DESCRIPTION):
        model, info = state["model"], state["info"]
    if model is None and (directory / "config.yaml").exists() and (directory / "data.json").exists():
        data = load_info(directory / "data.json")
        info = dataclasses.asdict(data)
        model = {**load_config(directory).model_arguments(data), "epsilon": 1e-5}  # 那时全都是 1e-5
    info = json.loads(json.dumps(info))  # 元组成为列表
    if matches(info, {"classes": [str], "mean": [float], "std": [float]}):
        facts = {name: tuple(info[name]) for name in ("classes", "mean", "std")}
    return facts if model is None else {**facts, **_facts_of_model(model, shapes, tensors.path)}


def _facts_of_model(model, shapes, path):
    """``create_model`` 的参数里,张量的名字和形状看不出来的那些。"""
    import inspect

    from ..checks import as_pair
    from ..family.models import check_size, model_class, model_settings

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
        "position_embedding": settings.get("position_embedding"),
        "num_classes": settings["num_classes"],
        "in_channels": settings["in_channels"],
    }


# ---- 旁边的 config.json 和 preprocessor_config.json ----


def _neighbours(path, table, info, shapes):
    """config.json 和 preprocessor_config.json 里的事实(字典),写了的才有。"""
    advice = "请重新下载,或把它移走"
    config = read_json(path.parent / "config.json", advice=advice) or {}
    facts = {}
    if "model_type" in config:
        facts = _huggingface_facts(config, path, table, shapes)
    elif "architecture" in config:
        facts = _timm_facts(config, path, table, shapes)
    elif table.name.startswith("huggingface"):
        facts["notes"] = (f"旁边没有 config.json:epsilon 按 {info.epsilon:g},激活按 {info.activation}",)
    images = read_json(path.parent / "preprocessor_config.json", advice=advice) or {}
    if matches(images, {"image_mean": [float], "image_std": [float]}):
        facts.update(mean=tuple(images["image_mean"]), std=tuple(images["image_std"]))
    return facts


def _checked(config, pattern, path):
    """config 里 pattern 说到的各项,类型不对时抛出 ``UserError``。"""
    present = {name: config[name] for name in pattern if config.get(name) is not None}
    for name, value in present.items():
        if not matches(value, pattern[name]):
            raise UserError(f"{path} 里的 {name} 不合法:{value!r}。请重新下载。")
    return present


def _sizes(table, shapes):
    """由张量的形状看得出的几个数(字典),看不出的不在里面;与 config.json 里的比。"""
    sizes = {"num_classes": _num_classes(table, shapes), "in_channels": _in_channels(table, shapes)}
    kernel = _find(table, shapes, "patch_embed.patch_embedding.weight")
    if kernel is not None and len(kernel) == 4:
        kernel = kernel if table.layout != "flax" else (kernel[3], kernel[2], *kernel[:2])
        sizes.update(embed_dim=kernel[0], patch_size=tuple(kernel[2:]))
    depths = [_depth(table, shapes, f"stages.{i}.blocks") for i in range(20)]
    sizes["depths"] = [depth for depth in depths if depth] or None
    sizes["depth"] = _depth(table, shapes, "encoders") or None
    bias_table = _find(table, shapes, "stages.0.blocks.0.attn.relative_position_bias_table")
    sizes["window_size"] = None if bias_table is None else (int(bias_table[0] ** 0.5) + 1) // 2
    return {name: value for name, value in sizes.items() if value is not None}


def _depth(table, shapes, stage):
    """文件里这一级有几层。"""
    depth = 0
    while _find(table, shapes, f"{stage}.{depth}.attn_norm.weight") is not None:
        depth += 1
    return depth


def candidates(table, shapes):
    """尺寸与文件相同的命名模型;图像大小也相同的在前。"""
    from ..family.models import list_models, model_settings

    sizes = {name: size for name, size in _sizes(table, shapes).items() if name not in ("num_classes", "in_channels")}
    if not {"embed_dim", "patch_size"} <= sizes.keys():
        return ()
    distilled, with_class = (_find(table, shapes, f"{name}_token") is not None for name in ("distillation", "class"))
    names = []
    for name in list_models():
        settings = model_settings(name)
        patch = settings.get("patch_size")
        settings = {**settings, "patch_size": (patch, patch), "depths": list(settings.get("depths", ()))}
        kind = settings.get("distillation", False), settings.get("pool") == "cls"
        if kind == (distilled, with_class) and all(settings.get(key) == size for key, size in sizes.items()):
            names.append(name)
    image = (_image_size(table, shapes) or [None])[0]
    return tuple(sorted(names, key=lambda name: model_settings(name)["image_size"] != image))


def _check_sizes(stated, sizes, path):
    """config.json 里的数与张量的形状不同时,抛出 ``UserError``;stated 是 {名字: (sizes 里的名字, 值)}。"""
    for name, (key, value) in stated.items():
        if value is not None and value != sizes.get(key, value):
            raise UserError(
                f"{path} 里的 {name} 是 {value},而权重的是 {sizes[key]}:请换成与权重配套的 config.json,或把它移走。"
            )


def _refuse_family(path, kind, table):
    raise UserError(f"{path} 说这是 {kind},而张量的名字像 {table.name}:请换成与权重配套的 config.json。")


def _huggingface_facts(config, path, table, shapes):
    from ..checks import as_pair

    path = path.with_name("config.json")
    kind = config["model_type"]
    if table.family is not None and kind not in {"vit": ("vit", "deit"), "swin": ("swin",)}.get(table.family, (kind,)):
        _refuse_family(path, kind, table)
    pattern = {"layer_norm_eps": float, "num_attention_heads": int, "num_heads": [int], "hidden_act": str}
    pattern.update(qkv_bias=bool, image_size=(int, list), id2label={None: str})
    values = _checked(config, pattern, path)
    sizes = {"num_channels": int, "patch_size": (int, list), "window_size": int, "embed_dim": int, "hidden_size": int}
    sizes = _checked(config, {**sizes, "num_hidden_layers": int, "depths": [int]}, path)
    if "patch_size" in sizes:
        sizes["patch_size"] = tuple(as_pair(sizes["patch_size"], f"{path} 里的 patch_size"))
    keys = {"num_channels": "in_channels", "num_hidden_layers": "depth"}
    if kind == "swin":  # 它的 hidden_size 是最后一级的,num_hidden_layers 是级数
        sizes = {name: value for name, value in sizes.items() if name not in ("hidden_size", "num_hidden_layers")}
    stated = {name: (keys.get(name, name).replace("hidden_size", "embed_dim"), value) for name, value in sizes.items()}
    stated["id2label"] = "num_classes", len(values["id2label"]) if "id2label" in values else None
    _check_sizes(stated, _sizes(table, shapes), path)
    names = {"layer_norm_eps": "epsilon", "num_attention_heads": "num_heads", "hidden_act": "activation"}
    facts = {names.get(name, name): value for name, value in values.items() if name not in ("image_size", "id2label")}
    if isinstance(facts.get("num_heads"), list):
        facts["num_heads"] = tuple(facts["num_heads"])
    facts.update(_image_side(values.get("image_size"), path))
    labels = values.get("id2label", {})
    names = tuple(labels.get(str(index)) for index in range(len(labels)))
    if names and None not in names and not all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        facts["classes"] = names
    return facts


def _image_side(size, path):
    """config.json 里的 image_size:整数或 [高, 宽] -> {"image_size": (高, 宽)}。"""
    from ..checks import as_pair

    if size is None:
        return {}
    return {"image_size": tuple(as_pair(tuple(size) if isinstance(size, list) else size, f"{path} 里的 image_size"))}


def _timm_facts(config, path, table, shapes):
    path = path.with_name("config.json")
    kind = config["architecture"]
    starts = {"vit": ("vit_", "deit_", "deit3_"), "swin": ("swin_",)}.get(table.family, ("",))
    if not isinstance(kind, str) or not kind.startswith(starts) or _OTHER_BLOCKS.search(kind):
        _refuse_family(path, kind, table)
    pattern = {"global_pool": str, "label_names": [str], "pretrained_cfg": dict, "model_args": dict, "num_classes": int}
    values = _checked(config, pattern, path)
    pixels = _checked(values.get("pretrained_cfg", {}), {"mean": [float], "std": [float], "input_size": [int]}, path)
    facts = {name: tuple(pixels[name]) for name in ("mean", "std") if name in pixels}
    patch, window = (re.search(rf"_{name}(\d+)", kind) for name in ("patch", "window"))
    stated = {
        "num_classes": ("num_classes", values.get("num_classes")),
        "label_names": ("num_classes", len(values["label_names"]) if "label_names" in values else None),
        "input_size": ("in_channels", next(iter(pixels.get("input_size", [])), None)),
        f"architecture({kind})的图块": ("patch_size", patch and (int(patch[1]),) * 2),
        f"architecture({kind})的窗口": ("window_size", window and int(window[1])),
    }
    _check_sizes(stated, _sizes(table, shapes), path)
    activation = values.get("model_args", {}).get("act_layer")
    if activation is not None:
        facts["activation"] = str(activation)
    if "label_names" in values:
        facts["classes"] = tuple(values["label_names"])
    pool = values.get("global_pool")
    if pool not in (None, "", "avg", "token")[: 4 if table.family == "vit" else 3]:
        raise UserError(f"{path} 里的 global_pool 是 {pool!r}:我们只有 token(cls)和 avg,Swin 只有 avg,装不进来。")
    if table.family == "vit" and pool in ("token", "avg"):
        facts["pool"] = {"token": "cls", "avg": "avg"}[values["global_pool"]]
    facts.update(_image_side(pixels.get("input_size", [None])[1:] or None, path))
    return facts
