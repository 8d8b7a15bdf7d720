"""一次装入的计划:模型的每个张量由文件里的哪些得来,要不要改大小;先定去处,再读内容。"""

from __future__ import annotations

import math

import numpy as np

from ..family.models import is_head
from .layouts import BIAS_TABLE, KERNEL, KERNEL_BIAS, POSITIONS, can_match_channels, convert, is_bias_table
from .layouts import match_channels as match_kernel
from .resampling import resize_bias_table, resize_patch_kernel, resize_positions

__all__ = ["Plan"]


class Plan:
    """一次装入的计划:每个张量的去处,不读内容。

    Attributes:
        targets (dict): 模型里的名字 -> 参数。
        sources (dict): 模型里的名字 -> 文件里的一个或三个名字。
        loaded, resized (list[str]): 模型里的名字;其余的参数保持初值。
        unused (list[str]): 文件里没有用到的名字。
        notes (list[str]): 要写进报告的话。
    """

    def __init__(self, model, tensors, table, info, resize_patches, match_channels, classes):
        self.model, self.tensors, self.table, self.info = model, tensors, table, info
        self.resize_patches, self.match_channels = resize_patches, match_channels
        self.targets = model.state_dict()
        self.plain = table.plain_names(tensors)
        self.sources = {ours: self.find(ours) for ours in self.targets}
        self.sources = {ours: names for ours, names in self.sources.items() if names}
        self.loaded, self.resized, self.wrong, self.notes = [], [], [], []
        if KERNEL in self.sources and KERNEL_BIAS in self.targets and KERNEL_BIAS not in self.sources:
            self.sources[KERNEL_BIAS] = ()
            self.notes.append("文件里图块嵌入没有偏置,取零")
        self.head_names = {name for name in self.targets if is_head(name)}
        self.fresh_head = self._drops_head(classes)
        for ours in self.sources:
            if not (self.fresh_head and ours in self.head_names):
                self._settle(ours)
        used = {name for ours in [*self.loaded, *self.resized] for name in self.sources[ours]}
        self.unused = [name for name in tensors if name not in used]

    def find(self, ours):
        """模型的一个张量由文件里的哪些得来;没有时是空的。"""
        for option in self.table.sources(ours):
            if all(name in self.plain for name in option):
                return tuple(self.plain[name] for name in option)
        return ()

    def names_of(self, ours):
        """文件里可能是模型的这个张量的全部名字。"""
        return {self.plain[name] for option in self.table.sources(ours) for name in option if name in self.plain}

    def _drops_head(self, classes):
        """分类头(蒸馏模型是两个)要不要重新开始学:大小不同,文件里没有,或类别名不同。"""
        if not any(ours in self.sources for ours in self.head_names):
            return True
        if classes is not None and self.info.classes is not None and tuple(classes) != tuple(self.info.classes):
            self.notes.append("类别不同")
            return True
        present = [ours for ours in self.head_names if ours in self.sources]
        if any(self.shape(ours) != tuple(self.targets[ours].shape) for ours in present):
            return True
        kinds = {name.split(".")[0] for name in present}  # 有 head 而没有 distillation_head 的,是缺少
        return any(name.split(".")[0] in kinds and name not in present for name in self.head_names)

    def _settle(self, ours):
        """定下一个有来源的张量的去处。"""
        shape, wanted = self.shape(ours), tuple(self.targets[ours].shape)
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
        elif ours.endswith(BIAS_TABLE) and is_bias_table(shape, wanted):
            self.resized.append(ours)
            sides = [int(round(length**0.5) + 1) // 2 for length in (shape[0], wanted[0])]
            note = f"相对位置偏置表的窗口由 {sides[0]} 改为 {sides[1]}"
            self.notes += [] if note in self.notes else [note]
        elif ours == KERNEL and self._kernel_fits(shape, wanted):
            self.resized.append(ours)
            if shape[2:] != wanted[2:]:
                self.notes.append(f"图块嵌入的卷积核由 {_times(shape[2:])} 改为 {_times(wanted[2:])}")
            if shape[1] != wanted[1]:
                how = "各通道的卷积核相加" if wanted[1] == 1 else f"每个通道用灰度的卷积核的 1/{wanted[1]}"
                how = "第四个通道的卷积核从零学起" if shape[1] == 3 and wanted[1] == 4 else how
                self.notes.append(f"图像由 {shape[1]} 个通道改为 {wanted[1]} 个,{how}")
        else:
            self.wrong.append(ours)

    def _kernel_fits(self, shape, wanted):
        """图块嵌入的卷积核能不能换成模型的:图块边长和通道数不同的,要使用者同意。"""
        return (
            len(shape) == 4
            and shape[0] == wanted[0]
            and (shape[2:] == wanted[2:] or self.resize_patches)
            and (shape[1] == wanted[1] or (self.match_channels and can_match_channels(shape[1], wanted[1])))
        )

    # 位置编码

    def _special(self):
        """模型里有自己的位置编码的 token(不算图块)的名字。"""
        names = ("class_token", "distillation_token")
        return [name for name in names if getattr(self.model, name) is not None]

    def _count_special(self):
        """文件里有几个这样的 token。"""
        return sum(self.find(name) != () for name in ("class_token", "distillation_token"))

    def _grid(self):
        return tuple(self.model.patch_embed.grid_size)

    def _position_rows(self):
        """文件里的位置编码:(不属于图块的行数, 图块的网格);说不通时是 ``None``。"""
        shape = self.shape(POSITIONS)
        if len(shape) != 3 or shape[0] != 1 or shape[2] != self.targets[POSITIONS].shape[2]:
            return None
        tokens, registers = self._count_special(), self.find("register_tokens")
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
        patch = self.shape(KERNEL)[2:]
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

    def shape(self, ours):
        """来源换成我们的放法以后的形状,不读内容。"""
        if not self.sources[ours]:  # 取零的
            return tuple(self.targets[ours].shape)
        parts = [np.broadcast_to(np.float32(0), self.tensors[name].shape) for name in self.sources[ours]]
        shapes = [self._converted(part, ours).shape for part in parts]
        if len(shapes) == 1 or len({shape[:-1] for shape in shapes}) > 1:
            return shapes[0]
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def _converted(self, value, ours):
        return convert(value, ours, self.targets[ours].shape, self.table)

    def read(self, ours):
        """读出模型的一个张量的新值。"""
        parts = [
            convert(self.tensors[name].read(), ours, self.targets[ours].shape, self.table)
            for name in self.sources[ours]
        ]
        wanted = tuple(self.targets[ours].shape)
        parts = parts or [np.zeros(wanted, "float32")]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        if ours == POSITIONS:
            value = self._fold_positions(value)
        elif ours == "register_tokens" and POSITIONS in self.targets and POSITIONS in self.sources:
            value = value + self._register_positions(len(value[0]))
        elif value.shape != wanted and ours.endswith(BIAS_TABLE):
            value = resize_bias_table(value, wanted[0])
        elif value.shape != wanted:
            value = value if value.shape[1] == wanted[1] else match_kernel(value, wanted[1])
            value = value if value.shape[2:] == wanted[2:] else resize_patch_kernel(value, wanted[2:])
        return np.ascontiguousarray(value, dtype="float32")

    def _fold_positions(self, value):
        """位置编码:图块的部分改成模型的网格;class token 和蒸馏 token 的行照搬,文件里没有这些行时是零。"""
        count, grid = self._position_rows()
        patches = value[0, count:]  # [N, D]
        if grid != self._grid():
            patches = resize_positions(patches, grid, self._grid())  # [N, D]
        given = [name for name in ("class_token", "distillation_token") if self.find(name)]
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
        table = convert(
            self.tensors[self.sources[POSITIONS][0]].read(), POSITIONS, self.targets[POSITIONS].shape, self.table
        )
        return table[:, tokens:count]  # [1, R, D]


def _times(pair):
    return "×".join(map(str, pair))
