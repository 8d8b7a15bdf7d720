import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image
from support.reference import CASES, FACTS, build, file_of, outputs
from support.running import ROOT, assert_one_chinese_line, run_script

from paddle_vit import UserError
from paddle_vit.family.models import create_model
from paddle_vit.runs.command_line import parse_config
from paddle_vit.runs.loading import load_model
from paddle_vit.weights import describe_weights, export_weights, load_weights
from paddle_vit.weights.checkpoint import read_description, read_model
from paddle_vit.weights.conversion import import_weights, parse_settings, read_class_names
from paddle_vit.weights.info import candidates
from paddle_vit.weights.tables import bundled_tables

# 参考文件的模型比命名的小
TINY = {name: CASES["timm_vit"]["model"][name] for name in ("embed_dim", "depth", "num_heads")}
SETTINGS = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


def logits(name, path):
    """转换好的文件对参考输入的输出,与参考的最大差。"""
    given, expected = outputs(name, load_model(path).model)
    return max(np.abs(given[key] - expected[key]).max() for key in given)


def test_the_converted_file_describes_itself(tmp_path):
    output = tmp_path / "vit.safetensors"
    args = [file_of("hf_vit_patch16_224"), "--model", "vit_tiny", *SETTINGS, "--output", output, "--verbose"]
    done = run_script("import_weights", *args, check=0)
    assert "取来 32 个张量,分类头也取来了" in done.stdout and "取来\tencoders.1.mlp.fc2.weight" in done.stdout
    model, info = read_description(output)
    assert model["name"] == "vit_tiny_patch16_224" and model["epsilon"] == 1e-12 and model["num_classes"] == 5
    assert info["classes"][0] == "斑马" and info["mean"] == [0.5] * 3
    assert logits("hf_vit_patch16_224", output) <= 1e-4
    Image.fromarray(np.zeros((40, 30, 3), "uint8")).save(tmp_path / "a.png")
    done = run_script("predict", output, tmp_path / "a.png", check=0)
    assert sum(name in done.stdout for name in info["classes"]) == 3  # 最可能的三类


def test_a_converted_file_loads_again(tmp_path):
    output, again = tmp_path / "vit.safetensors", tmp_path / "again.safetensors"
    import_weights(
        file_of("timm_swin_window7_224"),
        output,
        "swin_tiny",
        dict(embed_dim=4, depths=[2, 2, 2, 1], num_heads=[1, 2, 2, 4]),
        class_names=list("甲乙丙丁戊"),
    )
    import_weights(output, again)  # 本项目的文件自己写着模型
    (tensors, model, data), (tensors_again, model_again, data_again) = read_model(output), read_model(again)
    assert model_again == model and data_again == {**data, "name": "paddle_vit"}
    assert tensors_again.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(tensors_again[name], value)
    assert logits("timm_swin_window7_224", again) <= 1e-4
    info = describe_weights(again)
    assert info.classes == tuple("甲乙丙丁戊") and info.num_heads == (1, 2, 2, 4) and info.epsilon == 1e-5
    model = build("timm_swin_window7_224", num_heads=[2, 2, 2, 4])
    with pytest.raises(UserError, match=r"头数是 \[1, 2, 2, 4\],模型的是 \[2, 2, 2, 4\]"):
        load_weights(model, again)


def test_the_name_of_the_model_decides_the_normalization(tmp_path):
    """DeiT 的张量名字与 ViT 相同,像素归一化不同。"""
    source = tmp_path / "model.safetensors"
    shutil.copy(file_of("timm_vit"), source)
    for model, mean in (("vit_tiny", 0.5), ("deit_tiny", 0.485)):
        import_weights(source, tmp_path / "out.safetensors", model, TINY)
        assert read_description(tmp_path / "out.safetensors")[1]["mean"][0] == mean


def test_another_image_size(tmp_path):
    output = tmp_path / "vit.safetensors"
    shape = [f"--set={name}={CASES['timm_deit_distilled']['model'][name]}" for name in TINY]
    args = [file_of("timm_deit_distilled"), "--model", "deit_tiny_distilled", *shape, "--image-size", "384"]
    done = run_script("import_weights", *args, "--output", output, check=0)
    assert "由 14×14 改为 24×24" in done.stdout
    loaded = load_model(output)
    assert loaded.info.image_size == 384 and loaded.model.num_prefix_tokens == 2
    assert loaded.info.mean == (0.485, 0.456, 0.406)


def test_unknown_weights_by_way_of_a_proposed_table(tmp_path):
    """草稿 -> 填好 -> 转换;没有填好时说明是哪几项。"""
    table, output, source = tmp_path / "table.yaml", tmp_path / "out.safetensors", file_of("torch_encoder")
    settings = dict(embed_dim=6, depth=2, num_heads=3, num_classes=5)
    with pytest.raises(UserError, match="--propose"):
        import_weights(source, output, "vit_tiny", settings)
    shape = [f"--set={name}={value}" for name, value in settings.items()]
    run_script("import_weights", source, "--model", "vit_tiny", *shape, "--propose", table, check=0)
    draft = table.read_bytes()
    again = run_script("import_weights", source, "--model", "vit_tiny", *shape, "--propose", table, check=2)
    assert_one_chinese_line(again, "已经有了")
    assert table.read_bytes() == draft
    with pytest.raises(UserError, match="norm_first、activation、epsilon、num_heads、normalization 还没有填"):
        import_weights(source, output, "vit_tiny", settings, table=table)
    text = table.read_text("utf-8")
    for name, value in FACTS.items():
        text = text.replace(f'{name}: "?"', f"{name}: {json.dumps(value)}")
    table.write_text(text, "utf-8")
    import_weights(source, output, "vit_tiny", settings, table=table)
    assert logits("torch_encoder", output) <= 1e-4


def test_the_timm_file_beside_it(tmp_path):
    timm = tmp_path / "timm.safetensors"
    args = [file_of("timm_vit"), "--model", "vit_tiny", *SETTINGS, "--output", tmp_path / "own.safetensors"]
    done = run_script("import_weights", *args, "--export-timm", timm, check=0)
    assert "timm.models.vision_transformer.VisionTransformer(" in done.stdout
    model = build("timm_vit")
    load_weights(model, timm)
    given, expected = outputs("timm_vit", model)
    assert np.abs(given["logits"] - expected["logits"]).max() <= 1e-4


def test_mistakes_on_the_command_line(tmp_path):
    done = run_script("import_weights", file_of("timm_vit"), "--model", "vit_tiny", cwd=tmp_path)
    assert_one_chinese_line(done, "--output")
    output = tmp_path / "x.safetensors"
    for args, word in [
        ((output,), "--model"),
        ((tmp_path / "x.bin", "vit_tiny", TINY), r"\.safetensors"),
        ((output, "vit_tiny", {**TINY, "num_classes": 7}), "分类头"),
        ((output, "vit_tiny"), "形状不同"),
    ]:
        with pytest.raises(UserError, match=word):
            import_weights(file_of("timm_vit"), *args)
    with pytest.raises(UserError, match="名字=值"):
        parse_settings(["depth"])
    assert list(tmp_path.iterdir()) == []


def test_settings_and_class_names(tmp_path):
    assert parse_settings(["num-heads=6", "depths=[2, 2]", "qkv_bias=true"]) == {
        "num_heads": 6,
        "depths": [2, 2],
        "qkv_bias": True,
    }
    names = tmp_path / "names.txt"
    names.write_text("猫\n狗\n", "utf-8")
    assert read_class_names(names) == ["猫", "狗"]
    for text in ("猫\n\n狗", "猫\n猫\n", ""):
        names.write_text(text, "utf-8")
        with pytest.raises(UserError, match="空行或重名"):
            read_class_names(names)
    names.write_bytes("狗".encode("gbk"))
    with pytest.raises(UserError, match="UTF-8"):
        read_class_names(names)
    names.write_text("猫\n狗\n", "utf-8")
    with pytest.raises(UserError, match="有 2 个类别名,而分类头有 5 类"):
        import_weights(file_of("timm_vit"), tmp_path / "x.safetensors", "vit_tiny", TINY, read_class_names(names))


@pytest.mark.parametrize(
    "name, count",
    [
        ("vit_tiny_patch16_384", 3),  # 与 DeiT-Ti 的张量名字相同,另一个分辨率的也能装
        ("vit_base_patch32_gap_224", 2),
        ("deit_small_distilled_patch16_224", 1),
        ("vit_huge_patch14_224", 1),
        ("swin_small_patch4_window7_224", 1),
        ("swin_base_patch4_window12_384", 1),
    ],
)
def test_the_model_is_guessed_from_the_sizes(name, count):
    with paddle.LazyGuard():
        shapes = {ours: tuple(tensor.shape) for ours, tensor in create_model(name, num_classes=7).state_dict().items()}
    (table,) = (table for table in bundled_tables() if table.name == "paddle_vit")
    found = candidates(table, shapes)
    assert found[0] == name and len(found) == count


def test_a_missing_name_of_the_model_is_guessed(tmp_path):
    export_weights(create_model("vit_tiny", num_classes=2), tmp_path / "a.safetensors")
    for action in (
        lambda: import_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors"),
        lambda: parse_config(["--weights", str(tmp_path / "a.safetensors")]),
    ):
        with pytest.raises(UserError, match=r"--model.*它像是 vit_tiny_patch16_224、deit_tiny_patch16_224"):
            action()


# 运行一个脚本,最后把内存的峰值(KB)打印在最后一行
MEASURED = """
import atexit, re, runpy, sys
from pathlib import Path
atexit.register(lambda: print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]))
del sys.argv[0]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="内存的峰值从 Linux 的 /proc 读")
@pytest.mark.parametrize("kind", ["safetensors", "pdparams"])
def test_a_large_file_is_converted_quickly_and_in_little_memory(kind, tmp_path):
    """ViT-B:不到只建一个这样的模型的两倍时间,不到文件的三倍内存。"""
    model = create_model("vit_base_patch16_224")
    source = tmp_path / f"big.{kind}"
    if kind == "safetensors":
        export_weights(model, source)
    else:
        paddle.save(model.state_dict(), str(source))
    script = [ROOT / "scripts" / "import_weights.py", source, "--model", "vit_base_patch16_224"]
    command = [sys.executable, "-c", MEASURED, *script, "--output", tmp_path / "out.safetensors"]
    building = "from paddle_vit import create_model; create_model('vit_base_patch16_224')"
    done, used = run_and_measure(command)
    assert used < 2 * run_and_measure([sys.executable, "-c", building])[1]
    assert int(done.stdout.split()[-1]) * 1024 < 3 * source.stat().st_size


def run_and_measure(command):
    """命令的结果,和它用的处理器时间(秒):不受同时运行的别的程序影响。"""
    before = os.times()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = os.times()
    return done, sum(after[2:4]) - sum(before[2:4])
