import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from support.results import assert_same_end
from support.running import run_script

from paddle_vit import EncoderLayer, UserError, ViT, create_model
from paddle_vit.training.recomputing import recompute_encoders


def vit(rate):
    return ViT(16, 4, 3, 10, 32, 3, 4, dropout=rate, attention_dropout=rate, drop_path=rate)


def swin(rate):
    return create_model("swin_tiny", image_size=32, patch_size=2, window_size=4, drop_path=rate)


def losses(model, size):
    """三步的损失,和各个编码器层一共调用了几次。"""
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, size, size)).astype("float32"))
    calls, found = [], []
    for layer in model.sublayers():
        if isinstance(layer, EncoderLayer):
            layer.mlp_norm.register_forward_post_hook(lambda *_: calls.append(1))
    for step in range(3):
        paddle.seed(step)
        loss = F.cross_entropy(model(images), paddle.to_tensor([0, 1, 2, 3]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        found.append(float(loss))
    return found, len(calls)


@pytest.mark.parametrize("make, size, depth", [(vit, 16, 3), (swin, 32, 12)])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_same_losses_with_every_layer_computed_twice(make, size, depth, rate):
    paddle.seed(0)
    plain = make(rate)
    again = make(rate)
    again.set_state_dict(plain.state_dict())
    recompute_encoders(again)
    expected, once = losses(plain, size)
    found, twice = losses(again, size)
    assert found == expected and (once, twice) == (3 * depth, 6 * depth)
    again.eval()
    with paddle.no_grad():
        again(paddle.zeros([1, 3, size, size]))


def test_layers_after_frozen_ones_still_learn():
    model = vit(0.0)
    recompute_encoders(model)
    for parameter in [*model.patch_embed.parameters(), *model.encoders[0].parameters()]:
        parameter.stop_gradient = True
    model(paddle.randn([2, 3, 16, 16])).sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.encoders[1].parameters() if p.grad is not None)
    assert model.encoders[1].attn.qkv.weight.grad is not None and model.encoders[0].attn.qkv.weight.grad is None


def test_a_model_without_encoder_layers_is_refused():
    with pytest.raises(UserError, match="EncoderLayer"):
        recompute_encoders(paddle.nn.Linear(2, 2))


@pytest.mark.slow
def test_a_run_ends_with_the_same_weights(tmp_path):
    small = "--embed-dim 32 --depth 2 --num-heads 2 --epochs 1 --dropout 0.1 --drop-path 0.1".split()
    run_script("train", *small, "--output", tmp_path / "plain", check=0)
    run_script("train", *small, "--recompute", "--output", tmp_path / "again", check=0)
    assert_same_end(tmp_path / "plain", tmp_path / "again")
