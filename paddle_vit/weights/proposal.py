"""给认不出的权重写一份换名表的草稿:张量按形状、次序和名字猜,名字看不出来的事实写成 ``?``,等人填。"""

from __future__ import annotations

import collections
import difflib
import json
import re
from pathlib import Path

from paddle import nn

from ..family.swin import SwinTransformer
from .files import open_tensors
from .info import find_weights
from .layouts import BIAS_TABLE
from .tables import UNKNOWN, bundled_tables, layout_of

__all__ = ["propose_table", "why_unknown"]

_LEAF = re.compile(r"[._/](weight|bias|kernel|scale)$|_(weight|bias)$")
# 我们的层 -> 别处常用的名字里的片段
_HINTS = {
    "class_token": "cls class",
    "distillation_token": "dist",
    "register_tokens": "reg",
    "position_embedding": "pos",
    "patch_embed.patch_embedding": "patch stem proj",
    "attn_norm": "norm1 ln1 ln_1 attn_norm norm_attn attn_ln ln_attn before",
    "attn.qkv": "qkv in_proj",
    "attn.proj": "out_proj o_proj to_out proj out wo",
    "attn.q_norm": "q_norm q_ln",
    "attn.k_norm": "k_norm k_ln",
    "mlp_norm": "norm2 ln2 ln_2 mlp_norm norm_mlp ffn_norm ff_norm mlp_ln ln_mlp after",
    "mlp.fc1": "fc1 linear1 lin1 up mlp.0 ff.0 ffn.0 dense1",
    "mlp.fc2": "fc2 linear2 lin2 down mlp.2 mlp.3 ff.2 ffn.2 dense2",
    "norm": "norm ln_f final ln",
    "pool_norm": "fc_norm",
    "embed_norm": "embed.norm embeddings.norm",
    "head": "head classifier fc out",
    "distillation_head": "head_dist dist",
}
_FACTS = {
    "norm_first": "先归一化(pre-norm)是 true,先算注意力再归一化(post-norm)是 false",
    "activation": "Mlp 的激活函数,如 gelu、relu",
    "epsilon": "层归一化里加在方差上的小数;PyTorch 和 Paddle 不写时是 1.0e-5",
    "num_heads": "注意力的头数",
    "normalization": "像素怎样归一化:half 是均值和标准差都 0.5,imagenet 和 clip 是它们的,none 不归一化(像素 0–1)",
}


def propose_table(model: nn.Layer, path: str | Path) -> str:
    """写一份换名表的草稿(YAML);使用者核对张量、填好 ``?`` 之后,交给 ``load_weights`` 的 table。

    Args:
        model (ViT | SwinTransformer | Attention): 要装的模型。
        path (str | Path): 权重文件或目录。

    Returns:
        str: YAML。

    Raises:
        UserError: 文件有误。
    """
    with open_tensors(find_weights(path)) as tensors:
        targets = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        known = next((table for table in bundled_tables() if _explains(table, tensors, targets)), None)
        layout = layout_of(tensors) if known is None or known.layout != "flax" else "flax"
        lines = _guess(targets, tensors, layout) if known is None else _lines_of(known, tensors, targets)
        used = {name for theirs in lines.values() for name in theirs}
        family = "swin" if isinstance(model, SwinTransformer) else "vit" if hasattr(model, "encoders") else "attention"
        text = [f"# {tensors.path} 的换名表草稿:核对 tensors 的每一行,把 ? 换成原来代码里的值", "name: my_weights"]
        text += [f"family: {family}", f"layout: {layout}  # 线性层:torch 是 [输出, 输入],paddle 是 [输入, 输出]"]
        facts = _FACTS if family != "attention" else {"num_heads": _FACTS["num_heads"]}
        for name, meaning in facts.items():
            value = None if known is None else getattr(known, name)
            value = f"{value:.1e}" if isinstance(value, float) else _yaml(UNKNOWN if value is None else value)
            text.append(f"{name}: {value}  # {meaning}")
        kernel = lines.get("patch_embed.patch_embedding.weight", ())
        if kernel and kernel[0] in tensors and len(tensors[kernel[0]].shape) == 2:
            order = "p1 p2 c" if known is None else known.patch_order
            text.append(f"patch_order: {order}  # 图块展平的次序:p1 行、p2 列、c 通道")
        if known is not None and known.pool is not None:
            text.append(f"pool: {known.pool}")
        text += ["tensors:", *(f"  {ours}: {theirs}" for ours, theirs in _layers(lines))]
        unused = [name for name in tensors if not any(_matches(template, name) for template in used)]
        text += [f"# 没有用到的张量:{'、'.join(unused[:20])}"] if unused else []
    return "\n".join(text) + "\n"


def why_unknown(model: nn.Layer, path: str | Path, table: str) -> str:
    """草稿里大半是 ``?`` 时,说明为什么:模型的尺寸与文件的不同;不是这样时是空的。

    Args:
        model (ViT | SwinTransformer | Attention), path (str | Path): 见 ``propose_table``。
        table (str): ``propose_table`` 写的草稿。
    """
    lines = table.partition("tensors:\n")[2].splitlines()
    if sum('"?"' in line for line in lines) * 2 < len(lines) or not hasattr(model, "settings"):
        return ""
    with open_tensors(find_weights(path)) as tensors:
        widths = collections.Counter(stored.shape[0] for stored in tensors.values() if len(stored.shape) == 1)
        runs = collections.Counter(re.sub(r"\d+", "N", name, count=1) for name in tensors if re.search(r"\d", name))
    given = {name: model.settings[name] for name in ("embed_dim", "depth", "depths") if name in model.settings}
    seen = f"长度最多的是 {widths.most_common(1)[0][0]}(多半是 embed_dim)" if widths else "没有一维的张量"
    seen += f",编号的张量最多有 {runs.most_common(1)[0][1]} 个(多半是层数)" if runs else ""
    stated = "、".join(f"{name}={value}" for name, value in given.items())
    return (
        f"大半猜不出来,多半是模型的尺寸与文件不同:按 {stated} 猜的,而文件里{seen}。"
        "请用 --model 和 --set embed_dim=… --set depth=… --set num_heads=… 写明尺寸,换一个草稿的名字再写一份。"
    )


def _yaml(value):
    return json.dumps(value, ensure_ascii=False)


# ---- 自带的表说得通:照抄用到的那些行 ----


def _explains(table, tensors, targets):
    """除了分类头,这份表是否说得出每个张量从哪里来。"""
    plain = table.plain_names(tensors)
    return all(
        name.startswith(("head.", "distillation_head.")) or _option(table, plain, name) is not None for name in targets
    )


def _option(table, plain, ours):
    for option in table.sources(ours):
        if all(name in plain for name in option):
            return tuple(plain[name] for name in option)
    return None


def _lines_of(table, tensors, targets):
    plain, lines = table.plain_names(tensors), {}
    for ours in targets:
        option = _option(table, plain, ours)
        if option is not None:
            lines[ours] = option
    return _fold(lines, targets)


def _fold(lines, targets):
    """编号 0 的那些行,把编号换成 {i}(Swin 还有 {j});其余编号的与它们重复。"""
    folded = {}
    for ours, theirs in lines.items():
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", ours) if ours.startswith(("encoders.", "stages.")) else []
        if any(int(number) for number in numbers) and not ours.startswith("stages."):
            continue
        template, parts = ours, theirs
        for letter, number in zip("ij", numbers):
            template = re.sub(rf"(?<=\.){number}(?=\.)", f"{{{letter}}}", template, count=1)
            parts = tuple(re.sub(rf"(?<![0-9]){number}(?![0-9])", f"{{{letter}}}", part, count=1) for part in parts)
        folded.setdefault(template, parts)
    return folded


# ---- 猜 ----


def _guess(targets, tensors, layout):
    """{我们的名字(带 {i}): 它的名字的元组};猜不出的是 ``("?",)``。"""
    depth = len({name.split(".")[1] for name in targets if name.startswith("encoders.")})
    theirs = _templates(tensors, depth)  # 带 {i} 的名字 -> 一个真的名字
    ours = {re.sub(r"^encoders\.0\.", "encoders.{i}.", name): name for name in targets if not _later(name)}
    our_layers, their_layers = _by_layer(ours), _by_layer(theirs)
    lines, taken = {}, set()

    def fits(layer, other):
        mine, given = our_layers[layer], their_layers[other]
        return (
            ("{i}" in layer) == ("{i" in other)
            and mine.keys() == given.keys()
            and all(
                _compatible(mine[leaf], targets[ours[mine[leaf]]], tensors, theirs[given[leaf]], layout)
                for leaf in mine
            )
        )

    for layer, leaves in our_layers.items():  # 先找分开存放的 q、k、v,免得别的方阵占了它们
        if layer.endswith("qkv") and not any(fits(layer, other) for other in their_layers):
            for name in leaves.values():
                triple = _triple(targets[ours[name]], theirs, tensors, layout)
                lines.update({name: triple} if triple else {})
                taken.update(_LEAF.sub("", part) for part in triple or ())
    pairs = []
    for layer in our_layers:
        choices = [other for other in their_layers if other not in taken and fits(layer, other)]
        alike = [name for name in our_layers if choices and fits(name, choices[0])]
        for rank, other in enumerate(choices):  # 形状分不开时,看先后
            same_rank = rank == alike.index(layer) if layer in alike else False
            pairs.append((_similarity(layer, other) + same_rank, layer, other))
    done = set()
    for _, layer, other in sorted(pairs, key=lambda pair: -pair[0]):
        if layer not in done and other not in taken:
            lines.update({name: (their_layers[other][leaf],) for leaf, name in our_layers[layer].items()})
            done.add(layer)
            taken.add(other)
    return {name: lines.get(name, (UNKNOWN,)) for name in ours}


def _by_layer(names):
    """{层: {weight、bias 或空: 名字}}。"""
    layers = {}
    for name in names:
        layers.setdefault(_LEAF.sub("", name), {})[_leaf(name)] = name
    return layers


def _later(name):
    """第一层以后的编码器层。"""
    return name.startswith("encoders.") and not name.startswith("encoders.0.")


def _templates(tensors, depth):
    """{带 {i} 的名字: 编号最小的那个名字};不属于编码器层的,名字就是它自己。"""
    groups = {}
    for name in tensors:
        for match in re.finditer(r"\d+", name):
            template = (name[: match.start()], name[match.end() :])
            groups.setdefault(template, {})[int(match[0])] = name
    templates = {}
    for name in tensors:
        found = name
        for match in re.finditer(r"\d+", name):  # 靠左的编号是层的编号
            before, after = name[: match.start()], name[match.end() :]
            numbers = sorted(groups[before, after])
            if len(numbers) == depth and numbers[-1] - numbers[0] == depth - 1 and numbers[0] < 2:
                found = before + ("{i}" if numbers[0] == 0 else "{i+1}") + after
                templates.setdefault(found, groups[before, after][numbers[0]])
                break
        if found == name:
            templates[name] = name
    return templates


def _leaf(name):
    match = _LEAF.search(name)
    kind = (match[1] or match[2]) if match else ""
    return "weight" if kind in ("kernel", "scale") else kind


def _compatible(ours, shape, tensors, theirs, layout):
    """形状和种类(weight、bias、其他)说得通。"""
    given = tuple(tensors[theirs].shape)
    if ours.endswith(("token", "tokens", "embedding")):
        grown = (1,) * (3 - len(given)) + given
        close = grown == shape or (ours == "position_embedding" and len(grown) == 3 and grown[2] == shape[2])
        return close and _leaf(theirs) in ("", "weight") and (ours == "position_embedding") == (grown[1] > 4)
    if _leaf(ours) != _leaf(theirs):
        return False
    if ours.startswith(("head", "distillation_head")):
        return len(given) == len(shape)
    if len(shape) == 4 and len(given) == 2:
        size = shape[1] * shape[2] * shape[3]
        return given in ((shape[0], size), (size, shape[0]))
    if len(shape) == 2 and layout == "torch" and not ours.endswith(BIAS_TABLE):
        given = given[::-1]
    return given == shape


def _similarity(layer, other):
    """两个层的名字像不像:常用的片段最要紧,其次是整个名字。"""
    layer, other = layer.replace("encoders.{i}.", ""), other.lower()
    hints = [len(hint) for hint in _HINTS.get(layer, "").split() if hint in other]
    return max(hints, default=0) + difflib.SequenceMatcher(None, layer, other).ratio() / 2


def _triple(shape, theirs, tensors, layout):
    """分开存放的 q、k、v:三个名字只差这一处的张量;没有时是 ``None``。"""
    third = (*shape[:-1], shape[-1] // 3)
    third = third[::-1] if layout == "torch" else third
    names = [name for name in theirs if tuple(tensors[theirs[name]].shape) == third and "{i" in name]
    for words in (("query", "key", "value"), ("wq", "wk", "wv"), ("q", "k", "v"), ("Q", "K", "V")):
        for name in names:
            triple = tuple(re.sub(rf"(?<![A-Za-z]){words[0]}(?![A-Za-z])", word, name) for word in words)
            if len(set(triple)) == 3 and all(other in names for other in triple) and "norm" not in name:
                return triple
    return None


# ---- 写成 YAML ----


def _matches(template, name):
    return re.fullmatch(re.sub(r"\\\{.*?\\\}", r"\\d+", re.escape(template)), name) is not None


def _layers(lines):
    """weight 和 bias 都对得上的两行并成一行;逐行给出 (我们的, 它的)。"""
    done = set()  # 已经并进 weight 那一行的 bias
    for ours, theirs in lines.items():
        layer, leaf = ours.rpartition(".")[::2]
        bias = lines.get(f"{layer}.bias")
        whole = leaf == "weight" and bias == tuple(re.sub(r"(kernel|scale|weight)$", "bias", name) for name in theirs)
        whole = whole and all(re.search(r"[./](weight|kernel|scale)$|^\?$", name) for name in theirs)
        if whole:
            done.add(f"{layer}.bias")
        if ours not in done:
            names = [re.sub(r"[./](weight|kernel|scale)$", "", name) if whole else name for name in theirs]
            yield (layer if whole else ours), (_yaml(names) if len(names) > 1 else _yaml(names[0]))
