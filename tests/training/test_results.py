"""best.safetensors 的说明:由设置建得出的写明怎样建,建不出的说建不出,不会悄悄换成别的模型。"""

import pytest
from paddle import nn
from support.toys import INFO

from paddle_vit import ViT
from paddle_vit.config import make_config
from paddle_vit.family.models import create_model
from paddle_vit.training.recomputing import recompute_encoders
from paddle_vit.training.results import is_built_by

SETTINGS = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
ARGUMENTS = make_config({"image_size": 8, **SETTINGS}).model_arguments(INFO)


class Negative(ViT):
    def forward(self, x):
        return -super().forward(x)


def subclass():
    return Negative(**{**SETTINGS, "image_size": 8, "in_channels": 1, "num_classes": 3})


def other_activation():
    model = create_model(**ARGUMENTS)
    model.encoders[0].mlp.act = nn.ReLU()
    return model


def other_forward():
    model = create_model(**ARGUMENTS)
    right = model.forward
    model.forward = lambda x: -right(x)
    return model


def other_heads():
    return create_model(**{**ARGUMENTS, "num_heads": 4})


@pytest.mark.parametrize("make", [subclass, other_activation, other_forward, other_heads])
def test_a_changed_model_is_not_described_as_the_named_one(make):
    assert not is_built_by(ARGUMENTS, make())


@pytest.mark.parametrize("change", [{}, {"image_size": (8, 8)}, {"pool": "cls", "position_embedding": "sincos"}])
def test_the_model_of_the_settings_is_described(change):
    model = create_model(**{**ARGUMENTS, **change})
    assert is_built_by({**ARGUMENTS, **change}, model)
    recompute_encoders(model)
    assert is_built_by({**ARGUMENTS, **change}, model)
