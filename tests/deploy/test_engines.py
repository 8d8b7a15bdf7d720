import tempfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from support.engines import CPU, SMALL, SWIN, fast_model, has_bfloat16, has_openvino, needs_openvino, perturbed
from support.running import assert_one_chinese_line, run_here, run_script

from paddle_vit import UserError, ViT
from paddle_vit.deploy import engines
from paddle_vit.deploy.engines import FastModel, prediction_model
from paddle_vit.family.static_graph import write_model
from paddle_vit.family.static_program import save_weights
from paddle_vit.family.swin import SwinTransformer
from paddle_vit.system import runtime as runtime_module
from paddle_vit.tasks.evaluation import evaluate


def make_model(**settings):
    return perturbed(ViT(**{**SMALL, **settings}))


@paddle.no_grad()
def disagreement(model, fast, batch):
    images = paddle.randn([batch, *fast.input_shape])
    expected = model(images)
    found = fast(images)
    assert found.shape == expected.shape and found.dtype == paddle.float32
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("engine", [pytest.param("OpenVINO", marks=needs_openvino), "oneDNN"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(pool="cls"),
        dict(pool="cls", position_embedding="learnable", qkv_bias=True),
        dict(pool="cls", position_embedding="sincos", head="mlp", depth=1),
        dict(pool="cls", position_embedding="sincos1d", num_heads=1),
        dict(position_embedding="learnable", head="mlp", qk_scale=0.3),
        dict(position_embedding="sincos", qkv_bias=True, dropout=0.5, attention_dropout=0.5, drop_path=0.5),
        dict(image_size=(8, 12), patch_size=(2, 4), in_channels=1, num_classes=0, mlp_ratio=1.5),
        dict(num_classes=1, num_heads=1),
        dict(pool="cls", distillation_token=True, position_embedding="learnable", epsilon=1e-3),
        dict(pool="cls", distillation_token=True, register_tokens=2, position_embedding="sincos", head="mlp"),
        dict(class_token=True, register_tokens=3, position_embedding="learnable", norm_after_pool=True),
        dict(register_tokens=1, norm_after_pool=True, layer_scale=0.5),
        dict(pool="cls", qk_norm=True, qk_scale=0.7, layer_scale=0.5, qkv_bias=True, epsilon=1e-3),
        dict(pool="cls", distillation_token=True, norm_after_pool=True, qk_norm=True, num_classes=0, depth=1),
        dict(pool="cls", activation="quick_gelu", embed_norm=True, register_tokens=2, position_embedding="learnable"),
        dict(activation="gelu_tanh", embed_norm=True, layer_scale=0.5),
        dict(tokenizer="conv", pool="seq", trunk_norm=True, position_embedding="learnable"),  # CCT
        dict(tokenizer="conv", pool="seq", register_tokens=2, norm_after_pool=True, num_classes=0),
        dict(tokenizer="conv", trunk_norm=True, layer_scale=0.5, depth=1, pool="cls"),
    ],
)
def test_equals_the_eager_model(engine, settings):
    model = make_model(**settings)
    fast = fast_model(model, engine)
    for batch in (5, 1, 2, 5):
        assert disagreement(model, fast, batch) < 1e-4


@pytest.mark.parametrize("engine", [pytest.param("OpenVINO", marks=needs_openvino), "oneDNN"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(window_size=4),  # 8 x 8 个 token,第二层移动窗口,第二级只有一个窗口
        dict(window_size=3, qkv_bias=False),  # 要补零
        dict(image_size=(10, 14), window_size=2, depths=(1, 2, 2), num_heads=(3, 2, 6), epsilon=1e-3),  # 奇数的特征图
        dict(window_size=7, in_channels=1, num_classes=0, qk_scale=0.4),
    ],
)
def test_swin_equals_the_eager_model(engine, settings):
    model = perturbed(SwinTransformer(**{**SWIN, **settings}))
    fast = fast_model(model, engine)
    for batch in (3, 1, 4):
        assert disagreement(model, fast, batch) < 1e-4


@pytest.mark.parametrize("model", [lambda: ViT(**SMALL), lambda: SwinTransformer(**SWIN, window_size=3)])
def test_the_weights_are_written_like_paddle_writes_them(model, tmp_path):
    from paddle.base import core

    _, constants = write_model(model())
    save_weights(constants, tmp_path / "ours")
    names = sorted(constants)
    tensors = [paddle.to_tensor(constants[name]) for name in names]
    values = [tensor.value().get_tensor() for tensor in tensors]
    core.save_combine_func(values, names, str(tmp_path / "theirs"), True, False, False)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="没有 /dev/full")
def test_a_full_disk_is_an_error():
    with pytest.raises(OSError, match="No space"):
        save_weights(write_model(make_model())[1], "/dev/full")


@needs_openvino
@pytest.mark.skipif(not has_bfloat16, reason="这个 CPU 没有 bfloat16 指令")
def test_bfloat16_is_close():
    model = make_model(pool="cls", position_embedding="learnable", qkv_bias=True)
    fast, name, note = prediction_model(model, CPU, 1, precision="bfloat16")
    assert name == "OpenVINO bfloat16" and note is None
    assert 1e-5 < disagreement(model, fast, 8) < 0.05  # 比 float32 的误差大,才真的是 bfloat16


def test_the_engine_is_chosen_by_the_work():
    model = make_model()
    assert prediction_model(model, CPU, 1) == (model, "动态图", None)
    assert prediction_model(model, CPU, 10**6, engine="eager") == (model, "动态图", None)
    assert prediction_model(model, {"device": "gpu", "threads": None}, 10**6) == (model, "动态图", None)
    for images, engine in ((10**6, "auto"), (1, "inference")):
        fast, name, note = prediction_model(model, CPU, images, engine)
        assert isinstance(fast, FastModel) and name.endswith("float32") and note is None
    same, name, note = prediction_model(model, {"device": "gpu", "threads": None}, 1, "inference")
    assert same is model and name == "动态图" and "CPU" in note


def test_the_fast_model_keeps_its_weights_and_the_mode_of_paddle():
    model = make_model()
    fast = fast_model(model, "oneDNN")
    assert paddle.in_dynamic_mode()
    images = paddle.randn([2, 3, 16, 16])
    before = fast(images).numpy()
    model.head.bias.set_value(model.head.bias + 1)
    np.testing.assert_array_equal(fast(images).numpy(), before)
    rebuilt = fast_model(model, "oneDNN")(images).numpy()  # 权重换了,重新建的就不同
    np.testing.assert_allclose(rebuilt, before + 1, rtol=1e-4, atol=1e-4)
    # 建静态图之后,动态图照样能求梯度,to_static 照样能用
    model.train()
    model(images).sum().backward()
    assert float(model.encoders[0].attn.qkv.weight.grad.abs().sum()) > 0
    static = paddle.jit.to_static(paddle.nn.Linear(3, 2), full_graph=True)
    assert static(paddle.ones([1, 3])).shape == [1, 2]


def test_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fast, _, note = prediction_model(make_model(), CPU, 1, "inference")
    assert note is None and list(tmp_path.iterdir()) == []
    assert fast(paddle.randn([3, 3, 16, 16])).shape == [3, 7]  # 文件删掉之后照样能用


def test_an_unwritable_directory_falls_back(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    model = make_model()
    same, name, note = prediction_model(model, CPU, 1, "inference")
    assert same is model and name == "动态图"
    assert "\n" not in note and "none" in note and "改用" in note


def test_a_changed_model_falls_back():
    """学生改过的模型,静态图并不知道:对答案时会发现。"""

    class Changed(ViT):
        def pool_tokens(self, x):
            return super().pool_tokens(x) * 2

    model = Changed(**SMALL)
    same, name, note = prediction_model(model, CPU, 1, "inference")
    assert same is model and name == "动态图" and "相差" in note and "\n" not in note
    del model.patch_embed
    same, _, note = prediction_model(model, CPU, 1, "inference")
    assert same is model and "patch_embed" in note


def test_an_unknown_layer_in_the_head_is_named():
    """不认识的层不能跳过:网络结构图没有答案可对,会少画一层。"""
    model = make_model(num_classes=0)
    model.head = paddle.nn.Sequential(paddle.nn.Linear(24, 8), paddle.nn.Dropout(0.5), paddle.nn.Linear(8, 7))
    model.eval()
    assert disagreement(model, fast_model(model, "oneDNN"), 2) < 1e-4  # 预测时没有 Dropout
    model.head[1] = paddle.nn.ReLU()
    with pytest.raises(UserError, match="ReLU"):
        write_model(model)
    same, _, note = prediction_model(model, CPU, 1, "inference")
    assert same is model and "ReLU" in note


@needs_openvino
def test_a_second_engine_is_tried_when_the_first_fails_at_work(monkeypatch):
    forward, first = FastModel.forward, []

    def broken(self, images):
        first.append(self)
        if self is first[0]:
            raise UserError("推理引擎没有算完这一批")
        return forward(self, images)

    monkeypatch.setattr(FastModel, "forward", broken)
    assert prediction_model(make_model(), CPU, 1, "inference")[1:] == ("oneDNN float32", None)


def test_small_logits_are_compared_by_their_own_size(monkeypatch):
    """|logit| 只有万分之几时,差同样多就全错了。"""
    model = make_model()
    for parameter in model.head.parameters():
        parameter.set_value(parameter * 1e-4)
    forward = FastModel.forward
    monkeypatch.setattr(FastModel, "forward", lambda self, images: forward(self, images) + 5e-5)
    same, _, note = prediction_model(model, CPU, 1, "inference")
    assert same is model and "相差" in note


@needs_openvino
def test_a_second_engine_is_tried(monkeypatch):
    create = engines._create_predictor

    def broken(program, weights, engine, precision, threads):
        if engine == "OpenVINO":
            raise RuntimeError("这个 Paddle 没有编译 OpenVINO")
        return create(program, weights, engine, precision, threads)

    monkeypatch.setattr(engines, "_create_predictor", broken)
    assert prediction_model(make_model(), CPU, 1, "inference")[1:] == ("oneDNN float32", None)


@needs_openvino
def test_a_failed_batch_is_an_error_and_not_the_batch_before(capfd):
    model = make_model()
    fast = fast_model(model)
    fast(paddle.randn([2, 3, 16, 16]))
    with pytest.raises(UserError, match="16"):
        fast(paddle.randn([2, 3, 16, 20]))
    fast.input_shape = (3, 16, 20)  # 绕过形状检查,让引擎自己失败
    with pytest.raises(UserError, match="没有算完"):
        fast(paddle.randn([2, 3, 16, 20]))
    fast.input_shape = (3, 16, 16)
    assert disagreement(model, fast, 2) < 1e-4


AVX2 = {"avx2", "fma"}
AVX512 = {*AVX2, "avx512f", "avx512dq", "avx512bw", "avx512vl"}


@pytest.mark.parametrize("vendor", ["AuthenticAMD", "GenuineIntel"])
@pytest.mark.parametrize("flags", [AVX2, AVX512, {*AVX512, "avx512_bf16"}, {*AVX512, "amx_bf16"}, set()])
def test_bfloat16_needs_the_engine_the_device_and_the_cpu_in_this_order(monkeypatch, vendor, flags):
    monkeypatch.setattr(runtime_module, "_cpu_flags", lambda: (vendor, flags))
    model = make_model()
    with pytest.raises(UserError, match="--engine eager"):
        prediction_model(model, CPU, 1, "eager", "bfloat16")
    with pytest.raises(UserError, match="--device cpu"):
        prediction_model(model, {"device": "gpu", "threads": None}, 1, "auto", "bfloat16")
    if not flags & {"avx512_bf16", "amx_bf16"}:
        with pytest.raises(UserError, match="float32"):
            prediction_model(model, CPU, 1, "auto", "bfloat16")


def test_evaluate_takes_the_fast_model():
    from paddle_vit.config import Config
    from paddle_vit.data.sources import load_data

    data = load_data(Config())
    model = make_model(image_size=8, in_channels=1, num_classes=10)
    fast = fast_model(model, "oneDNN")
    expected = evaluate(model, data.test, data.info, 100)  # 360 张,最后一批 60 张
    found = evaluate(fast, data.test, data.info, 100)
    np.testing.assert_array_equal(found.classes[:, 0], expected.classes[:, 0])
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_scripts(tiny_run, tmp_path):
    eager = run_script("evaluate", tiny_run, "--engine", "eager", check=0)
    fast = run_script("evaluate", tiny_run, "--engine", "inference", check=0)
    assert "引擎 动态图" in eager.stdout and "float32" in fast.stdout and fast.stderr == ""

    def without_speed(text):
        return [line for line in text.splitlines() if not line.startswith("引擎")]

    assert without_speed(fast.stdout) == without_speed(eager.stdout)
    assert "引擎 动态图" in run_script("evaluate", tiny_run, check=0).stdout  # 360 张,不值得
    left = sorted(path.name for path in tiny_run.iterdir())
    if has_openvino and has_bfloat16:
        half = run_script("evaluate", tiny_run, "--precision", "bfloat16", check=0)
        assert "OpenVINO bfloat16" in half.stdout and half.stderr == ""
    assert sorted(path.name for path in tiny_run.iterdir()) == left  # 运行目录只读
    assert_one_chinese_line(run_here("evaluate", tiny_run, "--engine", "eager", "--precision", "bfloat16"), "eager")
    assert_one_chinese_line(run_here("evaluate", tiny_run, "--engine", "fast"), "fast", "inference")


def test_predict_script(tiny_run, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype="uint8")
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    eager = run_script("predict", tiny_run, tmp_path, "--engine", "eager", check=0)
    fast = run_script("predict", tiny_run, tmp_path, "--engine", "inference", check=0)
    assert fast.stdout == eager.stdout and fast.stdout.count("\n") == 5 and fast.stderr == ""
