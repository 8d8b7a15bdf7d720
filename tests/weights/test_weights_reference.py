"""装进别处的权重,与参考实现的输出比:tests/reference/ 里有权重、输入和输出,做法见那里的脚本。"""

import json
import pickle
import shutil
import sys

import numpy as np
import paddle
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from support.reference import CASES, FACTS, REFERENCE, build, file_of, outputs

from paddle_vit import UserError
from paddle_vit.family.swin import SwinTransformer
from paddle_vit.vit import ViT
from paddle_vit.weights import describe_weights, load_weights, propose_table
from paddle_vit.weights.files import open_tensors
from paddle_vit.weights.tables import bundled_tables

sys.path.insert(0, str(REFERENCE))

INDEX_TABLES = ("relative_position_index", "attn_mask", "mask_token")
LOADING = [name for name, case in CASES.items() if case["loads"]]


def filled_table(name, directory, facts=FACTS):
    """草稿里的 ? 填上 facts,写成文件。"""
    table = yaml.safe_load(propose_table(build(name), file_of(name)))
    table.update({key: value for key, value in facts.items() if key in table})
    path = directory / "table.yaml"
    path.write_text(yaml.safe_dump(table), "utf-8")
    return path


def needs_table(name):
    """名字看不出事实的格式:不给换名表时的提示。"""
    with pytest.raises(UserError, match="--propose") as error:
        load_weights(build(name), file_of(name))
    return error


@pytest.mark.parametrize("name", LOADING)
def test_the_outputs_are_those_of_the_reference(name, tmp_path):
    model, options = build(name, **{} if CASES[name]["family"] == "attention" else {"epsilon": 1e-3}), {}
    if CASES[name]["format"] in ("torch-encoder", "torch-attention", "vit-pytorch", "student"):
        needs_table(name)
        options["table"] = filled_table(name, tmp_path)
    if name.startswith("timm") and "activation" in CASES[name]["model"]:  # 名字看不出来的,使用者写明
        options["settings"] = {"activation": CASES[name]["model"]["activation"]}
    report = load_weights(model, file_of(name), **options)
    assert report.format.startswith(CASES[name]["format"]) or "table" in options
    assert sorted(report.loaded) == sorted(model.state_dict())
    assert report.resized == report.fresh == ()
    if CASES[name]["family"] != "attention":
        assert any("epsilon" in note for note in report.notes)
    given, expected = outputs(name, model)
    for key, value in given.items():
        assert np.abs(value - expected[key]).max() <= CASES[name]["tolerance"], key
    with open_tensors(file_of(name)) as tensors:  # 没有用到的,只有索引表
        assert all(name.endswith(INDEX_TABLES) or 0 in tensors[name].shape for name in report.unused)


# 装不进来的例子 -> 提示里指出的原因
REASONS = {
    "google_vit_pre_logits": "多出 2 个.*pre_logits",
    "timm_vit_pre_norm": "多出 2 个.*norm_pre",
    "torch_encoder_no_final_norm": r"norm: \? 还没有填",
    "torch_encoder_post_norm": r"norm: \? 还没有填",
    "vit_pytorch_simple": r"attn\.proj: \? 还没有填",
    "vit_pytorch_vit": "多出 4 个.*to_patch_embedding",
}


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["loads"] is False])
def test_another_architecture_is_refused(name, tmp_path):
    model, options = build(name), {}
    before = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    if CASES[name]["format"] in ("torch-encoder", "vit-pytorch", "student"):
        options["table"] = filled_table(name, tmp_path)
    with pytest.raises(UserError, match=REASONS[name]) as error:
        load_weights(model, file_of(name), **options)
    assert "\n" not in str(error.value)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])


@pytest.mark.parametrize(
    "name, fact, word",
    [
        ("torch_encoder_post_norm_same_names", {"norm_first": False}, "post-norm"),
        ("torch_encoder_relu_same_names", {"activation": "relu"}, "relu"),
        ("torch_encoder", {"num_heads": 2}, "头数是 2,模型的是 3"),
        ("torch_encoder", {"scale": 0.25}, "缩放系数是 0.25"),
    ],
)
def test_stated_facts_are_checked(name, fact, word, tmp_path):
    path = filled_table(name, tmp_path)
    table = {**yaml.safe_load(path.read_text("utf-8")), **fact}
    path.write_text(yaml.safe_dump(table), "utf-8")
    with pytest.raises(UserError, match=word):
        load_weights(build(name), file_of(name), table=path)


def test_unfilled_facts_are_named(tmp_path):
    path = tmp_path / "draft.yaml"
    path.write_text(propose_table(build("torch_encoder"), file_of("torch_encoder")), "utf-8")
    with pytest.raises(UserError, match="norm_first、activation、epsilon、num_heads、normalization 还没有填"):
        load_weights(build("torch_encoder"), file_of("torch_encoder"), table=path)


# ---- 认出格式 ----


def test_square_layers_are_told_apart_by_the_kind_of_file(tmp_path):
    """Mlp 不变宽时,每个线性层都是方阵(qkv 不是,但这里没有偏置)。"""
    rng = np.random.default_rng(0)
    state = {"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "patch_embed.proj.weight": (8, 3, 4, 4)}
    state.update({"patch_embed.proj.bias": (8,), "norm.weight": (8,), "norm.bias": (8,)})
    for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
        state.update({f"blocks.0.{name}.weight": (8, 8), f"blocks.0.{name}.bias": (8,)})
    values = {name: rng.normal(size=shape).astype("float32") for name, shape in state.items()}
    from safetensors.numpy import save_file

    save_file(values, tmp_path / "torch.safetensors")
    paddle.save({name: paddle.to_tensor(value) for name, value in values.items()}, str(tmp_path / "p.pdparams"))
    assert describe_weights(tmp_path / "torch.safetensors").format == "timm_vit"
    assert describe_weights(tmp_path / "p.pdparams").format == "paddleclas_vit"


@pytest.mark.parametrize("layout, format", [("torch", "timm_vit_no_bias"), ("paddle", "paddleclas_vit_small")])
def test_the_old_small_model_has_another_scale(layout, format, tmp_path):
    """timm 早期和 PaddleClas 的 ViT_small:768 维、8 层,缩放是 768 ** -0.5。"""
    shapes = {"cls_token": (1, 1, 768), "pos_embed": (1, 5, 768), "patch_embed.proj.weight": (768, 3, 2, 2)}
    for name, (inputs, out), bias in (("attn.qkv", (768, 2304), 0), ("mlp.fc1", (768, 2304), 1)):
        shapes[f"blocks.0.{name}.weight"] = (out, inputs) if layout == "torch" else (inputs, out)
        shapes.update({f"blocks.0.{name}.bias": (out,)} if bias else {})
    paddle.save({name: paddle.zeros(shape) for name, shape in shapes.items()}, str(tmp_path / "small.pdparams"))
    info = describe_weights(tmp_path / "small.pdparams")
    assert (info.format, info.num_heads, info.epsilon) == (format, 8, 1e-5)
    np.testing.assert_allclose(info.scale, 768**-0.5)
    model = ViT(image_size=4, patch_size=2, embed_dim=768, depth=1, num_heads=8, mlp_ratio=3, pool="cls")
    with pytest.raises(UserError, match=r"缩放系数是 0\.036.*模型的是 0\.102"):
        load_weights(model, tmp_path / "small.pdparams")


# ---- 旁边的 config.json ----


@pytest.fixture
def huggingface(tmp_path):
    """Hugging Face 的目录,可以改。"""
    folder = tmp_path / "vit"
    shutil.copytree(file_of("hf_vit_patch16_224").parent, folder)
    return folder


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"num_attention_heads": 2}, "头数是 2,模型的是 3"),
        ({"hidden_act": "quick_gelu"}, "quick_gelu"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"model_type": "swinv2"}, "swinv2"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps 不合法"),
        ({"layer_norm_eps": 0.5}, "epsilon 是 0.5"),
        ({"patch_size": 32}, r"patch_size 是 \(32, 32\),而权重的是 \(16, 16\)"),
        ({"num_channels": 1}, "num_channels 是 1,而权重的是 3"),
        ({"hidden_size": 192}, "hidden_size 是 192"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 是 12,而权重的是 2"),
        ({"id2label": {"0": "猫", "1": "狗"}}, "id2label 是 2,而权重的是 5"),
    ],
)
def test_a_contradicting_config_is_refused(huggingface, changes, word):
    change_config(huggingface, **changes)
    with pytest.raises(UserError, match=word):
        load_weights(build("hf_vit_patch16_224"), huggingface)


@pytest.mark.parametrize(
    "name, changes, word",
    [
        ("timm_vit", {"num_classes": 1000}, "num_classes 是 1000,而权重的是 5"),
        ("timm_vit", {"architecture": "vit_tiny_patch32_224"}, "图块 是 .*32.*而权重的是 .*16"),
        ("timm_vit", {"architecture": "vit_base_patch16_rpn_224"}, "rpn"),
        ("timm_vit", {"global_pool": "avgmax"}, "avgmax"),
        ("timm_vit", {"global_pool": "avg"}, "pool=avg,模型是 pool=cls"),
        ("timm_vit", {"model_args": {"act_layer": "gelu_tanh"}}, "gelu_tanh"),
        ("timm_swin_window7_224", {"architecture": "swin_tiny_patch4_window12_384"}, "窗口 是 12,而权重的是 7"),
        ("timm_swin_window7_224", {"global_pool": "max"}, "max"),
        ("hf_swin_window7_224", {"window_size": 12}, "window_size 是 12,而权重的是 7"),
        ("hf_swin_window7_224", {"depths": [2, 2, 6, 2]}, "depths 是"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_config_of_another_model_is_refused(name, changes, word, strict, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(file_of(name).parent, folder)
    change_config(folder, **changes)
    with pytest.raises(UserError, match=word):
        load_weights(build(name), folder, strict=strict)


def changed_copy(name, path, **changes):
    """一个例子的 safetensors,旁边没有 config.json;changes 是名字 -> 数组,None 是去掉。"""
    state = {**load_file(file_of(name)), **changes}
    save_file({key: value for key, value in state.items() if value is not None}, path)
    return path


@pytest.mark.parametrize("strict", [True, False])
def test_every_tensor_fits_and_the_outputs_would_differ(strict, tmp_path):
    """没有 config.json 时,由名字和形状看出来的:平均之后的归一化,没有位置编码,各级窗口不同。"""
    averaged = changed_copy(
        "timm_vit_gap_fc_norm",
        tmp_path / "averaged.safetensors",
        cls_token=np.zeros((1, 1, 6), "float32"),
        pos_embed=np.zeros((1, 197, 6), "float32"),
    )
    with pytest.raises(UserError, match="pool=avg,模型是 pool=cls"):
        load_weights(build("timm_vit_gap_fc_norm", pool="cls", class_token=None), averaged, strict=strict)

    nowhere = changed_copy("timm_vit_gap", tmp_path / "nowhere.safetensors", pos_embed=None)
    with pytest.raises(UserError, match=r"没有位置编码.*sincos1d"):
        load_weights(build("timm_vit_gap", position_embedding="sincos1d"), nowhere, strict=strict)
    load_weights(build("timm_vit_gap", position_embedding="none"), nowhere)

    heads = CASES["timm_swin_window7_224"]["model"]["num_heads"]
    later = {
        f"layers.2.blocks.{j}.attn.relative_position_bias_table": np.zeros((27 * 27, heads[2]), "float32")
        for j in range(CASES["timm_swin_window7_224"]["model"]["depths"][2])
    }
    wider = changed_copy("timm_swin_window7_224", tmp_path / "wider.safetensors", **later)
    with pytest.raises(UserError, match="各级窗口不同"):
        load_weights(build("timm_swin_window7_224"), wider, strict=strict)


def test_nothing_that_fits_is_refused_even_when_not_strict():
    model = build("timm_vit", embed_dim=24, num_classes=7)
    with pytest.raises(UserError, match="没有一个张量放得进"):
        load_weights(model, file_of("timm_vit"), strict=False)


@pytest.mark.parametrize("std", [[0.0, 0.5, 0.5], [-1, 1, 1], [float("nan")] * 3])
def test_a_normalization_that_divides_by_zero(huggingface, std):
    (huggingface / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": std}))
    with pytest.raises(UserError, match="标准差"):
        describe_weights(huggingface)


def test_what_the_file_does_not_say_is_in_the_report(tmp_path):
    path = changed_copy("timm_vit", tmp_path / "x.safetensors")
    assert "头数从文件看不出来,按模型的 3" in load_weights(build("timm_vit"), path).notes
    with open_tensors(file_of("paddleclas_vit")) as tensors:
        state = {key: stored.read() for key, stored in tensors.items()}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"model": state, "model_ema": state}))
    notes = load_weights(build("paddleclas_vit"), tmp_path / "x.pdparams").notes
    assert "取的是 model,文件里还有 model_ema" in notes


def test_the_epsilon_of_the_config(huggingface):
    change_config(huggingface, layer_norm_eps=1e-3)
    model = build("hf_vit_patch16_224", epsilon=1e-6)
    report = load_weights(model, huggingface)
    assert "层归一化的 epsilon 由 1e-06 改为 0.001" in report.notes
    epsilons = {layer.epsilon for layer in model.sublayers() if isinstance(layer, paddle.nn.LayerNorm)}
    assert epsilons == {1e-3}


def test_class_names_of_the_config(huggingface):
    info = describe_weights(huggingface)
    assert info.classes[0] == "斑马" and info.num_classes == 5 and info.image_size == (224, 224)
    model = build("hf_vit_patch16_224")
    assert load_weights(model, huggingface, classes=info.classes).fresh == ()
    report = load_weights(model, huggingface, classes=["甲", "乙", "丙", "丁", "戊"])
    assert report.fresh == ("head.weight", "head.bias") and set(report.unused) == {
        "classifier.weight",
        "classifier.bias",
    }
    change_config(huggingface, id2label={str(index): f"LABEL_{index}" for index in range(5)})
    assert describe_weights(huggingface).classes is None


def test_normalization_follows_the_weights(huggingface, tmp_path):
    path = huggingface / "preprocessor_config.json"
    images = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**images, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}), "utf-8")
    info = describe_weights(huggingface)
    assert (info.mean, info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    half, imagenet = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
    for name, mean in (("google_vit", half), ("timm_vit", half), ("timm_deit_distilled", imagenet)):
        assert describe_weights(file_of(name)).mean == mean, name
    assert describe_weights(file_of("microsoft_swin_window7_224")).mean == imagenet
    shutil.copy(file_of("timm_vit"), tmp_path / "deit_tiny_patch16_224.safetensors")
    assert describe_weights(tmp_path / "deit_tiny_patch16_224.safetensors").mean == imagenet


# ---- 分类头和张量的去处 ----


@pytest.mark.parametrize("name", ["timm_vit", "timm_swin_window7_224", "google_vit", "timm_deit_distilled"])
def test_a_head_of_another_size_is_left_fresh(name):
    model = build(name, num_classes=7)
    before = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    report = load_weights(model, file_of(name))
    heads = {key for key in before if "head." in key}
    assert set(report.fresh) == heads and set(report.loaded) == set(before) - heads and len(report.unused) == len(heads)
    for key, value in model.state_dict().items():
        assert (value.numpy() == before[key]).all() == (key in heads), key


def test_pre_logits_only_go_with_a_fresh_head():
    name = "google_vit_pre_logits"
    with pytest.raises(UserError, match=r"多出 2 个\(pre_logits"):
        load_weights(build(name), file_of(name))
    report = load_weights(build(name, num_classes=7), file_of(name))
    assert {"pre_logits/kernel", "pre_logits/bias"} < set(report.unused)


def test_wrong_models_are_refused_with_both_sides():
    cases = [
        (ViT, dict(embed_dim=24), "形状不同"),
        (ViT, dict(depth=3), r"缺少 12 个\(encoders\.2"),
        (ViT, dict(depth=1), r"多出 12 个\(blocks\.1"),
        (ViT, dict(distillation_token=True), "缺少 3 个"),
        (ViT, dict(patch_size=32), "形状不同"),
        (ViT, dict(num_heads=4), None),
    ]
    for kind, changes, word in cases:
        model = kind(**{**CASES["timm_vit"]["model"], **changes})
        if word is None:  # timm 的文件看不出头数
            load_weights(model, file_of("timm_vit"))
            continue
        with pytest.raises(UserError, match=word):
            load_weights(model, file_of("timm_vit"))
    with pytest.raises(UserError, match=r"它是 swin 的权重.*模型是 vit"):
        load_weights(build("timm_vit"), file_of("timm_swin_window7_224"))
    with pytest.raises(UserError, match="多出"):
        load_weights(build("timm_vit"), file_of("timm_deit_distilled"))


def renamed_file(tmp_path, rename):
    from safetensors.numpy import save_file

    with open_tensors(file_of("timm_vit")) as tensors:
        values = {rename(name): stored.read() for name, stored in tensors.items() if rename(name) is not None}
    save_file(values, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def test_a_half_matching_file(tmp_path):
    half = renamed_file(tmp_path, lambda name: None if "blocks.1.attn" in name else name.replace("fc2", "fc3"))
    model = build("timm_vit")
    with pytest.raises(UserError, match=r"缺少 8 个\(.*\);多出 4 个\("):
        load_weights(model, half)
    report = load_weights(model, half, strict=False)
    assert set(report.fresh) == {
        *(f"encoders.1.attn.{layer}.{leaf}" for layer in ("qkv", "proj") for leaf in ("weight", "bias")),
        *(f"encoders.{i}.mlp.fc2.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")),
    }
    assert len(report.unused) == 4 and len(report.loaded) + len(report.fresh) == len(model.state_dict())


def test_unknown_names(tmp_path):
    path = renamed_file(tmp_path, lambda name: f"x{abs(hash(name)) % 10**9}")
    with pytest.raises(UserError, match=r"认不出.*--propose"):
        load_weights(build("timm_vit"), path)


def test_prefixes_of_wrappers(tmp_path):
    path = renamed_file(tmp_path, lambda name: f"module.{name}")
    model = build("timm_vit")
    load_weights(model, path)
    given, expected = outputs("timm_vit", model)
    assert np.abs(given["logits"] - expected["logits"]).max() <= 1e-4


def test_not_a_number_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    values = load_file(file_of("timm_vit"))
    values["norm.weight"][3] = np.nan
    save_file(values, tmp_path / "nan.safetensors")
    model = build("timm_vit")
    before = model.encoders[0].mlp.fc1.weight.numpy().copy()
    with pytest.raises(UserError, match="NaN"):
        load_weights(model, tmp_path / "nan.safetensors")
    np.testing.assert_array_equal(model.encoders[0].mlp.fc1.weight.numpy(), before)


# ---- 换大小 ----


def test_another_image_size_resizes_only_the_positions():
    model = build("timm_deit_distilled", image_size=384)
    report = load_weights(model, file_of("timm_deit_distilled"))
    assert report.resized == ("position_embedding",) and "位置编码的网格由 14×14 改为 24×24" in report.notes
    with open_tensors(file_of("timm_deit_distilled")) as tensors:
        table = tensors["pos_embed"].read()
    np.testing.assert_array_equal(model.position_embedding.numpy()[0, :2], table[0, :2])
    average = model.position_embedding.numpy()[0, 2:].mean(axis=0)
    np.testing.assert_allclose(average, table[0, 2:].mean(axis=0), atol=0.02)


def test_swin_at_another_image_size_needs_no_resizing_and_another_window_does():
    name = "timm_swin_window7_224"
    larger = build(name, image_size=448)
    assert load_weights(larger, file_of(name)).resized == ()
    other = build(name, image_size=384, window_size=12)
    report = load_weights(other, file_of(name))
    assert report.resized and all(key.endswith("bias_table") for key in report.resized)
    assert "相对位置偏置表的窗口由 7 改为 12" in report.notes


def test_patches_are_resized_only_when_asked():
    model = build("timm_vit", patch_size=32, image_size=448)
    with pytest.raises(UserError, match=r"\[12, 3, 16, 16\],模型 \[12, 3, 32, 32\]"):
        load_weights(model, file_of("timm_vit"))
    report = load_weights(model, file_of("timm_vit"), resize_patches=True)
    assert report.resized == ("patch_embed.patch_embedding.weight",)


def test_the_bundled_tables_name_every_tensor_of_our_models():
    tables = {table.name: table for table in bundled_tables()}
    vit = ViT(image_size=8, patch_size=4, depth=2, pool="cls", position_embedding="learnable", distillation_token=True)
    swin = SwinTransformer(image_size=32, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=2)
    cct = build("cct_3x2")
    for ours in cct.state_dict():
        assert tables["shilabs_cct"].sources(ours) and tables["paddle_vit"].sources(ours), ours
    for name, table in tables.items():
        model = {"vit": vit, "swin": swin}.get(table.family) if name != "shilabs_cct" else cct
        for ours in model.state_dict() if model is not None else ():
            if "distillation" not in ours or name in ("timm_vit", "paddleclas_vit", "paddlevit_vit", "huggingface_vit"):
                without = "distillation" in ours or (name == "huggingface_siglip" and ours == "class_token")
                assert table.sources(ours) or without, (name, ours)
