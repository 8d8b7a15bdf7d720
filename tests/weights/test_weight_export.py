import json

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file
from support.reference import CASES, build, file_of

from paddle_vit import UserError
from paddle_vit.family.swin import SwinTransformer
from paddle_vit.vit import ViT
from paddle_vit.weights import describe_weights, export_weights, load_weights
from paddle_vit.weights.files import open_tensors

SMALL = dict(image_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)
# timm 的寄存器 token 默认有位置编码;没有的那一种,导出后名字相同而表多几行零
SAME_TABLE = [name for name in CASES if name.startswith("timm_") and CASES[name]["loads"] and "registers" not in name]


@pytest.mark.parametrize("name", [name for name in SAME_TABLE if "checkpoint" not in name])
def test_timm_files_come_back_bit_by_bit(name, tmp_path):
    """装进 timm 自己存的权重再导出,名字、形状、每一位都与它的文件相同。"""
    model = build(name)
    load_weights(model, file_of(name), settings=CASES[name]["model"])  # 名字看不出激活函数
    export_weights(model, tmp_path / "out.safetensors")
    given, expected = load_file(tmp_path / "out.safetensors"), load_file(file_of(name))
    assert set(given) == {key for key in expected if not key.endswith(("attn_mask", "relative_position_index"))}
    for key, value in given.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    with open_tensors(tmp_path / "out.safetensors") as tensors:
        assert tensors.metadata["epsilon"] == str(CASES[name]["model"]["epsilon"])
    info = describe_weights(tmp_path / "out.safetensors")  # 名字看不出来的,写在文件头里
    settings = CASES[name]["model"]
    heads = settings["num_heads"]
    assert info.num_heads == (tuple(heads) if isinstance(heads, list) else heads)
    assert info.epsilon == settings["epsilon"] and info.pool == getattr(model, "pool", None)


@pytest.mark.parametrize(
    "options",
    [
        dict(pool="cls", position_embedding="learnable", qkv_bias=True),
        dict(pool="cls", position_embedding="learnable", distillation_token=True),
        dict(pool="cls", position_embedding="learnable", register_tokens=3, layer_scale=0.1, qk_norm=True),
        dict(pool="avg", position_embedding="learnable", register_tokens=3),
        dict(pool="avg", position_embedding="sincos", norm_after_pool=True),
        dict(pool="avg", position_embedding="none", class_token=True),
        dict(pool="avg", position_embedding="learnable", num_classes=0),
        dict(pool="cls", position_embedding="learnable", activation="quick_gelu"),
    ],
)
def test_there_and_back(options, tmp_path):
    source, back = ViT(**{**SMALL, **options}), ViT(**{**SMALL, **options})
    code = export_weights(source, tmp_path / "out.safetensors")
    assert code.startswith("timm.models.") and "eps=1e-05" in code
    report = load_weights(back, tmp_path / "out.safetensors")
    assert report.fresh == () and set(report.unused) <= {"pos_embed"}
    for name, value in back.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), source.state_dict()[name].numpy(), err_msg=name)
    images = paddle.randn([2, 3, 8, 8])
    np.testing.assert_array_equal(source.eval()(images).numpy(), back.eval()(images).numpy())


def test_swin_there_and_back(tmp_path):
    options = dict(image_size=32, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=2, num_classes=3)
    source, back = SwinTransformer(**options), SwinTransformer(**options)
    code = export_weights(source, tmp_path / "out.safetensors")
    assert "window_size=2" in code and "depths=(1, 2)" in code
    assert "layers.1.downsample.norm.weight" in load_file(tmp_path / "out.safetensors")
    assert load_weights(back, tmp_path / "out.safetensors").unused == ()
    for name, value in back.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), source.state_dict()[name].numpy(), err_msg=name)


def test_fixed_positions_are_written_out(tmp_path):
    source = ViT(**SMALL, position_embedding="sincos")
    export_weights(source, tmp_path / "out.safetensors")
    np.testing.assert_array_equal(
        load_file(tmp_path / "out.safetensors")["pos_embed"], source.position_embedding.numpy()
    )
    with pytest.raises(UserError, match=r"多出 1 个\(pos_embed\)"):
        load_weights(ViT(**SMALL, position_embedding="sincos1d"), tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(qk_scale=0.3), "qk_scale"),
        (dict(head="mlp"), "分类头是 mlp"),
        (dict(embed_norm=True), "编码器之前"),
        (dict(pool="cls", distillation_token=True, register_tokens=2), "蒸馏"),
    ],
)
def test_what_timm_does_not_have_is_refused(options, word, tmp_path):
    with pytest.raises(UserError, match=word):
        export_weights(ViT(**SMALL, **options), tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_header_is_plain_json(tmp_path):
    export_weights(ViT(**SMALL), tmp_path / "out.safetensors")
    data = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    assert length % 8 == 0 and max(entry["data_offsets"][1] for key, entry in entries.items() if key[0] != "_") == (
        len(data) - 8 - length
    )
