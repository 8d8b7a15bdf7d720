"""梯度检查点(gradient checkpointing):编码器各层只留下输入,反向时把前向再算一遍,用时间换内存。"""

from __future__ import annotations

from paddle import Tensor, nn

from ..errors import UserError
from ..layers import EncoderLayer

__all__ = ["is_recomputed", "recompute_encoders"]


def recompute_encoders(model: nn.Layer) -> None:
    """训练时,模型里的每个 ``EncoderLayer``(Swin 的也是)都用 Paddle 的 ``recompute`` 计算;评估时照旧。

    随机失活在反向时抽到同样的签,所以结果与不用时相同。来源:arXiv 1604.06174。

    Args:
        model (nn.Layer): 就地修改。

    Raises:
        UserError: 模型里没有 ``EncoderLayer``。
    """
    layers = [layer for layer in model.sublayers() if isinstance(layer, EncoderLayer)]
    if not layers:
        raise UserError("recompute:模型里没有 paddle_vit 的 EncoderLayer,不知道哪里可以重新算;请去掉这个设置。")
    for layer in layers:
        layer.forward = _Recomputed(layer, layer.forward)  # type: ignore[method-assign]


def is_recomputed(layer: nn.Layer) -> bool:
    """这一层的 ``forward`` 是不是 ``recompute_encoders`` 换上的。"""
    return isinstance(vars(layer).get("forward"), _Recomputed)


class _Recomputed:
    """代替一层的 ``forward``。"""

    def __init__(self, layer, forward):
        self.layer, self.forward = layer, forward

    def __call__(self, x: Tensor) -> Tensor:
        from paddle.distributed.fleet.utils import recompute  # 重,用到才导入

        return recompute(self.forward, x) if self.layer.training and not x.stop_gradient else self.forward(x)
