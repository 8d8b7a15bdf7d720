"""学会了,但是还不够好;以及与别的互不相干的:读数据太慢,没有训练完。检查的样子同 ``setup``。"""

from __future__ import annotations

import math

import numpy as np

from ...data.parts import FEW_IMAGES
from ...system.files import quoted
from ...system.processes import usable_cores
from ...system.run_files import LAST
from .records import Finding, Run, balancing_advice

__all__ = [
    "check_data_wait",
    "check_neglected_class",
    "check_overfitting",
    "check_too_few_epochs",
    "check_unfinished",
]


def check_neglected_class(run: Run) -> Finding | None:
    """有的类几乎认不出来,而别的类学会了:多半是它的图像太少。"""
    train, val = (np.array(run.health["labels"][part]) for part in ("train", "val"))
    predicted, right = np.array(run.health["predicted"]), np.array(run.health["right"])
    shown, top1 = np.maximum(val, 1), right.sum() / val.sum()
    recall, few = right / shown, train * 3 <= train.mean()
    # 对的不到总正确率的一半,而且比它低三个标准误以上(一类只有几张时,全错也可能是碰巧)
    low = (
        (few | (predicted == 0))
        & (val > 0)
        & (recall < top1 / 2)
        & (top1 - recall >= 3 * np.sqrt(top1 * (1 - top1) / shown))
    )
    # 训练图像不到平均的三分之一,又一次也没有猜过它,就不用看是不是碰巧
    low |= few & (predicted == 0) & (val > 1)
    if not low.any():
        return None
    worst = int(np.lexsort((train, recall + ~low * 2.0))[0])
    name = run.info.classes[worst]
    others = f"(这样的类有 {low.sum()} 个)" if low.sum() > 1 else ""
    return Finding(
        "有的类从来没被预测" if predicted[worst] == 0 else "有的类几乎认不出来",
        f"验证集里的“{name}”{val[worst]} 张对了 {right[worst]} 张,{predicted[worst]} 张被判成它{others};"
        f"它的训练图像 {train[worst]} 张,最多的类 {train.max()} 张;总正确率 {top1:.1%} 看不出来",
        "它的图像太少,总不猜它损失也不大。" if few[worst] else "它与别的类太像,或它的图像、标签有错。",
        f"{balancing_advice(run)};看平衡正确率,不要只看 top-1。"
        if few[worst]
        else "看 confusion_val.png:它被判成了哪一类;核对这两类的图像和标签。",
    )


def check_overfitting(run: Run) -> Finding | None:
    """过拟合:训练正确率比验证高得多,或者高一截而验证损失降到最低之后明显回升、训练损失还在降。"""
    losses = [line["val_loss"] for line in run.metrics]
    best = int(np.argmin(losses))
    late, gap = run.late("val_loss"), run.late("train_top1") - run.late("val_top1")
    rising = late > 1.2 * losses[best] and run.late("train_loss") < run.metrics[best]["train_loss"]
    # 验证损失回升两成以上(EMA 平均过的起伏不到半成)时,差十个百分点就算;不回升时要差二十个百分点。
    # (标签平滑和 EMA 压住了验证损失,过拟合时它也可以不回升。)小验证集的偶然起伏另算三个标准误。
    noise = 3 * math.sqrt(0.25 / run.info.counts["val"])
    if gap < max(0.1 if rising else 0.2, noise):
        return None
    return Finding(
        "过拟合",
        f"最后几轮训练正确率 {run.late('train_top1'):.1%},验证 {run.late('val_top1'):.1%};"
        f"验证损失第 {best + 1} 轮最低 {losses[best]:.2f},最后几轮 {late:.2f}",
        f"模型在背训练图像({run.info.counts['train']} 张),背下来的细节对新图像没有用。",
        "加图像;加增强(--mixup 0.8、--crop-padding、--rand-augment 2);加大 --dropout、--weight-decay;减小模型。"
        "best.safetensors 已经是验证正确率最高的一轮。",
    )


def check_too_few_epochs(run: Run) -> Finding | None:
    """轮数太少:训练完了,验证损失最后还在快速下降。"""
    if run.summary is None or run.failed or len(run.metrics) < 2:
        return None
    back = max(1, len(run.metrics) // 5)
    before, after = run.metrics[-1 - back]["val_loss"], run.metrics[-1]["val_loss"]
    # 学习率这时已经退火到接近零,损失应当停住了(Fashion-MNIST 只训六轮,最后一轮也只降 2 %)。
    # 最后五分之一的轮数里还降一成半以上,或者降百分之五以上而损失还在瞎猜的一半以上,就离学完还远
    if after > (0.95 if after > 0.5 * run.chance_loss else 0.85) * before:
        return None
    return Finding(
        "轮数太少",
        f"最后 {back} 轮里验证损失还从 {before:.2f} 降到 {after:.2f}({after / before - 1:.0%}),"
        f"验证正确率 {run.metrics[-1]['val_top1']:.1%}",
        "训练结束时模型还在明显变好,没有学完。",
        f"--resume {quoted(run.directory)} --epochs {run.config.epochs * 3}(接着训练),"
        f"或从头训练 --epochs {run.config.epochs * 3}(学习率一次退火到底,多半更好)。",
    )


def check_data_wait(run: Run) -> Finding | None:
    """数据是瓶颈:等数据的时间占三成以上。"""
    lines = run.metrics[1:] or run.metrics  # 第一轮里有起动读取进程的时间
    wait = float(np.mean([line["data_wait"] for line in lines]))
    if wait < 0.3:  # 内存里的数据集是 1 % 左右;三成意味着换快的读法能快四成以上
        return None
    speed = float(np.mean([line["images_per_second"] for line in lines]))
    return Finding(
        "读数据太慢",
        f"{wait:.0%} 的时间在等数据,每秒 {speed:.0f} 张",
        "读图、解码、逐张增强的时间比训练还长,处理器算一会儿就要停下来等。",
        _faster_reading(run),
    )


def _faster_reading(run):
    """怎样读得快些;只说用得上的。"""
    config, hints = run.config, []
    from_files = config.dataset in ("folder", "flowers102")
    used = from_files and run.info.counts["train"] >= FEW_IMAGES  # 图片少时不起动读取进程
    if used and config.workers < usable_cores():
        hints.append(f"--workers {usable_cores()}(这台机器的核数)")
    if from_files:
        hints += ["事先把图片缩小到训练的大小", "数据放在本机硬盘上"]
    if config.rand_augment or config.crop_scale < 1:
        hints.append("减少逐张的增强(--rand-augment、--crop-scale)")
    return f"{';'.join(hints or ['看一看自己写的读数据的代码'])}。"


def check_unfinished(run: Run) -> Finding | None:
    """训练没有完成:中断了,或中途出了错。"""
    if run.summary is not None or run.running or "stopped" in run.health:
        return None
    can_resume = (run.directory / LAST).exists()
    return Finding(
        "训练没有完成",
        f"设置了 {run.config.epochs} 轮,完成了 {len(run.metrics)} 轮,没有 summary.json",
        "训练被中断了(Ctrl-C、断电、内存不够、磁盘满),学习率还没有退火到底,也没有在测试集上评估。",
        f"python scripts/train.py --resume {quoted(run.directory)}"
        if can_resume
        else "还没有存过检查点,请换一个 --output 重新训练。",
    )
