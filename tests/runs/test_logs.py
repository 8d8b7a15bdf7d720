import collections
import io
import json
import types

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name
from PIL import Image
from support.results import read_metrics, read_scalars
from support.toys import ToyData

from paddle_vit import create_model
from paddle_vit.config import make_config
from paddle_vit.data.info import DataInfo
from paddle_vit.data.parts import Data
from paddle_vit.runs.logs import NoLog, RunLog
from paddle_vit.system.pictures import confusion_figure, draw, image_grid, mistakes_figure
from paddle_vit.tasks.classification import Classification
from paddle_vit.tasks.evaluation import Evaluation
from paddle_vit.tasks.task import Picture
from paddle_vit.training.loop import Trainer
from paddle_vit.training.progress import Progress, Step

STEPS = 5  # 每轮


def trainer(epoch, step=STEPS):
    """训练到第 epoch 轮(从 0 起)第 step 步的样子。"""
    progress = Progress(epoch, step, count=4, loss_sum=4.0, sums={"top1": 2.0}, epoch_seconds=0.4, wait_seconds=0.008)
    config = make_config({"epochs": 10})
    made = dict(progress=progress, task=Classification(ToyData, config), config=config, steps_per_epoch=STEPS)
    return types.SimpleNamespace(**made, schedule=types.SimpleNamespace(rate=lambda step: 0.1))


def validated(loss=2.0):
    """四张,三类,对了一张。"""
    classes = np.array([[0, 1], [0, 1], [1, 0], [1, 0]])
    return Evaluation(np.array([0, 1, 2, 2]), np.full(4, loss), classes, np.full((4, 2), 0.5))


def one_step(loss):
    return Step(loss, {"top1": 1.0}, 4, 0.5, False, False)


def test_nothing_is_lost_without_close(tmp_path):
    log = RunLog(tmp_path, 10, 5, every=1)
    for step in range(50):
        log.step(trainer(step // STEPS, step % STEPS + 1), one_step(step / 2), 0.1, 10.0)
    log.epoch(trainer(0), validated())
    # 没有 flush,也没有 close:文件里已经有全部记录
    assert read_scalars(tmp_path, "loss/train_step") == [(step, step / 2) for step in range(50)]
    assert read_scalars(tmp_path, "loss/val") == [(1, 2.0)]
    assert read_scalars(tmp_path, "top1/train") == [(1, 0.5)]
    assert read_scalars(tmp_path, "top1_balanced/val") == [(1, pytest.approx(1 / 3))]
    assert [read_scalars(tmp_path, f"recall/{name}") for name in "abc"] == [[(1, 1.0)], [(1, 0.0)], [(1, 0.0)]]
    (line,) = read_metrics(tmp_path)
    assert [line[name] for name in ("epoch", "train_loss", "train_top1", "val_loss", "val_top1")] == [
        1,
        1.0,
        0.5,
        2.0,
        0.25,
    ]
    assert (line["images_per_second"], line["data_wait"], line["grad_norm"]) == (10.0, 0.02, 0.0)
    log.close()


def test_a_resumed_log_goes_on_from_its_position(tmp_path):
    log = RunLog(tmp_path, 10, 5, every=1)
    log.epoch(trainer(0), validated())
    position = json.loads(json.dumps(log.position()))
    log.epoch(trainer(1), validated())  # 检查点之后写的,续训会重新写一遍
    log.close()
    with open(tmp_path / "vdlrecords.log", "ab") as file:
        file.write(b"half a record")
    log = RunLog(tmp_path, 10, 5, position, every=1)
    log.epoch(trainer(1), validated(3.0))
    log.close()
    assert read_scalars(tmp_path, "loss/val") == [(1, 2.0), (2, 3.0)]
    assert [line["val_loss"] for line in read_metrics(tmp_path)] == [2.0, 3.0]
    assert len(list(tmp_path.glob("*vdlrecords*"))) == 1


def test_every(tmp_path):
    log = RunLog(tmp_path, 10, STEPS, every=4)
    for step in range(10):
        log.step(trainer(step // STEPS, step % STEPS + 1), one_step(1.0), 0.1, 10.0)
    assert [step for step, _ in read_scalars(tmp_path, "top1/train_step")] == [0, 4, 8]
    log.close()


def test_the_log_of_the_other_processes_has_every_method_and_writes_nothing():
    log = NoLog()
    public = {name for name in dir(RunLog) if not name.startswith("_")}
    assert public == {name for name in dir(NoLog) if not name.startswith("_")}
    log.step(trainer(0), one_step(1.0), 0.1, 10.0)
    log.epoch(trainer(0), validated())
    assert log.position() is None and vars(log) == {}


def test_a_lost_or_short_record_file_does_not_break_the_new_curve(tmp_path):
    log = RunLog(tmp_path, 10, 5)
    for epoch in (1, 2):
        log.epoch(trainer(epoch - 1), validated())
    position = log.position()
    log.close()
    (tmp_path / "vdlrecords.log").unlink()
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(lines[0])
    log = RunLog(tmp_path, 10, 5, position)
    log.epoch(trainer(2), validated())
    assert log.position()["metrics"] == (tmp_path / "metrics.jsonl").stat().st_size
    assert log.position()["visualdl"] == (tmp_path / "vdlrecords.log").stat().st_size
    log.close()
    assert read_scalars(tmp_path, "loss/val") == [(3, 2.0)]
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 3]


def test_figures_take_any_class_name(tmp_path):
    confusion_figure(np.eye(2, dtype=int), ["a$x_$", "100%"], "50% of $x$").savefig(tmp_path / "a.png")
    mistakes_figure([np.zeros((4, 4, 3), "uint8")], [(0, 1, 0.5)], ["a$x_$", "b^"], "$").savefig(tmp_path / "b.png")
    confusion_figure(np.eye(200, dtype=int), [str(i) for i in range(200)], "many").savefig(tmp_path / "c.png")
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())


def test_a_drawn_figure_equals_the_saved_one(tmp_path):
    confusion_figure(np.eye(3, dtype=int), ["猫", "狗", "鸟"], "标题").savefig(tmp_path / "a.png")
    pixels = draw(confusion_figure(np.eye(3, dtype=int), ["猫", "狗", "鸟"], "标题"))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(tmp_path / "a.png"))[..., :3])


def test_image_grid_shows_every_pixel():
    images = np.arange(3 * 4 * 4, dtype="uint8").reshape(3, 4, 4, 1)
    grid = image_grid(images, columns=2, min_side=8)
    assert grid.shape == (20, 20, 3)
    np.testing.assert_array_equal(grid[0:8:2, 10:18:2, 0], images[1, ..., 0])
    np.testing.assert_array_equal(grid[10:18:2, 0:8:2, 2], images[2, ..., 0])


def test_a_runs_records(tiny_run):
    from visualdl import LogReader

    reader = LogReader(file_path=str(tiny_run / "vdlrecords.log"))
    tags = reader.get_tags()
    scalars = "loss/train loss/val loss/train_step top1/train top1/val optimizer/lr optimizer/grad_norm "
    scalars += "speed/images_per_second speed/data_wait result/test_top1"
    assert set(scalars.split()) <= set(tags["scalar"])
    images = "train/images val/confusion val/mistakes test/confusion test/mistakes attention/heads attention/rollout"
    assert set(images.split()) <= set(tags["image"])
    assert "weights/head.weight" in tags["histogram"]
    (compared,) = reader.get_data("hyper_parameters", tags["hyper_parameters"][0])
    given, shown = (
        [info.name for info in infos] for infos in (compared.hparam.hparamInfos, compared.hparam.metricInfos)
    )
    assert given == ["lr", "batch_size", "epochs", "embed_dim", "depth", "position_embedding"]
    assert shown == ["result/test_top1", "result/val_top1"]  # 更多的轴会让浏览器卡住
    both = [(item.id, item.tag_value.tag, item.tag_value.value) for item in reader.get_data("scalars", "loss/both")]
    lines = read_metrics(tiny_run)
    expected = [(line["epoch"], part, line[f"{part}_loss"]) for line in lines for part in ("train", "val")]
    assert [item[:2] for item in both] == [item[:2] for item in expected]
    np.testing.assert_allclose([item[2] for item in both], [item[2] for item in expected], rtol=1e-6)
    names = {path.name for path in tiny_run.iterdir()}
    expected = "config.yaml data.json metrics.jsonl best.safetensors last.safetensors summary.json vdlrecords.log"
    assert {*expected.split(), "confusion_test.png", "mistakes_test.png"} <= names
    (shown,) = (item for item in reader.get_data("image", "test/confusion"))
    shown = np.asarray(Image.open(io.BytesIO(shown.image.encoded_image_string)))
    np.testing.assert_array_equal(shown, np.asarray(Image.open(tiny_run / "confusion_test.png")))
    summary = json.loads((tiny_run / "summary.json").read_text(encoding="utf-8"))
    assert 0 <= summary["test_top1"] <= 1 and summary["parameters"] > 0 and summary["best_epoch"] in (1, 2)
    lines = read_metrics(tiny_run)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"train_loss", "train_top1", "val_loss", "val_top1", "lr", "images_per_second"} <= set(lines[0])


def test_a_picture_with_nothing_to_draw_removes_the_old_file(tmp_path):
    log = RunLog(tmp_path, 10, 5)
    log.pictures([Picture("val/mistakes", np.zeros((1, 4, 4, 1), "uint8"), "mistakes_val.png")], 1)
    assert (tmp_path / "mistakes_val.png").exists()
    for _ in range(2):
        log.pictures([Picture("val/mistakes", None, "mistakes_val.png")], 2)
        assert not (tmp_path / "mistakes_val.png").exists()
    log.close()


def graph_of(model, directory):
    """训练开始时写的网络结构图,VisualDL 自己的格式;没有写就是 ``None``。"""
    log = RunLog(directory, 1, 1)
    info = DataInfo("toy", ("a", "b"), 1, 8, (0.5,), (0.25,), {"train": 640, "val": 100, "test": 10})
    data = Data(info, range(640), range(100), range(10))
    config = make_config({})
    starting = Trainer(model, Classification(data, config), config, directory)
    log.start(starting, False)
    log.close()
    path = directory / "vdlgraph.log"
    return path.read_text() if path.exists() else None


@pytest.mark.parametrize(
    "name, settings, layers",
    [
        ("vit", {}, ("PatchEmbedding", "EncoderLayer", "Attention", "Mlp")),
        (
            "swin_tiny",
            dict(image_size=32, embed_dim=24, window_size=4),
            ("PatchEmbedding", "SwinStage", "SwinBlock", "WindowAttention", "Mlp", "PatchMerging"),
        ),
    ],
)
def test_the_graph_has_every_layer_and_the_shapes(tmp_path, name, settings, layers):
    model = create_model(name, num_classes=7, **settings)
    text = graph_of(model, tmp_path)
    graph = json.loads(text)
    boxes = collections.Counter(node["type"] for node in graph["nodes"] if not node["is_leaf_node"])
    expected = collections.Counter(type(layer).__name__ for layer in model.sublayers())
    assert {layer: boxes[layer] for layer in layers} == {layer: expected[layer] for layer in layers}
    shapes = {variable["name"]: variable["shape"] for variable in graph["vars"]}
    assert shapes["image"] == [-1, 3, *model.patch_embed.image_size] and shapes["logits"] == [-1, 7]
    assert "static_graph" not in text  # 没有这台电脑的路径


def test_the_graph_does_not_change_the_names_of_later_parameters(tmp_path):
    model = create_model("vit")
    with unique_name.guard():
        names = [paddle.nn.LayerNorm(4).weight.name]
        assert graph_of(model, tmp_path)
        names.append(paddle.nn.LayerNorm(4).weight.name)
    assert names == ["layer_norm_0.w_0", "layer_norm_1.w_0"]


def test_a_model_that_cannot_be_drawn_only_gets_a_hint(tmp_path, capsys):
    model = create_model("vit")
    model.encoders[0].mlp = paddle.nn.Linear(96, 96)  # 学生换上自己的层
    assert graph_of(model, tmp_path) is None
    assert "网络结构" in capsys.readouterr().out
