"""训练记录:VisualDL 曲线、``metrics.jsonl``、进度条和打印的每一行。

训练循环只管告诉 ``RunLog`` 到了哪里;写什么、写到哪里、怎样显示都在这里。多进程时其余的进程用 ``NoLog``。
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from paddle import nn
from paddle.utils import unique_name

from ..config import result_settings
from ..errors import UserError
from ..family.models import count_parameters
from ..family.static_graph import write_model
from ..family.static_program import ENGINE_ERRORS
from ..system.files import atomic_write, matches, parse_json
from ..system.pictures import draw, save_pixels
from ..system.run_files import GRAPH, METRICS
from ..tasks.task import Picture, Result
from ..training.progress import Step
from .visualdl_file import make_writer

__all__ = ["NoLog", "RunLog", "load_metrics"]

# VisualDL 的超参可视化页比较的设置。只写最要紧的几个:平行坐标图有十条轴时,浏览器会卡住几分钟;全部设置在 config.yaml 里
_COMPARED = ("lr", "batch_size", "epochs", "embed_dim", "depth", "position_embedding")


def _shown(task, measures):
    """由只在评估时量的指标选最好的一轮时,也打印它。"""
    kind = task.evaluated.get(task.best)
    return "" if kind is None else f" {kind.title} {measures[task.best]:{kind.form}}"


class NoLog:
    """多进程里其余进程的记录:什么也不写。"""

    def _nothing(self, *_):
        """不写。"""

    start = step = plan = epoch = pictures = histograms = finish = say = close = position = _nothing


class RunLog:
    """一次训练的记录。

    Args:
        directory (str | Path): 运行目录;VisualDL 的记录和 metrics.jsonl 写在这里。
        epochs (int): 总轮数。
        steps_per_epoch (int): 每轮多少步。
        position (dict | None): 续训时给 ``position()`` 当时的返回值,从那里接着写。
        every (int): 每隔多少步往 VisualDL 写一次。
    """

    def __init__(
        self, directory: str | Path, epochs: int, steps_per_epoch: int, position: dict | None = None, every: int = 10
    ):
        self.directory = Path(directory)
        self.epochs, self.steps_per_epoch, self.every = epochs, steps_per_epoch, every
        position = position or {"visualdl": 0, "metrics": 0}
        self._writer = make_writer(self.directory, position["visualdl"])
        path = self.directory / METRICS
        kept = path.read_bytes()[: position["metrics"]] if path.exists() else b""
        self._metrics_size = len(kept)
        atomic_write(path, kept)
        self._bar = self._make_bar()

    def _make_bar(self):
        from tqdm import tqdm  # 重,用到才导入

        return tqdm(
            total=self.epochs * self.steps_per_epoch,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc} {bar} {percentage:3.0f}% 已用 {elapsed} 剩余 {remaining}{postfix}",
        )

    def position(self) -> dict:
        """现在写到哪里;存进检查点,续训时交还给构造函数。"""
        records = self._writer._get_file_writer()
        records.flush()
        return {"visualdl": records.size, "metrics": self._metrics_size}

    def say(self, text: str) -> None:
        """打印一行,不弄乱进度条。"""
        self._bar.write(f"{text}\n", file=sys.stdout, end="")  # 换行一起写:Ctrl-C 不会落在中间
        sys.stdout.flush()

    # ---- 训练循环在这些时候调用 ----

    def start(self, trainer, resumed: bool) -> None:
        """训练开始:打印数据和模型,写网络结构图。"""
        config, p, steps = trainer.config, trainer.progress, trainer.steps_per_epoch
        self.epochs, self._bar.total = trainer.schedule.epochs, trainer.schedule.total_steps
        count, size = count_parameters(trainer.model), trainer.task.step_size(trainer.world)
        lines = [*trainer.task.describe(), f"模型 {config.model}:{count:,} 个参数;每轮 {steps} 步,每步 {size} 张"]
        if config.train_only != "all":
            count = sum(parameter.size for parameter in trainer.trained)
            lines.append(f"只训练分类头:{count:,} 个参数,其余冻结")
            if config.weights is None:
                lines.append("提示:没有 --weights,冻结的骨干是随机的初值,学不到什么;请给出预训练的权重。")
        if steps < 5:
            lines.append(f"提示:每轮只更新 {steps} 次,学得很慢;请调小 --batch-size,或加大 --epochs。")
        if p.first_epoch and not trainer.schedule.is_over:
            going = f"学习率重新升到 {config.lr:.2g},再退火到 {config.min_lr:g}"
            lines.append(f"接着训练:第 {p.first_epoch + 1} 到 {self.epochs} 轮,{going}")
        if resumed:
            going = f"从第 {p.epoch + 1} 轮第 {p.step + 1} 步接着来"
            lines.append(f"续训:{'训练已完成' if trainer.schedule.is_over else going}")
        for line in lines:
            self.say(line)
        self._graph(trainer.model)

    def plan(self, text: str, schedule) -> None:
        """限时的训练定下了步数:打印一行,进度条随之改。"""
        self.epochs, self._bar.total = schedule.epochs, schedule.total_steps
        self.say(text)

    def step(self, trainer, step: Step, lr: float, speed: float) -> None:
        """一步训练之后:更新进度条,隔几步写一次 VisualDL。

        Args:
            trainer (Trainer), step (Step): 见 ``training.loop``;进度已经计入这一步。
            lr (float): 这一步的学习率。
            speed (float): 每秒图像数。
        """
        p = trainer.progress
        done = p.epoch * self.steps_per_epoch + p.step  # 已经做完的步数
        self._bar.set_description_str(f"第 {p.epoch + 1}/{self.epochs} 轮", refresh=False)
        self._bar.set_postfix_str(f"{trainer.task.show(p.means)} {speed:.0f} 张/秒", refresh=False)
        self._bar.update(done - self._bar.n)
        if (done - 1) % self.every:
            return
        scalars = {"loss/train_step": step.loss}
        scalars.update({f"{name}/train_step": total / step.count for name, total in step.sums.items()})
        scalars.update({"optimizer/lr": lr, "optimizer/grad_norm": step.grad_norm})
        scalars.update({"speed/images_per_second": speed, "speed/data_wait": p.wait_seconds / p.epoch_seconds})
        self._scalars(scalars, done - 1)

    def epoch(self, trainer, result: Result) -> str:
        """一轮结束:往 metrics.jsonl 写一行,往 VisualDL 写各条曲线;返回要打印的一行,存好检查点以后再打印。

        Args:
            trainer (Trainer): 进度还是这一轮的。
            result (Result): 验证的结果。
        """
        p, task, steps = trainer.progress, trainer.task, trainer.steps_per_epoch
        speed, wait = p.count / p.epoch_seconds, p.wait_seconds / p.epoch_seconds
        lr = trainer.schedule.rate(p.epoch * steps + p.step - 1)
        metrics = {"epoch": p.epoch + 1}
        metrics.update({f"train_{name}": value for name, value in p.means.items()})
        metrics.update({f"val_{name}": result.measures[name] for name in task.evaluated_measures()})
        metrics.update({"lr": lr, "grad_norm": p.grad_norm_sum / p.step, "grad_norm_max": p.grad_norm_max})
        metrics.update({"images_per_second": speed, "data_wait": wait, "seconds": p.seconds})
        line = (json.dumps(metrics, ensure_ascii=False) + "\n").encode()
        with open(self.directory / METRICS, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._metrics_size += len(line)
        scalars = {
            f"{name}/{part}": metrics[f"{part}_{name}"] for name in task.all_measures() for part in ("train", "val")
        }
        scalars.update({f"{name}/val": metrics[f"val_{name}"] for name in task.evaluated})
        scalars.update(task.curves(result))
        scalars.update({"optimizer/lr_epoch": lr, "speed/images_per_second_epoch": speed})
        self._scalars(scalars, p.epoch + 1)
        both = {part: metrics[f"{part}_loss"] for part in ("train", "val")}
        self._writer.add_scalars("loss/both", both, p.epoch + 1)  # 一张图里两条线,看得出过拟合
        validated = f"{task.show(result.measures)}{_shown(task, result.measures)}"
        return (
            f"第 {p.epoch + 1}/{self.epochs} 轮  训练 {task.show(p.means)}  验证 {validated}  "
            f"{speed:.0f} 张/秒,等数据 {wait:.0%}"
        )

    def pictures(self, pictures: Iterable[Picture], epoch: int) -> None:
        """写几张图(``tasks.task.Picture``);有文件名的也存进运行目录,没有可画的就删掉以前的。"""
        for tag, image, file in pictures:
            if image is None and file is not None:
                (self.directory / file).unlink(missing_ok=True)
                continue
            pixels = draw(image)
            self._writer.add_image(tag, pixels, epoch)
            if file is not None:
                save_pixels(pixels, self.directory / file)

    def histograms(self, model: nn.Layer, epoch: int) -> None:
        """写模型里各个矩阵的直方图。"""
        for name, value in model.named_parameters():
            if value.ndim > 1:
                self._writer.add_histogram(f"weights/{name}", value.numpy().flatten(), epoch)

    def finish(self, trainer, summary: dict) -> None:
        """训练完:写超参数和最终指标,供 VisualDL 的 HPARAMS(超参可视化)页比较各次运行;打印结果。"""
        p, best = trainer.progress, trainer.task.best
        known = {**result_settings(trainer.config), **getattr(trainer.model, "settings", {})}  # 模型决定的也在里面
        if "depths" in known:  # Swin
            known.update(depth=sum(known["depths"]), position_embedding="relative")
        names = [f"test_{best}", f"val_{best}"]
        # 照顾少的类的运行也按 top-1 与别的比
        compared = [f"{part}_{name}" for part in ("test", "val") for name in trainer.task.measures]
        compared = compared if best in trainer.task.evaluated else names
        settings = {name: known[name] for name in _COMPARED if known.get(name) is not None}
        self._writer.add_hparams(settings, [f"result/{name}" for name in compared])
        self._scalars({f"result/{name}": summary[name] for name in dict.fromkeys([*names, *compared])}, 0)
        kind = trainer.task.evaluated_measures()[best]
        test, val = (f"{summary[name]:{kind.form}}" for name in names)
        if trainer.schedule.is_out_of_patience:
            self.say(f"验证连续 {trainer.config.patience} 轮没有变好,在第 {p.epoch} 轮停下")
        self.say(f"完成:测试 {kind.title} {test}(第 {p.best_epoch} 轮的权重,验证 {val}),用时 {p.seconds:.0f} 秒")

    def close(self) -> None:
        """关闭文件和进度条。"""
        self._bar.close()
        self._writer.close()

    # ---- 写 ----

    def _scalars(self, values, step):
        """往 VisualDL 写一组标量,标签里 ``/`` 之前的部分是图表的分组。"""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def _graph(self, model):
        """写模型的结构,显示在 VisualDL 的“网络结构 - 动态”页,各层是可以展开的框。

        VisualDL 2.5.3 自带的 ``add_graph`` 读不了 Paddle 3 存的模型;它分析旧格式的那一半还能用。
        """
        try:
            from visualdl.component.graph import analyse_model  # 重,用到才导入

            with unique_name.guard():  # 给节点起名字的计数器,与 Paddle 给参数起名字的是同一个
                nodes = analyse_model(write_model(model, keep_constants=False)[0])
        except ENGINE_ERRORS as error:
            self.say(f"提示:VisualDL 里不会有网络结构图,训练照常({type(error).__name__}:{error})。")
            return
        atomic_write(self.directory / GRAPH, json.dumps(nodes).encode())


def load_metrics(directory: str | Path, needed: tuple[str, ...] = ()) -> list[dict]:
    """读回 metrics.jsonl,每轮一个字典;没有文件时是空的,最后半行(写到一半被杀掉)不算。

    Args:
        directory (str | Path): 运行目录。
        needed (tuple[str]): 每轮必须有的指标,如 ``val_top1``。

    Raises:
        UserError: 文件已损坏,或没有 needed 里的指标。
    """
    path = Path(directory) / METRICS
    if not path.exists():
        return []
    lines = [parse_json(line) for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]]
    always = ("epoch", "train_loss", "val_loss", "lr", "images_per_second", "data_wait")
    whole = matches(lines, [dict.fromkeys(always, float)]) and all(matches(line, {None: float}) for line in lines)
    # 各行的列相同;旧版开始的运行接着训练,后面的行多几列
    whole = whole and all(set(line) <= set(lines[-1]) for line in lines) if lines else whole
    if not whole or not all(0 <= line[name] <= 1 for line in lines for name in line if name.endswith("top1")):
        raise UserError(f"{path} 已损坏:请换一个备份,或重新训练。")
    missing = [name for name in needed if lines and name not in lines[0]]
    if missing:
        raise UserError(f"{path} 里没有 {missing[0]}:这里只看得懂分类的运行,它学的是别的。")
    return lines
