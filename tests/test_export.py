import json
import shutil
import subprocess
import sys
import zlib

import numpy as np
import paddle
import pytest
from conftest import run_script
from test_engines import SMALL, SWIN, perturbed
from test_scripts import assert_one_chinese_line

from paddle_vit import UserError, ViT, export
from paddle_vit.data import DataInfo
from paddle_vit.export import export_model, is_export, load_export
from paddle_vit.runs import LoadedModel, load_run
from paddle_vit.swin import SwinTransformer

FAMILIES = {
    "average": lambda: ViT(**SMALL, position_embedding="learnable"),
    "class token": lambda: ViT(**SMALL, pool="cls", qkv_bias=True, register_tokens=2),
    "distilled": lambda: ViT(**SMALL, pool="cls", distillation=True, layer_scale=0.5, qk_norm=True),
    "swin": lambda: SwinTransformer(**SWIN, window_size=3),
}
INFO = DataInfo("test", tuple("甲乙丙丁戊己庚"), 3, 16, (0.5,) * 3, (0.25,) * 3, {})
IMAGES = np.random.default_rng(1).standard_normal((20, 3, 16, 16)).astype("float32")


def loaded(name):
    return LoadedModel(f"{name}.safetensors", INFO, perturbed(FAMILIES[name]()))


@paddle.no_grad()
def eager(model, images):
    return model(paddle.to_tensor(images)).numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_files_give_the_answers_of_the_eager_model(name, tmp_path):
    """另开一个只有 Paddle Inference、没有本项目的进程,像使用者那样读文件。"""
    source = loaded(name)
    differences = export_model(source, tmp_path / "out", IMAGES, onnx=False)
    assert any("原生" in engine for engine in differences) and max(differences.values()) < 1e-3
    np.save(tmp_path / "images.npy", IMAGES[:5])
    program = """
import numpy as np
from paddle import inference
predictor = inference.create_predictor(inference.Config("out/model.pdmodel", "out/model.pdiparams"))
(name,) = predictor.get_input_names()
assert name == "image"
image, (output,) = predictor.get_input_handle(name), predictor.get_output_names()
found = []
for batch in np.split(np.load("images.npy"), [3, 4]):
    image.reshape(batch.shape)
    image.copy_from_cpu(batch)
    predictor.run()
    found.append(predictor.get_output_handle(output).copy_to_cpu())
np.save("logits.npy", np.concatenate(found))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = eager(source.model, IMAGES[:5])
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_gives_the_answers_of_the_eager_model(name, tmp_path):
    pytest.importorskip("paddle2onnx", reason="没有装 paddle2onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="没有装 ONNX Runtime")
    source = loaded(name)
    assert "ONNX Runtime" in export_model(source, tmp_path / "out", IMAGES)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["image"]
    for batch in (IMAGES[:1], IMAGES[:7]):
        expected = eager(source.model, batch)
        (found,) = session.run(None, {"image": batch})
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_an_export_that_disagrees_leaves_no_file(tmp_path):
    class Changed(ViT):
        def pool_tokens(self, x):
            return super().pool_tokens(x) * 2

    source = LoadedModel("x.safetensors", INFO, perturbed(Changed(**SMALL)))
    with pytest.raises(UserError, match="对不上"):
        export_model(source, tmp_path / "out", IMAGES, onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_a_new_export_replaces_the_old_one_and_nothing_else(tmp_path):
    output = tmp_path / "out"
    for name in ("average", "class token"):
        source = loaded(name)
        export_model(source, output, IMAGES[:2], onnx=False)
        info, fast, _ = load_export(output)
        assert info == INFO
        expected = eager(source.model, IMAGES[:3])
        np.testing.assert_allclose(fast(paddle.to_tensor(IMAGES[:3])).numpy(), expected, atol=1e-4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="不是导出的目录"):
        export_model(loaded("average"), tmp_path / "mine", IMAGES[:2], onnx=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_without_paddle2onnx(tmp_path, monkeypatch):
    """它没有给 Python 3.13 的安装包:只说“请安装”,那里的人就没有出路了。"""
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"paddle2onnx.*3\.12.*--no-onnx"):
        export_model(loaded("average"), tmp_path / "out", IMAGES[:2])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_current_directory_can_be_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export_model(loaded("average"), ".", IMAGES[:2], onnx=False)
    assert is_export(tmp_path)


def test_a_failure_keeps_the_old_export(tmp_path, monkeypatch):
    output = tmp_path / "out"
    source = loaded("average")
    export_model(source, output, IMAGES[:2], onnx=False)
    before = (output / "model.pdiparams").read_bytes()

    def full_disk(constants, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_weights", full_disk)
    with pytest.raises(UserError, match="磁盘"):
        export_model(source, output, IMAGES[:2], onnx=False)
    assert (output / "model.pdiparams").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["out"]


def remove_weights(directory):
    (directory / "model.pdiparams").unlink()


def change_one_weight(directory):
    path = directory / "model.pdiparams"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x7F
    path.write_bytes(bytes(data))


def cut_the_description(directory):
    path = directory / "description.json"
    path.write_bytes(path.read_bytes()[:300])


def another_description(directory):
    (directory / "description.json").write_text(json.dumps({"format": "x"}), encoding="utf-8")


def other_weights(directory):
    """另一个模型的权重,校验和也改了。"""
    other = loaded("average")
    other.model.head.weight.set_value(other.model.head.weight + 1)
    source = directory.with_name("other")
    export_model(other, source, IMAGES[:2], onnx=False)
    for name in ("model.pdmodel", "model.pdiparams"):
        shutil.copy(source / name, directory)
    mine, others = (json.loads((path / "description.json").read_text("utf-8")) for path in (directory, source))
    (directory / "description.json").write_text(json.dumps({**mine, "files": others["files"]}), encoding="utf-8")


def nan_weights(directory):
    """分类头的偏置全是 NaN,校验和也改了。"""
    path = directory / "model.pdiparams"
    data = path.read_bytes()[:-28] + b"\xff" * 28  # 分类头的 7 个偏置
    path.write_bytes(data)
    description = json.loads((directory / "description.json").read_text("utf-8"))
    description["files"]["model.pdiparams"] = zlib.crc32(data)
    (directory / "description.json").write_text(json.dumps(description), encoding="utf-8")


@pytest.mark.parametrize(
    "damage, words",
    [
        (remove_weights, "model.pdiparams"),
        (other_weights, "算不对"),
        (change_one_weight, "已损坏"),
        (nan_weights, "算不对"),
        (cut_the_description, "已损坏"),
        (another_description, "已损坏"),
    ],
)
def test_a_damaged_export_is_refused(damage, words, tmp_path):
    export_model(loaded("average"), tmp_path / "out", IMAGES[:2], onnx=False)
    load_export(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=words):
        load_export(tmp_path / "out")


def test_the_script(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    done = run_script("export", run, "--no-onnx", check=0)
    assert "100 张图像" in done.stdout and is_export(run / "export")
    description = json.loads((run / "export" / "description.json").read_text(encoding="utf-8"))
    info = load_run(run).info
    assert description["classes"] == list(info.classes) and description["preprocess"]["mean"] == list(info.mean)
    assert description["recipe"]["embed_dim"] == 8 and description["model"]["num_classes"] == 10
    again = run_script("export", run / "best.safetensors", "--no-onnx", "--output", tmp_path / "x")
    assert_one_chinese_line(again, "--images")
    assert not (tmp_path / "x").exists()
