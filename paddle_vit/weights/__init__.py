"""预训练权重(pretrained weights):大家的权重装进我们的模型,我们的写成 timm 的。

先读 ``loading``(装入)和 ``tables``(换名表的语言);``formats/*.yaml`` 是各种格式的换名表。
"""

from .export import export_weights
from .info import NORMALIZATION, WeightsInfo, describe_weights, find_weights, for_channels
from .loading import load_weights
from .proposal import propose_table
from .report import LoadReport, save_report

__all__ = [
    "NORMALIZATION",
    "LoadReport",
    "WeightsInfo",
    "describe_weights",
    "export_weights",
    "find_weights",
    "for_channels",
    "load_weights",
    "propose_table",
    "save_report",
]
