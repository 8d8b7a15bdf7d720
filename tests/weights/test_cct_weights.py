"""CCT 的权重:作者的名字、自己的文件,以及名字和形状相同而结构不同的。输出与参考实现的比较在 test_weights_reference。"""

import re

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file
from support.reference import build, file_of

from paddle_vit import UserError, ViT, create_model
from paddle_vit.weights import describe_weights, export_weights, load_weights
from paddle_vit.weights.checkpoint import save_model
from paddle_vit.weights.tables import bundled_tables

SMALL = dict(image_size=8, patch_size=2, in_channels=3, num_classes=2, embed_dim=12, depth=2, num_heads=3)
CCT = dict(tokenizer="conv", pool="seq", trunk_norm=True, position_embedding="learnable")
INFO = {"classes": ["甲", "乙"], "mean": [0.5] * 3, "std": [0.5] * 3}


def refusal(model, path, **options):
    """拒绝时的一行话;模型没有改动。"""
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(model, path, **options)
    assert "\n" not in str(error.value)
    assert all(np.array_equal(before[name], value.numpy()) for name, value in model.state_dict().items())
    return str(error.value)


def written_like_the_authors(name, path):
    """命名的模型写成作者的名字和放法。"""
    (table,) = (table for table in bundled_tables() if table.name == "shilabs_cct")
    tensors = {}
    for ours, value in create_model(name).state_dict().items():
        value = value.numpy()
        tensors[table.sources(ours)[0][0]] = np.ascontiguousarray(value.T if value.ndim == 2 else value)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", ["cct_2_3x2_32", "cct_4_3x2_32", "cct_7_3x1_32", "cct_7_3x2_32"])
def test_the_size_is_seen(name, tmp_path):
    info = describe_weights(written_like_the_authors(name, tmp_path / "weights.safetensors"))
    assert info.format == "shilabs_cct" and info.candidates == (name,)
    assert info.image_size == (32, 32) and info.in_channels == 3 and info.num_classes == 10
    assert any("不知道" in text for what, text in info.assumed if what == "normalization")


def test_position_embeddings_are_resized_and_the_head_is_new(tmp_path):
    path = written_like_the_authors("cct_2_3x2_32", tmp_path / "weights.safetensors")
    report = load_weights(create_model("cct_2_3x2_32", image_size=64, num_classes=3), path)
    assert report.resized == ("position_embedding",) and sorted(report.fresh) == ["head.bias", "head.weight"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(trunk_norm=False), "第二个层归一化在主干上.*--trunk-norm"),
        (dict(pool="avg"), "attention_pool.*--pool seq"),
        (dict(position_embedding="none"), "positional_emb.*--position-embedding learnable"),
        (dict(tokenizer="patch"), "--tokenizer conv"),
        (dict(tokenizer_kernel=5), "--tokenizer-kernel 3"),
        (dict(patch_size=8), "--patch-size 4"),
    ],
)
def test_another_structure_is_refused(changes, words):
    assert re.search(words, refusal(build("cct_3x2", **changes), file_of("cct_3x2")))


def test_the_weights_of_a_vit_are_not_taken_for_those_of_a_cct():
    """名字和形状都放得下,只有归一化的位置不同。"""
    said = refusal(build("timm_vit", trunk_norm=True), file_of("timm_vit"))
    assert "第二个层归一化在残差分支里" in said and "--no-trunk-norm" in said


def test_our_own_files(tmp_path):
    model, path = ViT(**SMALL, **CCT), tmp_path / "own.safetensors"
    save_model(path, model.state_dict(), {"name": "vit", **SMALL, **CCT}, INFO)
    other = ViT(**SMALL, **CCT)
    load_weights(other, path)
    x = paddle.randn([2, 3, 8, 8])
    model.eval()
    other.eval()
    np.testing.assert_array_equal(model(x).numpy(), other(x).numpy())
    assert "第二个层归一化在主干上" in refusal(ViT(**SMALL, **{**CCT, "trunk_norm": False}), path)
    assert "sequence_pool" in refusal(ViT(**SMALL, **{**CCT, "pool": "avg"}), path, strict=False)
    assert "convolutions" in refusal(ViT(**SMALL, **{**CCT, "tokenizer": "patch"}), path)


def test_timm_has_no_such_model(tmp_path):
    for settings in (CCT, dict(tokenizer="conv"), dict(trunk_norm=True), dict(pool="seq")):
        with pytest.raises(UserError, match="CCT"):
            export_weights(ViT(**SMALL, **settings), tmp_path / "timm.safetensors")
