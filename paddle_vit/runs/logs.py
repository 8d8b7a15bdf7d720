"""训练记录:VisualDL 曲线、``metrics.jsonl``、进度条。

训练只管调用 ``RunLog``,不关心写到哪里。多进程时只有 0 号进程的 ``RunLog`` 真的写。
"""

import errno
import json
import os
import sys
from pathlib import Path

from paddle.utils import unique_name
from PIL import Image

from ..errors import UserError
from ..family.static_graph import ENGINE_ERRORS, write_model
from ..system.files import atomic_write, matches
from ..system.pictures import confusion_figure, draw, image_grid, mistakes_figure

__all__ = ["RunLog", "load_metrics"]

VISUALDL_FILE = "vdlrecords.log"  # 固定的名字:VisualDL 只读目录里最新的一个文件,续训必须接着写同一个
GRAPH_FILE = "vdlgraph.log"
METRICS_FILE = "metrics.jsonl"
_METRICS = ("epoch", "train_loss", "train_top1", "val_loss", "val_top1", "lr", "images_per_second")


class _RecordFile:
    """VisualDL 的记录文件:一条记录一次写完,记得写到了哪里,写不下就抛出 ``OSError``。

    VisualDL 2.5.3 自带的写法由后台线程追加,写失败(如磁盘满)时只打印一行英文就丢掉记录,可能留下半条;
    它也不告诉调用者写到了哪里,续训时没法去掉检查点之后的记录。
    """

    def __init__(self, path, size):
        from visualdl.writer.record_writer import RecordWriter

        self._path = Path(path)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  由 close 关闭
        self._size = min(size, self._file.tell())
        self._file.truncate(self._size)  # 续训:去掉检查点之后的记录,它们会重新写一遍
        self._writer = RecordWriter(self)

    def add_record(self, record):
        self._writer.write(record.SerializeToString())

    def write(self, data):
        written = self._file.write(data)
        if written != len(data):
            self._file.truncate(self._size)  # 不留半条记录
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._size += written

    @property
    def size(self):
        return self._size

    def get_filename(self):
        return str(self._path)

    def flush(self):
        os.fsync(self._file.fileno())

    def close(self):
        self._file.close()


def _make_writer(directory, size):
    """一个 ``visualdl.LogWriter``,只把它写文件的部分换成 ``_RecordFile``。"""
    from visualdl import LogWriter

    class Writer(LogWriter):
        def _get_file_writer(self):
            if self._file_writer is None:
                self._file_writer = _RecordFile(Path(directory) / VISUALDL_FILE, size)
                self._all_writers[self._logdir] = self._file_writer
            return self._file_writer

    return Writer(logdir=str(directory))


class RunLog:
    """一次训练的记录。

    Args:
        directory (str | Path): 运行目录;VisualDL 的记录和 metrics.jsonl 写在这里。
        epochs (int): 总轮数。
        steps_per_epoch (int): 每轮多少步。
        position (dict | None): 续训时给 ``position()`` 当时的返回值,从那里接着写。
        every (int): 每隔多少步往 VisualDL 写一次。
        enabled (bool): ``False`` 时什么也不写(多进程里的其余进程)。
    """

    def __init__(self, directory, epochs, steps_per_epoch, position=None, every=10, enabled=True):
        self.directory = Path(directory)
        self.epochs, self.steps_per_epoch, self.every = epochs, steps_per_epoch, every
        self.enabled = enabled
        position = position or {"visualdl": 0, "metrics": 0}
        if not enabled:
            return
        self._writer = _make_writer(self.directory, position["visualdl"])
        path = self.directory / METRICS_FILE
        kept = path.read_bytes()[: position["metrics"]] if path.exists() else b""
        self._metrics_size = len(kept)
        atomic_write(path, kept)
        self._bar = self._make_bar()

    def _make_bar(self):
        from tqdm import tqdm

        return tqdm(
            total=self.epochs * self.steps_per_epoch,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc} {bar} {percentage:3.0f}% 已用 {elapsed} 剩余 {remaining}{postfix}",
        )

    def position(self):
        """现在写到哪里;存进检查点,续训时交还给构造函数。"""
        if not self.enabled:
            return None
        records = self._writer._get_file_writer()
        records.flush()
        return {"visualdl": records.size, "metrics": self._metrics_size}

    def say(self, text):
        """打印一行,不弄乱进度条。"""
        if self.enabled:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def step(self, epoch, step, metrics, loss, top1, speed):
        """一步训练之后调用。

        Args:
            epoch, step (int): 第几轮、全程第几步,从 0 起。
            metrics (dict): VisualDL 标签 -> 数值,每 ``every`` 步写一次。
            loss, top1, speed (float): 本轮至今的平均损失、正确率(0–1)、每秒图像数,显示在进度条上。
        """
        if not self.enabled:
            return
        self._bar.set_description_str(f"第 {epoch + 1}/{self.epochs} 轮", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.4f} top-1 {top1:.2%} {speed:.0f} 张/秒", refresh=False)
        self._bar.update(step + 1 - self._bar.n)
        if step % self.every == 0:
            self.scalars(metrics, step)

    def scalars(self, metrics, step):
        """往 VisualDL 写一组标量,标签里 ``/`` 之前的部分是图表的分组。"""
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, step)

    def epoch(self, metrics):
        """一轮结束:往 metrics.jsonl 写一行,往 VisualDL 写各条曲线,打印一行。

        Args:
            metrics (dict): 至少有 epoch(从 1 起)、train_loss、train_top1、val_loss、val_top1、lr、images_per_second。
        """
        if not self.enabled:
            return
        line = (json.dumps(metrics, ensure_ascii=False) + "\n").encode()
        with open(self.directory / METRICS_FILE, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._metrics_size += len(line)
        tags = {
            "loss/train": "train_loss",
            "loss/val": "val_loss",
            "top1/train": "train_top1",
            "top1/val": "val_top1",
            "optimizer/lr_epoch": "lr",
            "speed/images_per_second_epoch": "images_per_second",
        }
        self.scalars({tag: metrics[name] for tag, name in tags.items()}, metrics["epoch"])
        self.say(
            f"第 {metrics['epoch']}/{self.epochs} 轮  训练 loss {metrics['train_loss']:.4f} "
            f"top-1 {metrics['train_top1']:.2%}  验证 loss {metrics['val_loss']:.4f} top-1 {metrics['val_top1']:.2%}  "
            f"{metrics['images_per_second']:.0f} 张/秒,等数据 {metrics['data_wait']:.0%}"
        )

    def images(self, tag, images, step):
        """写一批图像的网格;images 是 uint8 [B, H, W, C]。"""
        if self.enabled:
            self._writer.add_image(tag, image_grid(images), step)

    def figure(self, tag, figure, step):
        """写一张 matplotlib 的图。"""
        if self.enabled:
            self._writer.add_image(tag, draw(figure), step)

    def histograms(self, named_arrays, step):
        """写一组权重的直方图;named_arrays 是 (名字, 数组) 的序列。"""
        if self.enabled:
            for name, array in named_arrays:
                self._writer.add_histogram(f"weights/{name}", array.flatten(), step)

    def graph(self, model):
        """写模型的结构,显示在 VisualDL 的“网络结构 - 动态”页,各层是可以展开的框。

        VisualDL 2.5.3 自带的 ``add_graph`` 读不了 Paddle 3 存的模型;它分析旧格式的那一半还能用。
        """
        if not self.enabled:
            return
        try:
            from visualdl.component.graph import analyse_model

            with unique_name.guard():  # 给节点起名字的计数器,与 Paddle 给参数起名字的是同一个
                nodes = analyse_model(write_model(model, keep_constants=False)[0])
        except ENGINE_ERRORS as error:
            self.say(f"提示:VisualDL 里不会有网络结构图,训练照常({type(error).__name__}:{error})。")
            return
        atomic_write(self.directory / GRAPH_FILE, json.dumps(nodes).encode())

    def evaluation(self, part_name, evaluation, part, classes, step):
        """写混淆矩阵和错得最离谱的图像;也把图存进运行目录(confusion_*.png、mistakes_*.png)。"""
        if not self.enabled:
            return
        names = {"val": "验证集", "test": "测试集"}
        figures = {
            "confusion": confusion_figure(
                evaluation.confusion(len(classes)), classes, f"{names[part_name]}混淆矩阵,top-1 {evaluation.top1:.2%}"
            )
        }
        worst = evaluation.worst(18)
        if len(worst):
            images = [part.read(i) for i in worst]
            predicted, probability = evaluation.classes[worst, 0], evaluation.probabilities[worst, 0]
            captions = [
                (classes[evaluation.labels[i]], classes[k], p) for i, k, p in zip(worst, predicted, probability)
            ]
            title = f"{names[part_name]}上错得最离谱的图像(真实 → 预测)"
            figures["mistakes"] = mistakes_figure(images, captions, title)
        for kind, figure in figures.items():
            pixels = draw(figure)  # 只画一次:画一张图比训练几步还慢
            self._writer.add_image(f"{part_name}/{kind}", pixels, step)
            path = self.directory / f"{kind}_{part_name}.png"
            try:
                Image.fromarray(pixels).save(path)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise OSError(error.errno, error.strerror, str(path)) from None

    def hyper_parameters(self, settings, metrics):
        """写超参数和最终指标,供 VisualDL 的 HPARAMS(超参可视化)页比较各次运行。"""
        if not self.enabled:
            return
        settings = {
            name: value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else str(value)
            for name, value in settings.items()
        }
        self._writer.add_hparams(settings, [f"result/{name}" for name in metrics])
        self.scalars({f"result/{name}": value for name, value in metrics.items()}, 0)

    def close(self):
        """关闭文件和进度条。"""
        if self.enabled:
            self._bar.close()
            self._writer.close()


def load_metrics(directory):
    """读回 metrics.jsonl,每轮一个字典;没有文件时是空的,最后半行(写到一半被杀掉)不算。

    Args:
        directory (str | Path): 运行目录。

    Raises:
        UserError: 文件已损坏。
    """
    path = Path(directory) / METRICS_FILE
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except ValueError:
        lines = None
    whole = matches(lines, [dict.fromkeys(_METRICS, float)])
    whole = whole and all(matches(line.get("data_wait", 0.0), float) for line in lines)  # 旧版的记录里没有
    if not whole or not all(0 <= line[name] <= 1 for line in lines for name in ("train_top1", "val_top1")):
        raise UserError(f"{path} 已损坏:请换一个备份,或重新训练。")
    return lines
