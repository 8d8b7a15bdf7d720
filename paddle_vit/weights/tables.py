"""换名表(rename table):一份 YAML,说明别处的权重里每个张量对应我们的哪个,还有名字看不出来的几个事实。

``formats/*.yaml`` 是自带的,使用者自己的表是同一种语言::

    name: my_vit
    family: vit                # vit、swin 或 attention
    layout: torch              # 线性层怎样放:torch [输出, 输入],paddle [输入, 输出],flax
    norm_first: true           # 先归一化(pre-norm)
    activation: gelu
    epsilon: 1.0e-6            # 层归一化里加在方差上的小数
    num_heads: 12
    tensors:                   # 我们的名字: 它的名字;写到层为止,就是 weight 和 bias 一起
      class_token: cls
      encoders.{i}.attn_norm: blocks.{i}.ln1
      encoders.{i}.attn.qkv: [blocks.{i}.q, blocks.{i}.k, blocks.{i}.v]

还可以写:``normalization``(像素怎样归一化:half 是均值和标准差都 0.5,imagenet 和 clip 是它们的,none 不归一化),
``scale``(q k^T 的缩放,不写是 d ** -0.5),``trunk_norm``(第二个归一化在主干上,不写是 false),
``pool``(cls 或 avg),``patch_order``(图块嵌入是线性层时图块展平的次序,
如 ``p1 p2 c``),``prefixes``(要去掉的前缀;多数张量共有的,如 ``_orig_mod.``,不写也会去掉),``ignore``(本来就不需要的张量,
可以有 ``*``),``head_extras``(分类头多出来的部分,换分类头时才不需要)。``{i}`` 是数字,``{2i+1}`` 是它的两倍加一;
``甲 | 乙`` 任一。
"""

import collections
import contextlib
import dataclasses
import re
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..system.files import read_yaml
from .foreign_heads import pretraining_parts

__all__ = ["FACTS", "MAY_BE_UNKNOWN", "UNKNOWN", "Table", "bundled_tables", "layout_of", "read_table", "recognise"]

FORMATS = Path(__file__).parent / "formats"
MAX_TENSORS = 10000  # ViT-H 的 q、k、v 分开时也不到一千个
MAX_VOTERS = 1000  # 找共有的前缀时最多看几个名字
UNKNOWN = "?"  # 表里还没有填的事实
FACTS = ("norm_first", "activation", "epsilon", "num_heads")  # 名字看不出来、使用者的表必须写明的
MAY_BE_UNKNOWN = (*FACTS, "normalization")  # 草稿里可以是 ? 的
_INDEX = re.compile(r"\{(\d?)([a-z])(?:\+(\d))?\}")
_TENSORS = ["weight", "bias", "gamma", "class_token", "distillation_token", "register_tokens", "position_embedding"]
_TENSORS += ["relative_position_bias_table"]


@dataclasses.dataclass(frozen=True)
class Table:
    """一份换名表;各项见本模块开头的说明。

    Attributes:
        shapes (dict), absent (tuple[str]): 只用于这样的文件:这几个张量是这个形状,那几个没有。
        normalization, deit_normalization (str | None): 像素归一化,``half`` 或 ``imagenet``。
    """

    name: str
    layout: str
    tensors: dict
    family: Any = None
    norm_first: Any = None
    trunk_norm: bool = False
    activation: Any = None
    epsilon: Any = None
    num_heads: Any = None
    scale: Any = None
    pool: Any = None
    patch_order: Any = None
    normalization: Any = None
    deit_normalization: Any = None
    prefixes: tuple = ()
    ignore: tuple = ()
    head_extras: tuple = ()
    shapes: dict = dataclasses.field(default_factory=dict)
    absent: tuple = ()

    def plain_names(self, names):
        """去掉前缀:{去掉以后的名字: 文件里的名字};去掉后重名的保持原样。"""
        common, plain = self._common_prefix(list(names)), {}
        for name in names:
            short = self._without_prefix(name[len(common) :] if name.startswith(common) else name)
            plain[name if short in plain else short] = name
        return plain

    def _common_prefix(self, names):
        """多数张量共有的前缀:去掉它以后,认得的名字最多;不去掉就认得一半以上的,是空的。"""
        if sum(self.knows(self._without_prefix(name)) for name in names) * 2 >= len(names):
            return ""
        votes = collections.Counter()
        for name in names[:MAX_VOTERS]:
            for dot in re.finditer(r"[./]", name):
                if self._compiled[1].fullmatch(self._without_prefix(name[dot.end() :])):
                    votes[name[: dot.end()]] += 1
        known = sum(self._compiled[1].fullmatch(self._without_prefix(name)) is not None for name in names)
        most = max(votes.values(), default=0)
        best = [prefix for prefix in votes if votes[prefix] == most and most > known]
        # 自监督的检查点里有两份:教师(滑动平均)先于学生,学生先于动量编码器(MoCo)
        return min(best, key=lambda prefix: ("teacher" not in prefix, "momentum" in prefix, len(prefix)), default="")

    def _without_prefix(self, name):
        for prefix in self.prefixes:  # 前缀可以套着,如 module.model.
            name = name[len(prefix) :] if name.startswith(prefix) else name
        return name

    def sources(self, ours):
        """我们的一个张量可能由它的哪些张量得来:几种可能,每种是一个或三个(q、k、v)名字的元组。"""
        for pattern, options in self._compiled[0]:
            match = pattern.fullmatch(ours)
            if match:
                return [tuple(_fill(part, match.groupdict()) for part in option) for option in options]
        return []

    def knows(self, name):
        """它的一个张量(去掉前缀后的名字)是不是这份表里有的。"""
        return bool(self._compiled[1].fullmatch(name)) or self.is_ignored(name)

    def is_ignored(self, name):
        """这个张量本来就不需要。"""
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)

    def is_head_extra(self, name):
        """这个张量是分类头里我们没有的部分。"""
        return any(fnmatchcase(name, pattern) for pattern in self.head_extras)

    @cached_property
    def _compiled(self):
        """([(我们的名字的正则, 几种可能)], 它的全部名字的正则);每一行层名展开成 weight 和 bias。"""
        flax, rules, known = self.layout == "flax", [], []
        for ours, theirs in self.tensors.items():
            leaves = {"": [""]}
            if ours.split(".")[-1] not in _TENSORS:
                leaves = {".weight": ["/kernel", "/scale"] if flax else [".weight"]}
                leaves[".bias"] = ["/bias" if flax else ".bias"]
            for leaf, ends in leaves.items():
                names = [tuple(part + end for part in option) for option in _options(theirs) for end in ends]
                rules.append((re.compile(_expression(ours + leaf, named=True)), names))
                known += [_expression(part, named=False) for option in names for part in option]
        return rules, re.compile("|".join(known))


def _options(theirs):
    """``'甲 | 乙'`` 或 ``['甲q | 乙q', '甲k | 乙k', '甲v | 乙v']`` -> 几种可能,每种是名字的元组。"""
    parts = [theirs] if isinstance(theirs, str) else theirs
    return tuple(zip(*([name.strip() for name in part.split("|")] for part in parts)))


def _expression(template, named):
    """带 ``{i}`` 的名字 -> 正则表达式。"""
    expression, position = "", 0
    for match in _INDEX.finditer(template):
        expression += re.escape(template[position : match.start()]) + (rf"(?P<{match[2]}>\d+)" if named else r"\d+")
        position = match.end()
    return expression + re.escape(template[position:])


def _fill(template, indices):
    return _INDEX.sub(lambda match: str(int(match[1] or 1) * int(indices[match[2]]) + int(match[3] or 0)), template)


# ---- 读表 ----

_KINDS = {
    "name": str,
    "layout": ("torch", "paddle", "flax"),
    "family": ("vit", "swin", "attention"),
    "norm_first": bool,
    "trunk_norm": bool,
    "activation": str,
    "epsilon": float,
    "num_heads": (int, list),
    "scale": float,
    "pool": ("cls", "avg"),
    "patch_order": str,
    "normalization": ("half", "imagenet", "clip", "none"),
    "deit_normalization": ("half", "imagenet", "clip"),
    "tensors": dict,
    "prefixes": list,
    "ignore": list,
    "head_extras": list,
    "shapes": dict,
    "absent": list,
}


def read_table(path):
    """读一份换名表。

    Args:
        path (str | Path): YAML 文件。

    Returns:
        Table

    Raises:
        UserError: 没有这个文件,不是 YAML,有写错的项,或写着不合法的值。
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} 不是换名表:应是“名字: 值”的 YAML,样子见 paddle_vit/weights/formats/。")
    for name in ("epsilon", "scale"):  # YAML 把没有小数点的 1e-6 当作文字
        with contextlib.suppress(ValueError, TypeError):
            values.update({name: float(values[name])} if name in values else {})
    for name, value in values.items():
        _check_value(path, name, value)
    for name in ("name", "layout", "tensors"):
        if name not in values:
            raise UserError(f"换名表 {path} 缺少 {name}:样子见 paddle_vit/weights/formats/ 里自带的表。")
    lists = {name: tuple(values[name]) for name in ("prefixes", "ignore", "head_extras", "absent") if name in values}
    return Table(**{**values, **lists})


def _check_value(path, name, value):
    """换名表里一项的名字和值;不合法时抛出 ``UserError``。"""
    if name not in _KINDS:
        raise UserError(f"换名表 {path} 里有不认识的 {name}:可用的是 {'、'.join(_KINDS)}。")
    kind = _KINDS[name]
    if name in MAY_BE_UNKNOWN and value == UNKNOWN:
        return
    if isinstance(kind, tuple) and isinstance(kind[0], str):
        good, wanted = value in kind, "、".join(kind) + " 之一"
    elif kind is float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        wanted = "正数"
    elif kind is str:
        good, wanted = isinstance(value, str), "文字"
    elif kind == (int, list):
        counts = value if isinstance(value, list) else [value]
        good, wanted = all(type(count) is int and count > 0 for count in counts), "正整数,或每级一个的一列"
    else:
        wanted = {bool: "true 或 false", list: "一列", dict: "“名字: 名字”的一组"}[kind]
        good = isinstance(value, kind)
    if name in ("prefixes", "ignore", "head_extras", "absent") and good:
        good, wanted = all(isinstance(item, str) for item in value), "一列名字"
    if name == "patch_order" and good:
        good, wanted = sorted(value.split()) == ["c", "p1", "p2"], "p1、p2、c 的一种排列,如 p1 p2 c"
    if not good:
        raise UserError(f"换名表 {path} 里的 {name}: {value!r} 不合法:应为{wanted}。")
    if name == "tensors":
        for ours, theirs in value.items():
            _check_line(path, ours, theirs)


def _check_line(path, ours, theirs):
    """``tensors`` 里的一行;不合法时抛出 ``UserError``。"""
    line = f"换名表 {path} 的一行 {ours}: {theirs}"
    parts = theirs if isinstance(theirs, list) and len(theirs) == 3 else [theirs]
    if not isinstance(ours, str) or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{line} 不合法:应是“我们的名字: 它的名字”,或三个名字的列表 [q, k, v]。")
    if len({part.count("|") for part in parts}) > 1:
        raise UserError(f"{line} 不合法:q、k、v 三个名字用 | 隔开的可能要一样多。")
    if UNKNOWN in parts:
        raise UserError(f"{line} 还没有填:请写上它的名字;原来的模型里没有这一层的,权重装不进来。")
    letters = {match[2] for match in _INDEX.finditer(ours)}
    for part in parts:
        for name in part.split("|"):
            if {match[2] for match in _INDEX.finditer(name)} != letters:
                raise UserError(f"{line} 不合法:两边的 {{i}}、{{j}} 要相同。")


@lru_cache(maxsize=1)
def bundled_tables():
    """自带的全部换名表,按文件名排列。"""
    return tuple(read_table(path) for path in sorted(FORMATS.glob("*.yaml")))


# ---- 认出格式 ----


def recognise(tensors):
    """由张量的名字和形状认出格式:能说明的张量最多的那份自带的表。

    Args:
        tensors (TensorFile): 打开的权重文件。

    Returns:
        Table

    Raises:
        UserError: 认不出,或有几种可能。
    """
    if not 0 < len(tensors) <= MAX_TENSORS:
        raise UserError(f"{tensors.path} 里有 {len(tensors)} 个张量,不像是一个模型的权重:请检查路径。")
    scores = {}
    for table in bundled_tables():
        plain = table.plain_names(tensors)
        if _fits(table, plain, tensors):
            scores[table.name] = sum(map(table.knows, plain))
    best = max(scores.values(), default=0)
    chosen = [table for table in bundled_tables() if best and scores.get(table.name) == best]
    pretraining = sum(map(len, pretraining_parts(chosen[0].plain_names(tensors)).values())) if chosen else 0
    if best < 0.5 * (len(tensors) - pretraining) or not best:
        names = "、".join(list(tensors)[:4])
        raise UserError(
            f"认不出 {tensors.path} 的格式:它有 {len(tensors)} 个张量,名字如 {names}。"
            "请用 scripts/import_weights.py 的 --propose 写一份换名表,填好后用 --table 给出"
            "(train.py 用 --weights-table)。"
        )
    layout = layout_of(tensors)
    narrowed = [table for table in chosen if table.layout in (layout, "flax")] or chosen
    narrowed = [table for table in narrowed if table.shapes or table.absent] or narrowed  # 写明了形状的更确切
    if len(narrowed) > 1:
        names = "、".join(table.name for table in narrowed)
        raise UserError(
            f"{tensors.path} 可能是 {names} 中的几种:请用 --table(train.py 用 --weights-table)指明 "
            "paddle_vit/weights/formats/ 里的哪一份。"
        )
    return narrowed[0]


def _fits(table, plain, tensors):
    """表里写明的形状和没有的张量,与文件是否相符。"""
    shapes = {name: tuple(tensors[plain[name]].shape) if name in plain else None for name in table.shapes}
    return all(shapes[name] == tuple(shape) for name, shape in table.shapes.items()) and not any(
        name in plain for name in table.absent
    )


def layout_of(tensors):
    """线性层怎样放:由不是方阵的层看(偏置的长度是输出的维度),都是方阵时由文件的种类看。"""
    votes = {"torch": 0, "paddle": 0}
    for name, stored in tensors.items():
        bias = tensors.get(re.sub("weight$", "bias", name))
        if len(stored.shape) == 2 and bias is not None and bias is not stored and stored.shape[0] != stored.shape[1]:
            votes["torch"] += bias.shape == stored.shape[:1]
            votes["paddle"] += bias.shape == stored.shape[1:]
    if votes["torch"] == votes["paddle"]:
        return "paddle" if tensors.kind == "paddle" else "torch"
    return max(votes, key=votes.get)
