"""训练:优化器、学习率、一轮训练、整个过程。第二个读这个文件。"""

import contextlib
import dataclasses
import json
import math
import re
import signal
import threading
import time

import numpy as np
import paddle
import paddle.nn.functional as F

from ..attention.maps import attention_weights, has_windows, heads_figure, maps_figure, rollout, token_map
from ..config import Config, as_saved_before, result_settings
from ..data.augment import normalize, to_pixels
from ..data.sources import step_size, training_batches, varied_indices
from ..errors import UserError
from ..family.models import count_parameters, is_head
from ..system.files import atomic_write, matches
from ..system.processes import meet, share_weights, sum_gradients, sum_over_processes
from ..system.runtime import autocast
from ..tasks.evaluation import evaluate
from ..weights.checkpoint import differences, load_weights_into, read_state, save_model, weights_path, write_state
from .health import Health, NotFinite

__all__ = ["Ema", "choose_trained", "fit", "is_decayed", "learning_rate", "make_optimizer"]

FIGURE_STEPS = 80  # 混淆矩阵、判错的图像和注意力至少隔这么多步画一次:画一次与几步到几十步训练一样慢


def learning_rate(step, config, steps_per_epoch):
    """第 step 步(从 0 起)的学习率:线性预热到 lr,再余弦退火(arXiv 1608.03983)到 min_lr。"""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 2)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


# 不是矩阵的多维参数
_NOT_DECAYED = ("class_token", "distillation_token", "register_tokens", "position_embedding")
_NOT_DECAYED += ("relative_position_bias_table",)


def is_decayed(name, parameter):
    """权重衰减只用于矩阵和卷积核:偏置、归一化层(都是一维)、各种 token、位置编码和 Swin 的偏置表不衰减。"""
    return parameter.ndim > 1 and name.split(".")[-1] not in _NOT_DECAYED


def layers_of(names):
    """每个参数在第几层(字典):图块嵌入、token 和位置编码是 0,第 i 个编码器是 i,最后的归一化和头是 L + 1。

    Swin 的块(block)从第一级数到最后一级;一级末尾的图块合并与它前面的块同层。

    Args:
        names (Iterable[str]): 模型的参数名,按 ``named_parameters()`` 的次序(从输入到输出)。
    """
    layers, blocks = {}, []
    for name in names:
        block = re.match(r"encoders\.\d+\.|stages\.\d+\.blocks\.\d+\.", name)
        if block is not None and block[0] not in blocks:
            blocks.append(block[0])
        layers[name] = len(blocks)
    top = {name for name in layers if is_head(name) or name.startswith(("norm.", "pool_norm."))}
    return {name: len(blocks) + 1 if name in top else layer for name, layer in layers.items()}


def learning_rate_scales(model, layer_decay):
    """每个参数的学习率要乘的数(字典):第 l 层是 layer_decay ** (L + 1 - l),L 是编码器的层数。

    越靠近输入的层学到的越通用,微调时动得越少越好。来源:ELECTRA(arXiv 2003.10555)、BEiT(arXiv 2106.08254)。
    """
    layers = layers_of(name for name, _ in model.named_parameters())
    return {name: layer_decay ** (max(layers.values()) - layer) for name, layer in layers.items()}


def make_optimizer(model, config):
    """AdamW(arXiv 1711.05101);学习率由训练循环每步设置,逐层衰减时每个参数再乘自己的那个数(权重衰减也跟着乘)。"""
    decayed = {parameter.name for name, parameter in model.named_parameters() if is_decayed(name, parameter)}
    scales = learning_rate_scales(model, config.layer_decay)
    for name, parameter in model.named_parameters():
        parameter.optimize_attr["learning_rate"] = scales[name]
    return paddle.optimizer.AdamW(
        learning_rate=config.lr,
        beta2=config.beta2,
        parameters=model.parameters(),
        weight_decay=config.weight_decay,
        apply_decay_param_fun=lambda name: name in decayed,
    )


class Ema:
    """权重的指数滑动平均(Exponential Moving Average):average = decay * average + (1 - decay) * weight。

    开头几步用较小的系数 (1 + n) / (10 + n),免得随机的初值留得太久。

    Args:
        model (nn.Layer): 被平均的模型。
        decay (float): 系数,0–1;0 表示不平均,平均值就是当前权重。
    """

    def __init__(self, model, decay):
        self.decay, self.updates = decay, 0
        self.parameters = dict(model.named_parameters())
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()} if decay else {}

    def update(self):
        """每次更新权重之后调用。"""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with paddle.no_grad():
            for name, average in self.averages.items():
                average.lerp_(self.parameters[name], 1 - decay)

    @contextlib.contextmanager
    def applied(self):
        """在 with 里,模型用的是平均后的权重。"""
        saved = {name: self.parameters[name].detach().clone() for name in self.averages}
        for name, average in self.averages.items():
            self.parameters[name].set_value(average)
        try:
            yield
        finally:
            for name, value in saved.items():
                self.parameters[name].set_value(value)


def _seed_step(seed, epoch, step, rank):
    """每一步重设 Paddle 的随机数:dropout 只由 (seed, epoch, step, rank) 决定,从任何一步续训都一样。"""
    paddle.seed(int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0]))


@contextlib.contextmanager
def _deferred_interrupt():
    """在 with 里,第一次 Ctrl-C 只做个记号,由循环在两步之间停下;第二次照常立即中断。

    反向传播途中的 ``KeyboardInterrupt`` 会被 Paddle 的 C++ 部分变成别的异常,所以要推迟。
    给出一个函数,返回是否按过 Ctrl-C。
    """
    pressed = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous):  # 后台任务里 Ctrl-C 本来就被忽略
        yield lambda: False
        return

    def remember(number, frame):
        pressed.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


@dataclasses.dataclass
class _Progress:
    """训练到哪里了;续训时从检查点恢复。"""

    epoch: int = 0  # 正在进行的一轮,从 0 起
    step: int = 0  # 这一轮里已经做完的步数
    loss_sum: float = 0.0  # 这一轮至今的损失之和、判对数、图像数、用时(秒)
    correct: float = 0.0
    images: int = 0
    epoch_seconds: float = 0.0
    wait_seconds: float = 0.0  # 这一轮里等数据的时间(秒)
    grad_norm_sum: float = 0.0  # 这一轮至今的梯度范数之和、最大值
    grad_norm_max: float = 0.0
    seconds: float = 0.0  # 全程用时(秒),含评估
    best_epoch: int = 0  # 从 1 起;0 表示还没有
    best_top1: float = -1.0
    best_loss: float = -1.0

    def start_epoch(self, epoch):
        self.epoch, self.step = epoch, 0
        self.loss_sum, self.correct, self.images = 0.0, 0.0, 0
        self.epoch_seconds, self.wait_seconds = 0.0, 0.0
        self.grad_norm_sum, self.grad_norm_max = 0.0, 0.0


_PROGRESS = {field.name: field.type for field in dataclasses.fields(_Progress)}  # 见 checkpoint.matches


@dataclasses.dataclass(frozen=True)
class _Step:
    """一次更新的结果,所有进程合计。"""

    loss: float  # 平均损失
    correct: int  # 判对的张数
    images: int  # 图像数
    grad_norm: float  # 裁剪之前的梯度总范数
    flags: list  # 各进程所给的数之和


def choose_trained(model, train_only):
    """选出要训练的参数,其余冻结:不求梯度,优化器也不动它们;调用者自己冻结的照旧。

    Args:
        model (ViT): 模型。
        train_only (str): ``'all'`` 全部没有冻结的;``'head'`` 只有分类头(有蒸馏头时也算)。

    Returns:
        list[Parameter]: 要训练的参数。
    """
    for name, parameter in model.named_parameters():
        if train_only == "head" and not is_head(name):
            parameter.stop_gradient = True
    return [parameter for parameter in model.parameters() if not parameter.stop_gradient]


def label_objective(model, images, targets, precision=None):
    """没有老师时的训练目标:对标签的交叉熵;模型有两个头时,用它们的平均,与预测时相同。

    参数和返回值同 ``distillation.Distillation``。
    """
    with autocast(precision):
        logits = model(images)  # [b, K]
    return logits, F.cross_entropy(logits.astype("float32"), targets, soft_label=True)


class _Trainer:
    """把模型、优化器、EMA 和进度放在一起,好整个存进检查点。"""

    def __init__(self, model, data, config, directory, precision, rank, world, distillation=None):
        self.model, self.data, self.config, self.directory = model, data, config, directory
        self.objective = distillation or label_objective
        self.trained = choose_trained(model, config.train_only)
        self.precision, self.rank, self.world = precision, rank, world
        self.optimizer = make_optimizer(model, config)
        self.scaler = paddle.amp.GradScaler(enable=precision == "float16")
        self.ema = Ema(model, config.ema)
        self.progress = _Progress()
        self.batch = step_size(len(data.train), config, world)
        self.steps_per_epoch = len(data.train) // self.batch
        self.health = Health(directory, enabled=rank == 0 and directory is not None)

    # ---- 一步 ----

    def train_step(self, images, targets, learning_rate, flags=(0, 0)):
        """一次更新:前向、反向(累积 accumulate 批)、各进程相加、裁剪、AdamW、EMA。

        Args:
            images (ndarray): float32,[b, C, H, W],本进程的那一份。
            targets (ndarray): float32,[b, K],标签分布。
            learning_rate (float): 这一步的学习率。
            flags (tuple): 本进程要告诉大家的几个数。

        Returns:
            _Step: 所有进程合计的结果。
        """
        chunks = min(self.config.accumulate, len(images))
        pieces = list(zip(np.array_split(images, chunks), np.array_split(targets, chunks)))
        p, loss_sum, correct = self.progress, 0.0, 0
        for x, y in pieces:
            x, y = paddle.to_tensor(x), paddle.to_tensor(y)
            logits, loss = self.objective(self.model, x, y, self.precision)  # [b, K] 和一个数
            share = len(x) / len(images) / self.world  # 这一块在全部图像里所占的份额
            self.scaler.scale(loss * share).backward()
            loss_sum += float(loss) * len(x)
            correct += int((logits.argmax(-1) == y.argmax(-1)).sum())
        totals = [loss_sum, correct, len(images), *flags]
        if self.world > 1:
            totals = sum_gradients(self.trained, totals)
        loss_sum, correct, count, *flags = totals
        self.scaler.unscale_(self.optimizer)
        clip = self.config.clip_grad or math.inf
        norm = float(paddle.nn.utils.clip_grad_norm_(self.trained, clip))
        healthy = math.isfinite(loss_sum) and (math.isfinite(norm) or self.precision == "float16")
        if not healthy:
            where = {"epoch": p.epoch + 1, "step": p.step + 1, "loss": str(loss_sum / count), "grad_norm": str(norm)}
            raise NotFinite(
                f"第 {p.epoch + 1} 轮第 {p.step + 1} 步(全程第 {p.epoch * self.steps_per_epoch + p.step + 1} 步)"
                f"损失或梯度变成了 NaN 或无穷大(loss={loss_sum / count},梯度范数={norm},lr={learning_rate:g}):"
                "请调小 --lr,加长 --warmup-epochs,或检查数据;之前的检查点不受影响。",
                {**where, "lr": learning_rate, "inputs_finite": bool(np.isfinite(images).all())},
            )
        measured = self.health.enabled and self._is_measured()
        if measured:
            self.health.before_update(self.model)
        self.optimizer.set_lr(learning_rate)
        self.scaler.step(self.optimizer)
        if measured:
            self.health.after_update(self.model, p.epoch * self.steps_per_epoch + p.step, learning_rate)
        self.scaler.update()
        self.optimizer.clear_grad(set_to_zero=False)
        self.ema.update()
        return _Step(loss_sum / count, int(correct), int(count), norm, flags)

    def _is_measured(self):
        """要不要量这一步的更新:开头两步,以及大约十轮的最后一步;每步都量会慢几个百分点。"""
        p = self.progress
        last = p.step == self.steps_per_epoch - 1 and _is_now_and_then(p.epoch, self.config.epochs)
        return last or (p.epoch == 0 and p.step < 2)

    # ---- 一轮 ----

    def train_epoch(self, log):
        """训练一轮(续训时是一轮剩下的部分),返回这一轮的平均损失、正确率、每秒图像数和等数据的时间占比。

        按 Ctrl-C 时做完手上的一步,存检查点,再抛出 ``KeyboardInterrupt``。
        """
        with _deferred_interrupt() as interrupted:
            return self._train_epoch(log, interrupted)

    def _train_epoch(self, log, interrupted):
        p, config, data = self.progress, self.config, self.data
        self.model.train()
        batches = training_batches(data.train, config, data.info, p.epoch, p.step, self.rank, self.world)
        last_save = started = asked = time.monotonic()
        before = dataclasses.replace(p)
        while p.step < self.steps_per_epoch:
            images, targets = next(batches)
            ready = time.monotonic()
            _seed_step(config.seed, p.epoch, p.step, self.rank)
            global_step = p.epoch * self.steps_per_epoch + p.step
            if p.step == 0 and _is_now_and_then(p.epoch, config.epochs):
                log.images("train/images", to_pixels(images[:32], data.info.mean, data.info.std), p.epoch + 1)
            lr = learning_rate(global_step, config, self.steps_per_epoch)
            late = ready - last_save > config.checkpoint_minutes * 60
            step = self.train_step(images, targets, lr, (interrupted(), late))
            stop, late = step.flags
            p.step += 1
            p.loss_sum += step.loss * step.images
            p.correct += step.correct
            p.images += step.images
            if math.isfinite(step.grad_norm):  # float16 偶尔溢出,那一步不更新,也不算
                p.grad_norm_sum += step.grad_norm
                p.grad_norm_max = max(p.grad_norm_max, step.grad_norm)
            self.health.step(global_step, step.loss, step.grad_norm)
            now = time.monotonic()
            p.epoch_seconds = before.epoch_seconds + now - started
            p.seconds = before.seconds + now - started
            p.wait_seconds += ready - asked
            asked = now
            speed = (p.images - before.images) / (now - started)
            scalars = {
                "loss/train_step": step.loss,
                "top1/train_step": step.correct / step.images,
                "optimizer/lr": lr,
                "optimizer/grad_norm": step.grad_norm,
                "speed/images_per_second": speed,
                "speed/data_wait": p.wait_seconds / p.epoch_seconds,
            }
            log.step(p.epoch, global_step, scalars, p.loss_sum / p.images, p.correct / p.images, speed)
            if p.step == self.steps_per_epoch and self.world > 1:  # 最后一步之后没有下一步来传话
                (stop,) = sum_over_processes([float(interrupted())])
            if stop or (self.world == 1 and interrupted()):
                self.save(log)
                raise KeyboardInterrupt(f"接着训练:python scripts/train.py --resume {self.directory}")
            if late and p.step < self.steps_per_epoch:
                self.save(log)
                last_save = now
        return p.loss_sum / p.images, p.correct / p.images, p.images / p.epoch_seconds, p.wait_seconds / p.epoch_seconds

    def evaluate(self, part):
        """用模型当前的权重评估一部分数据。"""
        info, batch_size = self.data.info, self.config.batch_size
        return evaluate(self.model, part, info, batch_size, self.precision, self.rank, self.world)

    def log_attention(self, log):
        """把固定的几张验证图像的注意力写进 VisualDL:每张的 rollout,和第一张各层各头的权重;Swin 没有。"""
        val, info = self.data.val, self.data.info
        indices = varied_indices(val.labels, self.config.attention_images)
        if self.rank or not len(indices) or has_windows(self.model):
            return
        (images,) = val.fetch([(indices, None)])  # uint8 [b, H, W, C]
        inputs = normalize(images, info.mean, info.std)  # [b, C, H, W]
        epoch = self.progress.epoch + 1
        maps = []
        for i in range(len(indices)):  # 一张一张来:权重是 [L, 1, h, N, N],图块多时很大
            weights = attention_weights(self.model, inputs[i : i + 1])
            maps.append(token_map(rollout(weights), self.model))
            if i == 0:
                log.figure("attention/heads", heads_figure(weights[:, 0], self.model, images[0]), epoch)
        names = [info.classes[label] for label in val.labels[indices]]
        figure = maps_figure(images, {"rollout": np.concatenate(maps)}, names, f"第 {epoch} 轮看图像的哪里")
        log.figure("attention/rollout", figure, epoch)

    # ---- 检查点 ----

    def save(self, log):
        """存续训状态;各进程的状态相同,由 0 号进程写。"""
        if self.rank == 0:
            self._write_state(log)
        meet(f"saved {self.progress.epoch} {self.progress.step}", self.world)

    def _write_state(self, log):
        tensors = {f"model/{name}": value.numpy() for name, value in self.model.state_dict().items()}
        tensors.update({f"ema/{name}": value.numpy() for name, value in self.ema.averages.items()})
        tensors.update({f"optimizer/{name}": value.numpy() for name, value in self._optimizer_state().items()})
        metadata = {
            "progress": dataclasses.asdict(self.progress),
            "ema_updates": self.ema.updates,
            "scaler": {name: np.asarray(value).tolist() for name, value in self.scaler.state_dict().items()},
            "log": log.position(),
            "config": result_settings(self.config),
        }
        write_state(self.directory / "last.safetensors", tensors, metadata)

    def _optimizer_state(self):
        """优化器状态,名字从 Paddle 自动起的(随进程里建过多少层而变)换成模型里的参数名。"""
        names = {parameter.name: name for name, parameter in self.model.named_parameters()}
        state = {}
        for key, value in self.optimizer.state_dict().items():
            owner = next((auto for auto in names if key.startswith(f"{auto}_")), None)
            if owner is not None:
                state[f"{names[owner]}/{key[len(owner) + 1 :]}"] = value
        return state

    def restore(self):
        """读回续训状态;没有存过就从头开始。返回记录的位置,或 ``None``。"""
        path = self.directory / "last.safetensors"
        if not path.exists():
            return None
        tensors, metadata = read_state(path)
        parts = {"model": {}, "ema": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = value
        saved = metadata["config"] if matches(metadata, {"config": dict}) else {}
        now = result_settings(self.config)
        before = {**result_settings(Config()), **as_saved_before(saved)}  # 旧版存的里没有新添的设置
        changed = [name for name in now if now[name] != before[name]]
        if changed:
            name = changed[0]
            raise UserError(
                f"config.yaml 里的 {name} 是 {now[name]},检查点里是 {before[name]}:"
                "续训要沿用原来的设置,请改回来,或用 --output 开一个新的运行。"
            )
        self._check_state(path, parts, metadata)
        self.model.set_state_dict(parts["model"])
        for name, average in self.ema.averages.items():
            average.set_value(parts["ema"][name])
        self.ema.updates = metadata["ema_updates"]
        auto_names = {name: parameter.name for name, parameter in self.model.named_parameters()}
        state = {}
        for key, value in parts["optimizer"].items():
            name, kind = key.rsplit("/", 1)
            state[f"{auto_names[name]}_{kind}"] = paddle.to_tensor(value)
        self.optimizer.set_state_dict(state)
        if metadata["scaler"]:
            self.scaler.load_state_dict({k: np.asarray(v, "float32") for k, v in metadata["scaler"].items()})
        self.progress = _Progress(**metadata["progress"])
        return metadata["log"]

    def _check_state(self, path, parts, metadata):
        """检查点与模型对不上时抛出 ``UserError``;校验和只防意外的损坏,改过的文件也可以有对的校验和。"""
        pattern = {"progress": dict, "ema_updates": int, "scaler": dict, "log": (dict, type(None)), "config": dict}
        good = matches(metadata, pattern) and metadata["progress"].keys() <= _PROGRESS.keys()
        good = good and matches(metadata["progress"], {name: _PROGRESS[name] for name in metadata["progress"]})
        shapes = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        details = differences(self.model.state_dict(), parts["model"]) or differences(self.ema.averages, parts["ema"])
        for key, value in parts["optimizer"].items():
            name = key.rpartition("/")[0]
            if name not in shapes or value.shape not in (shapes[name], (1,), ()):
                details = details or f"优化器的状态 {key}"
        if len(parts) > 3 or details or not good:
            raise UserError(
                f"{path} 与这个运行对不上({details or '训练的进度'}):它可能被改过,"
                "请换一个备份,或用 --output 开一个新的运行。"
            )

    def update_best(self, evaluation):
        """验证正确率不低于以往最好的,就存下当前(EMA)权重;相同时取较晚的一轮,那时学习率已经降下来,更稳。"""
        p = self.progress
        if evaluation.top1 < p.best_top1:
            return
        p.best_epoch, p.best_top1, p.best_loss = p.epoch + 1, evaluation.top1, evaluation.loss
        if self.rank == 0:
            path, info = self.directory / "best.safetensors", self.data.info
            save_model(path, self.model.state_dict(), self.config.model_arguments(info), dataclasses.asdict(info))


def _is_now_and_then(epoch, epochs, least=1):
    """整个训练里大约十次,首尾两轮总在内;其间至少每隔 least 轮一次,轮数少时就不到十次。epoch 从 0 起。"""
    return epoch == 0 or epoch == epochs - 1 or (epoch + 1) % max(least, epochs // 10) == 0


def fit(model, data, config, directory, make_log, precision=None, rank=0, world=1, distillation=None):
    """整个训练:每轮训练、验证、存检查点;最后在测试集上评估一次,写 summary.json。

    目录里有检查点时接着训练,结果与从未中断的训练相同。

    Args:
        model (nn.Layer): 要训练的模型。
        data (Data): 数据集的三个部分。
        config (Config): 设置。
        directory (Path): 运行目录,已经建好。
        make_log (Callable): (每轮步数, 续训位置) -> ``RunLog``。
        precision (str | None): 混合精度的类型,``None`` 是 float32。
        rank, world (int): 本进程的序号和进程总数。
        distillation (Distillation | None): 有老师时的训练目标。

    Returns:
        dict: summary.json 的内容。

    Raises:
        UserError: 损失变成 NaN、检查点损坏、磁盘满等。
    """
    trainer = _Trainer(model, data, config, directory, precision, rank, world, distillation)
    position = trainer.restore()
    if world > 1:
        share_weights(model)
    trainer.health.data(data)
    meet("examined data", world)
    trainer.health.watch(model)
    log = make_log(trainer.steps_per_epoch, position)
    try:
        return _fit(trainer, log, resumed=position is not None)
    except NotFinite as error:
        trainer.health.stopped(error.where)
        raise
    finally:
        log.close()


def _fit(trainer, log, resumed):
    p, config, data, info = trainer.progress, trainer.config, trainer.data, trainer.data.info
    parameters = count_parameters(trainer.model)
    counts = " / ".join(f"{info.counts[part]}" for part in ("train", "val", "test"))
    log.say(f"数据 {info.name}:训练/验证/测试 {counts} 张,{len(info.classes)} 类,{info.image_size} 像素")
    log.say(f"模型 {config.model}:{parameters:,} 个参数;每轮 {trainer.steps_per_epoch} 步,每步 {trainer.batch} 张")
    log.graph(trainer.model)
    if config.train_only != "all":
        log.say(f"只训练分类头:{sum(parameter.size for parameter in trainer.trained):,} 个参数,其余冻结")
        if config.weights is None:
            log.say("提示:没有 --weights,冻结的骨干是随机的初值,学不到什么;请给出预训练的权重。")
    if config.distillation_kind != "none":
        log.say(f"蒸馏({config.distillation_kind}):老师 {config.teacher},损失占 {config.distillation_alpha:.0%}")
    if trainer.steps_per_epoch < 5:
        log.say(f"提示:每轮只更新 {trainer.steps_per_epoch} 次,学得很慢;请调小 --batch-size,或加大 --epochs。")
    if info.counts["val"] < 50:
        log.say(f"提示:验证集只有 {info.counts['val']} 张,选出的最好一轮很不可靠;请多准备一些图像。")
    if resumed:
        log.say(f"续训:从第 {p.epoch + 1} 轮第 {p.step + 1} 步接着来" if p.epoch < config.epochs else "续训:训练已完成")
    while p.epoch < config.epochs:
        train_loss, train_top1, speed, data_wait = trainer.train_epoch(log)
        started = time.monotonic()
        draws = _is_now_and_then(p.epoch, config.epochs, math.ceil(FIGURE_STEPS / trainer.steps_per_epoch))
        with trainer.ema.applied():
            evaluation = trainer.evaluate(data.val)
            trainer.update_best(evaluation)
            if draws:
                trainer.log_attention(log)
        trainer.health.evaluation(evaluation, len(info.classes))
        p.seconds += time.monotonic() - started
        if draws:
            log.evaluation("val", evaluation, data.val, info.classes, p.epoch + 1)
        if _is_now_and_then(p.epoch, config.epochs):
            weights = ((name, value.numpy()) for name, value in trainer.model.named_parameters() if value.ndim > 1)
            log.histograms(weights, p.epoch + 1)
            trainer.health.write()
        log.epoch(
            {
                "epoch": p.epoch + 1,
                "train_loss": train_loss,
                "train_top1": train_top1,
                "val_loss": evaluation.loss,
                "val_top1": evaluation.top1,
                "lr": learning_rate((p.epoch + 1) * trainer.steps_per_epoch - 1, config, trainer.steps_per_epoch),
                "grad_norm": p.grad_norm_sum / trainer.steps_per_epoch,
                "grad_norm_max": p.grad_norm_max,
                "images_per_second": speed,
                "data_wait": data_wait,
                "seconds": p.seconds,
            }
        )
        p.start_epoch(p.epoch + 1)
        trainer.save(log)
    return _finish(trainer, log, parameters)


def _finish(trainer, log, parameters):
    """用验证集上最好的权重在测试集上评估一次。"""
    p, config, data, info = trainer.progress, trainer.config, trainer.data, trainer.data.info
    if trainer.rank == 0:
        load_weights_into(trainer.model, weights_path(trainer.directory))
    if trainer.world > 1:
        share_weights(trainer.model)  # 别的机器上没有这个文件
    evaluation = trainer.evaluate(data.test)
    summary = {
        "test_top1": evaluation.top1,
        "test_top5": evaluation.top5,
        "test_loss": evaluation.loss,
        "val_top1": p.best_top1,
        "val_loss": p.best_loss,
        "best_epoch": p.best_epoch,
        "epochs": config.epochs,
        "seconds": round(p.seconds, 2),
        "parameters": parameters,
        "dataset": info.name,
        "model": config.model,
        "seed": config.seed,
        "processes": trainer.world,
        "device": paddle.device.get_device(),
        "precision": trainer.precision or "float32",
        "paddle": paddle.__version__,
    }
    log.evaluation("test", evaluation, data.test, info.classes, p.best_epoch)
    metrics = {name: summary[name] for name in ("test_top1", "val_top1", "best_epoch", "seconds")}
    log.hyper_parameters(result_settings(config), metrics)
    if trainer.rank == 0:
        text = json.dumps(summary, ensure_ascii=False, indent=1)
        atomic_write(trainer.directory / "summary.json", f"{text}\n".encode())
    log.say(
        f"完成:测试 top-1 {evaluation.top1:.2%}(第 {p.best_epoch} 轮的权重,验证 {p.best_top1:.2%}),"
        f"用时 {p.seconds:.0f} 秒"
    )
    return summary
