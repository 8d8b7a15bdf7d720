"""``paddle.hub`` 的入口:每个命名的模型一个函数。

model = paddle.hub.load("这个目录", "vit_tiny_patch16_224", source="local", weights="权重", num_classes=10)
"""

from paddle_vit import weights as _weights
from paddle_vit.family import models as _models

dependencies = ["paddle", "numpy", "safetensors", "pydantic", "yaml"]


def _entry(name):
    def build(weights=None, **overrides):
        model = _models.create_model(name, **overrides)
        if weights is not None:
            _weights.load_weights(model, weights)
        return model

    build.__name__ = name
    build.__doc__ = f"""{name},参数见 ``paddle_vit.create_model``。

    Args:
        weights (str | None): 权重文件、运行目录或从 Hugging Face 下载的目录;``None`` 是随机的初值。
        **overrides: 覆盖模型的任何参数,如 ``num_classes=10``。

    Raises:
        UserError: 见 ``create_model`` 和 ``load_weights``。
    """
    return build


globals().update({name: _entry(name) for name in _models.list_models()})
