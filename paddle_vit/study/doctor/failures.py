"""为什么没学会。一个病因会有许多症状,所以按病因排好先后,``diagnosis`` 只报第一个。检查的样子同 ``setup``。"""

from __future__ import annotations

import math

import numpy as np

from ...checks import as_pair
from ...data.sources import image_size_of
from ...family.models import model_settings
from ...system.fitting import size_text
from .others import check_too_few_epochs
from .records import Finding, Run

__all__ = [
    "check_diverging",
    "check_learning_rate_too_high",
    "check_learning_rate_too_low",
    "check_no_warmup",
    "check_not_finite",
    "check_patch_size",
    "check_shuffled_labels",
    "check_stuck",
    "check_too_few_steps",
    "check_train_and_validation_disagree",
]


def check_not_finite(run: Run) -> Finding | None:
    """损失或梯度变成了 NaN 或无穷大,训练停下了;或者只有验证损失如此。"""
    stopped = run.health.get("stopped")
    if stopped is None:
        bad = [line for line in run.metrics if not np.isfinite([line["train_loss"], line["val_loss"]]).all()]
        if not bad:
            return None
        return Finding(
            "损失变成了 NaN",
            f"第 {bad[0]['epoch']:.0f} 轮的训练损失 {bad[0]['train_loss']:g},验证损失 {bad[0]['val_loss']:g}",
            "权重或输出超出了 float32,或验证的图像里有 NaN。",
            f"--lr {min(run.config.lr / 10, 1e-3):g},--clip-grad 1;检查改过的层和验证图像。",
        )
    recent = "、".join(f"{loss:.2f}" for _, loss, _ in stopped["recent"][-5:])
    where = f"第 {stopped['epoch']} 轮第 {stopped['step']} 步,损失 {stopped['loss']},梯度范数 {stopped['grad_norm']}"
    evidence = f"{where},学习率 {stopped['lr']:g}" + (f";之前几步的损失 {recent}" if recent else "")
    if not stopped["inputs_finite"]:
        return Finding(
            "损失变成了 NaN",
            f"{evidence};这一步的图像里就有 NaN 或无穷大",
            "坏在数据里:除以了零(标准差是 0)、读坏了文件,或自己的预处理出了错。",
            "检查读图和预处理的代码:np.isfinite(images).all()。",
        )
    return Finding(
        "损失变成了 NaN",
        evidence,
        "图像是正常的数;多半是学习率太大,权重越走越远,直到超出 float32;自己改过的层里除以零、log(0) 也会这样。",
        f"--lr {min(run.config.lr / 10, 1e-3):g},--clip-grad 1,--warmup-epochs 5;检查改过的层。",
    )


def check_diverging(run: Run) -> Finding | None:
    """先降后升:训练损失降下去过,后来又升回一大截。"""
    losses = [line["train_loss"] for line in run.metrics]
    late = run.late("train_loss")
    # 降到过瞎猜的八成以下才算学到过;各轮因 mixup 的起伏在 0.1 倍 ln(类别数)之内,升回 0.3 倍就不是起伏
    if min(losses) > 0.8 * run.chance_loss or late < min(losses) + 0.3 * run.chance_loss:
        return None
    best = int(np.argmin(losses))
    return Finding(
        "发散(损失先降后升)",
        f"训练损失第 {best + 1} 轮降到 {losses[best]:.2f},最后几轮是 {late:.2f};"
        f"那时的学习率 {run.metrics[best]['lr']:g},最后 {run.metrics[-1]['lr']:g}",
        "学到的东西又丢了:学习率对这时的权重太大,或训练中途有什么变了(学习率计划、数据)。",
        f"--lr {run.config.lr / 3:g},--clip-grad 1;看 optimizer/lr 和 optimizer/grad_norm 两条曲线。",
    )


def check_learning_rate_too_high(run: Run) -> Finding | None:
    """学习率太大:一步就把全部权重改动了几个百分点,而且结果很差,或损失上下乱跳。"""
    updates = run.health["updates"]
    first = max((update["ratio"] for update in updates if update["step"] < 2), default=0.0)
    later = max((update["ratio"] for update in updates if update["step"] >= 2), default=0.0)
    # 正常的运行(digits、Fashion-MNIST 的配方)最大 0.003 到 0.007;digits 上到 0.05 就学不动了。
    # 没有预热时第一步会大几倍(AdamW 的第一步对每个权重都走满 lr),所以另给一个阈值。
    if later < 0.03 and first < 0.3:
        return None
    losses = [line["train_loss"] for line in run.metrics]
    # 各轮因 mixup 的起伏在 0.1 倍 ln(类别数)之内;一轮里升两倍于此就是乱跳
    jumps = max(np.diff(losses), default=0.0) > 0.2 * run.chance_loss
    if not run.poor and not jumps:
        return None
    worst = max(updates, key=lambda update: update["ratio"])
    better = run.config.lr * min(0.1, 0.005 / worst["ratio"])  # 改动与学习率成正比:使它回到百分之零点五
    return Finding(
        "学习率太大",
        f"第 {worst['step'] + 1} 步(学习率 {worst['lr']:g})一步就把全部权重改动了 {worst['ratio']:.1%}"
        f"(正常是 0.1 % 到 1 %);最后几轮的训练损失 {run.late('train_loss'):.2f},瞎猜是 {run.chance_loss:.2f};"
        f"验证正确率 {run.late('val_top1'):.1%}",
        "每步迈得太大,总是越过低处,损失停在瞎猜附近、上下乱跳,或学得又慢又差。",
        f"--lr {better:.1g}(再以 3 倍为一档试),并保留预热 --warmup-epochs 5。",
    )


def check_no_warmup(run: Run) -> Finding | None:
    """没有预热,开头的损失猛涨,结果也很差。"""
    first, config = run.health["first_steps"], run.config
    # 开头十步里涨到第一步的 1.2 倍以上:有预热的运行里,各批之间的起伏不到 0.05 倍
    losses = first["loss"][:10]
    if first["from"] or config.warmup_epochs * run.steps_per_epoch >= 1 or max(losses) < 1.2 * losses[0]:
        return None
    if not run.poor:
        return None
    peak = int(np.argmax(losses))
    return Finding(
        "没有预热",
        f"--warmup-epochs {config.warmup_epochs:g};损失第 1 步 {losses[0]:.2f},第 {peak + 1} 步涨到 {losses[peak]:.2f},"
        f"梯度范数从 {first['grad_norm'][0]:.1f} 到 {max(first['grad_norm'][:10]):.1f}",
        "开头梯度的统计还不准,AdamW 的头几步却对每个权重都走满学习率,把初值冲坏了,后面要花许多轮补回来。",
        f"--warmup-epochs {min(5, max(1, config.epochs // 10))}(预热占总轮数的 3 % 到 10 %)。",
    )


def check_learning_rate_too_low(run: Run) -> Finding | None:
    """学习率太小:学习率到顶时每步的改动也极小,损失还在瞎猜附近。"""
    config = run.config
    updates = [u for u in run.health["updates"] if u["step"] >= 2 and u["lr"]]  # AdamW 的头两步大几倍,不算
    peak = max((u["ratio"] * config.lr / u["lr"] for u in updates), default=math.inf)  # 按比例换算到学习率的峰值
    # 正常的运行在 0.003 以上;小到六分之一以下,而且训练损失还没有离开瞎猜的 5 %,才说是它的缘故
    if peak > 5e-4 or run.late("train_loss") < 0.95 * run.chance_loss:
        return None
    return Finding(
        "学习率太小",
        f"学习率到顶({config.lr:g})时每步也只把权重改动 {peak:.4%}(正常是 0.1 % 到 1 %);{len(run.metrics)} 轮之后"
        f"训练损失 {run.late('train_loss'):.2f},瞎猜是 {run.chance_loss:.2f}",
        "每步迈得太小,走了这么多步,权重还在初值附近。",
        f"--lr {min(config.lr * 10, 1e-3) if config.lr < 1e-3 else config.lr * 10:g}(再以 3 倍为一档试;"
        "从零训练的 ViT 常用 3e-4 到 3e-3)。",
    )


def check_shuffled_labels(run: Run) -> Finding | None:
    """标签与图像对不上:验证正确率等于瞎猜,而且像素最接近的两张图像,标签也不比随便两张更常相同。"""
    sample = run.health["sample"]
    chance, images = sample["chance"], sample["images"]
    error = math.sqrt(chance * (1 - chance) / images)  # 标准误
    # 少于 100 张看不出来;标签正确时 digits 的近邻正确率是 97 %,Fashion-MNIST 是 7 成左右;两个标准误以内就是瞎猜
    if not run.failed or images < 100 or sample["neighbour_top1"] > chance + 2 * error or run.total_steps < 100:
        return None
    return Finding(
        "标签与图像对不上",
        f"验证正确率 {run.late('val_top1'):.1%},瞎猜是 {run.chance_top1:.1%};训练图像里像素最接近的两张,"
        f"标签相同的有 {sample['neighbour_top1']:.1%},随便两张是 {chance:.1%}",
        "标签很可能被打乱了:图像和标签分别排了序、洗了牌,或下标错开了。这时训练损失只能靠死记硬背下降。"
        "(图像很复杂而又很少时,标签没错也可能如此。)",
        "打开 board 里的 train/images,或取几张图像连同标签看一看;检查图像和标签是不是用同一个下标取的。",
    )


def check_train_and_validation_disagree(run: Run) -> Finding | None:
    """训练学会了,验证却等于瞎猜,而训练的标签没有问题。"""
    top1 = run.late("train_top1")
    # 训练正确率至少五成,还要有瞎猜的三倍
    if not run.failed or top1 < max(0.5, 3 / len(run.info.classes)):
        return None
    return Finding(
        "训练和验证对不上",
        f"训练正确率 {top1:.1%},验证正确率 {run.late('val_top1'):.1%}(瞎猜是 {run.chance_top1:.1%})",
        "模型学会了训练部分,在验证部分上却完全不行,比过拟合厉害得多:多半是验证的预处理或标签与训练不同。",
        "核对两部分的类别顺序、标签和预处理;用 python scripts/evaluate.py RUN --part train 评估训练部分作对照。",
    )


def check_too_few_steps(run: Run) -> Finding | None:
    """训练得太少,还看不出什么;没有训练完的另有 ``check_unfinished``。"""
    # 学得顺利时,digits 上 100 步之内验证正确率就远高于瞎猜,200 步之内损失降到瞎猜的一半以下;各放宽一倍
    high = min(run.late("train_loss"), run.late("val_loss")) > 0.5 * run.chance_loss
    enough = 200 if run.failed else 400
    if run.summary is None or run.total_steps >= enough or not (run.failed or high):
        return None
    return Finding(
        "训练得太少",
        f"一共只更新了 {run.total_steps} 次(每轮 {run.steps_per_epoch} 次),验证正确率 {run.late('val_top1'):.1%},"
        f"瞎猜是 {run.chance_top1:.1%}",
        "权重从随机的初值出发,几百次更新之后才看得出学没学会。",
        f"--epochs {max(run.config.epochs * 2, math.ceil(1000 / run.steps_per_epoch))},或减小 --batch-size。",
    )


def check_stuck(run: Run) -> Finding | None:
    """损失停在 ln(类别数),而上面的病因都不是。"""
    loss = run.late("train_loss")
    # 更新了 200 次以上(见 check_too_few_steps),训练损失离瞎猜不到 5 %,验证正确率等于瞎猜
    if not run.failed or run.total_steps < 200 or loss < 0.95 * run.chance_loss:
        return None
    config = run.config
    hints = []
    # AdamW 每步把权重乘以 1 - lr * weight_decay;一轮里缩到不足一半,权重就只会趋于零
    if config.lr * config.weight_decay * run.steps_per_epoch > math.log(2):
        hints.append(f"--weight-decay 0.05(现在的 {config.weight_decay:g} 每轮把权重缩小一半以上)")
    if max(config.dropout, config.attention_dropout, config.drop_path) > 0.5:
        hints.append("减小 --dropout、--attention-dropout、--drop-path")
    if config.model == "vit" and config.position_embedding in (None, "none"):
        hints.append("--position-embedding learnable(现在没有位置编码,分不清图块的顺序)")
    hints.append(f"--lr {config.lr / 3:g} 和 --lr {config.lr * 3:g} 各试一次")
    return Finding(
        "损失停在 ln(类别数)",
        f"训练了 {len(run.metrics)} 轮,训练损失 {loss:.3f},ln({len(run.info.classes)}) = {run.chance_loss:.3f};"
        f"验证正确率 {run.late('val_top1'):.1%},瞎猜是 {run.chance_top1:.1%}",
        "模型对每张图像给出的概率都差不多,与输入无关。",
        ";".join(hints) + ";改过模型的话,检查 forward 的输出随图像变不变。",
    )


def check_patch_size(run: Run) -> Finding | None:
    """图块太大:学完了结果仍然很差,而一张图像不超过 4 个(2 x 2)图块。"""
    patch_size = run.config.patch_size or model_settings(run.config.model).get("patch_size", 7)
    height, width = as_pair(image_size_of(run.config), "image_size")
    tokens = (height // patch_size) * (width // patch_size)
    finished = run.summary is not None and check_too_few_epochs(run) is None
    if not 1 <= tokens <= 4 or not finished or not run.poor:  # digits 简单,只有一个图块也能学好:那就不是毛病
        return None
    rows, columns = height // patch_size, width // patch_size
    sizes = range(1, max(1, min(height, width) // 4) + 1)
    smaller = max(size for size in sizes if height % size == 0 and width % size == 0)
    return Finding(
        "图块太大",
        f"{size_text(run.info.image_size)} 像素的图像只切成 {rows} x {columns} = {tokens} 个图块,"
        f"每块 {patch_size} 像素;验证正确率 {run.late('val_top1'):.1%}",
        "注意力在图块之间比较和搬运信息;图块只有几个时它无事可做,模型只是一个 MLP,块内的结构也只有一层线性映射来看。",
        f"--patch-size {smaller}(切成 4 x 4 以上)。",
    )
