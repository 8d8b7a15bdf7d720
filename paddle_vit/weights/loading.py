"""装入权重:认出格式、换名、转置、改大小,装进模型;装不对的一律拒绝,模型原样不动。

认出格式靠 ``formats/*.yaml`` 里的换名表(见 ``tables``);先定好每个张量的去处,再读内容。
"""

import dataclasses
import json
import math
import zlib
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..family.models import is_head
from ..family.swin import SwinTransformer
from ..layers import Attention
from ..positions import sincos_position_embedding_1d
from ..system.files import atomic_write
from ..vit import ViT
from .files import open_tensors
from .info import describe_file, find_weights
from .resampling import resize_bias_table, resize_patch_kernel, resize_positions
from .tables import FACTS, MAY_BE_UNKNOWN, UNKNOWN, read_table, recognise

__all__ = ["LoadReport", "heads_of", "load_weights", "run_of", "save_report"]

POSITIONS, KERNEL = "position_embedding", "patch_embed.patch_embedding.weight"
BIAS_TABLE = "relative_position_bias_table"


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """装入权重的结果:每个张量恰好属于其中一类。

    Attributes:
        source (str): 从哪里取的。
        format (str): 权重的格式。
        loaded (tuple[str]): 取来的张量,模型里的名字。
        resized (tuple[str]): 改了大小之后取来的张量,模型里的名字。
        fresh (tuple[str]): 保持原来的(随机)值的张量,模型里的名字。
        unused (tuple[str]): 没有用到的张量,文件里的名字。
        notes (tuple[str]): 其他要知道的事。
    """

    source: str
    format: str
    loaded: tuple
    resized: tuple = ()
    fresh: tuple = ()
    unused: tuple = ()
    notes: tuple = ()

    def __str__(self):
        heads = [name for name in self.fresh if is_head(name)]
        others = [name for name in self.fresh if not is_head(name)]
        text = f"从 {self.source} 取来 {len(self.loaded) + len(self.resized)} 个张量,"
        text += f"分类头重新开始学({'、'.join(heads)})" if heads else "分类头也取来了"
        counts = [(self.resized, "改了大小"), (others, "保持随机的初值"), (self.unused, "没有用到")]
        text += "".join(f";{word} {len(names)} 个({_first_few(names)})" for names, word in counts if names)
        return ";".join([f"{text};格式 {self.format}", *self.notes])

    def details(self):
        """每个张量一行的详情。"""
        kinds = ("loaded", "resized", "fresh", "unused")
        words = ("取来", "改了大小", "初值", "没有用到")
        return "\n".join(f"{word}\t{name}" for kind, word in zip(kinds, words) for name in getattr(self, kind))


def _first_few(names):
    return "、".join(names[:3]) + ("…" if len(names) > 3 else "")


def run_of(source):
    """权重来源所在的运行目录;单独的权重文件没有,是 ``None``。

    Args:
        source (str | Path): 运行目录,或权重文件。

    Raises:
        UserError: 路径不存在。
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"没有 {source}:微调要从一个运行目录(如 runs/…)或权重文件开始,请检查路径。")
    directory = source if source.is_dir() else source.parent
    return directory if (directory / "config.yaml").exists() or source.is_dir() else None


def save_report(report, path):
    """把 ``LoadReport`` 写成 JSON(运行目录里的 init.json)。"""
    text = json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=1)
    atomic_write(path, f"{text}\n".encode())


def load_weights(model, path, *, strict=True, resize_patches=False, table=None, classes=None):
    """把别处的权重装进模型:认出格式,换名,位置编码等改大小;有任何出乎意料的就报错,模型原样不动。

    分类头只在类别相同时才取来:两边的类别名都知道时比类别名,否则只看大小;不取来的保持随机的初值。
    权重是用另一个 epsilon 训练的,就改模型里层归一化的 epsilon。来源:ViT 论文(arXiv 2010.11929)3.2 节。

    Args:
        model (ViT | SwinTransformer | Attention): 要装的模型。
        path (str | Path): 权重文件(本项目、timm、Hugging Face、PaddleViT、PaddleClas、Google 等),运行目录,
            或从 Hugging Face 下载的目录。
        strict (bool): ``False`` 时,模型里缺的保持初值,文件里多的不用,都写在报告里。
        resize_patches (bool): 图块边长不同时,图块嵌入的卷积核也改大小。
        table (str | Path | None): 使用者的换名表;``None`` 表示由名字认出格式。
        classes (Sequence[str] | None): 模型的类别名。

    Returns:
        LoadReport: 每个张量的去处。

    Raises:
        UserError: 文件有误或认不出,与模型的结构不符,或有张量对不上。
    """
    with open_tensors(find_weights(path)) as tensors:
        rules = recognise(tensors) if table is None else read_table(table)
        _check_stated(rules, tensors.path, table)
        info = describe_file(tensors, rules, given=table is not None)
        _check_architecture(model, rules, info)
        plan = _Plan(model, tensors, rules, info, resize_patches, classes)
        if strict:
            plan.check()
        plan.check_meaning()
        _check_contents(tensors, plan)
        for ours in [*plan.loaded, *plan.resized]:
            plan.targets[ours].set_value(plan.read(ours))
        heads = _shown(heads_of(model))
        notes = [f"头数从文件看不出来,按模型的 {heads}"] if info.num_heads is None else []
        if tensors.others:
            notes.append(f"取的是 {tensors.inside},文件里还有 {'、'.join(tensors.others)}")
        notes += [*info.notes, *plan.notes, *_set_epsilon(model, info)]
    fresh = [name for name in plan.targets if name not in plan.loaded and name not in plan.resized]
    fates = map(tuple, (plan.loaded, plan.resized, fresh, plan.unused, notes))
    return LoadReport(str(path), rules.name, *fates)


# ---- 结构 ----


def _check_stated(table, path, given):
    """名字看不出来的事实,表里是不是都写明了。"""
    blank = [name for name in MAY_BE_UNKNOWN if getattr(table, name) == UNKNOWN]
    if given is not None and table.family != "attention":
        blank += [name for name in FACTS if getattr(table, name) is None]
    if given is not None and table.family == "attention" and table.num_heads is None:
        blank.append("num_heads")
    if blank and given is None:
        raise UserError(
            f"{path} 像是 {table.name},从名字看不出 {'、'.join(blank)}:"
            "请用 scripts/import_weights.py 的 --propose 写一份换名表,填好后用 --table 给出。"
        )
    if blank:
        raise UserError(f"换名表 {given} 里 {'、'.join(blank)} 还没有填:请查原来的代码,填好再用。")


def _family(model):
    for family, kind in (("vit", ViT), ("swin", SwinTransformer), ("attention", Attention)):
        if isinstance(model, kind):
            return family
    raise UserError(f"{type(model).__name__} 不能装权重:应为 ViT、SwinTransformer 或 Attention。")


def heads_of(model):
    """头数:整数;Swin 是每级一个的元组。"""
    if isinstance(model, SwinTransformer):
        return tuple(stage.blocks[0].attn.num_heads for stage in model.stages)
    return next(layer.num_heads for layer in _attentions(model))


def _attentions(model):
    return [layer for layer in model.sublayers(include_self=True) if isinstance(layer, Attention)]


def _check_architecture(model, table, info):
    """名字和形状以外的事实与模型不符时,抛出 ``UserError``。"""
    family, start = _family(model), f"{info.path} 装不进这个模型:"
    if table.family is not None and table.family != family:
        raise UserError(f"{start}它是 {table.family} 的权重(格式 {table.name}),模型是 {family}。请换模型或权重。")
    if info.norm_first is False:
        raise UserError(f"{start}它先算注意力再归一化(post-norm),我们的编码器先归一化(pre-norm),结果会是错的。")
    if info.activation not in (None, "gelu"):
        raise UserError(f"{start}它的激活函数是 {info.activation},我们的是 gelu,结果会是错的。")
    if info.num_heads is not None and info.num_heads != heads_of(model):
        raise UserError(
            f"{start}它的头数是 {_shown(info.num_heads)},模型的是 {_shown(heads_of(model))}:"
            "形状一样而结果不同,请用 --num-heads 改成它的头数。"
        )
    for layer in _attentions(model):
        scale = layer.attn_head_size**-0.5 if info.scale is None else info.scale
        unknown = info.format == "paddle_vit" and info.model is None
        if not unknown and not math.isclose(layer.scales, scale, rel_tol=1e-5):
            raise UserError(
                f"{start}它的 q k^T 缩放系数是 {scale:g},模型的是 {layer.scales:g}:请用 --qk-scale 改成 {scale!r}。"
            )
    has_bias = all(layer.qkv.bias is not None for layer in _attentions(model))
    if info.qkv_bias is not None and info.qkv_bias != has_bias:
        raise UserError(f"{start}它的 qkv_bias 是 {info.qkv_bias},模型的是 {has_bias}:请改成相同的。")
    kind = _position_kind(model)
    if info.position_embedding is not None and kind is not None and info.position_embedding != kind:
        raise UserError(
            f"{start}它的位置编码是 {info.position_embedding},模型的是 {kind}:"
            f"请用 --position-embedding {info.position_embedding}。"
        )


def _shown(heads):
    return list(heads) if isinstance(heads, tuple) else heads


def _position_kind(model):
    """位置编码的种类,``ViT`` 的 position_embedding;不是 ViT 时是 ``None``。"""
    if not isinstance(model, ViT):
        return None
    table = model.position_embedding
    if table is None:
        return "none"
    if POSITIONS in model.state_dict():
        return "learnable"
    count, embed_dim = model.patch_embed.num_patches, table.shape[2]
    patches = table.numpy()[0, -count:]  # [N, D]
    return "sincos1d" if np.array_equal(patches, sincos_position_embedding_1d(count, embed_dim)) else "sincos"


def _set_epsilon(model, info):
    """把模型里层归一化的 epsilon 改成权重的;返回说明。"""
    from paddle import nn

    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.LayerNorm)]
    changed = {layer._epsilon for layer in norms if info.epsilon is not None and layer._epsilon != info.epsilon}
    for layer in norms:
        layer._epsilon = layer._epsilon if info.epsilon is None else info.epsilon
    return [f"层归一化的 epsilon 由 {old:g} 改为 {info.epsilon:g}" for old in sorted(changed)]


# ---- 每个张量的去处 ----


class _Plan:
    """一次装入的计划:每个张量的去处,不读内容。

    Attributes:
        targets (dict): 模型里的名字 -> 参数。
        sources (dict): 模型里的名字 -> 文件里的一个或三个名字。
        loaded, resized (list[str]): 模型里的名字;其余的参数保持初值。
        unused (list[str]): 文件里没有用到的名字。
        notes (list[str]): 要写进报告的话。
    """

    def __init__(self, model, tensors, table, info, resize_patches, classes):
        self.model, self.tensors, self.table, self.info = model, tensors, table, info
        self.resize_patches = resize_patches
        self.targets = model.state_dict()
        self.plain = table.plain_names(tensors)
        self.sources = {ours: self._find(ours) for ours in self.targets}
        self.sources = {ours: names for ours, names in self.sources.items() if names}
        self.loaded, self.resized, self.wrong, self.notes = [], [], [], []
        self.head_names = {name for name in self.targets if is_head(name)}
        self.fresh_head = self._drops_head(classes)
        for ours in self.sources:
            if not (self.fresh_head and ours in self.head_names):
                self._settle(ours)
        used = {name for ours in [*self.loaded, *self.resized] for name in self.sources[ours]}
        self.unused = [name for name in tensors if name not in used]

    def _find(self, ours):
        """模型的一个张量由文件里的哪些得来;没有时是空的。"""
        for option in self.table.sources(ours):
            if all(name in self.plain for name in option):
                return tuple(self.plain[name] for name in option)
        return ()

    def _drops_head(self, classes):
        """分类头(蒸馏模型是两个)要不要重新开始学:大小不同,文件里没有,或类别名不同。"""
        if not any(ours in self.sources for ours in self.head_names):
            return True
        if classes is not None and self.info.classes is not None and tuple(classes) != tuple(self.info.classes):
            self.notes.append("类别不同")
            return True
        present = [ours for ours in self.head_names if ours in self.sources]
        if any(self._shape(ours) != tuple(self.targets[ours].shape) for ours in present):
            return True
        kinds = {name.split(".")[0] for name in present}  # 有 head 而没有 distillation_head 的,是缺少
        return any(name.split(".")[0] in kinds and name not in present for name in self.head_names)

    def _settle(self, ours):
        """定下一个有来源的张量的去处。"""
        shape, wanted = self._shape(ours), tuple(self.targets[ours].shape)
        if ours == POSITIONS and self._position_rows() is not None:
            count, grid = self._position_rows()
            resized = grid != self._grid()
            (self.resized if resized else self.loaded).append(ours)
            if resized:
                self.notes.append(f"位置编码的网格由 {_times(grid)} 改为 {_times(self._grid())}")
            if count < len(self._special()):
                self.notes.append("文件里 class token 没有位置编码,取零")
            if count > self._count_special():
                self.notes.append("寄存器 token 的位置编码并进了 token 自己")
        elif shape == wanted:
            self.loaded.append(ours)
        elif ours.endswith(BIAS_TABLE) and _is_bias_table(shape, wanted):
            self.resized.append(ours)
            sides = [int(round(length**0.5) + 1) // 2 for length in (shape[0], wanted[0])]
            note = f"相对位置偏置表的窗口由 {sides[0]} 改为 {sides[1]}"
            self.notes += [] if note in self.notes else [note]
        elif ours == KERNEL and self.resize_patches and len(shape) == 4 and shape[:2] == wanted[:2]:
            self.resized.append(ours)
            self.notes.append(f"图块嵌入的卷积核由 {_times(shape[2:])} 改为 {_times(wanted[2:])}")
        else:
            self.wrong.append(ours)

    # 位置编码

    def _special(self):
        """模型里有自己的位置编码的 token(不算图块)的名字。"""
        names = ("class_token", "distillation_token")
        return [name for name in names if getattr(self.model, name) is not None]

    def _count_special(self):
        """文件里有几个这样的 token。"""
        return sum(self._find(name) != () for name in ("class_token", "distillation_token"))

    def _grid(self):
        return tuple(self.model.patch_embed.grid_size)

    def _position_rows(self):
        """文件里的位置编码:(不属于图块的行数, 图块的网格);说不通时是 ``None``。"""
        shape = self._shape(POSITIONS)
        if len(shape) != 3 or shape[0] != 1 or shape[2] != self.targets[POSITIONS].shape[2]:
            return None
        tokens, registers = self._count_special(), self._find("register_tokens")
        extra = self.tensors[registers[0]].shape[-2] if registers else 0
        counts = dict.fromkeys([tokens, tokens + extra, 0])
        found = [(count, self._source_grid(shape[1] - count)) for count in counts]
        found = [(count, grid) for count, grid in found if grid is not None]
        for wanted in (self._known_grid(), self._grid()):
            found = [choice for choice in found if choice[1] == wanted] or found
        return found[0] if found else None

    def _known_grid(self):
        """由说明里的图像边长和卷积核的图块边长算出的网格。"""
        if self.info.image_size is None or KERNEL not in self.sources:
            return None
        patch = self._shape(KERNEL)[2:]
        if len(patch) != 2 or 0 in patch:
            return None
        return tuple(image // side for image, side in zip(self.info.image_size, patch))

    def _source_grid(self, count):
        """count 个图块排成的网格;排不成时是 ``None``。"""
        side = math.isqrt(max(count, 0))
        for grid in (self._known_grid(), self._grid(), (side, side)):
            if grid is not None and grid[0] * grid[1] == count > 0:
                return grid
        return None

    # 内容

    def _shape(self, ours):
        """来源换成我们的放法以后的形状,不读内容。"""
        parts = [np.broadcast_to(np.float32(0), self.tensors[name].shape) for name in self.sources[ours]]
        shapes = [self._convert(part, ours).shape for part in parts]
        if len(shapes) == 1 or len({shape[:-1] for shape in shapes}) > 1:
            return shapes[0]
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def _convert(self, value, ours):
        """一个来源换成我们的放法:线性层 [输入, 输出],卷积核 [D, C, P, P],token 和位置编码 [1, N, D]。"""
        wanted, layout = self.targets[ours].shape, self.table.layout
        if ours == KERNEL:
            return self._convert_kernel(value)
        if len(wanted) == 2 and ours.endswith(".weight"):
            if layout == "flax" and value.ndim == 3:  # q、k、v 是 [D, h, d],输出是 [h, d, D]
                keep_first = ours.endswith("qkv.weight")
                shape = (len(value), -1) if keep_first else (-1, value.shape[-1])
                return value.reshape(shape)
            return value.T if layout == "torch" and value.ndim == 2 else value  # [输入, 输出]
        if len(wanted) == 1:
            return value.reshape(-1) if layout == "flax" else value  # [h, d] -> [h * d]
        if len(wanted) == 3 and value.ndim < 3:
            return value.reshape((1,) * (3 - value.ndim) + value.shape)
        return value

    def _convert_kernel(self, value):
        layout = self.table.layout
        if value.ndim == 4:
            return value.transpose(3, 2, 0, 1) if layout == "flax" else value  # [D, C, P, P]
        channels = self.targets[KERNEL].shape[1]
        if value.ndim != 2 or self.table.patch_order is None:
            return value
        value = value.T if layout != "torch" else value  # [D, P * P * C]
        side = math.isqrt(value.shape[1] // channels)
        if side * side * channels != value.shape[1]:
            return value
        order = self.table.patch_order.split()
        sizes = [channels if axis == "c" else side for axis in order]
        return value.reshape(-1, *sizes).transpose(0, *(1 + order.index(axis) for axis in ("c", "p1", "p2")))

    def read(self, ours):
        """读出模型的一个张量的新值。"""
        parts = [self._convert(self.tensors[name].read(), ours) for name in self.sources[ours]]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        wanted = tuple(self.targets[ours].shape)
        if ours == POSITIONS:
            value = self._fold_positions(value)
        elif ours == "register_tokens" and POSITIONS in self.targets and POSITIONS in self.sources:
            value = value + self._register_positions(len(value[0]))
        elif value.shape != wanted and ours.endswith(BIAS_TABLE):
            value = resize_bias_table(value, wanted[0])
        elif value.shape != wanted:
            value = resize_patch_kernel(value, wanted[2:])
        return np.ascontiguousarray(value, dtype="float32")

    def _fold_positions(self, value):
        """位置编码:图块的部分改成模型的网格;class token 和蒸馏 token 的行照搬,文件里没有这些行时是零。"""
        count, grid = self._position_rows()
        patches = value[0, count:]  # [N, D]
        if grid != self._grid():
            patches = resize_positions(patches, grid, self._grid())  # [N, D]
        given = [name for name in ("class_token", "distillation_token") if self._find(name)]
        rows = dict(zip(given, value[0, :count]))  # 名字 -> [D]
        empty = np.zeros(patches.shape[1], "float32")
        special = [rows.get(name, empty) for name in self._special()]
        return np.concatenate([*(row[None] for row in special), patches])[None]  # [1, M + N, D]

    def _register_positions(self, registers):
        """文件里给寄存器 token 的位置编码;我们的没有位置,要并进 token 自己。"""
        count, _ = self._position_rows()
        tokens = self._count_special()
        if count != tokens + registers:
            return 0.0
        table = self._convert(self.tensors[self.sources[POSITIONS][0]].read(), POSITIONS)
        return table[:, tokens:count]  # [1, R, D]

    # 检查

    def check(self):
        """有缺少、多出或形状不同的就抛出 ``UserError``,两边都列出来。"""
        placed = {*self.loaded, *self.resized, *self.wrong}
        missing = [
            ours for ours in self.targets if ours not in placed and not (self.fresh_head and ours in self.head_names)
        ]
        expected = self._expected_unused()
        surplus = [name for name in self.unused if name not in expected]
        wrong = [f"{ours}:文件 {list(self._shape(ours))},模型 {list(self.targets[ours].shape)}" for ours in self.wrong]
        kinds = (("缺少", missing), ("多出", surplus), ("形状不同", wrong))
        details = ";".join(f"{kind} {len(names)} 个({_first_few(names)})" for kind, names in kinds if names)
        if details:
            raise UserError(
                f"{self.tensors.path} 的权重(格式 {self.table.name})放不进这个模型:{details}。{self._advice()}"
            )

    def check_meaning(self):
        """每个张量都放得下而结果会不同的,抛出 ``UserError``;strict=False 也不放过。"""
        if not self.loaded and not self.resized:
            raise UserError(f"{self.tensors.path} 没有一个张量放得进这个模型(格式 {self.table.name}):请换模型。")
        pool, model = self.info.pool, self.model
        if pool is not None and not self.fresh_head and model.class_token is not None and model.pool != pool:
            raise UserError(f"{self.tensors.path} 的分类头要求 pool={pool},模型是 pool={model.pool}:请改成相同的。")

        fixed = isinstance(model, ViT) and model.position_embedding is not None and POSITIONS not in self.targets
        if fixed and self.table.name != "paddle_vit" and not self._names_of(POSITIONS):
            raise UserError(
                f"{self.tensors.path} 里没有位置编码,而模型有固定的({_position_kind(model)}),结果会是错的:"
                "请用 position_embedding=none(--position-embedding none)。"
            )
        sources = [self._find(f"stages.{i}.blocks.0.attn.{BIAS_TABLE}") for i in range(20)]
        windows = [self.tensors[names[0]].shape[0] for names in sources if names]
        if sorted(windows, reverse=True) != windows:
            raise UserError(f"{self.tensors.path} 的各级窗口不同,后面的反而大(如 Swin-S3):我们的各级相同,装不进来。")

    def _expected_unused(self):
        """没有用到也在意料之中的名字:本来就不需要的,换掉的分类头,形状不同的(另外列出)。"""
        names = {name for ours in self.wrong for name in self.sources[ours]}
        for short, name in self.plain.items():
            if self.table.is_ignored(short) or 0 in self.tensors[name].shape:  # 没有元素的,如 [1, 0, D] 的 class token
                names.add(name)
            if self.fresh_head and self.table.is_head_extra(short):
                names.add(name)
        if self.fresh_head:
            names |= self._find_any("head") | self._find_any("distillation_head")
        if isinstance(self.model, ViT):
            names |= {name for name in self._names_of(POSITIONS) if self._is_fixed_table(name)}
        return names

    def _names_of(self, ours):
        return {self.plain[name] for option in self.table.sources(ours) for name in option if name in self.plain}

    def _find_any(self, head):
        """文件里属于一个分类头的全部名字,不管模型的分类头是哪一种。"""
        leaves = [f"{head}.{leaf}" for leaf in ("weight", "bias")]
        leaves += [f"{head}.{index}.{leaf}" for index in range(4) for leaf in ("weight", "bias")]
        return {name for leaf in leaves for name in self._names_of(leaf)}

    def _is_fixed_table(self, name):
        """文件里存着的位置编码,正好是模型固定的正弦余弦表。"""
        table = self.model.position_embedding
        if table is None or POSITIONS in self.targets or tuple(self.tensors[name].shape) != tuple(table.shape):
            return False
        return np.allclose(self.tensors[name].read(), table.numpy(), atol=1e-5)

    def _advice(self):
        if self.table.name == "paddle_vit":
            return (
                "除了分类头,微调的模型要与原来的形状相同:请用原来的 --patch-size、--embed-dim、--depth 等,"
                "图像的通道数也要相同。"
            )
        if self.wrong == [KERNEL] and self._shape(KERNEL)[:2] == tuple(self.targets[KERNEL].shape[:2]):
            return "只有图块边长不同:请换一个模型,或要求把卷积核也改大小(resize_patches,--resize-patches)。"
        names = self.info.candidates
        return f"它像是 {_first_few(names)}。" if names else "请检查模型的尺寸,或换一份权重。"


def _times(pair):
    return "×".join(map(str, pair))


def _is_bias_table(shape, wanted):
    """两个形状是不是同样头数、不同窗口的偏置表。"""
    sides = [math.isqrt(length[0]) for length in (shape, wanted) if len(length) == 2]
    return (
        len(sides) == 2
        and shape[1] == wanted[1]
        and all(s % 2 and s * s == n[0] for s, n in zip(sides, (shape, wanted)))
    )


def _check_contents(tensors, plan):
    """把要用的张量都读一遍:损坏的文件在改动模型之前就报错,不是数的(NaN、无穷大)也拒绝。"""
    recorded = tensors.metadata.get("crc32")
    checksum = zlib.crc32(tensors.metadata.get("state", "").encode())
    names = (
        sorted(tensors) if recorded else [name for ours in [*plan.loaded, *plan.resized] for name in plan.sources[ours]]
    )
    for name in names:
        value = tensors[name].read()
        if recorded:
            checksum = zlib.crc32(f"{name} {value.dtype} {value.shape}".encode(), checksum)
            checksum = zlib.crc32(np.ascontiguousarray(value), checksum)
        if not np.isfinite(value).all():
            raise UserError(f"{tensors.path} 的 {name} 里有 NaN 或无穷大:这份权重不能用,请换一份。")
    if recorded and recorded != str(checksum):
        raise UserError(f"{tensors.path} 已损坏(校验和不对):请换一个备份。")
