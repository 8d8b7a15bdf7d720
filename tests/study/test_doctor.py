"""每种毛病都真的种进一次训练里,看体检说的是不是它,而且只有它。"""

import dataclasses
import json
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from PIL import Image
from safetensors.numpy import load_file
from support.running import TINY, assert_one_chinese_line, finish, run_script, start_training, wait_for

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data import augment
from paddle_vit.data import batches as data_module
from paddle_vit.data.info import DataInfo
from paddle_vit.data.parts import ArrayPart
from paddle_vit.data.sources import load_data
from paddle_vit.runs.beginning import begin, choose_normalization, first_weights
from paddle_vit.runs.command_line import parse_config
from paddle_vit.runs.directory import open_run
from paddle_vit.runs.loading import build_model
from paddle_vit.runs.logs import RunLog
from paddle_vit.study.doctor import Run, diagnose, load_records, report
from paddle_vit.system import processes
from paddle_vit.system.runtime import seed_everything
from paddle_vit.tasks.classification import Classification
from paddle_vit.tasks.examination import neighbour_top1
from paddle_vit.training import loop as training
from paddle_vit.training import schedule
from paddle_vit.training.health import Health, NoHealth
from paddle_vit.training.loop import fit
from paddle_vit.weights import save_report

# 一轮不到一秒,六轮之后验证正确率九成以上的小训练
SMALL = (
    "--recipe none --patch-size 2 --embed-dim 32 --depth 2 --num-heads 4 --position-embedding learnable "
    "--position-std 0.5 --batch-size 32 --epochs 6 --lr 0.003 --warmup-epochs 1 --ema 0.9 --attention-images 0"
).split()


class QuickLog(RunLog):
    """不画图的 RunLog:画图比这样小的训练还慢。"""

    def pictures(self, pictures, epoch):
        pass

    def histograms(self, model, epoch):
        pass


def train(directory, *options, change_data=None, change_model=None):
    """一次真的训练;change_data、change_model 把毛病种进去。"""
    config = parse_config([*SMALL, *map(str, options), "--output", str(directory)])
    beginning = begin(config)
    data = choose_normalization(load_data(config), config, beginning)
    data = change_data(data) if change_data else data
    seed_everything(config.seed)
    model = build_model(config, data.info)
    started = first_weights(model, config, data.info, beginning)
    model = change_model(model) if change_model else model
    with open_run(config, data, beginning) as run:
        if started:
            save_report(started, run / "init.json")
        fit(model, Classification(data, config), config, run, partial(QuickLog, run, config.epochs))
    return directory


def names(directory):
    return [finding.name for finding in diagnose(load_records(directory))[0]]


def with_parts(data, **parts):
    counts = {name: len(parts.get(name, getattr(data, name))) for name in ("train", "val", "test")}
    return dataclasses.replace(data, **parts, info=dataclasses.replace(data.info, counts=counts))


def relabelled(part, change):
    return ArrayPart(part.images, change(part.labels))


def shuffled(labels, seed=1):
    return np.random.default_rng(seed).permutation(labels)


def moved(part, size=16):
    """数字放在 16 像素的图像里的任意位置。"""
    rng = np.random.default_rng(0)
    images = np.zeros((len(part), size, size, 1), "uint8")
    for image, digit in zip(images, part.images):
        row, column = rng.integers(0, size - 7, 2)
        image[row : row + 8, column : column + 8] = digit
    return ArrayPart(images, part.labels)


class Normalized(ArrayPart):
    """自己先归一化了的数据集。"""

    def fetch(self, requests, config=None):
        for images in super().fetch(requests, config):
            yield ((images / 255 - 0.3) / 0.37).astype("float32")


class Slow(ArrayPart):
    """读得很慢的数据集。"""

    def fetch(self, requests, config=None):
        for images in super().fetch(requests, config):
            time.sleep(0.05)
            yield images


class Wrapped(nn.Layer):
    """改过的模型:在 ViT 的前后各加一段。"""

    def __init__(self, model, before=None, after=None):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        x = self.before(x) if self.before else x
        x = self.model(x)
        return self.after(x) if self.after else x


def freeze(model):
    model.encoders[1].attn.qkv.weight.stop_gradient = True
    return model


def add_unused_layer(model):
    model.projector = nn.Linear(32, 32)
    return model


def imbalanced(data):
    """第 0 类 120 张,其余各 2 张。"""
    chosen = np.concatenate([np.flatnonzero(data.train.labels == k)[: 120 if k == 0 else 2] for k in range(10)])
    kept = np.flatnonzero((data.val.labels == 0) | (np.arange(len(data.val)) % 20 == 0))
    parts = {name: ArrayPart(part.images[rows], part.labels[rows])
             for name, part, rows in (("train", data.train, chosen), ("val", data.val, kept))}  # fmt: skip
    return with_parts(data, **parts)


def few(data, count=60):
    return with_parts(data, train=ArrayPart(data.train.images[:count], data.train.labels[:count]))


# 毛病 -> (改什么设置,怎样种进去,应有的发现)
FAULTS = {
    "stuck": (["--weight-decay", 100], {}, ["损失停在 ln(类别数)"]),
    "lr too high": (["--lr", 1], {}, ["学习率太大"]),
    "lr too low": (["--lr", 1e-5, "--epochs", 4], {}, ["学习率太小"]),
    "no warm-up": (["--lr", 0.03, "--warmup-epochs", 0, "--epochs", 3], {}, ["没有预热"]),
    "patch too large": (
        ["--image-size", 16, "--patch-size", 8, "--epochs", 12],
        {
            "change_data": lambda data: with_parts(
                data, train=moved(data.train), val=moved(data.val), test=moved(data.test)
            )
        },
        ["图块太大"],
    ),
    "labels shuffled": (
        [],
        {
            "change_data": lambda data: with_parts(
                data, train=relabelled(data.train, shuffled), val=relabelled(data.val, shuffled)
            )
        },
        ["标签与图像对不上"],
    ),
    "training labels shuffled": (
        [],
        {"change_data": lambda data: with_parts(data, train=relabelled(data.train, shuffled))},
        ["标签与图像对不上"],
    ),
    "validation labels shuffled": (
        [],
        {"change_data": lambda data: with_parts(data, val=relabelled(data.val, shuffled))},
        ["训练和验证对不上"],
    ),
    "labels constant": (
        ["--epochs", 2],
        {"change_data": lambda data: with_parts(data, train=relabelled(data.train, np.zeros_like))},
        ["标签全都一样"],
    ),
    "a class without images": (
        ["--epochs", 2],
        {"change_data": lambda data: with_parts(data, train=relabelled(data.train, lambda y: np.minimum(y, 8)))},
        ["有的类没有训练图像"],
    ),
    "imbalanced": (["--epochs", 8, "--lr", 0.001], {"change_data": imbalanced}, ["类别很不平衡"]),
    "normalized twice by the data set": (
        ["--epochs", 3],
        {"change_data": lambda data: with_parts(data, train=Normalized(data.train.images, data.train.labels))},
        ["归一化做了两次"],
    ),
    "blank images": (
        ["--epochs", 2],
        {"change_data": lambda data: with_parts(data, train=ArrayPart(data.train.images * 0, data.train.labels))},
        ["图像没有内容"],
    ),
    "frozen": ([], {"change_model": freeze}, ["有冻结的参数"]),
    "unused": (["--epochs", 4], {"change_model": add_unused_layer}, ["有没用到的参数"]),
    "softmax twice": (
        ["--epochs", 3],
        {"change_model": lambda model: Wrapped(model, after=nn.functional.softmax)},
        ["softmax 做了两次"],
    ),
    "detached": (
        ["--epochs", 5],
        {"change_model": lambda model: Wrapped(model, after=lambda z: z.detach() + 0 * model.head.bias)},
        ["有没用到的参数"],
    ),
    "overfitting": (["--epochs", 30, "--batch-size", 30], {"change_data": few}, ["过拟合"]),
    "slow data": (
        ["--epochs", 5],
        {"change_data": lambda data: with_parts(data, train=Slow(data.train.images, data.train.labels))},
        ["读数据太慢"],
    ),
    "too few epochs": (["--epochs", 3], {}, ["轮数太少"]),
    "too slow for so few epochs": (["--epochs", 5, "--lr", 3e-4], {}, ["训练得太少"]),
    "too few steps": (["--epochs", 1, "--batch-size", 256], {}, ["训练得太少"]),
}


FAST = {"imbalanced", "blank images", "softmax twice", "overfitting", "too few steps"}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=() if fault in FAST else pytest.mark.slow) for fault in FAULTS]
)
def test_a_planted_fault_is_the_only_finding(tmp_path, fault):
    options, changes, expected = FAULTS[fault]
    assert names(train(tmp_path / "run", *options, **changes)) == expected


@pytest.mark.parametrize(
    "fault, expected",
    [
        (lambda images: images / 255, "没有归一化"),
        (lambda images: images.astype("float64"), "没有归一化"),
        (lambda images: ((images / 255 - 0.305576) / 0.375969 - 0.305576) / 0.375969, "归一化做了两次"),
    ],
)
@pytest.mark.parametrize(
    "places",
    [(augment, data_module), *(pytest.param((place,), marks=pytest.mark.slow) for place in (augment, data_module))],
    ids=["both", "training", "evaluation"],
)
def test_normalization(tmp_path, monkeypatch, fault, expected, places):
    """只在训练里错、只在评估里错、两处都错。"""
    for place in places:
        monkeypatch.setattr(
            place, "normalize", lambda images, mean, std: fault(images).transpose(0, 3, 1, 2).astype("float32")
        )
    assert names(train(tmp_path / "run", "--epochs", 1, "--batch-size", 128))[:1] == [expected]


@pytest.mark.slow
def test_diverging(tmp_path, monkeypatch):
    """学习率计划写错了:第四轮起大了一千倍。"""
    correct = schedule.learning_rate
    monkeypatch.setattr(
        schedule, "learning_rate", lambda step, *others: correct(step, *others) * (1000 if step > 120 else 1)
    )
    assert names(train(tmp_path / "run")) == ["发散(损失先降后升)"]


@pytest.mark.parametrize("cause", ["learning rate", "data", "model"])
def test_nan(tmp_path, monkeypatch, cause):
    options, changes = ["--epochs", 2], {}
    if cause == "learning rate":
        options += ["--lr", 1e30, "--clip-grad", 0, "--warmup-epochs", 0]
    elif cause == "data":
        correct = augment.normalize
        monkeypatch.setattr(
            augment, "normalize", lambda images, mean, std: correct(images, mean, std * np.array([0.0]))
        )
    else:
        changes = {"change_model": lambda model: Wrapped(model, after=lambda z: paddle.log(z))}
    with pytest.raises(UserError, match="NaN"):
        train(tmp_path / "run", *options, **changes)
    (finding,) = diagnose(load_records(tmp_path / "run"))[0]
    assert finding.name == "损失变成了 NaN"
    assert ("图像里就有 NaN" in finding.evidence) == (cause == "data")
    if cause == "learning rate":
        assert "第 1 轮第" in finding.evidence and "e+29" in finding.evidence and "--lr 0.001" in finding.advice


@pytest.mark.slow
def test_head_not_loaded(tmp_path):
    """类别相同的微调:主干是学过的,分类头却是随机的。"""
    source = train(tmp_path / "source", "--epochs", 4)
    state = load_file(source / "best.safetensors")

    def loaded(model, keep_head):
        fresh = [] if keep_head else [name for name in state if name.startswith("head.")]
        model.set_state_dict({name: value for name, value in state.items() if name not in fresh})
        return model, fresh

    for case, keep_head, told, expected in (
        ("well", True, [], []),
        ("fresh", False, ["head.weight", "head.bias"], ["分类头没有装上"]),
        ("lost again", False, [], ["分类头没有装上"]),
    ):
        directory = train(
            tmp_path / case,
            "--seed",
            1,
            "--epochs",
            2,
            "--lr",
            1e-3,
            change_model=lambda model, keep=keep_head: loaded(model, keep)[0],
        )
        record = {"source": str(source), "loaded": [name for name in state if name not in told], "fresh": told}
        (directory / "init.json").write_text(json.dumps(record), encoding="utf-8")
        assert names(directory) == expected, case


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--seed", 1],
        ["--pool", "cls"],
        ["--position-embedding", "sincos"],
        ["--head", "mlp"],
        ["--mixup", 0.8, "--crop-padding", 1, "--epochs", 12],
        ["--lr", 0.001],
        ["--patch-size", 8, "--epochs", 20],
    ],
    ids=str,
)
def test_a_healthy_run_has_no_finding(tmp_path, options):
    text, count = report(load_records(train(tmp_path / "run", *options)))
    assert count == 0 and "没有发现问题" in text and "跳过" not in text, text


def write_pictures(directory, shuffle):
    """每类 60 张数字的 PNG;shuffle 时文件与类别的目录对不上。"""
    data = load_data(make_config({})).train
    chosen = np.concatenate([np.flatnonzero(data.labels == k)[:60] for k in range(10)])
    # 种子 1 洗成的样子,抽查到的 256 张里恰好有 14.1 % 与近邻相同,刚过瞎猜的两个标准误(13.9 %)
    labels = shuffled(data.labels[chosen], seed=2) if shuffle else data.labels[chosen]
    for index, label in zip(chosen, labels):
        place = directory / "train" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.images[index, :, :, 0]).save(place / f"{index}.png")
    return ["--dataset", "folder", "--data-dir", directory, "--channels", 1, "--image-size", 8, "--epochs", 12]


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_folder_of_pictures(tmp_path, shuffle):
    options = write_pictures(tmp_path / "pictures", shuffle)
    assert names(train(tmp_path / "run", *options)) == (["标签与图像对不上"] if shuffle else [])


@pytest.mark.slow
def test_healthy_fine_tuning_has_no_finding(tmp_path):
    source = train(tmp_path / "source")
    common = [*write_pictures(tmp_path / "pictures", shuffle=False)[:4], "--weights", source, "--epochs", 5]
    for case, options in {"all": ["--lr", 3e-4], "head": ["--train-only", "head"]}.items():
        assert names(train(tmp_path / case, *common, *options)) == [], case


def healthy_records(epochs=10, **changes):
    """一个健康的运行的记录,像 digits 的小训练那样;changes 换掉其中几项,metrics 里的名字换每轮的数。"""
    K, names_ = 10, tuple("0123456789")
    curve = lambda start, end: np.linspace(start, end, epochs).tolist()
    columns = {
        "train_loss": curve(2.2, 0.58),
        "train_top1": curve(0.2, 0.97),
        "val_loss": [max(0.25, loss) for loss in curve(2.0, -0.6)],
        "val_top1": [min(0.95, top1) for top1 in curve(0.3, 1.6)],
        "lr": curve(1e-3, 1e-5),
        "images_per_second": [900.0] * epochs,
        "data_wait": [0.01] * epochs,
    }
    columns.update({name: changes.pop(name) for name in columns if name in changes})
    health = {
        "sample": {
            "images": 256, "dtype": "uint8", "min": 0, "max": 255, "mean": [76.5], "std": [95.6],
            "neighbour_top1": 0.95, "chance": 0.1,
        },
        "labels": {"train": [130] * K, "val": [14] * K},
        "seen": {part: {"mean": [0.0], "std": [1.0], "are_probabilities": False} for part in ("train", "val")},
        "parameters": {name: {"trainable": True, "grad": 0.1, "change": 0.01} for name in ("head.weight", "head.bias")},
        "first_steps": {"from": 0, "loss": [2.45, 2.4, 2.35] * 10, "grad_norm": [1.5] * 30},
        "updates": [{"step": 0, "lr": 1e-5, "ratio": 4e-4}, {"step": 40, "lr": 1e-3, "ratio": 5e-3}],
        "predicted": [14] * K,
        "right": [13] * K,
    }  # fmt: skip
    health.update(
        {name: changes.pop(name) for name in list(changes) if name in health or name in ("stopped", "expected")}
    )
    counts = {"train": 1300, "val": 140, "test": 360}
    settings = {"epochs": epochs, "patch_size": 2, "batch_size": 32, **changes.pop("settings", {})}
    records = Run(
        directory=Path("runs/x"),
        config=make_config(settings),
        info=DataInfo("digits", names_, 1, 8, (0.3,), (0.375,), counts),
        metrics=[{"epoch": i + 1, **{name: values[i] for name, values in columns.items()}} for i in range(epochs)],
        health=health,
        summary={"test_top1": 0.95},
        init=None,
        running=False,
    )
    return dataclasses.replace(records, **changes)


SEEN = {"mean": [0.0], "std": [1.0], "are_probabilities": False}
# 训练图像只有 13 张的一类,验证集里的 2 张从来没有被判对
NEVER_SEEN = {"labels": {"train": [130] * 9 + [13], "val": [14] * 9 + [2]}, "right": [13] * 9 + [0],
              "predicted": [14] * 9 + [0]}  # fmt: skip
LN10 = [2.302] * 10
CHANCE = {"val_top1": [0.1] * 10, "train_top1": [0.1] * 10, "train_loss": LN10, "val_loss": LN10}
UPDATES = [{"step": 40, "lr": 1e-3, "ratio": 5e-3}]


def sample(**changes):
    return {**healthy_records().health["sample"], **changes}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, []),
        (CHANCE, ["损失停在 ln(类别数)"]),
        ({**CHANCE, "updates": [{**UPDATES[0], "ratio": 0.05}]}, ["学习率太大"]),
        ({**CHANCE, "updates": [{**UPDATES[0], "ratio": 5e-5}]}, ["学习率太小"]),
        ({"updates": [{**UPDATES[0], "ratio": 5e-5}]}, []),  # 小,可是学得好:微调
        ({**CHANCE, "sample": sample(neighbour_top1=0.11)}, ["标签与图像对不上"]),
        ({"sample": sample(neighbour_top1=0.11)}, []),  # 像素不说明问题,可是学会了
        ({**CHANCE, "train_top1": [0.9] * 10, "train_loss": [0.7] * 10}, ["训练和验证对不上"]),
        ({"train_loss": [2.2, 1.5, 1.0, 0.8, 0.7, 1.5, 2.0, 2.2, 2.3, 2.3]}, ["发散(损失先降后升)"]),
        ({"val_loss": [2.0, 1.0, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7, 0.7, 0.7], "val_top1": [0.8] * 10}, ["过拟合"]),
        ({"train_top1": [1.0] * 10, "val_top1": [0.7] * 10}, ["过拟合"]),
        ({"val_loss": [2.2, 2.1, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3]}, ["轮数太少"]),
        ({"data_wait": [0.5] * 10}, ["读数据太慢"]),
        ({"data_wait": [0.9] + [0.01] * 9}, []),  # 第一轮里有起动的时间
        (NEVER_SEEN, ["有的类从来没被预测"]),
        ({**NEVER_SEEN, "labels": {"train": [130] * 10, "val": [14] * 10}}, ["有的类从来没被预测"]),  # 不是张数的缘故
        ({**NEVER_SEEN, "labels": {"train": [130] * 9 + [13], "val": [14] * 10}, "right": [13] * 9 + [1],
          "predicted": [15] * 9 + [5]}, ["有的类几乎认不出来"]),
        ({"right": [13] * 9 + [5]}, []),  # 差一些,可是认得
        ({**CHANCE, **NEVER_SEEN}, ["损失停在 ln(类别数)"]),  # 病因在前
        ({"labels": {"train": [130] * 9 + [60], "val": [14] * 9 + [1]}, "right": [13] * 9 + [0],
          "predicted": [14] * 9 + [1]}, []),  # 验证集里只有一张,错了不说明什么
        ({"settings": {"crop_padding": 2}, "seen": {"train": {**SEEN, "std": [2.0]}}}, []),  # 旧的记录:没有可比的
        ({"settings": {"mixup": 0.8}, "expected": {"train": {"mean": [0.3], "std": [0.2]}},
          "seen": {"train": {**SEEN, "std": [0.2 / 0.375]}}}, []),  # 混合以后标准差小了
        ({"expected": {"val": {"mean": [0.9], "std": [0.1]}}, "seen": {"val": {**SEEN, "mean": [0.9], "std": [0.1]}}},
         ["没有归一化"]),  # 验证的图像比训练的亮
        ({"summary": None}, ["训练没有完成"]),
        ({"summary": None, "running": True}, []),
        ({**CHANCE, "summary": None, "data_wait": [0.5] * 10}, ["损失停在 ln(类别数)", "读数据太慢", "训练没有完成"]),
        ({**CHANCE, "epochs": 1}, ["训练得太少"]),
        ({**CHANCE, "epochs": 1, "summary": None}, ["训练没有完成"]),
        ({"health": {}}, []),
        ({**CHANCE, "health": {}}, ["损失停在 ln(类别数)"]),
        ({"metrics": []}, []),
        ({"updates": [{**UPDATES[0], "ratio": 0.05}]}, []),  # 改动很大,可是学得好,也稳
        ({"updates": [{**UPDATES[0], "ratio": 0.05}],
          "train_loss": [2.2, 1.5, 1.0, 1.6, 1.0, 0.8, 0.7, 0.6, 0.6, 0.6]}, ["学习率太大"]),  # 上下乱跳
        ({"val_top1": [0.8] * 10, "train_top1": [0.8] * 10, "updates": [{**UPDATES[0], "ratio": 0.05}]},
         ["学习率太大"]),  # 不如像素最接近的图像
        ({"settings": {"patch_size": 4}}, []),
        ({"settings": {"patch_size": 4}, "val_top1": [0.3] * 10, "train_top1": [0.4] * 10}, ["图块太大"]),
        ({"settings": {"patch_size": 2}, "val_top1": [0.3] * 10, "train_top1": [0.4] * 10}, []),
        ({"val_loss": [2.0] * 9 + [float("nan")]}, ["损失变成了 NaN"]),
        ({"settings": {"train_only": "head"}, "parameters": {"norm.bias": {"trainable": False, "grad": None,
          "change": 0.0}, "head.bias": {"trainable": True, "grad": 1.0, "change": 0.1}}}, []),
        ({"parameters": {"norm.bias": {"trainable": True, "grad": 1.0, "change": 0.0},
          "head.bias": {"trainable": True, "grad": 1.0, "change": 0.1}}}, ["有冻结的参数"]),
    ],
)  # fmt: skip
def test_rules_on_records(changes, expected):
    assert [finding.name for finding in diagnose(healthy_records(**changes))[0]] == expected


def outlined(part):
    """白底上细细的暗线。"""
    images = part.images.astype(int)
    return ArrayPart(np.where(images > 200, 0, 255).astype("uint8"), part.labels)


@pytest.mark.parametrize(
    "options",
    [
        ["--crop-padding", 1],
        ["--crop-padding", 2, "--mixup", 0.8, "--random-erasing", 0.9],
        ["--rand-augment", 2, "--cutmix", 1],
    ],
    ids=str,
)
def test_dark_lines_on_white_are_not_normalized_twice(tmp_path, options):
    """补的零是黑的,增强过的图像与没有增强的相差很大。"""
    change = lambda data: with_parts(data, **{name: outlined(getattr(data, name)) for name in ("train", "val", "test")})
    options = [*options, "--normalization", "half", "--epochs", 1, "--batch-size", 128]
    found = diagnose(load_records(train(tmp_path / "run", *options, change_data=change)))[0]
    assert not [finding for finding in found if "归一化" in finding.name]


@pytest.mark.parametrize("fault, expected", [("missing", "没有归一化"), ("twice", "归一化做了两次")])
def test_a_fault_is_seen_through_the_augmentation(tmp_path, monkeypatch, fault, expected):
    correct = augment.normalize
    wrong = (
        (lambda images, mean, std: correct(images, [0], [1 / 255]))
        if fault == "missing"
        else (lambda images, mean, std: (correct(images, mean, std) - np.float32(mean)) / np.float32(std))
    )
    monkeypatch.setattr(augment, "normalize", wrong)
    options = ["--crop-padding", 2, "--mixup", 0.8, "--normalization", "half", "--epochs", 1, "--batch-size", 128]
    assert names(train(tmp_path / "run", *options))[:1] == [expected]


def small_class(data):
    """三类:两类 110 张,一类 11 张;验证集里 14、14、3 张。"""

    def chosen(part, counts):
        rows = np.concatenate([np.flatnonzero(part.labels == k)[:n] for k, n in enumerate(counts)])
        return ArrayPart(part.images[rows], part.labels[rows])

    data = with_parts(data, train=chosen(data.train, (110, 110, 11)), val=chosen(data.val, (14, 14, 3)),
                      test=chosen(data.test, (30, 30, 3)))  # fmt: skip
    return dataclasses.replace(data, info=dataclasses.replace(data.info, classes=("零", "一", "二")))


def test_a_class_that_is_never_predicted(tmp_path):
    """学的时间不够,少的一类从来没被预测:说出来,并说 --class-weights。"""
    directory = train(tmp_path / "run", "--epochs", 8, "--lr", 0.001, "--batch-size", 16, change_data=small_class)
    record = json.loads((directory / "health.json").read_text(encoding="utf-8"))
    assert record["labels"]["val"] == [14, 14, 3] and record["predicted"][2] == record["right"][2] == 0
    found = [finding for finding in diagnose(load_records(directory))[0] if "从来没被预测" in finding.name]
    assert (
        len(found) == 1 and "--class-weights balanced" in found[0].advice and "“二”3 张对了 0 张" in found[0].evidence
    )


@pytest.mark.parametrize(
    "settings, train_images, expected, unexpected",
    [
        ({"dataset": "folder", "workers": 2}, 48, "缩小", "--workers"),  # 图片少,不起动读取进程
        ({"dataset": "folder", "workers": 2}, 5000, "--workers 4", "--workers 8"),
        ({"dataset": "folder", "workers": 4}, 5000, "缩小", "--workers"),  # 已经每个核一个
        ({"dataset": "folder", "workers": 16}, 5000, "缩小", "--workers"),
        ({"rand_augment": 2}, 5000, "--rand-augment", "--workers"),  # 在内存里
    ],
)
def test_slow_reading_advises_what_helps(monkeypatch, settings, train_images, expected, unexpected):
    monkeypatch.setattr("paddle_vit.study.doctor.others.usable_cores", lambda: 4)
    records = healthy_records(data_wait=[0.5] * 10, settings={"patch_size": 4, **settings})
    info = dataclasses.replace(records.info, counts={"train": train_images, "val": 140, "test": 360})
    (finding,) = diagnose(dataclasses.replace(records, info=info))[0]
    assert finding.name == "读数据太慢" and expected in finding.advice and unexpected not in finding.advice


@pytest.mark.slow
def test_script_without_findings(tmp_path):
    done = run_script("doctor", train(tmp_path / "healthy", "--epochs", 8), check=0)
    assert "没有发现问题" in done.stdout and done.stderr == ""


def test_script(tiny_run):
    """状态码:0 没有发现,1 有发现,2 目录或文件有误。"""
    done = run_script("doctor", tiny_run, check=1)
    assert "1. " in done.stdout and done.stderr == ""
    for word in ("证据", "原因", "试试"):
        assert f"   {word}:" in done.stdout


def test_not_a_run_directory(tmp_path):
    assert_one_chinese_line(run_script("doctor", tmp_path), "config.yaml")
    with pytest.raises(UserError, match="不是一个运行目录"):
        load_records(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.yaml", "data.json", "metrics.jsonl", "health.json", "summary.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe{{\n", b"[1, 2\n", b"[]\n", b"3\n"])
def test_broken_files(tiny_run, tmp_path, name, content):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        report(load_records(tmp_path / "run"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [None, "x", [], {}, True, 10**400, -1, float("nan"), float("inf"), 0])
def test_wrong_values_in_the_records(tiny_run, tmp_path, wrong):
    """记录里换掉任意一项:要么照常诊断,要么一行说清是哪个文件,不会有别的错误。"""
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("*.log", "last.*", "*.png"))
    refused = 0
    for name in ("health.json", "data.json", "metrics.jsonl"):
        path = tmp_path / "run" / name
        text = path.read_text(encoding="utf-8")
        first = text.splitlines()[0] if name == "metrics.jsonl" else text
        for place in places(json.loads(first)):
            value = inside = json.loads(first)
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = wrong
            path.write_text(f"{json.dumps(value)}\n", encoding="utf-8")
            try:
                report(load_records(tmp_path / "run"))
            except UserError as error:
                assert name in str(error) and "\n" not in str(error)
                refused += 1
        path.write_text(text, encoding="utf-8")
    assert refused > 0


def places(value):
    """JSON 里每一项的位置;列表只取第一项。"""
    keys = list(value) if isinstance(value, dict) else [0] if isinstance(value, list) and value else []
    for key in keys:
        yield (key,)
        yield from ((key, *rest) for rest in places(value[key]))


def test_a_run_without_the_new_records_is_still_read(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "health.json").unlink()
    text, _ = report(load_records(tmp_path / "run"))
    line = next(line for line in text.splitlines() if line.startswith("没有记录,跳过:"))
    assert "归一化" in line and "学习率太大" in line and "过拟合" not in line


def test_damaged_metrics_are_refused(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    without = {name: value for name, value in lines[0].items() if name != "data_wait"}
    for bad in ({**lines[0], "data_wait": "0"}, {**lines[0], "val_top1": 1.5}, without):
        (run / "metrics.jsonl").write_text(json.dumps(bad) + "\n", encoding="utf-8")
        with pytest.raises(UserError, match="已损坏"):
            load_records(run)


def test_an_interrupted_run(tmp_path):
    process = start_training(*TINY, "--epochs", "5000", "--output", tmp_path / "run")
    wait_for((tmp_path / "run" / "last.safetensors").exists, process)
    assert "正在训练" in report(load_records(tmp_path / "run"))[0]
    finish(process, signal.SIGINT)
    finding = diagnose(load_records(tmp_path / "run"))[0][-1]
    assert finding.name == "训练没有完成"
    assert f"--resume {tmp_path / 'run'}" in finding.advice


def test_the_record_does_not_change_the_training(tmp_path, monkeypatch):
    train(tmp_path / "with", "--epochs", 2, "--batch-size", 128)
    monkeypatch.setattr(training, "Health", lambda directory: NoHealth())
    train(tmp_path / "without", "--epochs", 2, "--batch-size", 128)
    assert not (tmp_path / "without" / "health.json").exists()
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("with", "without"))
    assert first.keys() == second.keys() and len(first) > 20
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_the_record_of_the_other_processes_has_every_method():
    public = {name for name in dir(Health) if not name.startswith("_")}
    assert public == {name for name in dir(NoHealth) if not name.startswith("_")}


def test_neighbour_top1_against_brute_force():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    images = (rng.integers(0, 100, (40, 5, 5, 1)) + 30 * labels[:, None, None, None]).astype("uint8")
    right = 0
    for i in range(40):
        distances = [((images[i] / 1.0 - images[j]) ** 2).sum() if j != i else np.inf for j in range(40)]
        right += labels[int(np.argmin(distances))] == labels[i]
    assert neighbour_top1(images, labels) == right / 40
    assert neighbour_top1(images, labels) > neighbour_top1(images, shuffled(labels))


def test_gradients_and_changes_are_those_of_the_step(tmp_path):
    """记下的相对变化与自己算的相同:一步之后的权重减初值。"""
    weights = {}

    def remember(model):
        weights.update({name: p.numpy().copy() for name, p in model.named_parameters()})
        return model

    directory = train(tmp_path / "run", "--epochs", 1, "--batch-size", 2000, "--ema", 0, change_model=remember)
    record = json.loads((directory / "health.json").read_text(encoding="utf-8"))
    after = load_file(directory / "best.safetensors")
    moved = sum(float(((after[name] - value) ** 2).sum()) for name, value in weights.items())
    total = sum(float((value**2).sum()) for value in weights.values())
    (update,) = record["updates"]
    np.testing.assert_allclose(update["ratio"], (moved / total) ** 0.5, rtol=1e-5)
    for name, value in weights.items():
        if value.any():
            change = np.linalg.norm(after[name] - value) / np.linalg.norm(value)
            np.testing.assert_allclose(record["parameters"][name]["change"], change, rtol=1e-4)
        assert record["parameters"][name]["grad"] > 0


@pytest.mark.slow
def test_several_processes_write_one_record(tmp_path):
    run_script("train", *TINY, "--processes", 2, "--batch-size", 64, "--output", tmp_path / "run", check=0)
    record = json.loads((tmp_path / "run" / "health.json").read_text(encoding="utf-8"))
    assert all(entry["grad"] > 0 and entry["change"] > 0 for entry in record["parameters"].values())
    assert len(record["first_steps"]["loss"]) == 2 * (1295 // 64)
    assert sum(record["predicted"]) == sum(record["labels"]["val"]) == 142


def test_a_frozen_and_an_unused_parameter_do_not_stop_several_processes(monkeypatch):
    """每个进程都跳过没有梯度的参数。"""
    parameters = [paddle.create_parameter([2], "float32") for _ in range(3)]
    parameters[1].grad = paddle.to_tensor([1.0, 2.0])
    monkeypatch.setattr(processes, "all_reduce", lambda tensor: None)
    assert processes.sum_gradients(parameters, [3.0]) == [3.0]
    assert parameters[0].grad is None and parameters[1].grad.tolist() == [1.0, 2.0]
