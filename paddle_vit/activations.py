"""Mlp 的激活函数:GELU 和它的两种近似。别人的权重用的是哪一种,就要用哪一种,差一点结果就不同。"""

from __future__ import annotations

import paddle.nn.functional as F
from paddle import Tensor, nn

from . import functional

__all__ = ["ACTIVATIONS", "GELU", "QuickGELU", "TanhGELU"]


class GELU(nn.GELU):
    """GELU 激活,与 ``paddle.nn.GELU()`` 相同,只是在 CPU 上求梯度更快(见 ``functional.gelu``)。"""

    def __init__(self):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x)


class QuickGELU(nn.Layer):
    """GELU 的一种近似:x * sigmoid(1.702 x)。OpenAI 的 CLIP 用它。来源:arXiv 1606.08415 第 2 节。"""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.sigmoid(1.702 * x)


class TanhGELU(nn.Layer):
    """GELU 的 tanh 近似。SigLIP 和 big_vision 用它。来源:arXiv 1606.08415 第 2 节。"""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=True)


ACTIVATIONS = {"gelu": GELU, "quick_gelu": QuickGELU, "gelu_tanh": TanhGELU}  # 设置里的名字 -> 层
