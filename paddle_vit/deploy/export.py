"""导出(export):把训练好的模型变成别的程序能用的几个文件,写完马上读回来,与动态图比一遍答案。

导出的目录里有::

    model.pdmodel  model.pdiparams   静态图和权重,Paddle Inference 用
    model.onnx                       ONNX,ONNX Runtime 等用
    description.json                 类别名、怎样预处理、模型和训练的设置、核对的结果
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle

from ..checks import as_pair
from ..config import result_settings
from ..data.augment import normalize
from ..data.batches import evaluation_batches
from ..data.images import read_images, to_input
from ..data.info import parse_info
from ..data.parts import varied_images
from ..data.pixels import image_mode
from ..errors import UserError
from ..family.static_graph import write_model
from ..family.static_program import save_weights
from ..runs.loading import LoadedModel, LoadedRun, load_run_data
from ..system.files import describe_os_error, read_json
from ..system.run_files import CONSTANTS, DESCRIPTION, ONNX, PROGRAM
from ..tasks.evaluation import evaluate
from .description import preprocessing_steps
from .engines import compare_logits, each_engine, logits_of, prediction_model, right_engine

__all__ = ["PrecisionComparison", "compare_precisions", "export_model", "is_export", "load_export", "real_images"]

FORMAT = "paddle_vit-export"
COMPARED = 100  # 核对多少张图像
TIMED_BATCH, TIMED_ROUNDS = 16, 21  # 比较速度时每批几张,轮流几遍
_PATTERN = {"format": str, "data": dict, "files": {None: int}, "probe": [float]}


def is_export(source: str | Path) -> bool:
    """是不是 ``export_model`` 写的目录。"""
    return (Path(source) / DESCRIPTION).is_file()


def real_images(
    loaded: LoadedRun | LoadedModel, patterns: Sequence[Path] = (), data_dir: str | None = None, count: int = COMPARED
) -> np.ndarray:
    """核对用的真实图像:给了就用给的图片,没有给就用测试部分(各类轮流)。

    Args:
        loaded (LoadedRun | LoadedModel): 模型。
        patterns (list[Path]): 图片文件。
        data_dir (str | None): 数据所在的目录;``None`` 用训练时的。
        count (int): 最多几张。

    Returns:
        np.ndarray: 模型的输入,float32 [B, C, H, W]。

    Raises:
        UserError: 没有给图片,而模型不是一个运行;或数据、图片有误。
    """
    info = loaded.info
    if patterns:
        return to_input(read_images(patterns[:count], info), info)
    part = _test_part(loaded, data_dir, "请用 --images 给几张图片来核对")
    _, images = varied_images(part, count)  # [B, H, W, C]
    return normalize(images, info.mean, info.std)


def _test_part(loaded, data_dir, advice):
    """一个运行的测试部分。"""
    if not isinstance(loaded, LoadedRun):
        raise UserError(f"{loaded.source} 不是运行目录,没有测试数据:{advice}。")
    return load_run_data(loaded, data_dir).test


def export_model(loaded: LoadedRun | LoadedModel, output: str | Path, images: np.ndarray, onnx: bool = True) -> dict:
    """写出静态图、ONNX 和说明,读回来与动态图核对;核对不上就报错,不留文件。

    Args:
        loaded (LoadedRun | LoadedModel): 模型,``load_model`` 的结果。
        output (str | Path): 目标目录;已经有一个导出时换掉它。
        images (np.ndarray): 核对用的图像,模型的输入 [B, C, H, W],见 ``real_images``。
        onnx (bool): 要不要 ONNX。

    Returns:
        dict: 引擎的名字 -> 与动态图的 logits 最大的差。

    Raises:
        UserError: 目录里已经有别的东西,没有装 paddle2onnx,核对不上,或写不进去。
    """
    output = Path(output).absolute()
    if output.exists() and not is_export(output) and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} 已经有了,而且不是导出的目录:请用 --output 换一个目录,或先把它移走。")
    if onnx and importlib.util.find_spec("paddle2onnx") is None:
        raise UserError('没有装 paddle2onnx:请先 pip install -e ".[export]"(要 Python 3.9–3.12),或加 --no-onnx。')
    try:
        with _new_directory(output) as work:
            _write(loaded.model, work)
            if onnx:
                _convert_to_onnx(work)
            differences = _check(loaded.model, work, images, onnx)
            description = {**_describe(loaded, differences, len(images)), "files": _checksums(work)}
            text = json.dumps(description, ensure_ascii=False, indent=1)
            (work / DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UserError(describe_os_error(error, output)) from None
    return differences


def _write(model, directory):
    """写静态图和权重。"""
    program, constants = write_model(model)
    (directory / PROGRAM).write_bytes(program)
    save_weights(constants, directory / CONSTANTS)


@contextlib.contextmanager
def _new_directory(output):
    """在 with 里给出一个临时目录,写完才换成 output;中途出错就删掉它,原来的 output 不变。"""
    from filelock import FileLock, Timeout  # 只有导出要用

    work, old, lock = (output.with_name(f".{output.name}.{name}") for name in ("new", "old", "lock"))
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        tempfile.TemporaryFile(dir=output.parent).close()  # 写不进去时,锁只会说有别人在用
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(output)) from None
    try:
        with FileLock(str(lock), timeout=0):
            try:
                if old.exists() and not output.exists():  # 上一次换到一半时被杀掉了
                    old.rename(output)
                for leftover in (work, old):
                    shutil.rmtree(leftover, ignore_errors=True)
                work.mkdir()
                yield work
                if output.exists():
                    output.rename(old)
                work.rename(output)
            finally:
                if old.exists() and not output.exists():
                    old.rename(output)
                for leftover in (work, old):
                    shutil.rmtree(leftover, ignore_errors=True)
                with contextlib.suppress(OSError):  # Windows 上还锁着,删不了
                    lock.unlink()
    except Timeout:
        raise UserError(f"另一个程序正在往 {output} 导出:请等它结束,或用 --output 换一个目录。") from None


def _convert_to_onnx(directory):
    """model.pdmodel -> model.onnx,在另一个进程里,见 ``onnx_conversion``。"""
    needed = (
        2 * sum((directory / name).stat().st_size for name in (PROGRAM, CONSTANTS)) + 2**20
    )  # ONNX 和 paddle2onnx 的中间文件
    if shutil.disk_usage(directory).free < needed:  # 磁盘满时 paddle2onnx 说不清原因
        raise OSError(errno.ENOSPC, "磁盘已满", str(directory / ONNX))
    command = [sys.executable, "-m", "paddle_vit.deploy.onnx_conversion", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reasons = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
        raise UserError(f"paddle2onnx 没有转换成功({(reasons or ['没有说明原因'])[0][:200]}):可以加 --no-onnx。")


def _check(model, directory, images, onnx):
    """读回来算一遍,返回 {引擎的名字: 与动态图的 logits 最大的差};差得太多就报错。"""
    expected = logits_of(model, images)
    found = {}
    for engine, fast, logits in each_engine(*_files(directory), images):
        if isinstance(logits, UserError):  # 有这个引擎,而它算不完
            raise logits
        if fast is not None:
            found[f"Paddle Inference({engine})"] = logits
        del fast  # 放掉它的内存
    if onnx and importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(directory / ONNX), providers=["CPUExecutionProvider"])
        found["ONNX Runtime"] = logits_of(
            lambda x: paddle.to_tensor(session.run(None, {"image": x.numpy()})[0]), images
        )
    if not found:
        raise UserError("推理引擎读不了写好的静态图,没有留下文件:请检查 Paddle 的版本。")
    differences = {}
    for name, logits in found.items():
        differences[name], limit = compare_logits(logits, expected, "float32")
        if not differences[name] <= limit:
            numbers = f"相差 {differences[name]:.1e},上限 {limit:.1e}"
            raise UserError(f"导出的模型与动态图对不上:{name} 的 logits {numbers};没有留下文件。")
    return differences


def _files(directory):
    """(静态图的内容, 权重文件)。"""
    return (directory / PROGRAM).read_bytes(), directory / CONSTANTS


def _checksums(directory):
    return {name: zlib.crc32((directory / name).read_bytes()) for name in (PROGRAM, CONSTANTS)}


def _probe(info):
    """固定的一张随机图像 [1, C, H, W]:读回时用它核对引擎。"""
    shape = (1, info.channels, *as_pair(info.image_size, "image_size"))
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


@paddle.no_grad()
def _describe(loaded, differences, count):
    """description.json 的内容。"""
    info = loaded.info
    run = isinstance(loaded, LoadedRun)
    return {
        "format": FORMAT,
        "version": 1,
        "classes": list(info.classes),
        "preprocess": {
            "channels": info.channels,
            "mode": image_mode(info.channels, info.full_range),
            "steps": preprocessing_steps(info),
            "image_size": info.image_size,
            "fit": dataclasses.asdict(info.fit),
            "mean": list(info.mean),
            "std": list(info.std),
        },
        "input": {
            "name": "image",
            "shape": ["B", info.channels, *as_pair(info.image_size, "image_size")],
            "dtype": "float32",
        },
        "output": {
            "name": "logits",
            "shape": ["B", len(info.classes)],
            "dtype": "float32",
            "probabilities": "softmax(logits),次序同 classes",
        },
        "model": loaded.arguments,
        "recipe": result_settings(loaded.config) if run else {},
        "summary": loaded.summary if run else None,
        "checked": {"images": count, "largest_difference_of_logits": differences},
        "data": dataclasses.asdict(info),
        "probe": loaded.model(paddle.to_tensor(_probe(info))).numpy()[0].tolist(),
    }


def load_export(directory: str | Path, precision: str = "float32", threads: int | None = None) -> tuple:
    """读回导出的目录,先用一张固定的图像核对引擎。

    Args:
        directory (str | Path): ``export_model`` 写的目录。
        precision (str): ``'float32'`` 或 ``'bfloat16'``(只用于 OpenVINO)。
        threads (int | None): CPU 线程数。

    Returns:
        tuple: (``DataInfo``, ``FastModel``, 引擎的名字)。

    Raises:
        UserError: 文件缺少或损坏,或没有一个引擎算得对。
    """
    directory = Path(directory)
    path = directory / DESCRIPTION
    advice = "请重新导出"
    description = read_json(path, _PATTERN, advice)
    if description["format"] != FORMAT:
        raise UserError(f"{path} 不是 scripts/export.py 写的:{advice}。")
    for name in (PROGRAM, CONSTANTS):
        if not (directory / name).is_file():
            raise UserError(f"{directory} 里缺少 {name}:{advice}。")
    if _checksums(directory) != {name: description["files"].get(name) for name in (PROGRAM, CONSTANTS)}:
        raise UserError(f"{directory} 里的静态图已损坏(校验和不对):{advice}。")
    info = parse_info(description["data"], path)
    expected = np.array(description["probe"], "float32")  # [K]
    if len(expected) != len(info.classes):
        raise UserError(f"{path} 已损坏:{advice}。")
    program, weights = _files(directory)
    fast, engine = right_engine(program, weights, _probe(info), np.stack([expected] * 2), precision, threads)
    if fast is None:
        raise UserError(f"{directory} 里的静态图,这台电脑的推理引擎算不对({engine}):{advice}。")
    return info, fast, f"{engine} {precision}"


@dataclasses.dataclass(frozen=True)
class PrecisionComparison:
    """float32 与 bfloat16 的推理引擎的比较,各项的次序都是 (float32, bfloat16)。

    Attributes:
        engines (tuple[str]): 引擎的名字。
        images (int): 测试部分有多少张。
        top1 (tuple[float]): 在整个测试部分上的正确率,0–1。
        speeds (tuple[float]): 每秒图像数,只算模型,不算读图。
    """

    engines: tuple
    images: int
    top1: tuple
    speeds: tuple

    def __str__(self):
        lines = [
            f"{engine}:测试部分 {self.images} 张的 top-1 {top1:.2%},每秒 {speed:.0f} 张(每批 {TIMED_BATCH} 张)"
            for engine, top1, speed in zip(self.engines, self.top1, self.speeds)
        ]
        lost = 100 * (self.top1[0] - self.top1[1])
        change = f"低 {lost:.2f} 个百分点" if lost > 0 else f"高 {-lost:.2f} 个百分点" if lost < 0 else "相同"
        return "\n".join(
            [*lines, f"bfloat16 比 float32:正确率{change},速度是 {self.speeds[1] / self.speeds[0]:.2f} 倍"]
        )


def compare_precisions(loaded: LoadedRun, settings: dict, data_dir: str | None = None) -> PrecisionComparison:
    """float32 与 bfloat16 的推理引擎:在整个测试部分上比正确率,再轮流计时比速度。

    Args:
        loaded (LoadedRun): 运行。
        settings (dict): ``setup_runtime`` 的结果。
        data_dir (str | None): 数据所在的目录;``None`` 用训练时的。

    Returns:
        PrecisionComparison

    Raises:
        UserError: CPU 或引擎不支持 bfloat16,或不是运行。
    """
    part = _test_part(loaded, data_dir, "比较 bfloat16 要有测试部分,请给运行目录,或去掉 --bfloat16")
    models = {}
    for precision in ("float32", "bfloat16"):
        model, engine, note = prediction_model(loaded.model, settings, len(part), "inference", precision)
        if note:
            raise UserError(f"比不了 {precision}:{note}")
        models[engine] = model
    top1 = [evaluate(model, part, loaded.info, 128).top1 for model in models.values()]
    _, images = next(evaluation_batches(part, loaded.info, TIMED_BATCH))
    seconds = _seconds_in_turn(models.values(), paddle.to_tensor(images))
    return PrecisionComparison(tuple(models), len(part), tuple(top1), tuple(len(images) / seconds))


def _seconds_in_turn(models, images):
    """几个模型轮流算同一批图像,各自用时(秒)的中位数;轮流,电脑忙闲的变化就大家都有份。"""
    times = []
    for _ in range(TIMED_ROUNDS):
        row = []
        for model in models:
            started = time.perf_counter()
            model(images)
            row.append(time.perf_counter() - started)
        times.append(row)
    return np.median(times[1:], axis=0)  # 第一轮是热身
