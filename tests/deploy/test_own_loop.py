"""自己的循环:docs/own-loop.md 从数据到网页,照写的做。"""

import os
import shlex
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image
from support.documents import ROOT, blocks
from support.running import assert_one_chinese_line, run_here, run_script

from paddle_vit import Predictor, SwinTransformer, UserError, ViT, load_data, make_config
from paddle_vit.deploy.classifier import Classifier

SMALL = dict(image_size=8, patch_size=4, in_channels=1, num_classes=3, embed_dim=8, depth=1, num_heads=2)
FACTS = dict(classes=["猫", "狗", "鸟"], mean=[0.4], std=[0.2])
PAGE = "docs/own-loop.md"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """照 docs/own-loop.md 训练、存权重、转换之后的目录。"""
    directory = tmp_path_factory.mktemp("own")
    (block,) = blocks(PAGE, "python")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", block], cwd=directory, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    top1, normalization = done.stdout.splitlines()[-2:]
    assert float(top1.split()[-1].rstrip("%")) > 85
    (directory / "normalization").write_text(normalization, encoding="utf-8")
    return directory


def convert_command():
    lines = "".join(blocks(PAGE, "bash")).replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if "import_weights" in line]
    return shlex.split(line)[2:]


def test_the_page_leads_from_data_to_a_picture_on_the_page(directory):
    command = convert_command()
    mean, std = (command[command.index(option) + 1] for option in ("--mean", "--std"))
    assert (directory / "normalization").read_text(encoding="utf-8") == f"({mean},) ({std},)"
    done = run_script("import_weights", *command, cwd=directory, check=0)
    assert "提示" not in done.stdout
    test = load_data(make_config({})).test
    Image.fromarray(test.images[3][..., 0]).resize((80, 80)).save(directory / "digit.png")
    done = run_script("predict", "my.safetensors", "digit.png", cwd=directory, check=0)
    assert done.stdout.split("\t")[1].split()[0] == str(test.labels[3])
    classifier = Classifier(Predictor(directory / "my.safetensors"))
    prediction, _ = classifier.classify(directory / "digit.png")
    assert prediction.label == str(test.labels[3])


def test_what_is_left_out_is_told(directory, tmp_path):
    args = ["import_weights", directory / "my.pdparams", "--model", "vit", "--output", tmp_path / "x.safetensors"]
    told = "--set embed_dim=48 --set patch_size=2 --set depth=2 --set position_embedding=learnable --set image_size=8"
    assert_one_chinese_line(run_here(*args), told)
    assert_one_chinese_line(run_here(*args, "--image-size", "8"), "patch_size", "--set")  # 默认的图块比图像大
    rest = ["--image-size", "8", "--set", "patch_size=2", "--set", "embed_dim=48", "--set", "depth=2"]
    done = run_here(*args, *rest)
    assert_one_chinese_line(done, "--set position_embedding=learnable")
    assert "image_size" not in done.stderr
    whole = [*args, *told.split()]
    done = run_script(*whole, check=0)
    assert "--mean" in done.stdout and "--std" in done.stdout
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    predicted = run_here("predict", tmp_path / "x.safetensors", tmp_path / "a.png")
    assert_one_chinese_line(predicted, "--mean", "--std", "--class-names")
    assert_one_chinese_line(run_here(*whole, "--mean", "0.5"), "std")
    assert_one_chinese_line(run_here(*whole, "--mean", "0.5,0.5", "--std", "0.5,0.5"), "1 个通道", "[0.5, 0.5]")
    assert_one_chinese_line(run_here(*whole, "--mean", "0.5", "--std", "0"), "std", "大于 0")
    assert_one_chinese_line(run_here(*whole, "--mean", "half", "--std", "0.5"), "half", "0.5,0.5,0.5")


class Net(nn.Layer):
    """本项目没有见过的模型。"""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize("make", [lambda: ViT(**SMALL), Net], ids=["ViT", "own"])
def test_a_model_and_three_facts_make_a_predictor(make):
    model = make()
    image_size = 8 if isinstance(model, Net) else None
    predictor = Predictor(model, "eager", **FACTS, image_size=image_size)
    image = np.random.default_rng(0).integers(0, 256, (8, 8), "uint8")
    logits = model(paddle.to_tensor(((image / 255 - 0.4) / 0.2)[None, None].astype("float32"))).numpy()[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    prediction = predictor(image)
    assert prediction.label == FACTS["classes"][expected.argmax()]
    assert prediction.probability == pytest.approx(expected.max(), rel=1e-4)


@pytest.mark.parametrize(
    "facts, words",
    [
        (dict(classes=None), ("classes", "load_data")),
        (dict(mean=None, std=None), ("mean", "std")),
        (dict(classes=["猫", "狗"]), ("3 类", "2 个类别名")),
        (dict(mean=[0.4, 0.4]), ("mean=[0.4, 0.4]", "1 个通道")),
        (dict(mean=0.4), ("mean=0.4", "1 个通道")),
        (dict(std=[0.0]), ("std=[0.0]", "大于 0")),
        (dict(std=[float("nan")]), ("std",)),
        (dict(image_size=(8, 12)), ("8 x 12", "模型的图像是 8 像素")),
    ],
)
def test_facts_that_do_not_fit_the_model(facts, words):
    with pytest.raises(UserError) as error:
        Predictor(ViT(**SMALL), **{**FACTS, **facts})
    assert all(word in str(error.value) for word in words), error.value


def test_a_model_that_does_not_tell_its_size_and_a_run_that_tells_everything(tiny_run):
    with pytest.raises(UserError, match=r"Net.*image_size"):
        Predictor(Net(), **FACTS)
    with pytest.raises(UserError, match="已经写着"):
        Predictor(tiny_run, classes=["a"])
    swin = SwinTransformer(image_size=8, patch_size=2, in_channels=1, num_classes=3, embed_dim=8, depths=(1,),
                           num_heads=(2,), window_size=2)  # fmt: skip
    assert Predictor(swin, "eager", **FACTS)(np.zeros((8, 8), "uint8")).label in FACTS["classes"]
