"""数据和模型本身有没有装错。各查各的,都报。每项检查是 ``(Run) -> Finding | None``,规则和阈值写在函数里。"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ...data.info import load_info
from ...errors import UserError
from ...family.models import is_head
from ...runs.logs import load_metrics
from ...system.files import first_few
from ...system.run_files import DATA
from .records import Finding, Run, balancing_advice

__all__ = [
    "check_blank_images",
    "check_frozen",
    "check_head",
    "check_labels",
    "check_normalization",
    "check_softmax",
    "check_unused",
]


def check_blank_images(run: Run) -> Finding | None:
    """训练图像没有内容:抽查的像素全都一样。"""
    sample = run.health["sample"]
    if sample["max"] > sample["min"]:
        return None
    return Finding(
        "图像没有内容",
        f"抽查的 {sample['images']} 张训练图像,每个像素都是 {sample['min']:g}",
        "读图的代码出了错,或文件本身是空白的;模型看到的都一样,学不到东西。",
        "用 python scripts/board.py 打开 train/images 看看模型看到的图像,再检查读图的代码。",
        explains_failure=True,
    )


def check_normalization(run: Run) -> Finding | None:
    """归一化没做,或做了两次:把模型真正看到的均值、标准差,与几种做法应有的值相比,看最像哪一种。

    应有的值由同一批图像算出:训练的那一批同样地增强、混合过,只是没有归一化。
    """
    sample, info = run.health["sample"], run.info
    mean, std = np.asarray(info.mean), np.asarray(info.std)  # 各 [C]
    if sample["dtype"].startswith("float") and (sample["min"] < 0 or sample["max"] <= 1):
        return Finding(
            "归一化做了两次",
            f"数据集交出的像素在 {sample['min']:.2f} 到 {sample['max']:.2f} 之间(应为 0–255 的整数)",
            "数据集里已经除过 255 或减过均值,training_batches 又做了一次,图像几乎成了一个常数。",
            "让数据集交出 0–255 的 uint8 像素,归一化只由 augment.normalize 做。",
            explains_failure=True,
        )
    once = lambda m, s: ((m - mean) / std, s / std)
    for part, chinese in (("train", "训练"), ("val", "验证")):
        pixels = _pixels_before(run, part)
        if pixels is None or part not in run.health.get("seen", {}):
            continue
        expected = {
            "right": once(*pixels),
            "missing": pixels,
            "missing, 0-255": (pixels[0] * 255, pixels[1] * 255),
            "twice": once(*once(*pixels)),
        }
        seen_mean, seen_std = (np.asarray(run.health["seen"][part][name]) for name in ("mean", "std"))
        # 与每种做法的距离:均值差几个标准差,加标准差之比的对数
        with np.errstate(all="ignore"):  # 输入里有 NaN 或无穷大时,距离也是 NaN
            distance = {
                name: float((abs(seen_mean - m) / s + abs(np.log(np.maximum(seen_std, 1e-9) / s))).mean())
                for name, (m, s) in expected.items()
            }
        likely = min(distance, key=lambda name: distance[name])
        # 几个进程一起训练、或一批分成几块时,看到的只是其中一份,距离不到 0.5;要比“正确”近一倍以上才算
        if likely == "right" or distance["right"] < 0.5 or distance[likely] > distance["right"] / 2:
            continue
        m, s = expected["right"]
        evidence = (
            f"模型看到的{chinese}图像均值 {_numbers(seen_mean)}、标准差 {_numbers(seen_std)};"
            f"按 data.json 归一化一次应为 {_numbers(m)} 和 {_numbers(s)}"
        )
        where = "augment.normalize" if part == "train" else "data.evaluation_batches"
        if likely == "twice":
            return Finding(
                "归一化做了两次",
                f"{evidence},归一化两次正是 {_numbers(expected['twice'][0])} 和 {_numbers(expected['twice'][1])}",
                "减均值、除标准差做了两遍,输入偏离了 0,也放大了;预测时若只做一遍,结果会更差。",
                f"检查 {where} 和数据集的代码,只留一处归一化。",
                explains_failure=True,
            )
        return Finding(
            "没有归一化",
            f"{evidence},看到的正是原来的像素",
            "输入没有减均值、除标准差:各层的输出一开始就偏,学得慢;像素是 0–255 时损失会很大甚至变成 NaN。",
            f"检查 {where}:输入应为 (像素 / 255 - mean) / std。",
            explains_failure=True,
        )
    return None


def _pixels_before(run, part):
    """一部分的第一批图像归一化之前的均值和标准差(像素 0–1),各 [C];没有可比的是 ``None``。"""
    record = run.health.get("expected", {}).get(part)
    scale, config = 1, run.config
    if record is None:  # 较早的记录里只有没有增强过的
        augmented = config.crop_padding or config.crop_scale < 1 or config.rand_augment or config.random_erasing
        if part == "train" and (augmented or config.mixup or config.cutmix):
            return None
        record, scale = run.health["sample"], 255
    mean, std = (np.asarray(record[name]) / scale for name in ("mean", "std"))
    return (mean, std) if std.all() else None


def _numbers(values):
    return "、".join(f"{value:.2f}" for value in np.atleast_1d(values))


def check_labels(run: Run) -> Finding | None:
    """标签全都一样,有的类没有图像,或很不平衡而模型只猜最多的一类。"""
    counts, classes = run.health["labels"]["train"], run.info.classes
    present = [name for name, count in zip(classes, counts) if count]
    if len(present) == 1:
        return Finding(
            "标签全都一样",
            f"训练部分 {sum(counts)} 张图像的标签都是“{present[0]}”,而数据集有 {len(classes)} 类",
            "读标签的代码出了错(下标、列名或目录)。总猜这一类损失就能降到底,但什么也没学到。",
            "打印 np.bincount(data.train.labels) 核对,再检查读标签的代码。",
            explains_failure=True,
        )
    if len(present) < len(classes):
        missing = [name for name, count in zip(classes, counts) if not count]
        return Finding(
            "有的类没有训练图像",
            f"{len(classes)} 类中 {len(missing)} 类的训练图像是 0 张:{'、'.join(missing[:5])}",
            "读标签时漏了这些类,或划分时全分给了别的部分;模型永远不会预测它们。",
            "打印 np.bincount(data.train.labels) 核对,再检查标签和划分。",
            explains_failure=True,
        )
    predicted = run.health.get("predicted")
    # 最多的类是最少的类的十倍以上,而且验证集上 95 % 以上都猜成它
    most = int(np.argmax(counts))
    if predicted and max(counts) >= 10 * min(counts) and predicted[most] >= 0.95 * sum(predicted):
        return Finding(
            "类别很不平衡",
            f"训练图像最多的“{classes[most]}”有 {counts[most]} 张,最少的一类 {min(counts)} 张;"
            f"验证集 {sum(predicted)} 张里有 {predicted[most]} 张被判成“{classes[most]}”",
            "总猜最多的一类损失就不大,模型还没有学会区分。正确率看着不低,其实等于瞎猜。",
            f"{balancing_advice(run)};看混淆矩阵和平衡正确率,不要只看 top-1。",
            explains_failure=True,
        )
    return None


def check_softmax(run: Run) -> Finding | None:
    """模型的输出已经是概率:每行都不小于 0,加起来是 1。logits 不会这样。"""
    if not run.health.get("seen", {}).get("val", {}).get("are_probabilities"):
        return None
    K = len(run.info.classes)
    lowest = math.log(1 + (K - 1) / math.e)
    return Finding(
        "softmax 做了两次",
        f"模型的输出每行都不小于 0,加起来是 1;这样损失最低只能到 {lowest:.2f}({K} 类)",
        "模型最后做了 softmax,交叉熵(cross_entropy)里又做一次:概率挤在一起,梯度很小,学得很慢。",
        "去掉模型最后的 softmax,让 forward 返回 logits。",
        explains_failure=True,
    )


def check_frozen(run: Run) -> Finding | None:
    """冻结的参数:stop_gradient,或者有梯度却一步也没有变(没有交给优化器)。"""
    table = run.health["parameters"]
    frozen = [
        name
        for name, entry in table.items()
        if not entry["trainable"] and (run.config.train_only == "all" or is_head(name))
    ]
    # float32 大约 7 位有效数字:别的参数明显在变(万分之一以上),它一点没变,就不是舍入的缘故
    moving = max((entry["change"] for entry in table.values()), default=0) > 1e-4
    forgotten = [name for name, entry in table.items() if entry["trainable"] and entry["grad"] and not entry["change"]]
    if not frozen and not (forgotten and moving):
        return None
    what = "stop_gradient=True" if frozen else "有梯度,但更新之后一点没变"
    return Finding(
        "有冻结的参数",
        f"{len(table)} 个参数中 {len(frozen or forgotten)} 个{what}:{first_few(frozen or forgotten)}",
        "这些参数一直停在初值;从零训练时,随机的初值会一直留在那里。(有意只训练分类头,用 --train-only head。)",
        "没有打算冻结时,去掉 stop_gradient = True;自己建优化器时用 parameters=model.parameters()。",
        explains_failure=len(frozen or forgotten) > len(table) / 2,
    )


def check_unused(run: Run) -> Finding | None:
    """没有用到的参数:量过的每一步都没有梯度,或梯度是零。"""
    table = run.health["parameters"]
    unused = [
        name
        for name, entry in table.items()
        # 图像小时 Swin 最后一级只剩一个 token,偏置表加的是常数,梯度本来就是零
        if entry["trainable"] and not entry["grad"] and not name.endswith("relative_position_bias_table")
    ]
    if not unused:
        return None
    return Finding(
        "有没用到的参数",
        f"{len(table)} 个参数中 {len(unused)} 个没有得到梯度:{first_few(unused)}",
        "forward 里没有用到它们,或中途断了(detach、numpy()、paddle.no_grad):它们学不到东西,只占内存。",
        "在 forward 里用上它们,或删掉;检查 forward 里有没有 detach()、.numpy() 和 no_grad。",
        explains_failure=len(unused) > len(table) / 2,
    )


def check_head(run: Run) -> Finding | None:
    """微调时分类头没有装上:类别与来源相同,分类头却是新的;或者说装上了,第一步的损失却与瞎猜一样。"""
    if run.init is None:
        return None
    source = Path(run.init["source"])
    directory = source if source.is_dir() else source.parent
    try:
        info, before = load_info(directory / DATA), load_metrics(directory)
    except UserError:  # 来源不是运行目录,或已经不在了
        return None
    if info.classes != run.info.classes:
        return None
    fresh = [name for name in run.init["fresh"] if is_head(name)]
    losses = run.health["first_steps"]
    # 用的是同样的图像,来源也学会了(训练损失在瞎猜的八成以下),装好之后第一步的损失就应当与它相近;
    # 离瞎猜更近就是没有装上。图像不同时,装上了的损失也可以很大,不能这样比。
    learned = info == run.info and bool(before) and before[-1]["train_loss"] < 0.8 * run.chance_loss
    middle = (before[-1]["train_loss"] + run.chance_loss) / 2 if learned else math.inf
    at_chance = losses["from"] == 0 and losses["loss"][0] > middle
    if not fresh and not at_chance:
        return None
    first = f",第一步的损失 {losses['loss'][0]:.2f},瞎猜是 {run.chance_loss:.2f}" if losses["from"] == 0 else ""
    return Finding(
        "分类头没有装上",
        f"类别与 {directory} 完全相同,"
        + (f"但 {'、'.join(fresh)} 是随机的初值" if fresh else "init.json 说分类头也装上了")
        + first,
        "主干(backbone)是学过的,分类头却要从头学,开头的正确率等于瞎猜。",
        "分类头的形式(--head)要与原来相同;装好权重之后不要再初始化 model.head。",
        explains_failure=True,
    )
