"""微调(Fine-tuning):从别的运行的权重开始训练。"""

import dataclasses
import json
from pathlib import Path

from .checkpoint import atomic_write, differences, read_weights, weights_path
from .data import load_info
from .errors import UserError

__all__ = ["LoadReport", "load_weights", "run_of", "save_report"]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """装入权重的结果:每个张量恰好属于其中一类。

    Attributes:
        source (str): 从哪里取的。
        format (str): 权重的格式。
        loaded (tuple[str]): 取来的张量,模型里的名字。
        resized (tuple[str]): 改了大小之后取来的张量,模型里的名字。
        fresh (tuple[str]): 保持随机初值的张量,模型里的名字。
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
        rest = f"分类头重新开始学({'、'.join(self.fresh)})" if self.fresh else "分类头也取来了"
        return f"微调:从 {self.source} 取来 {len(self.loaded)} 个张量,{rest}"


def run_of(source):
    """权重来源所在的运行目录;单独的权重文件没有,是 ``None``。

    Args:
        source (str | Path): 运行目录,或 .safetensors 文件。

    Raises:
        UserError: 路径不存在。
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"没有 {source}:微调要从一个运行目录(如 runs/…)或 .safetensors 权重文件开始,请检查路径。")
    if source.is_dir():
        return source
    return source.parent if (source.parent / "config.yaml").exists() else None


def load_weights(model, path, *, strict=True, resize_patches=False, table=None, classes=None):
    """把另一个运行的权重放进模型,作为训练的起点;分类头对不上时保持随机的初值。

    分类头只在类别相同时才取来:来源记着类别名、又给了 ``classes`` 时比类别名,否则只看名字和形状是否全都对上。
    来源:ViT 论文(arXiv 2010.11929)3.2 节。

    Args:
        model (ViT): 新模型。
        path (str | Path): 运行目录(取 best.pdparams),或 .pdparams 文件。
        strict (bool), resize_patches (bool), table (str | Path | None): 还没有用到。
        classes (Sequence[str] | None): 新模型的类别名。

    Returns:
        LoadReport: 哪些取来了,哪些没有。

    Raises:
        UserError: 没有这个文件、文件损坏,或分类头以外的张量对不上。
    """
    directory, source = run_of(path), Path(path)
    path = weights_path(source) if source.is_dir() else source
    given, wanted = read_weights(path), model.state_dict()
    head, new_head = _head_of(given), _head_of(wanted)
    if differences(new_head, head) or not _same_classes(directory, classes):
        given = {name: value for name, value in given.items() if name not in head}
        wanted = {name: value for name, value in wanted.items() if name not in new_head}
    details = differences(wanted, given)
    if details:
        raise UserError(
            f"{path} 的权重放不进这个模型:{details}。除了分类头,微调的模型要与原来的形状相同:"
            "请用原来的 --patch-size、--embed-dim、--image-size 等,图像的通道数也要相同。"
        )
    for name, value in given.items():
        wanted[name].set_value(value)
    fresh = [name for name in model.state_dict() if name not in given]
    return LoadReport(str(source), "paddle_vit", tuple(given), fresh=tuple(fresh))


def _head_of(state):
    return {name: value for name, value in state.items() if name.startswith("head.")}


def _same_classes(directory, classes):
    """类别名是否相同;有一方不知道时,算相同。"""
    if classes is None or directory is None:
        return True
    return tuple(classes) == load_info(directory / "data.json").classes


def save_report(report, path):
    """把 ``LoadReport`` 写成 JSON(运行目录里的 init.json)。"""
    text = json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=1)
    atomic_write(path, f"{text}\n".encode())
