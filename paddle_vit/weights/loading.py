"""装入权重:认出格式、换名、转置、改大小,装进模型;装不对的一律拒绝,模型原样不动。

认出格式靠 ``formats/*.yaml`` 里的换名表(见 ``tables``);``plan`` 定好每个张量的去处,``refusals`` 拒绝装不得的。
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from paddle import nn

from ..family.models import is_head
from ..layers import LayerNorm
from ..system.files import first_few
from .files import open_tensors
from .foreign_heads import pretraining_parts
from .info import describe_file, find_weights, heads_of
from .plan import Plan
from .refusals import check_architecture, check_complete, check_contents, check_meaning, check_stated, check_types
from .report import LoadReport
from .tables import read_table, recognise

__all__ = ["load_weights"]


def load_weights(
    model: nn.Layer,
    path: str | Path,
    *,
    strict: bool = True,
    resize_patches: bool = False,
    match_channels: bool = False,
    table: str | Path | None = None,
    classes: Sequence[str] | None = None,
    settings: dict | None = None,
) -> LoadReport:
    """把别处的权重装进模型:认出格式,换名,位置编码等改大小;有任何出乎意料的就报错,模型原样不动。

    分类头只在类别相同时才取来:两边的类别名都知道时比类别名,否则只看大小;不取来的保持随机的初值。
    权重是用另一个 epsilon 训练的,就改模型里层归一化的 epsilon。来源:ViT 论文(arXiv 2010.11929)3.2 节。

    Args:
        model (ViT | SwinTransformer | Attention): 要装的模型。
        path (str | Path): 权重文件(本项目、timm、Hugging Face、PaddleViT、PaddleClas、Google 等),运行目录,
            或从 Hugging Face 下载的目录。
        strict (bool): ``False`` 时,模型里缺的保持初值,文件里多的不用,都写在报告里。
        resize_patches (bool): 图块边长不同时,图块嵌入的卷积核也改大小。
        match_channels (bool): 彩色的权重用于灰度图像时,卷积核各通道相加;反过来时平分。
        table (str | Path | None): 使用者的换名表;``None`` 表示由名字认出格式。
        classes (Sequence[str] | None): 模型的类别名。
        settings (dict | None): 使用者写明的模型设置:只由自带的换名表假定的事实,以它为准;epsilon 总以它为准。

    Returns:
        LoadReport: 每个张量的去处。

    Raises:
        UserError: 文件有误或认不出,与模型的结构不符,或有张量对不上。
    """
    with open_tensors(find_weights(path)) as tensors:
        rules = recognise(tensors) if table is None else read_table(table)
        check_stated(rules, tensors.path, table)
        info = describe_file(tensors, rules, given=table is not None)
        info, overruled = _overruled(info, settings or {})
        check_architecture(model, rules, info)
        plan = Plan(model, tensors, rules, info, resize_patches, match_channels, classes)
        check_types(plan)
        if strict:
            check_complete(plan)
        check_meaning(plan)
        check_contents(tensors, plan)
        for ours in [*plan.loaded, *plan.resized]:
            plan.targets[ours].set_value(plan.read(ours))
        heads = heads_of(model)
        notes = [f"头数从文件看不出来,按模型的 {heads}"] if info.num_heads is None else []
        if tensors.others:
            notes.append(f"取的是 {tensors.inside},文件里还有 {'、'.join(tensors.others)}")
        dropped = pretraining_parts(plan.plain) if rules.name != "paddle_vit" else {}
        notes += [f"不要预训练时用的{kind} {len(names)} 个({first_few(names)})" for kind, names in dropped.items()]
        notes += [*info.notes, *overruled, *plan.notes, *_set_epsilon(model, info), *_head_notes(plan, info)]
    fresh = [name for name in plan.targets if name not in plan.loaded and name not in plan.resized]
    fates = map(tuple, (plan.loaded, plan.resized, fresh, plan.unused, notes))
    return LoadReport(str(path), rules.name, *fates)


def _head_notes(plan, info):
    """取来的分类头不是平常的:全是零,或不是在几类里选一类。"""
    weights = [name for name in plan.loaded if is_head(name) and len(plan.targets[name].shape) == 2]
    notes = ["取来的分类头全是零,没有训练过"] if weights and not any(plan.targets[x].any() for x in weights) else []
    if weights and info.problem not in (None, "single_label_classification"):
        notes.append(f"它的分类头是 {info.problem},不是在几类里选一类")
    return notes


def _overruled(info, settings):
    """使用者写明的设置胜过假定的事实:(改过的说明, 要写进报告的话)。"""
    names = {"epsilon": "epsilon", "activation": "activation", "num_heads": "num_heads", "qk_scale": "scale"}
    changes, notes = {}, []
    for setting, fact in names.items():
        mine, theirs = settings.get(setting), getattr(info, fact)
        mine = tuple(mine) if isinstance(mine, list) else mine
        if mine is None or mine == theirs or not (fact == "epsilon" or fact in info.unstated):
            continue
        changes[fact] = mine
        source = "权重" if fact not in info.unstated else f" {info.format} "
        notes += [f"{setting} 按给出的 {mine},不按{source}的 {theirs}"] if theirs is not None else []
    return dataclasses.replace(info, **changes), notes


def _set_epsilon(model, info):
    """把模型里层归一化的 epsilon 改成权重的;返回说明。"""
    norms = [layer for layer in model.sublayers() if isinstance(layer, LayerNorm)]
    changed = {layer.epsilon for layer in norms if info.epsilon is not None and layer.epsilon != info.epsilon}
    for layer in norms:
        layer.epsilon = layer.epsilon if info.epsilon is None else info.epsilon
    if info.epsilon is not None and hasattr(model, "settings"):
        model.settings["epsilon"] = info.epsilon
    return [f"层归一化的 epsilon 由 {old:g} 改为 {info.epsilon:g}" for old in sorted(changed)]
