"""训练体检:读一个运行目录,说出哪里出了问题、证据、原因和可以试的办法。

每一项检查是一个函数 ``(Run) -> Finding | None``,规则和阈值都写在函数里。检查分四组:

- ``SETUP``:数据和模型本身有没有装错。各查各的,都报。
- ``FAILURES``:为什么没学会。一个病因会有许多症状,所以按病因排好先后,只报第一个;
  ``SETUP`` 里已经有足以解释的发现时,除了 NaN 都不报。
- ``CONSEQUENCES``:学会了,但是还不够好;上面没有发现病因时才报。
- ``OTHERS``:与别的互不相干的。
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from ..config import load_config
from ..data.sources import load_info, step_size
from ..errors import UserError
from ..family.models import is_head
from ..runs.logs import load_metrics
from ..runs.train import is_in_use, patches_per_image
from ..system.files import read_json
from ..training.health import load_health

__all__ = ["Finding", "Run", "diagnose", "load_records", "report"]

# metrics.jsonl 里要用到的


@dataclasses.dataclass(frozen=True)
class Finding:
    """一个发现。

    Attributes:
        name (str): 名字。
        evidence (str): 证据,带数字。
        why (str): 原因。
        advice (str): 可以试的办法:命令行参数或要检查的代码。
        explains_failure (bool): 单凭它就会学不会;这时不再找别的病因。
    """

    name: str
    evidence: str
    why: str
    advice: str
    explains_failure: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """一个运行目录里的全部记录。

    Attributes:
        directory (Path): 运行目录。
        config (Config), info (DataInfo): 设置和数据集的说明。
        metrics (list[dict]): 每轮一项。
        health (dict): health.json;较早的运行没有,是空的。
        summary (dict | None): 训练完才有。
        init (dict | None): 微调才有:source、loaded、fresh。
        running (bool): 现在正在训练。
    """

    directory: Path
    config: object
    info: object
    metrics: list
    health: dict
    summary: object
    init: object
    running: bool

    @property
    def chance_loss(self):
        """瞎猜(各类概率相等)的交叉熵:ln(类别数);标签平滑和 mixup 都不改变它。"""
        return math.log(len(self.info.classes))

    @property
    def chance_top1(self):
        """总猜验证集里最多的那一类能对多少,0–1。"""
        counts = self.health.get("labels", {}).get("val")
        return max(counts) / sum(counts) if counts else 1 / len(self.info.classes)

    @property
    def steps_per_epoch(self):
        images = self.info.counts["train"]
        return images // step_size(images, self.config)

    @property
    def total_steps(self):
        """做完的各轮一共更新了多少次。"""
        return len(self.metrics) * self.steps_per_epoch

    def late(self, name):
        """一个指标在最后五分之一轮里的平均;单独一轮会有起伏。"""
        return float(np.mean([line[name] for line in self.metrics[-max(1, len(self.metrics) // 5) :]]))

    def is_chance(self, top1):
        """这个验证正确率是否与瞎猜没有区别:没有超过瞎猜加三个标准误(偶然超过的概率约千分之一)。"""
        chance = self.chance_top1
        return top1 <= chance + 3 * math.sqrt(chance * (1 - chance) / self.info.counts["val"])

    @property
    def poor(self):
        """结果很差:最后几轮的验证正确率还没走完从瞎猜到全对的一半,或不如拿像素最接近的训练图像的标签当预测。"""
        top1, chance = self.late("val_top1"), self.chance_top1
        if top1 < (chance + 1) / 2:
            return True
        sample = self.health.get("sample")
        if sample is None:
            return False
        pixels = sample["neighbour_top1"]  # 只用抽查的二百来张;学好了的模型看过全部训练图像,应当更好
        # 两个正确率都有偶然的起伏;差两个标准误以上才算
        variance = pixels * (1 - pixels) / sample["images"] + top1 * (1 - top1) / self.info.counts["val"]
        return top1 < pixels - 2 * math.sqrt(variance)

    @property
    def failed(self):
        """最后几轮的验证正确率没有超过瞎猜;验证集太小、看不出来时不算。"""
        return self.is_chance(self.late("val_top1")) and not self.is_chance(0.9)


# ---- 数据和模型装错了 ----


def check_blank_images(run):
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


def check_normalization(run):
    """归一化没做,或做了两次:把模型真正看到的均值、标准差,与几种做法应有的值相比,看最像哪一种。"""
    sample, info = run.health["sample"], run.info
    mean, std = np.asarray(info.mean), np.asarray(info.std)  # 各 [C]
    pixel_mean, pixel_std = np.asarray(sample["mean"]) / 255, np.asarray(sample["std"]) / 255  # 各 [C]
    if sample["dtype"].startswith("float") and (sample["min"] < 0 or sample["max"] <= 1):
        return Finding(
            "归一化做了两次",
            f"数据集交出的像素在 {sample['min']:.2f} 到 {sample['max']:.2f} 之间(应为 0–255 的整数)",
            "数据集里已经除过 255 或减过均值,training_batches 又做了一次,图像几乎成了一个常数。",
            "让数据集交出 0–255 的 uint8 像素,归一化只由 augment.normalize 做。",
            explains_failure=True,
        )
    if not pixel_std.all():
        return None
    once = lambda m, s: ((m - mean) / std, s / std)
    expected = {
        "right": once(pixel_mean, pixel_std),
        "missing": (pixel_mean, pixel_std),
        "missing, 0-255": (pixel_mean * 255, pixel_std * 255),
        "twice": once(*once(pixel_mean, pixel_std)),
    }
    for part, chinese in (("train", "训练"), ("val", "验证")):
        if part not in run.health.get("seen", {}):
            continue
        seen_mean, seen_std = (np.asarray(run.health["seen"][part][name]) for name in ("mean", "std"))
        # 与每种做法的距离:均值差几个标准差,加标准差之比的对数
        with np.errstate(all="ignore"):  # 输入里有 NaN 或无穷大时,距离也是 NaN
            distance = {
                name: float((abs(seen_mean - m) / s + abs(np.log(np.maximum(seen_std, 1e-9) / s))).mean())
                for name, (m, s) in expected.items()
            }
        likely = min(distance, key=distance.get)
        # 增强(补零、擦除)和 mixup 会把标准差减小到七成多,距离不到 0.5;要比“正确”近一倍以上才算
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


def _numbers(values):
    return "、".join(f"{value:.2f}" for value in np.atleast_1d(values))


def check_labels(run):
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
            "给少的类补图像,或多抽几遍少的类;看混淆矩阵,不要只看正确率。",
            explains_failure=True,
        )
    return None


def check_softmax(run):
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


def check_frozen(run):
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
        f"{len(table)} 个参数中 {len(frozen or forgotten)} 个{what}:{_names(frozen or forgotten)}",
        "这些参数一直停在初值;从零训练时,随机的初值会一直留在那里。(有意只训练分类头,用 --train-only head。)",
        "没有打算冻结时,去掉 stop_gradient = True;自己建优化器时用 parameters=model.parameters()。",
        explains_failure=len(frozen or forgotten) > len(table) / 2,
    )


def check_unused(run):
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
        f"{len(table)} 个参数中 {len(unused)} 个没有得到梯度:{_names(unused)}",
        "forward 里没有用到它们,或中途断了(detach、numpy()、paddle.no_grad):它们学不到东西,只占内存。",
        "在 forward 里用上它们,或删掉;检查 forward 里有没有 detach()、.numpy() 和 no_grad。",
        explains_failure=len(unused) > len(table) / 2,
    )


def _names(names):
    return "、".join(names[:3]) + (" …" if len(names) > 3 else "")


def check_head(run):
    """微调时分类头没有装上:类别与来源相同,分类头却是新的;或者说装上了,第一步的损失却与瞎猜一样。"""
    if run.init is None:
        return None
    source = Path(run.init["source"])
    directory = source if source.is_dir() else source.parent
    try:
        info, before = load_info(directory / "data.json"), load_metrics(directory)
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


# ---- 为什么没学会:按病因排列,只报第一个 ----


def check_not_finite(run):
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


def check_diverging(run):
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


def check_learning_rate_too_high(run):
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


def check_no_warmup(run):
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


def check_learning_rate_too_low(run):
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


def check_shuffled_labels(run):
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


def check_train_and_validation_disagree(run):
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


def check_too_few_steps(run):
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


def check_stuck(run):
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


def check_patch_size(run):
    """图块太大:学完了结果仍然很差,而一张图像不超过 4 个(2 x 2)图块。"""
    tokens = patches_per_image(run.config)
    finished = run.summary is not None and check_too_few_epochs(run) is None
    if not 1 <= tokens <= 4 or not finished or not run.poor:  # digits 简单,只有一个图块也能学好:那就不是毛病
        return None
    side = math.isqrt(tokens)
    smaller = max(size for size in range(1, max(1, run.info.image_size // 4) + 1) if run.info.image_size % size == 0)
    return Finding(
        "图块太大",
        f"{run.info.image_size} 像素的图像只切成 {side} x {side} = {tokens} 个图块,"
        f"每块 {run.info.image_size // side} 像素;验证正确率 {run.late('val_top1'):.1%}",
        "注意力在图块之间比较和搬运信息;图块只有几个时它无事可做,模型只是一个 MLP,块内的结构也只有一层线性映射来看。",
        f"--patch-size {smaller}(切成 4 x 4 以上)。",
    )


# ---- 其余 ----


def check_overfitting(run):
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


def check_too_few_epochs(run):
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


def check_data_wait(run):
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


def check_unfinished(run):
    """训练没有完成:中断了,或中途出了错。"""
    if run.summary is not None or run.running or "stopped" in run.health:
        return None
    can_resume = (run.directory / "last.safetensors").exists()
    return Finding(
        "训练没有完成",
        f"设置了 {run.config.epochs} 轮,完成了 {len(run.metrics)} 轮,没有 summary.json",
        "训练被中断了(Ctrl-C、断电、内存不够、磁盘满),学习率还没有退火到底,也没有在测试集上评估。",
        f"python scripts/train.py --resume {run.directory}"
        if can_resume
        else "还没有存过检查点,请换一个 --output 重新训练。",
    )


# 检查 -> (名字, 它要用到的记录);记录是 health.json 里的键,或 metrics(至少训练完一轮)
SETUP = {
    check_blank_images: ("图像有没有内容", ("sample",)),
    check_normalization: ("归一化", ("sample", "seen")),
    check_labels: ("标签的分布", ("labels",)),
    check_softmax: ("softmax 做了几次", ("seen",)),
    check_head: ("分类头有没有装上", ("first_steps",)),
    check_frozen: ("冻结的参数", ("parameters",)),
    check_unused: ("没用到的参数", ("parameters",)),
}
FAILURES = {
    check_not_finite: ("NaN", ()),
    check_diverging: ("发散", ("metrics",)),
    check_learning_rate_too_high: ("学习率太大", ("metrics", "updates")),
    check_no_warmup: ("预热", ("metrics", "first_steps")),
    check_learning_rate_too_low: ("学习率太小", ("metrics", "updates")),
    check_shuffled_labels: ("标签与图像对不对得上", ("metrics", "sample")),
    check_train_and_validation_disagree: ("训练和验证对不对得上", ("metrics",)),
    check_too_few_steps: ("更新的次数", ("metrics",)),
    check_stuck: ("损失停在 ln(类别数)", ("metrics",)),
    check_patch_size: ("图块大小", ("metrics",)),
}
CONSEQUENCES = {
    check_overfitting: ("过拟合", ("metrics",)),
    check_too_few_epochs: ("轮数", ("metrics",)),
}
OTHERS = {
    check_data_wait: ("读数据的时间", ("data_wait",)),
    check_unfinished: ("训练完成了没有", ()),
}


def diagnose(run):
    """做全部检查。

    Args:
        run (Run): 见 ``load_records``。

    Returns:
        tuple[list[Finding], list[str]]: 发现,病因在前;因为没有记录而跳过的检查的名字。
    """
    available = {*run.health, *(["metrics"] if run.metrics else [])}
    if run.metrics and all("data_wait" in line for line in run.metrics):  # 旧版的记录里没有
        available.add("data_wait")
    skipped = [
        name
        for name, needs in {**SETUP, **FAILURES, **CONSEQUENCES, **OTHERS}.values()
        if not available.issuperset(needs)
    ]

    def findings_of(checks):
        ready = (check for check, (_, needs) in checks.items() if available.issuperset(needs))
        return [finding for finding in (check(run) for check in ready) if finding is not None]

    findings = findings_of(SETUP)
    explained = any(finding.explains_failure for finding in findings)
    failures = findings_of({check_not_finite: FAILURES[check_not_finite]} if explained else FAILURES)[:1]
    findings += failures
    if not explained and not failures:
        findings += findings_of(CONSEQUENCES)
    return findings + findings_of(OTHERS), skipped


def report(run):
    """诊断的文字,和有几个发现。

    Args:
        run (Run): 见 ``load_records``。

    Returns:
        tuple[str, int]
    """
    findings, skipped = diagnose(run)
    done, total = len(run.metrics), run.config.epochs
    state = "正在训练" if run.running else "已完成" if run.summary is not None else "没有完成"
    line = f"{run.directory}:{run.info.name},{len(run.info.classes)} 类,{done}/{total} 轮,{state}"
    if run.metrics:
        last = run.metrics[-1]
        line += f",训练 loss {last['train_loss']:.4f},验证 loss {last['val_loss']:.4f} top-1 {last['val_top1']:.2%}"
    lines = [line, "", f"发现 {len(findings)} 个问题,病因在前:" if findings else "没有发现问题。"]
    for number, finding in enumerate(findings, 1):
        lines += [
            f"{number}. {finding.name}",
            f"   证据:{finding.evidence}",
            f"   原因:{finding.why}",
            f"   试试:{finding.advice}",
        ]
    if skipped:
        lines += ["", f"没有记录,跳过:{'、'.join(skipped)}"]
    return "\n".join(lines), len(findings)


def load_records(directory):
    """读一个运行目录里的全部记录。

    Args:
        directory (str | Path): 运行目录。

    Returns:
        Run

    Raises:
        UserError: 不是运行目录,或文件损坏。
    """
    directory = Path(directory)
    config, info = load_config(directory), load_info(directory / "data.json")
    health = load_health(directory) or {}
    if not _is_about(health, info):
        raise UserError(f"{directory / 'health.json'} 与 data.json 对不上:请删除它再试,少了它只是有几项查不了。")
    return Run(
        directory,
        config,
        info,
        load_metrics(directory),
        health,
        read_json(directory / "summary.json"),
        read_json(directory / "init.json", {"source": str, "fresh": [str]}),
        is_in_use(directory),
    )


def _is_about(health, info):
    """体检记录里的类别数、通道数是不是这个数据集的,各项是不是有内容、在合理的范围里。"""
    counts = [*health.get("labels", {}).values()] + ([health["predicted"]] if "predicted" in health else [])
    if not all(len(count) == len(info.classes) and min(count) >= 0 and sum(count) for count in counts):
        return False
    sample, first = health.get("sample"), health.get("first_steps")
    pictures = [*health.get("seen", {}).values()] + ([sample] if sample else [])
    if not all(len(picture[name]) == info.channels for picture in pictures for name in ("mean", "std")):
        return False
    if sample and not (sample["images"] > 0 and 0 <= sample["neighbour_top1"] <= 1 and 0 <= sample["chance"] <= 1):
        return False
    return not first or len(first["loss"]) == len(first["grad_norm"]) > 0
