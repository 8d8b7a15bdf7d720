"""推理引擎的测试共用的模型和条件。"""

import tempfile
from pathlib import Path

import paddle
import pytest

from paddle_vit.deploy.engines import FastModel
from paddle_vit.family.static_graph import write_model
from paddle_vit.family.static_program import save_weights
from paddle_vit.system import runtime as runtime_module

CPU = {"device": "cpu", "threads": 1}
SMALL = dict(image_size=16, patch_size=4, in_channels=3, num_classes=7, embed_dim=24, depth=2, num_heads=3)
_config = paddle.inference.Config()
_config.enable_openvino_engine(paddle.inference.PrecisionType.Float32)
has_openvino, has_bfloat16 = _config.openvino_engine_enabled(), runtime_module.has_bfloat16()
needs_openvino = pytest.mark.skipif(not has_openvino, reason="这个 Paddle 没有编译 OpenVINO")


def perturbed(model):
    """权重远离初值的模型:初值里偏置是 0、class token 和位置编码很小,错了也看不出来。"""
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.2 * paddle.randn(parameter.shape))
    model.eval()
    return model


def fast_model(model, engine="OpenVINO"):
    """交给指定的推理引擎的模型,一个线程。"""
    program, constants = write_model(model)
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory, "weights")
        save_weights(constants, weights)
        return FastModel(program, weights, engine, threads=1)


SWIN = dict(image_size=16, patch_size=2, in_channels=3, num_classes=7, embed_dim=12, depths=(2, 2), num_heads=(1, 2))
