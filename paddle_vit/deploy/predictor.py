"""给图片分类:``Predictor`` 是 scripts/predict.py、网页和自己的程序共用的那一个。"""

from __future__ import annotations

import dataclasses
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Union

import numpy as np
import paddle
from paddle import nn
from PIL import Image

from ..attention.recording import attention_weights
from ..checks import as_pair, check_normalization, check_positive, per_channel
from ..data.images import read_image, to_input, upright
from ..data.info import DataInfo
from ..data.pixels import convert_image, invert_image
from ..errors import UserError
from ..runs.loading import LoadedModel, LoadedRun, load_model
from ..system.fitting import Fit, plain_size, size_text
from ..system.pictures import to_pillow
from .engines import WORTH_IMAGES, check_engine, prediction_model
from .export import is_export, load_export

__all__ = ["Prediction", "Predictor"]

_BUILDING = threading.Lock()  # 写静态图要切换 Paddle 的全局状态,一次只能建一个


ImageLike = Union[str, Path, Image.Image, np.ndarray]  # 一张图像:路径,PIL 图像,或 uint8 的数组


@dataclasses.dataclass(frozen=True)
class Prediction:
    """一张图像最可能的几类。

    Attributes:
        labels (tuple[str]): 类别名,概率从大到小。
        probabilities (tuple[float]): 相应的概率,0–1。
    """

    labels: tuple
    probabilities: tuple

    @property
    def label(self) -> str:
        """最可能的类别。"""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """最可能的类别的概率,0–1。"""
        return self.probabilities[0]

    def __str__(self):
        return "\t".join(f"{label} {p:.2%}" for label, p in zip(self.labels, self.probabilities))


class Predictor:
    """训练好的模型,给图像分类::

        predictor = Predictor("runs/digits-0101-120000")
        print(predictor("猫.jpg").label)
        for prediction in predictor(["a.png", "b.png"], top=2):
            print(prediction)

    几个线程可以同时用同一个。

    Args:
        source (str | Path | LoadedRun | LoadedModel | nn.Layer): 运行目录,能说明自己的 .safetensors,scripts/export.py
            导出的目录;``load_run``、``load_model``、``train`` 的结果;或自己训练的模型,这时要写明下面三项。
        engine (str): ``'auto'``、``'inference'``(CPU 上的推理引擎)或 ``'eager'``(动态图),见 ``prediction_model``。
        precision (str): ``'float32'`` 或 ``'bfloat16'``,见 ``prediction_model``。
        threads (int | None): 推理引擎的 CPU 线程数;``None`` 由引擎决定。
        classes (Sequence[str] | None): 类别名,次序就是标签。
        mean, std (Sequence[float] | None): 训练时像素(0–1)各通道的均值和标准差。
        image_size (int | (int, int) | None): 图像边长或 (高, 宽),像素;``None`` 由模型得知(本项目的模型都知道)。
        fit (Fit | None): 图片怎样摆成 image_size;``None`` 是居中裁剪。
        count (int | None): 大约要预测多少张,``engine='auto'`` 用它判断值不值得建静态图;``None`` 是很多。

    Attributes:
        info (DataInfo): 类别名、通道数、图像边长、图片的摆法、均值和标准差;``restate`` 换掉后三项。
        engine (str): 实际用的引擎。
        note (str | None): 想用推理引擎而没能用上时的原因,一行中文。
        loaded (LoadedRun | LoadedModel | None): 读进来的运行或权重文件;导出的目录没有,是 ``None``。
        model (nn.Layer | None): 动态图的模型;导出的目录里没有,是 ``None``。

    Raises:
        UserError: 某个参数不合法;或见 ``load_model``、``load_export`` 和 ``prediction_model``。
    """

    def __init__(
        self,
        source: str | Path | LoadedRun | LoadedModel | nn.Layer,
        engine: str = "auto",
        precision: str = "float32",
        threads: int | None = None,
        count: int | None = None,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | tuple[int, int] | None = None,
        fit: Fit | None = None,
    ):
        facts = {"classes": classes, "mean": mean, "std": std, "image_size": image_size, "fit": fit}
        if isinstance(source, nn.Layer):
            source = LoadedModel(Path(type(source).__name__), _info_of(source, **facts), source, {})
        elif any(value is not None for value in facts.values()):
            raise UserError("classes、mean、std、image_size、fit 只与模型一起给:运行目录和权重文件里已经写着。")
        self._turn = threading.Lock()
        with _BUILDING:
            if isinstance(source, (str, Path)) and is_export(source):
                if engine == "eager":
                    raise UserError(f"{source} 是导出的静态图,没有动态图:请去掉 --engine eager,或给出原来的运行目录。")
                check_engine(engine, precision, {"device": "cpu", "threads": threads})
                self.info, self._run, self.engine = load_export(source, precision, threads)
                self.loaded = self.model = self.note = None
                return
            self.loaded = load_model(source) if isinstance(source, (str, Path)) else source
            if not isinstance(self.loaded, (LoadedRun, LoadedModel)):
                raise UserError(
                    f"不能用 {type(source).__name__} 建 Predictor:请给运行目录、.safetensors 或导出目录的路径,或模型。"
                )
            self.info, self.model = self.loaded.info, self.loaded.model
            self.model.eval()
            settings = {"device": paddle.get_device().split(":")[0], "threads": threads}
            count = WORTH_IMAGES if count is None else count
            self._run, self.engine, self.note = prediction_model(self.model, settings, count, engine, precision)

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], top: int = 3, invert: bool = False, batch_size: int = 32
    ) -> Prediction | list[Prediction]:
        """最可能的几类。

        Args:
            images: 一张图像或若干张:路径,PIL 图像,或 uint8 的数组 [H, W] 或 [H, W, C](C 是 1、3 或 4)。
                路径和 PIL 图像都按 EXIF 摆正。数组的通道是红、绿、蓝(RGB),OpenCV(cv2)读来的是蓝、绿、红,
                请先 ``array[..., ::-1]``。
            top (int): 给出几类;超过类别数时给出全部。
            invert (bool): 先反色。
            batch_size (int): 每批几张。

        Returns:
            Prediction | list[Prediction]: 给一张就是一个。

        Raises:
            UserError: top、batch_size 不是正数,或某一张不是图像。
        """
        if _is_one(images):
            return next(self.each([images], top, invert, batch_size))  # type: ignore[list-item]
        return list(self.each(images, top, invert, batch_size))  # type: ignore[arg-type]

    def each(
        self, images: Iterable[ImageLike], top: int = 3, invert: bool = False, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """同 ``__call__``,images 是若干张(可以是生成器),算好一批给出一批。

        Yields:
            Prediction
        """
        check_positive(top, "top")
        names = self.info.classes
        for row in self._rows(images, invert, batch_size):
            order = np.argsort(-row, kind="stable")[:top]
            yield Prediction(tuple(names[k] for k in order), tuple(float(row[k]) for k in order))

    def probabilities(self, images: Iterable[ImageLike], invert: bool = False, batch_size: int = 32) -> np.ndarray:
        """每一类的概率,次序同 ``info.classes``:float32 [B, K]。参数见 ``__call__``,images 是若干张。"""
        rows = list(self._rows(images, invert, batch_size))
        return np.stack(rows) if rows else np.zeros((0, len(self.info.classes)), "float32")  # [B, K]

    def restate(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, fit: Fit | None = None
    ) -> None:
        """换掉说明里的均值、标准差(像素 0–1,每个通道一个;只给一个数就是各通道相同)和图片的摆法;不给的不变。

        Raises:
            UserError: 个数或数值不合法。
        """
        channels = self.info.channels
        mean, std = (
            old if new is None else per_channel(new, channels)
            for new, old in ((mean, self.info.mean), (std, self.info.std))
        )
        check_normalization(mean, std, channels)
        self.info = dataclasses.replace(self.info, mean=mean, std=std, fit=fit or self.info.fit)

    def attention(self, images: list) -> np.ndarray:
        """动态图模型各层各头的注意力权重,同 ``attention_weights``,而几个线程可以同时用。

        Args:
            images (list): PIL 图像,模式见 ``convert_image``。

        Returns:
            ndarray: [L, B, h, N, N]。

        Raises:
            UserError: 没有动态图的模型(导出的目录),或模型没有这样的注意力(Swin)。
        """
        if self.model is None:
            raise UserError("导出的静态图里没有注意力权重:请给出原来的运行目录。")
        x = to_input(images, self.info)  # [B, C, H, W]
        with self._turn:  # 记录时模型上挂着钩子,别的线程不能同时用它
            return attention_weights(self.model, x)

    def _rows(self, images, invert, batch_size):
        """依次给出每一张的概率 [K]。"""
        check_positive(batch_size, "batch_size")
        if _is_one(images):
            raise UserError("这里要若干张图像:只有一张时请放进列表,如 [图像]。")
        batch = []
        for image in images:
            batch.append(self._prepare(image, invert))
            if len(batch) == batch_size:
                yield from self._classify(batch)
                batch = []
        if batch:
            yield from self._classify(batch)

    def _prepare(self, image, invert):
        """路径、PIL 图像或数组 -> PIL 图像,模式见 ``convert_image``。"""
        form = self.info.form
        if isinstance(image, (str, Path)):
            image = read_image(image, *form)
        elif isinstance(image, Image.Image):
            try:
                image.load()  # Pillow 到用时才读文件
            except (OSError, SyntaxError, ValueError, struct.error, EOFError):
                raise UserError("这个 PIL 图像读不出像素:文件不完整,或已经关闭。请换一张,或重新打开。") from None
            image = _converted(upright(image), *form)
        else:
            image = _converted(_from_array(image), *form)
        return invert_image(image) if invert else image

    def _classify(self, images):
        """若干张 PIL 图像 -> 概率 [B, K]。"""
        x = paddle.to_tensor(to_input(images, self.info))  # [B, C, H, W]
        with self._turn, paddle.no_grad():
            logits = self._run(x).numpy().astype("float64")  # [B, K]
        logits -= logits.max(axis=1, keepdims=True)
        exponents = np.exp(logits)  # [B, K]
        return (exponents / exponents.sum(axis=1, keepdims=True)).astype("float32")


def _converted(image, channels, *form):
    """``convert_image``,没有第四个通道时说怎么办。"""
    try:
        return convert_image(image, channels, *form)
    except UserError as error:
        raise UserError(f"这个图像{error},模型要 {channels} 个通道:请给 RGBA 的图像。") from None


def _info_of(model, classes, mean, std, image_size, fit):
    """自己训练的模型的 ``DataInfo``,由使用者写明。"""
    missing = [name for name, value in (("classes", classes), ("mean", mean), ("std", std)) if value is None]
    if missing:
        raise UserError(
            f"用 {type(model).__name__} 建 Predictor 还要 {'、'.join(missing)}:"
            "Predictor(model, classes=…, mean=…, std=…),即类别名和像素(0–1)的均值、标准差;"
            "load_data 的数据在它的 info 里。"
        )
    settings = getattr(model, "settings", {})
    channels = settings.get("in_channels") or len(np.ravel(mean))
    check_normalization(mean, std, channels)
    image_size = settings.get("image_size") if image_size is None else image_size
    if image_size is None:
        raise UserError(f"不知道 {type(model).__name__} 的图像边长:请再写明 image_size=…(像素)。")
    size = plain_size(*as_pair(image_size, "image_size"))
    own = plain_size(*as_pair(settings.get("image_size", size), "image_size"))
    if own != size:
        raise UserError(f"模型的图像是 {size_text(own)} 像素,而 image_size={size_text(size)}:请去掉它,或换一个模型。")
    if settings.get("num_classes", len(classes)) != len(classes):
        raise UserError(f"模型有 {settings['num_classes']} 类,而给了 {len(classes)} 个类别名:请检查 classes。")
    names = tuple(str(name) for name in classes)
    facts = tuple(map(float, mean)), tuple(map(float, std)), {}, fit or Fit()
    return DataInfo("own", names, channels, size, *facts)


def _is_one(images):
    """是不是一张图像,而不是若干张。"""
    return (
        isinstance(images, (str, bytes, Path, Image.Image))
        or not isinstance(images, Iterable)
        or getattr(images, "ndim", 4) < 4
    )


def _from_array(array):
    """uint8 的数组 [H, W] 或 [H, W, C] -> PIL 图像。"""
    if not hasattr(array, "ndim"):
        raise UserError(f"{type(array).__name__} 不是图像:请给路径、PIL 图像或 uint8 的数组。")
    array = np.asarray(array)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise UserError(
            f"数组的类型是 {array.dtype}、形状是 {list(array.shape)}:一张图像应是 uint8(0–255)的 [H, W] 或 [H, W, C],"
            "C 是 1、3 或 4,次序是 RGB(cv2 读来的请先 array[..., ::-1])。若干张灰度图用 list(数组)。"
        )
    if 0 in array.shape:
        raise UserError(f"数组的形状是 {list(array.shape)}:图像里没有像素。")
    return to_pillow(array if array.ndim == 3 else array[..., None])
