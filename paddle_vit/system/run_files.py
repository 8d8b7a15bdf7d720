"""运行目录和导出目录里的文件名,只在这里写;``runs/latest`` 是哪个运行。"""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

__all__ = [
    "BEST",
    "CONFIG",
    "CONSTANTS",
    "DATA",
    "DESCRIPTION",
    "EXPORTED",
    "GRAPH",
    "HEALTH",
    "INIT",
    "LAST",
    "LOCK",
    "METRICS",
    "ONNX",
    "PICTURES",
    "PROGRAM",
    "SUMMARY",
    "VISUALDL",
    "resolve_latest",
]

CONFIG = "config.yaml"  # 全部设置
DATA = "data.json"  # 数据集的说明
PICTURES = "pictures.csv"  # 自己的图片各在哪一部分
INIT = "init.json"  # 微调时每个张量从哪里来
BEST = "best.safetensors"  # 验证集上最好的权重,单独拿走也能用
LAST = "last.safetensors"  # 续训所需的一切
METRICS = "metrics.jsonl"  # 每轮一行
SUMMARY = "summary.json"  # 训练完的结果
HEALTH = "health.json"  # 体检的数据
VISUALDL = "vdlrecords.log"  # 固定的名字:VisualDL 只读目录里最新的一个文件,续训必须接着写同一个
GRAPH = "vdlgraph.log"  # 网络结构图
LOCK = ".lock"  # 正被一个训练使用

# 导出的目录里的
DESCRIPTION = "description.json"  # 类别名、怎样预处理、模型和训练的设置、核对的结果
PROGRAM = "model.pdmodel"  # 静态图
CONSTANTS = "model.pdiparams"  # 静态图的权重;与它同名,引擎这样找
ONNX = "model.onnx"  # 给别的程序,可以没有
EXPORTED = (DESCRIPTION, PROGRAM, CONSTANTS, ONNX)


def resolve_latest(path: str | Path) -> Path:
    """``目录/latest`` -> 目录里最近开始的运行;真有叫这个名字的文件或目录时就是它,别的路径原样返回。

    Raises:
        UserError: 目录里还没有运行。
    """
    path = Path(path)
    if path.name != "latest" or path.exists():
        return path
    runs = [config for config in path.parent.glob(f"*/{CONFIG}")]
    if not runs:
        raise UserError(f"{path.parent} 里还没有运行,不知道 {path} 是哪一个:请先训练,或写出运行目录的名字。")
    return max(runs, key=lambda config: (config.stat().st_mtime_ns, config.parent.name)).parent
