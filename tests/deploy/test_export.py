import dataclasses
import json
import shutil
import subprocess
import sys
import zlib

import numpy as np
import paddle
import pytest
from filelock import FileLock
from PIL import Image, ImageOps
from support.documents import blocks
from support.engines import CPU, SMALL, has_bfloat16, has_openvino, perturbed
from support.exports import FAMILIES, IMAGES, INFO, loaded
from support.running import assert_one_chinese_line, run_script

from paddle_vit import Predictor, UserError, ViT, create_model
from paddle_vit.data.info import DataInfo
from paddle_vit.data.parts import varied_images
from paddle_vit.deploy import export
from paddle_vit.deploy.engines import FastModel
from paddle_vit.deploy.export import (
    PrecisionComparison,
    compare_precisions,
    export_model,
    is_export,
    load_export,
    real_images,
)
from paddle_vit.runs.command_line import parse_config
from paddle_vit.runs.loading import LoadedModel, load_model, load_run, load_run_data
from paddle_vit.runs.train import train
from paddle_vit.system.fitting import Fit


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


def onnx_session(path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="没有装 ONNX Runtime")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


TRAINED = {
    "average": "",
    "class token": "--pool cls --position-embedding learnable",
    "distilled": "--pool cls --distillation-token --position-embedding learnable",
    "everything": "--register-tokens 2 --layer-scale 0.1 --qk-norm --qkv-bias --position-embedding sincos --head mlp",
    "another size": "--image-size 20 --patch-size 5 --norm-after-pool --position-embedding sincos1d",
    "cct": "--model cct_2_3x2_32 --image-size 8",
    "swin": "--model swin_tiny --image-size 16 --embed-dim 24 --window-size 3",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_all_engines_agree_on_100_real_images(name, tmp_path, capfd):
    pytest.importorskip("paddle2onnx", reason="没有装 paddle2onnx")
    run = train(parse_config([*TRAINED[name].split(), "--epochs", "1", "--output", str(tmp_path / "run")]))
    images = real_images(run)
    capfd.readouterr()
    differences = export_model(run, tmp_path / "out", images)
    assert len(images) == 100 and {"Paddle Inference(原生)", "ONNX Runtime"} < set(differences)
    assert max(differences.values()) <= 1e-4
    session = onnx_session(tmp_path / "out" / "model.onnx")
    assert [(item.name, item.shape[0]) for item in (*session.get_inputs(), *session.get_outputs())] == [
        ("image", "B"),
        ("logits", "B"),
    ]
    assert "onnxruntime" not in capfd.readouterr().err  # 没有警告
    for batch in (images, images[:1], images[:7]):
        (found,) = session.run(["logits"], {"image": batch})
        np.testing.assert_allclose(found, eager(run.model, batch), atol=1e-4, rtol=0)


def prepared(path, preprocess):
    """照 description.json 的步骤,不用本项目,处理一张图片:float32 [C, H, W]。"""
    size = preprocess["image_size"]
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(preprocess["mode"])
    s = min(image.size)
    left, top = (image.width - s) / 2, (image.height - s) / 2
    image = image.resize((size, size), Image.BICUBIC, box=(left, top, left + s, top + s))
    pixels = np.asarray(image, "float32").reshape(size, size, preprocess["channels"]) / 255
    return ((pixels - preprocess["mean"]) / preprocess["std"]).transpose(2, 0, 1).astype("float32")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_the_description_is_enough_to_use_the_onnx_file(channels, tmp_path):
    pytest.importorskip("paddle2onnx", reason="没有装 paddle2onnx")
    info = DataInfo("test", INFO.classes, channels, 16, (0.2, 0.5, 0.7)[:channels], (0.3, 0.2, 0.4)[:channels], {})
    model = perturbed(ViT(**{**SMALL, "in_channels": channels}, pool="cls"))
    images = IMAGES[:, :channels].copy()
    export_model(LoadedModel("x.safetensors", info, model, {"name": "vit"}), tmp_path / "out", images)
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6  # 要转 90 度
    for i, size in enumerate([(61, 40), (20, 33), (16, 16)]):
        picture = Image.fromarray(rng.integers(0, 256, (4, 4, 4), "uint8")).resize(size)
        picture.save(tmp_path / f"{i}.png")
        picture.convert("RGB").save(tmp_path / f"{i}.jpg", exif=exif)
        picture.convert("L").save(tmp_path / f"{i}-gray.png")
    paths = sorted(path for path in tmp_path.iterdir() if path.is_file())

    description = json.loads((tmp_path / "out" / "description.json").read_text(encoding="utf-8"))
    session = onnx_session(tmp_path / "out" / "model.onnx")
    x = np.stack([prepared(path, description["preprocess"]) for path in paths])
    (logits,) = session.run([description["output"]["name"]], {description["input"]["name"]: x})
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = Predictor(tmp_path / "out").probabilities(paths)
    assert len(paths) == 9 and np.ptp(expected, axis=0).max() > 0.03  # 各张图片的答案不同
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_the_program_of_the_page_answers_like_the_predictor(default_run, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="没有装 onnxruntime")
    source = load_run(default_run)
    export_model(source, tmp_path / "export", real_images(source, count=4))
    (program,) = (block for block in blocks("docs/deploy.md", "python") if "onnxruntime" in block)
    assert "runs/digits-…/export" in program and "图片.png" in program
    program = program.replace("runs/digits-…/export", str(tmp_path / "export"))
    program = program.replace("图片.png", str(tmp_path / "a.png"))
    _, images = varied_images(load_run_data(source).test, 5)
    for pixels in images:
        Image.fromarray(pixels[..., 0]).resize((30, 41)).save(tmp_path / "a.png")
        exec(program, {})
    expected = [Predictor(source)(Image.fromarray(pixels[..., 0]).resize((30, 41))).label for pixels in images]
    assert capsys.readouterr().out.split() == expected and len(set(expected)) > 1


def test_an_export_is_not_a_run(tmp_path):
    export_model(loaded("average"), tmp_path / "out", IMAGES[:2], onnx=False)
    with pytest.raises(UserError, match="是导出的目录"):
        load_model(tmp_path / "out")
    with pytest.raises(UserError, match="整个导出的目录"):
        Predictor(tmp_path / "out" / "model.pdmodel")
    (tmp_path / "out" / "description.json").unlink()
    with pytest.raises(UserError, match="不是完整的导出"):
        Predictor(tmp_path / "out")


@pytest.mark.parametrize(
    "part, error, words",
    [("forward", UserError("没有算完"), "没有算完"), ("__init__", OSError(28, "No space"), "磁盘已满")],
)
def test_an_engine_that_fails_at_work_is_not_passed_over(part, error, words, tmp_path, monkeypatch):
    """没有编译进 Paddle 的引擎可以不核对;有而算不完的、临时目录写不下的,不行。"""

    def broken(*arguments):
        raise error

    monkeypatch.setattr(FastModel, part, broken)
    with pytest.raises(UserError, match=words):
        export_model(loaded("average"), tmp_path / "out", IMAGES[:2], onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="/proc/x"):
        export_model(loaded("average"), "/proc/x", IMAGES[:2], onnx=False)


def test_an_export_that_disagrees_leaves_no_file(tmp_path):
    class Changed(ViT):
        def pool_tokens(self, x):
            return super().pool_tokens(x) * 2

    source = LoadedModel("x.safetensors", INFO, perturbed(Changed(**SMALL)), {"name": "vit"})
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


def test_what_a_killed_export_left_is_put_right(tmp_path):
    output, work, old = tmp_path / "out", tmp_path / ".out.new", tmp_path / ".out.old"
    export_model(loaded("average"), output, IMAGES[:2], onnx=False)
    before = (output / "model.pdiparams").read_bytes()
    output.rename(old)  # 被杀在换目录的两步之间
    work.mkdir()
    (work / "model.pdiparams").write_bytes(b"half")
    wrong = IMAGES[:2] * np.nan
    with pytest.raises(UserError, match="对不上"):
        export_model(loaded("class token"), output, wrong, onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (output / "model.pdiparams").read_bytes() == before


def test_two_exports_at_once(tmp_path):
    with FileLock(str(tmp_path / ".out.lock")), pytest.raises(UserError, match="另一个程序"):
        export_model(loaded("average"), tmp_path / "out", IMAGES[:2], onnx=False)
    export_model(loaded("average"), tmp_path / "out", IMAGES[:2], onnx=False)
    assert is_export(tmp_path / "out")


def test_a_disk_too_full_for_onnx(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(UserError, match="磁盘已满"):
        export_model(loaded("average"), tmp_path / "out", IMAGES[:2])
    assert list(tmp_path.iterdir()) == []


def remove_weights(directory):
    (directory / "model.pdiparams").unlink()


def change_one_weight(directory):
    path = directory / "model.pdiparams"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x7F
    path.write_bytes(bytes(data))


def cut_the_description(directory):
    path = directory / "description.json"
    path.write_text(path.read_text(encoding="utf-8")[:300], encoding="utf-8")


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


def test_a_weights_file_knows_its_model(tiny_run, tmp_path):
    run, source = load_run(tiny_run), load_model(tiny_run / "best.safetensors")
    export_model(source, tmp_path / "out", real_images(run, count=2), onnx=False)
    description = json.loads((tmp_path / "out" / "description.json").read_text(encoding="utf-8"))
    assert description["model"] == run.arguments and description["model"]["embed_dim"] == 8
    again = create_model(**description["model"])
    again.set_state_dict(source.model.state_dict())
    again.eval()
    images = real_images(run, count=5)
    np.testing.assert_array_equal(eager(again, images), eager(run.model, images))


def test_the_comparison_says_what_is_lost_and_gained():
    comparison = PrecisionComparison(("甲", "乙"), 400, (0.91, 0.905), (100.0, 150.0))
    assert str(comparison).splitlines()[-1] == "bfloat16 比 float32:正确率低 0.50 个百分点,速度是 1.50 倍"
    same = dataclasses.replace(comparison, top1=(0.91, 0.91))
    better = dataclasses.replace(comparison, top1=(0.91, 0.92))
    assert "正确率相同" in str(same) and "正确率高 1.00 个百分点" in str(better)


def test_the_models_are_timed_in_turn(monkeypatch):
    order, clock = [], [0.0]
    monkeypatch.setattr(export.time, "perf_counter", lambda: clock[0])

    def model(name, seconds):
        def forward(images):
            order.append(name)
            clock[0] += seconds * (10 if len(order) < 5 else 1)  # 开头慢

        return forward

    seconds = export._seconds_in_turn([model("a", 2.0), model("b", 1.0)], None)
    assert order[:4] == ["a", "b", "a", "b"] and seconds.tolist() == [2.0, 1.0]


@pytest.mark.skipif(not (has_openvino and has_bfloat16), reason="这里没有 bfloat16")
def test_precisions_are_compared_on_the_test_part(tiny_run):
    run = load_run(tiny_run)
    found = compare_precisions(run, CPU)
    assert found.engines == ("OpenVINO float32", "OpenVINO bfloat16") and min(found.speeds) > 0
    assert found.images == run.info.counts["test"]
    np.testing.assert_allclose(found.top1[0], run.summary["test_top1"], atol=1e-4)
    assert abs(found.top1[1] - found.top1[0]) < 0.03


def test_bfloat16_that_cannot_be_is_said_before_anything_is_written(tiny_run, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    source, output = tiny_run / "best.safetensors", tmp_path / "x"
    done = run_script("export", source, "--bfloat16", "--output", output, "--images", tmp_path / "a.png")
    assert_one_chinese_line(done, "--bfloat16")
    assert not output.exists()


@pytest.mark.parametrize(
    "fit, words",
    [
        (Fit(), ("长宽比为 16:16", "BICUBIC")),
        (Fit("squash", "bilinear"), ("不管长宽比", "BILINEAR")),
        (Fit("crop", "bicubic", 0.9, "floor"), ("高 17、宽 17", "差 // 2")),
        (Fit("pad", rounding="round", fill=(1, 2, 3)), ("按长边", "[1, 2, 3]")),
    ],
)
def test_the_fit_travels_with_the_export(tmp_path, fit, words):
    source = loaded("class token")
    source = dataclasses.replace(source, info=dataclasses.replace(source.info, fit=fit))
    export_model(source, tmp_path / "out", IMAGES[:2], onnx=False)
    preprocess = json.loads((tmp_path / "out" / "description.json").read_text(encoding="utf-8"))["preprocess"]
    assert preprocess["fit"]["kind"] == fit.kind and all(word in "".join(preprocess["steps"]) for word in words)
    assert Predictor(tmp_path / "out").info == source.info
