"""推理引擎(inference engine):在 CPU 上快速执行静态图,也就是快速预测。

引擎是 Paddle Inference 的三个,依次试:OpenVINO(Paddle 的 Linux x86 安装包自带)、oneDNN 和原生(Paddle 自己的);
后两个只用 float32。
建好之后先与动态图对一次答案,不一致就不用。写图不到一秒,所以每次用时现写,不留文件:权重换了也不会用到旧图。
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..checks import check_positive
from ..errors import UserError
from ..family.static_graph import write_model
from ..family.static_program import ENGINE_ERRORS, save_weights, with_ticket
from ..system import runtime
from ..system.run_files import CONSTANTS, PROGRAM

__all__ = [
    "WORTH_IMAGES",
    "FastModel",
    "add_engine_arguments",
    "check_engine",
    "compare_logits",
    "each_engine",
    "logits_of",
    "prediction_model",
    "right_engine",
]

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}  # 与动态图之差的上限,相对于最大的 |logit|
ENGINES = ("auto", "inference", "eager")
WORTH_IMAGES = 500  # engine='auto' 时,图片少于这个数就不建静态图:建图的时间比省下的多


def _create_predictor(program, weights, engine, precision, threads):
    """让推理引擎读进静态图;它要的文件只在这期间存在于临时目录。"""
    from paddle import inference  # 只有推理引擎要用

    with tempfile.TemporaryDirectory(prefix="paddle_vit-") as directory:
        path = Path(directory, PROGRAM)
        path.write_bytes(program)
        beside = Path(directory, CONSTANTS)  # OpenVINO 要权重在旁边,名字相同
        try:
            beside.symlink_to(Path(weights).resolve())
        except OSError:  # Windows 上多半没有权限
            shutil.copyfile(weights, beside)
        config = inference.Config(str(path), str(beside))
        config.set_optim_cache_dir(directory)  # 否则 OpenVINO 在当前目录里留下 __cache__
        config.disable_gpu()
        config.disable_glog_info()
        config.enable_memory_optim()  # 用完的中间结果,内存马上再用
        if threads:
            config.set_cpu_math_library_num_threads(threads)
        if engine == "OpenVINO":
            types = {"float32": inference.PrecisionType.Float32, "bfloat16": inference.PrecisionType.Bfloat16}
            config.enable_openvino_engine(types[precision])
            if not config.openvino_engine_enabled():
                raise RuntimeError("这个 Paddle 没有编译 OpenVINO")
        elif engine == "oneDNN":
            config.enable_onednn()
            if not config.onednn_enabled():
                raise RuntimeError("这个 Paddle 没有编译 oneDNN")
        return inference.create_predictor(config)


class FastModel(nn.Layer):
    """用推理引擎执行的静态图,调用方式与原来的模型相同:Tensor [B, C, H, W] -> logits Tensor [B, K],B 随意。

    只能预测,不能训练;不能几个线程同时用同一个(``Predictor`` 可以)。

    Args:
        program (bytes): 静态图,.pdmodel 的内容。
        weights (str | Path): 它的权重,.pdiparams 文件;建好以后不再读。
        engine (str): ``'OpenVINO'``、``'oneDNN'`` 或 ``'原生'``(Paddle 自己的算子,哪里都有)。
        precision (str): ``'float32'``;``'bfloat16'`` 只用于 OpenVINO。
        threads (int | None): CPU 线程数;``None`` 由引擎决定。
    """

    def __init__(
        self,
        program: bytes,
        weights: str | Path,
        engine: str = "OpenVINO",
        precision: str = "float32",
        threads: int | None = None,
    ):
        super().__init__()
        program, shape = with_ticket(program)
        self.input_shape = tuple(shape[1:])
        self._predictor = _create_predictor(program, weights, engine, precision, threads)
        self._inputs = [self._predictor.get_input_handle(name) for name in self._predictor.get_input_names()]
        self._outputs = [self._predictor.get_output_handle(name) for name in self._predictor.get_output_names()]
        self._batches = 0
        self.eval()

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        if tuple(images.shape[1:]) != self.input_shape:
            raise UserError(
                f"输入图像的形状是 {list(images.shape)},应为 [B, {', '.join(map(str, self.input_shape))}];请缩放图像。"
            )
        # OpenVINO 出错时 Paddle 只打印,不抛异常,还留着上一批的输出;所以每批带一个编号,核对它是否原样回来
        self._batches = self._batches % 1_000_000 + 1
        for handle, value in zip(self._inputs, (images.numpy(), np.array([self._batches], "float32"))):
            handle.reshape(value.shape)
            handle.copy_from_cpu(value)
        self._predictor.run()
        logits, ticket = (handle.copy_to_cpu() for handle in self._outputs)
        if len(logits) != len(images) or ticket[0] != self._batches:
            raise UserError("推理引擎没有算完这一批(多半是内存不够):请减小批的大小,或用 --engine eager。")
        return paddle.to_tensor(logits)


@paddle.no_grad()
def logits_of(model: Callable[[paddle.Tensor], paddle.Tensor], images: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """每批 batch_size 张,最后把第一张单独再算一次:[B, C, H, W] -> [B + 1, K],都是 numpy。"""
    parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)] + [images[:1]]
    return np.concatenate([model(paddle.to_tensor(part)).numpy() for part in parts])


def compare_logits(found: np.ndarray, expected: np.ndarray, precision: str, least: float = 1.0) -> tuple[float, float]:
    """与动态图的 logits 最大的差,和允许的上限:``TOLERANCE`` 乘以最大的 |logit|,小于 least 时乘以 least。"""
    limit = TOLERANCE[precision] * max(least, float(np.abs(expected).max()))
    return float(np.abs(found - expected).max()), limit


def each_engine(
    program: bytes, weights: str | Path, images: np.ndarray, precision: str = "float32", threads: int | None = None
) -> Iterator[tuple]:
    """依次用各个引擎算一遍。

    Args:
        program, weights, precision, threads: 见 ``FastModel``。
        images (np.ndarray): [B, C, H, W]。

    Yields:
        tuple: (引擎的名字, ``FastModel``, ``logits_of`` 的结果);用不上的是 (引擎的名字, ``None``, 异常)。

    Raises:
        OSError: 临时目录写不下;换一个引擎也一样。
    """
    found: Any
    for engine in ("OpenVINO", "oneDNN", "原生") if precision == "float32" else ("OpenVINO",):
        try:
            fast = FastModel(program, weights, engine, precision, threads)
            found = logits_of(fast, images)
        except ENGINE_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:  # 没有错误号的是 Paddle 自己的
                raise
            fast, found = None, error
        yield engine, fast, found
        del fast  # 建下一个之前,放掉它的内存


def right_engine(
    program: bytes,
    weights: str | Path,
    images: np.ndarray,
    expected: np.ndarray,
    precision: str = "float32",
    threads: int | None = None,
    least: float = 1.0,
) -> tuple[FastModel | None, str]:
    """第一个与动态图一致的引擎:(``FastModel``, 引擎的名字);都不行时是 (``None``, 原因)。

    Args:
        program, weights, images, precision, threads: 见 ``each_engine``。
        expected (np.ndarray): 动态图的 ``logits_of``。
        least (float): 见 ``compare_logits``。
    """
    reasons = []
    for engine, fast, found in each_engine(program, weights, images, precision, threads):
        if fast is None:
            lines = str(found).strip().splitlines() or [type(found).__name__]
            reasons.append(f"{engine}:{lines[0][:200]}")
            continue
        difference, limit = compare_logits(found, expected, precision, least)
        if difference <= limit:
            return fast, engine
        reasons.append(f"{engine}:与动态图相差 {difference:.1e},上限 {limit:.1e}")
        del fast
    return None, ";".join(reasons)


@contextlib.contextmanager
def _written(model):
    """在 with 里给出模型的静态图和权重文件。"""
    program, constants = write_model(model)
    with tempfile.TemporaryDirectory(prefix="paddle_vit-") as directory:
        weights = Path(directory, CONSTANTS)
        save_weights(constants, weights)
        del constants
        yield program, weights


def _fast_model(model, precision, threads):
    """把模型交给第一个与它一致的引擎,返回值同 ``right_engine``。"""
    model.eval()
    try:
        with _written(model) as (program, weights):
            shape = (3, model.patch_embed.in_channels, *model.patch_embed.image_size)
            images = np.random.default_rng(0).standard_normal(shape).astype("float32")
            return right_engine(program, weights, images, logits_of(model, images), precision, threads, least=1e-6)
    except ENGINE_ERRORS as error:  # 写不成静态图
        return None, str(error)


def check_engine(engine: str, precision: str, settings: dict) -> None:
    """引擎的设置不合法,或要求 bfloat16 而设备、引擎或 CPU 不支持时抛出 ``UserError``;参数见 ``prediction_model``。"""
    for name, value, choices in (("engine", engine, ENGINES), ("precision", precision, tuple(TOLERANCE))):
        if value not in choices:
            raise UserError(f"{name}={value!r} 不合法:只能是 {'、'.join(choices)} 之一。")
    if settings["threads"] is not None:
        check_positive(settings["threads"], "threads")
    if precision != "bfloat16":
        return
    if settings["device"] == "gpu" or engine == "eager":
        raise UserError("--precision bfloat16 只用于 CPU 上的推理引擎:请加 --device cpu,并去掉 --engine eager。")
    if not runtime.has_bfloat16():
        raise UserError("这个 CPU 没有 bfloat16 指令(avx512_bf16 或 amx_bf16):请用 float32。")


def prediction_model(
    model: nn.Layer, settings: dict, count: int, engine: str = "auto", precision: str = "float32"
) -> tuple:
    """为预测选一个模型:能用、也值得用推理引擎时是 ``FastModel``,否则就是原来的模型。

    Args:
        model (ViT | SwinTransformer): 装好权重的模型。
        settings (dict): ``setup_runtime`` 的结果,用到 ``device`` 和 ``threads``。
        count (int): 要预测多少张;``engine='auto'`` 用它判断值不值得。
        engine (str): ``'auto'``、``'inference'``(推理引擎)或 ``'eager'``(动态图)。
        precision (str): ``'float32'`` 或 ``'bfloat16'``;后者在有的 CPU 上更快,logits 约有百分之一的误差。

    Returns:
        tuple: (模型, 引擎的名字, 说明);想用推理引擎而没能用上时,说明是一行中文,否则是 ``None``。

    Raises:
        UserError: 某个参数不合法;要求 bfloat16,而设备、引擎或 CPU 不支持。
    """
    check_engine(engine, precision, settings)
    if precision == "bfloat16":
        engine = "inference"
    if engine == "eager" or (engine == "auto" and (count < WORTH_IMAGES or settings["device"] == "gpu")):
        return model, "动态图", None
    if settings["device"] == "gpu":
        return model, "动态图", "推理引擎只用于 CPU,改用动态图。"
    fast, text = _fast_model(model, precision, settings["threads"])
    if fast is None:
        return model, "动态图", f"推理引擎用不上,改用 float32 动态图({text})。"
    return fast, f"{text} {precision}", None


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """给脚本加上 ``--engine`` 和 ``--precision``,含义见 ``prediction_model``。"""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="inference 静态图推理引擎(只用于 CPU),eager 动态图;\n"
        f"auto(默认)在 CPU 上有 {WORTH_IMAGES} 张以上时用推理引擎,张数少时建静态图不合算",
    )
    parser.add_argument(
        "--precision",
        choices=tuple(TOLERANCE),
        default="float32",
        help="数值类型(默认 float32);bfloat16 在有的 CPU 上更快,误差约百分之一,要 CPU 有 bfloat16 指令,且只用推理引擎",
    )
