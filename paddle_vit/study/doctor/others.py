"""学会了,但是还不够好;以及与别的互不相干的:读数据太慢,没有训练完。检查的样子同 ``setup``。"""

from __future__ import annotations

import math

import numpy as np

from ...system.files import quoted
from ...system.run_files import LAST
from .records import Finding, Run

__all__ = ["check_data_wait", "check_overfitting", "check_too_few_epochs", "check_unfinished"]


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
        f"--epochs {run.config.epochs * 3}(学习率按新的轮数退火,要重新训练,不是 --resume)。",
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
        f"--workers {max(4, 2 * run.config.workers)};事先把图片缩小到训练的大小;"
        "减少逐张的增强(--rand-augment、--crop-scale);数据放在本机硬盘上。",
    )


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
