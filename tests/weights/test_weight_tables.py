import re

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from paddle_vit import UserError
from paddle_vit.vit import ViT
from paddle_vit.weights import load_weights, propose_table
from paddle_vit.weights.tables import bundled_tables, read_table

SMALL = dict(image_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=3, qkv_bias=True, pool="cls")
SMALL.update(position_embedding="learnable")
TABLE = {
    "name": "mine",
    "family": "vit",
    "layout": "torch",
    "norm_first": True,
    "activation": "gelu",
    "epsilon": 1e-5,
    "num_heads": 2,
    "tensors": {"norm": "final", "encoders.{i}.attn_norm": "body.{i+1}.ln | b{i}.ln"},
}


def written(directory, **changes):
    path = directory / "table.yaml"
    path.write_text(yaml.safe_dump({**TABLE, **changes}, allow_unicode=True), "utf-8")
    return path


def test_lines_become_tensor_names(tmp_path):
    lines = {**TABLE["tensors"], "encoders.{i}.attn.qkv": ["q{i}", "k{i}", "v{i}"], "class_token": "cls"}
    table = read_table(written(tmp_path, tensors=lines, prefixes=["module.", "net."], ignore=["*.index"]))
    assert table.sources("norm.weight") == [("final.weight",)]
    assert table.sources("encoders.10.attn_norm.bias") == [("body.11.ln.bias",), ("b10.ln.bias",)]
    assert table.sources("encoders.2.attn.qkv.weight") == [("q2.weight", "k2.weight", "v2.weight")]
    assert table.sources("class_token") == [("cls",)] and table.sources("head.weight") == []
    assert table.knows("body.7.ln.weight") and table.knows("k0.bias") and table.knows("a.index")
    assert not table.knows("body.x.ln.weight") and not table.knows("final")
    assert table.plain_names(["module.net.cls", "net.final.weight", "x"]) == {
        "cls": "module.net.cls",
        "final.weight": "net.final.weight",
        "x": "x",
    }


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"layuot": "torch"}, "不认识的 layuot"),
        ({"layout": "tf"}, "torch、paddle、flax 之一"),
        ({"epsilon": "small"}, "epsilon: 'small' 不合法"),
        ({"norm_first": "yes"}, "true 或 false"),
        ({"num_heads": 0}, "正整数"),
        ({"patch_order": "h w c"}, "p1 p2 c"),
        ({"tensors": {"norm": ["a", "b"]}}, "三个名字"),
        ({"tensors": {"encoders.{i}.attn_norm": "ln"}}, r"\{i\}"),
        ({"tensors": {"norm": "?"}}, "还没有填"),
        ({"prefixes": [1]}, "一列名字"),
    ],
)
def test_mistakes_in_a_table(changes, words, tmp_path):
    with pytest.raises(UserError, match=words) as error:
        read_table(written(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, word",
    [
        ("name: [", "不是合法的 YAML"),
        ("- a\n- b\n", "不是换名表"),
        ("name: x\n", "缺少 layout"),
        ("\0", "不是合法的 YAML"),
    ],
)
def test_files_that_are_not_tables(text, word, tmp_path):
    (tmp_path / "x.yaml").write_text(text, "utf-8")
    with pytest.raises(UserError, match=word):
        read_table(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="没有"):
        read_table(tmp_path / "nothing.yaml")


def test_epsilon_without_a_decimal_point(tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text("utf-8").replace("1.0e-05", "1e-5"), "utf-8")
    assert read_table(path).epsilon == 1e-5


def test_bundled_tables_have_their_file_names():
    names = [table.name for table in bundled_tables()]
    assert len(set(names)) == len(names) == 24
    for table in bundled_tables():
        assert re.fullmatch(r"[a-z0-9_]+", table.name) and table.tensors


# ---- 猜名字 ----

STUDENT = {  # 一个学生自己起的名字
    "class_token": "cls",
    "position_embedding": "pos",
    "patch_embed.patch_embedding": "to_tokens",
    "norm": "last_ln",
    "head": "classify",
    "encoders.{i}.attn_norm": "body.{i}.ln_a",
    "encoders.{i}.attn.proj": "body.{i}.sa.mix",
    "encoders.{i}.mlp_norm": "body.{i}.ln_b",
    "encoders.{i}.mlp.fc1": "body.{i}.mlp.up",
    "encoders.{i}.mlp.fc2": "body.{i}.mlp.down",
}


def student_file(model, directory):
    """把模型按学生的名字和 PyTorch 的放法存成文件,q、k、v 分开。"""
    lines = sorted(STUDENT.items(), key=lambda line: len(line[0]), reverse=True)
    values = {}
    for ours, value in model.state_dict().items():
        value, index = value.numpy(), re.search(r"\d+", ours)
        template = re.sub(r"encoders\.\d+", "encoders.{i}", ours)
        value = value.T if value.ndim == 2 else value
        if ".qkv." in ours:
            for letter, part in zip("qkv", np.split(value, 3)):
                values[f"body.{index[0]}.sa.{letter}.{ours.split('.')[-1]}"] = part
            continue
        line, name = next((line, name) for line, name in lines if template.startswith(line))
        name = name.replace("{i}", index[0]) if "{i}" in line else name
        values[name + template[len(line) :]] = value
    path = directory / "student.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in values.items()}, path)
    return path


def test_a_table_is_proposed_for_names_of_ones_own(tmp_path):
    import paddle

    source, model = ViT(**SMALL), ViT(**SMALL)
    path = student_file(source, tmp_path)
    with pytest.raises(UserError, match=r"认不出.*--propose"):
        load_weights(model, path)
    proposed = yaml.safe_load(propose_table(model, path))
    assert proposed["tensors"] == {**STUDENT, "encoders.{i}.attn.qkv": [f"body.{{i}}.sa.{letter}" for letter in "qkv"]}
    facts = ("norm_first", "activation", "epsilon", "num_heads", "normalization")
    assert [proposed[name] for name in facts] == ["?"] * 5
    table = written(tmp_path, tensors=proposed["tensors"])
    assert sorted(load_weights(model, path, table=table).loaded) == sorted(model.state_dict())
    images = paddle.randn([2, 3, 8, 8])
    np.testing.assert_array_equal(model.eval()(images).numpy(), source.eval()(images).numpy())


def test_what_cannot_be_guessed_stays_a_question(tmp_path):
    path = student_file(ViT(**SMALL), tmp_path)
    deeper = yaml.safe_load(propose_table(ViT(**{**SMALL, "embed_dim": 16}), path))
    assert deeper["tensors"]["norm"] == "?"
