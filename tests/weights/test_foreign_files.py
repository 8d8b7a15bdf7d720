"""大家手里的权重文件:量化过的、缺一部分的、多一部分的、套着前缀的、分成几片的、通道数不同的。"""

import enum
import functools
import json
import os
import pickle
import shutil

import numpy as np
import paddle
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from support.reference import CASES, build, file_of, outputs
from support.running import assert_one_chinese_line, run_script

from paddle_vit import UserError
from paddle_vit.family.swin import SwinTransformer
from paddle_vit.runs.command_line import parse_config
from paddle_vit.vit import ViT
from paddle_vit.weights import describe_weights, export_weights, load_weights, propose_table
from paddle_vit.weights.checkpoint import read_description
from paddle_vit.weights.conversion import import_weights, parse_settings, why_not_predict
from paddle_vit.weights.files import open_tensors
from paddle_vit.weights.proposal import why_unknown

TINY = {name: CASES["timm_vit"]["model"][name] for name in ("embed_dim", "depth", "num_heads")}


def state_of(name):
    with open_tensors(file_of(name)) as tensors:
        return {key: stored.read() for key, stored in tensors.items()}


def saved(path, name, change=lambda state: state):
    """一个例子的权重,改过以后存成 path(旁边没有 config.json)。"""
    state = {key: value for key, value in change(dict(state_of(name))).items() if value is not None}
    if path.suffix == ".safetensors":
        save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **state)
    else:
        path.write_bytes(pickle.dumps(state))
    return path


def refused(model, path, *words, **options):
    before = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, path, **options)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])


def difference(name, model):
    given, expected = outputs(name, model)
    return max(np.abs(given[key] - expected[key]).max() for key in given)


# ---- 不是权重的张量 ----

FC1 = "blocks.0.mlp.fc1.weight"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", ["int8", "bool", "packed", "int64"])
def test_tensors_that_are_not_floats(kind, strict, tmp_path):
    values = state_of("timm_vit")[FC1]
    value = values[:, ::2].astype("uint8") if kind == "packed" else (values * 100).astype(kind)
    path = saved(tmp_path / "x.safetensors", "timm_vit", lambda state: {**state, FC1: value})
    refused(build("timm_vit"), path, FC1, "不是浮点数", "dequantize", strict=strict)


@pytest.mark.parametrize("extra", ["weight_scale", "weight_scale_inv", "SCB", "weight.absmax", "scales"])
def test_scales_of_quantised_weights(extra, tmp_path):
    name = f"blocks.0.mlp.fc1.{extra}"
    path = saved(tmp_path / "x.safetensors", "timm_vit", lambda state: {**state, name: np.ones(48, "float32")})
    refused(build("timm_vit"), path, name, "缩放系数", strict=False)


def test_half_precision_is_no_quantisation(tmp_path):
    path = saved(tmp_path / "x.npz", "timm_vit", lambda state: {k: v.astype("float16") for k, v in state.items()})
    model = build("timm_vit")
    load_weights(model, path)
    assert difference("timm_vit", model) < 1e-2


# ---- --no-strict 不放过另一种结构 ----

ONES = np.ones(12, "float32")


@pytest.mark.parametrize(
    "changes, options, word",
    [
        ({"norm.weight": None, "norm.bias": None}, {}, r"文件里没有 2 个(norm.weight"),
        ({}, {"distillation_token": True}, "distillation_head.weight"),
        ({}, {"layer_scale": 0.1}, "不给 --layer-scale"),
        ({}, {"depth": 3}, "encoders.2.attn_norm"),
        ({}, {"depth": 1}, "blocks.1."),
        ({"norm_pre.weight": ONES, "norm_pre.bias": ONES}, {}, "--embed-norm"),
        ({"blocks.0.norm3.weight": ONES}, {}, "blocks.0.norm3.weight"),
        ({"blocks.0.ls1.gamma": ONES, "blocks.1.ls1.gamma": ONES}, {}, "layer_scale=1e-05"),
        ({"cls_token": None}, {}, "class_token"),
        ({"reg_token": np.ones((1, 3, 12), "float32")}, {}, "register_tokens=3"),
    ],
)
def test_another_structure_is_refused_without_strict(changes, options, word, tmp_path):
    path = saved(tmp_path / "x.safetensors", "timm_vit", lambda state: {**state, **changes})
    refused(build("timm_vit", **options), path, word, strict=False)


def test_tokens_may_start_afresh_under_a_new_head():
    """微调时加蒸馏 token 和寄存器 token:分类头也是新的,都要训练。"""
    model = build("timm_vit", distillation_token=True, register_tokens=2, num_classes=7)
    report = load_weights(model, file_of("timm_vit"), strict=False)
    assert {"distillation_token", "register_tokens"} < set(report.fresh)


# ---- Swin 的补零 ----

SWIN = dict(image_size=48, patch_size=4, embed_dim=4, depths=(2, 2), num_heads=(1, 2), window_size=5, num_classes=3)


def test_swin_that_pads_is_not_the_swin_of_timm(tmp_path):
    source = SwinTransformer(**{**SWIN, "image_size": 40})  # 10 x 10,不用补零
    export_weights(source, tmp_path / "timm.safetensors")
    load_weights(SwinTransformer(**{**SWIN, "image_size": 40}), tmp_path / "timm.safetensors")
    refused(SwinTransformer(**SWIN), tmp_path / "timm.safetensors", "先滚动再补零", strict=False)
    load_weights(SwinTransformer(**{**SWIN, "num_classes": 4}), tmp_path / "timm.safetensors")  # 微调
    with pytest.raises(UserError, match="先滚动再补零"):
        export_weights(SwinTransformer(**SWIN), tmp_path / "other.safetensors")


# ---- 使用者写明的胜过自带的表 ----


def epsilons(model):
    return {layer.epsilon for layer in model.sublayers() if isinstance(layer, paddle.nn.LayerNorm)}


def test_the_stated_epsilon_is_obeyed(tmp_path):
    model, report = import_weights(
        file_of("timm_vit"), tmp_path / "out.safetensors", "vit_tiny", {**TINY, "epsilon": 1e-5}
    )
    assert epsilons(model) == {1e-5} and read_description(tmp_path / "out.safetensors")[0]["epsilon"] == 1e-5
    assert any("epsilon 按给出的 1e-05" in note for note in report.notes)
    config = parse_config(["--weights", str(file_of("timm_vit")), "--model", "vit_tiny", "--epsilon", "1e-5"])
    assert config.epsilon == 1e-5
    model = build("timm_vit", epsilon=1e-5, num_classes=7)
    load_weights(model, file_of("timm_vit"), settings={"epsilon": 1e-5})
    assert epsilons(model) == {1e-5}


@pytest.mark.parametrize("settings", [{"activation": "quick_gelu"}, {"qk_scale": 0.25}, {"activation": "gelu_tanh"}])
def test_other_assumed_facts_yield_too(settings, tmp_path):
    path = saved(tmp_path / "x.safetensors", "timm_vit")
    refused(build("timm_vit", **settings), path, "--set")
    report = load_weights(build("timm_vit", **settings), path, settings=settings)
    assert report.fresh == ()


def test_what_the_config_states_does_not_yield(tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(file_of("hf_vit_patch16_224").parent, folder)
    refused(
        build("hf_vit_patch16_224", activation="quick_gelu"),
        folder,
        "激活函数是 gelu",
        settings={"activation": "quick_gelu"},
    )


# ---- pickle 里的别的东西 ----


class Colour(enum.Enum):
    RED = 1


class Meter:
    def __init__(self):
        self.values = [1.0]


@pytest.mark.parametrize(
    "beside, name",
    [
        (functools.partial(np.exp, 1), "functools.partial"),
        (Colour.RED, "Colour"),
        (Meter(), "Meter"),
        ({"schedule": [functools.partial(Meter)]}, "functools.partial"),
    ],
)
def test_ordinary_objects_beside_the_weights(beside, name, tmp_path):
    for protocol in (2, 4):
        path = tmp_path / "x.pdparams"
        path.write_bytes(pickle.dumps({"model": state_of("paddleclas_vit"), "beside": beside}, protocol))
        with pytest.raises(UserError, match=r"什么也没有执行.*state_dict") as error:
            open_tensors(path)
        assert name in str(error.value) and "恶意" not in str(error.value)


def test_a_partial_of_a_command_is_no_ordinary_object(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"a": functools.partial(os.system, "true")}))
    with pytest.raises(UserError, match=r"system.*恶意"):
        open_tensors(path)


# ---- 投影头和解码器 ----


def dino(state):
    backbone = {f"backbone.{name}": value for name, value in state.items() if not name.startswith("head.")}
    heads = {f"head.mlp.{i}.{leaf}": np.ones(4, "float32") for i in (0, 2, 4) for leaf in ("weight", "bias")}
    return {**backbone, **heads, "head.last_layer.weight_g": ONES, "head.last_layer.weight_v": ONES}


def mae(state):
    state = {name: value for name, value in state.items() if not name.startswith("head.")}
    decoder = {"mask_token": np.ones((1, 1, 8), "float32"), "decoder_pos_embed": np.ones((1, 197, 8), "float32")}
    return {**state, **decoder, "decoder_blocks.0.norm1.weight": ONES, "decoder_pred.weight": ONES}


def moco(state):
    state = {name: value for name, value in state.items() if not name.startswith("head.")}
    copies = {f"module.{kind}_encoder.{name}": v for kind in ("base", "momentum") for name, v in state.items()}
    return {**copies, "module.base_encoder.head.0.weight": ONES, "module.predictor.0.weight": ONES}


@pytest.mark.parametrize("change, word", [(dino, "投影头 8 个"), (mae, "解码器 4 个"), (moco, "动量编码器")])
def test_the_heads_of_self_supervised_methods_are_dropped(change, word, tmp_path):
    path = tmp_path / "x.pdparams"
    state = {name: value.T if value.ndim == 2 else value for name, value in change(state_of("timm_vit")).items()}
    path.write_bytes(pickle.dumps({"teacher": state, "student": {"w": ONES}, "epoch": 3}))
    model, plain = build("timm_vit", num_classes=0), build("timm_vit", num_classes=0)
    report = load_weights(model, path)
    assert any(word in note for note in report.notes) and report.fresh == ()
    load_weights(plain, file_of("timm_vit"))
    images = paddle.randn([1, 3, 224, 224])
    np.testing.assert_allclose(model(images).numpy(), plain(images).numpy(), atol=1e-5)
    with pytest.raises(UserError, match=f"{word}.*train.py --weights.*num_classes=0"):
        import_weights(path, tmp_path / "out.safetensors", "vit_tiny", {**TINY, "num_classes": 5})
    import_weights(path, tmp_path / "out.safetensors", "vit_tiny", {**TINY, "num_classes": 0})
    assert "没有分类头" in why_not_predict(tmp_path / "out.safetensors")


def test_a_mae_of_huggingface_with_its_decoder_and_config(tmp_path):
    folder = tmp_path / "mae"
    shutil.copytree(file_of("hf_mae").parent, folder)
    state = {f"vit.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    state.update({"decoder.decoder_norm.weight": ONES, "decoder.mask_token": np.ones((1, 1, 12), "float32")})
    save_file(state, folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "vit_mae"
    model = build("hf_mae")
    assert "不要预训练时用的解码器 2 个" in " ".join(load_weights(model, folder).notes)
    assert difference("hf_mae", model) <= 1e-4


def test_the_pooling_of_siglip_is_dropped_only_with_its_head(tmp_path):
    extra = {"head.probe": np.ones((1, 1, 12), "float32"), "head.mlp.fc1.weight": np.ones((48, 12), "float32")}
    path = saved(tmp_path / "x.safetensors", "hf_siglip", lambda state: {**state, **extra})
    report = load_weights(build("hf_siglip"), path)
    assert set(report.unused) == set(extra) and "注意力汇聚 2 个" in " ".join(report.notes)
    classifier = {"classifier.weight": np.ones((5, 12), "float32"), "classifier.bias": np.ones(5, "float32")}
    path = saved(tmp_path / "y.safetensors", "hf_siglip", lambda state: {**state, **extra, **classifier})
    refused(build("hf_siglip", num_classes=5), path, "注意力汇聚")


# ---- 前缀 ----


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "backbone.", "net.0.encoder_q.", "m/"])
@pytest.mark.parametrize(
    "name, suffix", [("timm_vit", ".safetensors"), ("paddleclas_vit", ".pdparams"), ("google_vit", ".npz")]
)
def test_any_common_prefix(name, suffix, prefix, tmp_path):
    heads = ("head.", "head/")  # 分类头常在主干的外面
    path = saved(
        tmp_path / f"x{suffix}",
        name,
        lambda state: {key if key.startswith(heads) else prefix + key: value for key, value in state.items()},
    )
    model = build(name)
    assert load_weights(model, path).fresh == ()
    assert difference(name, model) <= 1e-4


def test_the_teacher_is_preferred_to_the_student(tmp_path):
    def both(state):
        twice = {f"student.backbone.{name}": np.zeros_like(value) for name, value in state.items()}
        return {**twice, **{f"teacher.backbone.{name}": value for name, value in state.items()}}

    model = build("timm_vit")
    load_weights(model, saved(tmp_path / "x.safetensors", "timm_vit", both))
    assert difference("timm_vit", model) <= 1e-4


# ---- 几片 ----


def shards(folder, suffix):
    """分成两片,像 Hugging Face 那样。"""
    folder.mkdir()
    state, places = state_of("hf_vit_patch16_224"), {}
    for i, part in enumerate(np.array_split(sorted(state), 2), 1):
        name = f"{'model' if suffix == 'safetensors' else 'pytorch_model'}-0000{i}-of-00002.{suffix}"
        values = {str(key): np.ascontiguousarray(state[key]) for key in part}
        save_file(values, folder / name) if suffix == "safetensors" else (folder / name).write_bytes(
            pickle.dumps(values)
        )
        places.update(dict.fromkeys(values, name))
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    return folder


@pytest.mark.parametrize("given", ["", "model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_weights_in_pieces(given, tmp_path):
    folder = shards(tmp_path / "vit", "safetensors")
    model = build("hf_vit_patch16_224", epsilon=1e-12)
    load_weights(model, folder / given)
    assert difference("hf_vit_patch16_224", model) <= 1e-4


def test_pieces_of_pickles_and_missing_pieces(tmp_path):
    folder = shards(tmp_path / "bin", "bin")
    with open_tensors(folder / "pytorch_model.bin.index.json") as tensors:
        assert len(tensors) == len(state_of("hf_vit_patch16_224"))
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    refused(build("hf_vit_patch16_224"), folder, "共 2 片,缺少 1 片")
    folder = shards(tmp_path / "vit", "safetensors")
    (folder / "model.safetensors.index.json").unlink()
    refused(build("hf_vit_patch16_224"), folder / "model-00001-of-00002.safetensors", "只是几片权重里的一片")
    refused(build("hf_vit_patch16_224"), folder, "只是几片权重里的一片")


@pytest.mark.parametrize("place", ["../model-00001-of-00002.safetensors", "/etc/passwd", "x.safetensors"])
def test_an_index_cannot_point_elsewhere(place, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}), "utf-8")
    with pytest.raises(UserError, match="不像几片权重"):
        open_tensors(tmp_path / "model.safetensors.index.json")


# ---- 灰度、彩色、不是正方形 ----


def test_rgb_weights_on_grey_pictures(tmp_path):
    """灰度图像得到的,与三个通道都是它的彩色图像相同。"""
    colour, grey = build("timm_vit"), build("timm_vit", in_channels=1)
    load_weights(colour, file_of("timm_vit"))
    refused(grey, file_of("timm_vit"), "match_channels=True", "--set in_channels=1")
    report = load_weights(grey, file_of("timm_vit"), match_channels=True)
    assert any("图像由 3 个通道改为 1 个" in note for note in report.notes)
    images = paddle.randn([2, 1, 224, 224])
    np.testing.assert_allclose(grey(images).numpy(), colour(images.tile([1, 3, 1, 1])).numpy(), atol=1e-5)
    output = tmp_path / "grey.safetensors"
    import_weights(file_of("timm_vit"), output, "vit_tiny", {**TINY, "in_channels": 1})
    assert read_description(output)[1]["mean"] == [0.5]
    back = build("timm_vit")
    load_weights(back, output, match_channels=True)
    np.testing.assert_allclose(back(images.tile([1, 3, 1, 1])).numpy(), grey(images).numpy(), atol=1e-5)


def test_rgb_weights_are_fine_tuned_on_a_grey_data_set(tmp_path):
    settings = dict(TINY, image_size=8, patch_size=16)
    state = state_of("timm_vit")
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][..., :4, :4]
    state["pos_embed"] = state["pos_embed"][:, :5]
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, tmp_path / "rgb.safetensors")
    settings.update(patch_size=4)
    import_weights(tmp_path / "rgb.safetensors", tmp_path / "own.safetensors", "vit_tiny", settings)
    done = run_script(
        "train",
        "--weights",
        tmp_path / "own.safetensors",
        "--epochs",
        1,
        "--train-per-class",
        2,
        "--output",
        tmp_path / "run",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "图像由 3 个通道改为 1 个" in done.stdout


def test_rectangular_weights_are_used_as_they_are(tmp_path):
    model = ViT(image_size=(32, 64), patch_size=16, **TINY, pool="cls", position_embedding="learnable", qkv_bias=True)
    export_weights(model, tmp_path / "timm.safetensors")
    settings = {**TINY, "image_size": [32, 64], "num_classes": 10}
    import_weights(tmp_path / "timm.safetensors", tmp_path / "own.safetensors", "vit_tiny", settings)
    assert not why_not_predict(tmp_path / "own.safetensors")
    square = tmp_path / "square.safetensors"
    options = dict(settings={"image_size": 64}, mean=[0.5] * 3, std=[0.5] * 3)
    _, report = import_weights(tmp_path / "own.safetensors", square, **options)
    assert "位置编码的网格由 2×4 改为 4×4" in report.notes and not why_not_predict(square)


# ---- 缺的那个设置的名字 ----


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("timm_vit_registers", {"layer_scale": None}, ("--set layer_scale=1e-05",)),
        ("timm_vit_registers", {"register_tokens": 0}, ("--register-tokens 3", "--set register_tokens=3")),
        ("timm_vit_gap_fc_norm", {"norm_after_pool": False}, ("--norm-after-pool", "--set norm_after_pool=true")),
        ("timm_vit_qk_norm", {"qk_norm": False, "layer_scale": None}, ("qk_norm=True", "layer_scale=1e-05")),
        ("timm_vit", {"qk_norm": True}, ("--no-qk-norm", "--set qk_norm=false")),
        ("timm_vit", {"qkv_bias": False}, ("--set qkv_bias=true",)),
        ("timm_vit", {"mlp_ratio": 2.0}, ("--set mlp_ratio=4.0",)),
        ("timm_vit", {"layer_scale": 0.1}, ("不给 --layer-scale", "--set layer_scale=null")),
        ("timm_vit_pre_norm", {}, ("--embed-norm", "--set embed_norm=true")),
        ("hf_dinov2_registers", {"register_tokens": 0}, ("register_tokens=3",)),
    ],
)
def test_the_missing_setting_is_named(name, options, words):
    refused(build(name, **options), file_of(name), *words)


def test_the_norm_before_the_encoder_is_a_setting():
    model = build("timm_vit_pre_norm", embed_norm=True)
    report = load_weights(model, file_of("timm_vit_pre_norm"))
    assert "文件里图块嵌入没有偏置,取零" in report.notes
    expected = np.load(file_of("timm_vit_pre_norm").parent / "expected.npz")["logits"]
    from images import image_batch

    given = model(paddle.to_tensor(image_batch(*CASES["timm_vit_pre_norm"]["input"]))).numpy()
    assert np.abs(given - expected).max() <= 1e-4


# ---- 换名表的草稿 ----


def test_numbers_without_a_decimal_point():
    given = parse_settings(["layer_scale=1e-5", "epsilon=1E-6", "pool=cls", "qk_scale=.5", "layer_scale=null"])
    assert given == {"layer_scale": None, "epsilon": 1e-6, "pool": "cls", "qk_scale": 0.5}
    assert parse_settings(["layer-scale=1e-5"]) == {"layer_scale": 1e-5}


def test_a_draft_of_the_wrong_size_says_why(tmp_path):
    path = saved(
        tmp_path / "x.safetensors",
        "timm_vit",
        lambda state: {name.replace("blocks", "body").replace("norm", "ln"): value for name, value in state.items()},
    )
    done = run_script("import_weights", path, "--propose", tmp_path / "table.yaml", check=0)
    assert "模型的尺寸与文件不同" in done.stdout and "12(多半是 embed_dim)" in done.stdout
    right = build("timm_vit")
    assert why_unknown(right, path, propose_table(right, path)) == ""


def test_the_bias_tables_of_swin_are_guessed(tmp_path):
    path = saved(
        tmp_path / "x.safetensors",
        "hf_swin_window7_224",
        lambda state: {name.replace("layers", "parts").replace("embeddings", "start"): v for name, v in state.items()},
    )
    table = yaml.safe_load(propose_table(build("hf_swin_window7_224"), path))
    found = {ours: theirs for ours, theirs in table["tensors"].items() if ours.endswith("bias_table")}
    assert found and all("bias_table" in theirs for theirs in found.values()), found


def big_vision(state):
    """Google 原版的名字 -> big_vision 的:模块从 0 编号,位置编码没有 class token 的行。"""
    renamed = {}
    for name, value in state.items():
        for old, new in (("LayerNorm_2", "LayerNorm_1"), ("Attention_1", "Attention_0"), ("MlpBlock_3", "MlpBlock_0")):
            name = name.replace(old, new)
        renamed[f"params/{name}"] = value
    positions = renamed.pop("params/Transformer/posembed_input/pos_embedding")
    renamed["params/cls"] = renamed["params/cls"] + positions[:, :1]
    return {**renamed, "params/pos_embedding": positions[:, 1:]}


def test_the_npz_of_big_vision(tmp_path):
    path = saved(tmp_path / "x.npz", "google_vit", big_vision)
    assert describe_weights(path).format == "big_vision"
    refused(build("google_vit"), path, "激活函数是 gelu_tanh", "--activation gelu_tanh")
    model = build("google_vit")
    load_weights(model, path, settings={"activation": "gelu"})
    assert difference("google_vit", model) <= 1e-4


def test_a_message_names_only_options_that_exist(tmp_path):
    done = run_script(
        "import_weights", file_of("timm_vit"), "--model", "vit_tiny", "--output", tmp_path / "x.safetensors"
    )
    assert_one_chinese_line(done, "--set embed_dim=12")
    refused(build("timm_vit", patch_size=32), file_of("timm_vit"), "import_weights.py 用 --resize-patches")
