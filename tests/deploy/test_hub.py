"""``paddle.hub`` 从本地的目录建模型,不联网。"""

import numpy as np
import paddle
import pytest
from support.running import ROOT

from paddle_vit import UserError, export_weights, list_models

TINY = dict(image_size=32, patch_size=8, depth=1, num_classes=3)


def load(name, **settings):
    return paddle.hub.load(str(ROOT), name, source="local", **settings)


def test_every_named_model_is_an_entry():
    assert sorted(paddle.hub.list(str(ROOT), source="local")) == sorted(list_models())
    assert "num_classes" in paddle.hub.help(str(ROOT), "vit_tiny_patch16_224", source="local")


def test_a_model_with_weights(tmp_path):
    first = load("deit_tiny_distilled_patch16_224", **TINY)
    export_weights(first, tmp_path / "a.safetensors")
    second = load("deit_tiny_distilled_patch16_224", weights=str(tmp_path / "a.safetensors"), **TINY)
    images = paddle.randn([2, 3, 32, 32])
    for model in (first, second):
        model.eval()
    np.testing.assert_allclose(second(images).numpy(), first(images).numpy(), atol=1e-6)
    assert type(load("swin_tiny_patch4_window7_224", num_classes=2, embed_dim=12)).__name__ == "SwinTransformer"


def test_mistakes():
    with pytest.raises(UserError, match="num_clases"):
        load("vit_tiny_patch16_224", num_clases=3)
    with pytest.raises(UserError, match="none"):
        load("vit_tiny_patch16_224", weights="none.pth", **TINY)
