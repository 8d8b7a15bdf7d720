"""由设置训练出一个运行目录;``scripts/train.py`` 做的就是它。"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import Callable

from paddle import nn

from ..config import Config
from ..data.finding import far_from_square
from ..data.parts import Data, FilePart
from ..data.sources import load_data, tell
from ..errors import UserError
from ..kernels.compiling import are_compiled, compile_for_training
from ..kernels.loading import use_threads, why_no_kernels
from ..system.cli import run_main
from ..system.companions import choose_processes, companions
from ..system.files import quoted
from ..system.pictures import font_advice
from ..system.processes import one_after_another, usable_cores
from ..system.run_files import INIT
from ..system.runtime import autocast_dtype, describe_runtime, pick_device, seed_everything, setup_runtime
from ..tasks.classification import Classification, balanced_weights, label_objective
from ..tasks.task import Task
from ..training.loop import fit
from ..training.recomputing import recompute_encoders
from ..weights import save_report
from ..weights.conversion import assumptions
from .beginning import begin, choose_fit, choose_normalization, first_weights, kept_run, load_distillation
from .command_line import parse_config
from .directory import open_run
from .loading import LoadedRun, build_model
from .logs import NoLog, RunLog

__all__ = ["launch", "train"]


TaskMaker = Callable[[Data, Config], Task]


def launch(model: nn.Layer | None = None, task: TaskMaker | None = None) -> None:
    """训练脚本的全部:读命令行,需要时另开几个进程,训练;出错时打印一行中文,以非零的状态退出。

    Args:
        model, task: 见 ``train``。
    """

    def main():
        config = parse_config()
        device = pick_device(config.device)
        with companions(choose_processes(config.processes, device, config.batch_size)):
            train(config, model, task)

    run_main(main)


def train(config: Config, model: nn.Layer | None = None, task: TaskMaker | None = None) -> LoadedRun:
    """由设置训练一个模型:读数据、建模型、建运行目录、训练,最后评估测试集。

    在调用它的这一个进程里训练。几个进程一起训练时,每个进程都调用它(见 ``system.companions``)。

    Args:
        config (Config): 全部设置,由 ``make_config`` 或 ``parse_config`` 建立。
        model (nn.Layer | None): 自己写的模型,图像 [B, C, H, W] -> logits [B, K];``None`` 按设置建立。
        task (Callable | None): 自己写的任务,一般就是 ``Task`` 的子类:``task(data, config)`` 给出 ``Task``;
            ``None`` 按设置里的 task。

    Returns:
        LoadedRun: 训练好的运行,模型装着最佳权重,处于评估状态,可以直接交给 ``Predictor``。

    Raises:
        UserError: 数据、设置或运行目录有误,损失变成 NaN,磁盘满等;要几个进程而只有这一个;别的线程正在训练。
    """
    with _alone():
        return _train(config, model, task)


_training = threading.Lock()


@contextlib.contextmanager
def _alone():
    """在 with 里,这个进程没有别的训练:Paddle 的随机数是全局的,反向传播同时做两个会崩溃(SIGSEGV)。"""
    if not _training.acquire(blocking=False):
        raise UserError(
            "这个进程里正在训练另一个模型,一个进程一次只能训练一个:请等它结束,"
            "或另开一个进程(如 python scripts/train.py)。"
        )
    try:
        yield
    finally:
        _training.release()


def _train(config, model, task):
    """``train``,没有别的线程在训练。"""
    runtime = setup_runtime(config.device, config.threads)
    rank, world = runtime["rank"], runtime["processes"]
    if config.processes > world:
        raise UserError(
            f"processes={config.processes},而这里只有 {world} 个进程:在笔记本里请去掉它,"
            "要几个进程请用 python scripts/train.py。"
        )
    if task is not None and config.class_weights != "none":
        raise UserError("--class-weights 只用于图像分类的损失,自己的任务要在它的 loss 里加权:请去掉它。")
    precision = autocast_dtype(config.precision, runtime["device"])
    beginning = begin(config)
    if runtime["device"] == "cpu":
        _prepare_kernels(runtime["threads"], rank, config.effective("tokenizer") == "conv")
    if rank == 0:
        print(
            f"{font_advice()}{describe_runtime(runtime)}\n{_recipe_line(config)}读取数据 {config.dataset} …", flush=True
        )
    with one_after_another(rank, world):
        data = choose_fit(load_data(config, kept_run(beginning)), config, beginning)
        data = choose_normalization(data, config, beginning)
    seed_everything(config.seed)
    network = build_model(config, data.info) if model is None else model
    if config.recompute:
        recompute_encoders(network)
    report = first_weights(network, config, data.info, beginning)
    hint = far_from_square(data.train.paths, data.info) if isinstance(data.train, FilePart) and rank == 0 else None
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_weights(data.train.labels, len(data.info.classes))
    objective = load_distillation(config, data.info, beginning, weights) or partial(label_objective, weights=weights)
    learned = Classification(data, config, objective) if task is None else task(data, config)
    with open_run(config, data, beginning, rank, world) as directory:
        if beginning.info is not None:
            tell(data)  # 核对过了,才说变了什么
        if rank == 0:
            print(f"运行目录 {directory};看曲线:python scripts/board.py {quoted(directory.parent)}", flush=True)
        if hint is not None:
            print(hint, flush=True)
        if rank == 0 and report is not None:
            print(f"微调:{report}", flush=True)
            _print_assumptions(beginning.weights)
            save_report(report, directory / INIT)

        def make_log(steps_per_epoch, position):
            return NoLog() if rank else RunLog(directory, config.epochs, steps_per_epoch, position, config.log_every)

        try:
            summary = fit(network, learned, config, directory, make_log, precision, rank, world)
        except KeyboardInterrupt:
            again = "python scripts/train.py" if model is None and task is None else "在同样的命令后面加上"
            raise KeyboardInterrupt(f"接着训练:{again} --resume {quoted(directory)}") from None
        if rank == 0:
            print("\n".join(learned.next_steps(directory, summary, model is not None)), flush=True)
    network.eval()
    return LoadedRun(directory, config, data.info, network)


def _print_assumptions(weights):
    """微调:权重没有写明的事实。"""
    options = {"normalization": "--normalization", "fit": "--fit", "epsilon": "--epsilon"}
    line = None if weights is None else assumptions(weights, options)
    if line is not None:
        print(line, flush=True)


def _recipe_line(config):
    """用了哪个配方;在 Python 里建立的设置没有配方,不说。"""
    if config.recipe == "auto":
        return ""
    if config.recipe == "none":
        return "没有用配方,全部是默认值和命令行上给的\n"
    return f"配方 {config.recipe}(命令行上给的优先;不用它请加 --recipe none)\n"


def _prepare_kernels(threads, rank, convolution):
    """载入编译的循环;用不了或要先编译时,说一声。convolution 见 ``compile_for_training``。"""
    reason = why_no_kernels()
    if threads is not None:
        use_threads(threads)
    if rank:
        return
    if reason is not None:
        print(f"提示:训练会慢一些,{reason}。", flush=True)
    elif not are_compiled(convolution):
        print("第一次在这台机器上训练:先为它的 CPU 编译循环,约 15 秒,以后不再需要。", flush=True)
        compile_for_training(usable_cores(), convolution)
