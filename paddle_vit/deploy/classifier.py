"""网页和接口共用的分类:限制大小,一次只处理几张;网页的例子。"""

import concurrent.futures
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ..attention.figures import overlay
from ..attention.maps import rollout, token_map
from ..attention.recording import has_windows
from ..data.images import UnreadableImage, at_size, read_image
from ..data.parts import varied_images
from ..data.pixels import invert_image
from ..errors import UserError
from ..runs.loading import LoadedRun, load_run_data
from ..system.pictures import to_pillow
from .drawing import LAYOUTS, laid_out

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "TOP",
    "VISIBLE",
    "WORKERS",
    "Classifier",
    "examples_of",
]


MAX_BYTES = 20 << 20  # 一张图片的文件最多多大
MAX_PIXELS = 50_000_000  # 一张图片最多多少像素
WORKERS = 2  # 同时处理几张:内存最多是几张大图
TOP = 5
VISIBLE = 280  # 图片和注意力图至少画这么大,像素
NO_IMAGE = "这不是图片,或文件不完整:请换一张。"


class Classifier:
    """网页和接口共用的:限制大小,一次只处理几张。

    Args:
        predictor (Predictor): 模型。
        invert (bool): 图片先反色。
    """

    def __init__(self, predictor, invert=False):
        self.predictor, self.invert = predictor, invert
        # 总是这几个线程打开图片:Pillow 在哪个线程里用过的内存,系统的分配器就留在哪个线程里
        self._workers = concurrent.futures.ThreadPoolExecutor(WORKERS)

    def open(self, source):
        """读一张图片;source 是路径或字节。

        Raises:
            UserError: 不是图片、不完整,文件或像素太多。
        """
        if isinstance(source, bytes):
            source = io.BytesIO(source)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(source) as image:  # 只读文件头
                    (width, height), form = image.size, image.format
        except Image.DecompressionBombError:
            width = height = MAX_PIXELS
        except (OSError, SyntaxError, ValueError, EOFError):
            raise UserError(NO_IMAGE) from None
        if width * height > MAX_PIXELS:
            raise UserError(f"图片的像素太多(超过 {MAX_PIXELS // 10**4} 万):请先缩小再用。")
        if form == "EPS":  # EPS 是程序,Pillow 会交给 Ghostscript 去执行
            raise UserError(NO_IMAGE)
        if isinstance(source, io.BytesIO):
            source.seek(0)
        try:
            return read_image(source, *self.predictor.info.form)
        except UnreadableImage as error:
            known = isinstance(error.__cause__, UserError)  # 是图片,而通道数不对
            raise UserError(f"这张图片{error.short},模型要四个:请换一张。" if known else NO_IMAGE) from None

    def classify(self, source, drawn=False):
        """一张图片最可能的几类。

        Args:
            source (str | Path | bytes): 图片文件,或它的内容。
            drawn (bool): 它是在白纸上写的一个数字,大小和位置随意;只用于 ``LAYOUTS`` 里的数据。

        Returns:
            tuple: (``Prediction``, 交给模型的 PIL 图像)。

        Raises:
            UserError: 见 ``open``;或纸上什么也没有。
        """
        return self._workers.submit(self._classify, source, drawn).result()

    def _classify(self, source, drawn):
        image = self.open(source)
        if drawn or self.invert:
            image = invert_image(image)
        if drawn:
            image = laid_out(image, LAYOUTS[self.predictor.info.name])
        return self.predictor(image, TOP), image

    def attention(self, image):
        """注意力展开(rollout)盖在图像上,uint8 [H', W', 3];没有动态图的模型或是 Swin 时是 ``None``。"""
        model, info = self.predictor.model, self.predictor.info
        if model is None or has_windows(model):
            return None
        pixels = at_size(image, info.image_size, info.fit)[None]  # [1, H, W, C]
        maps = token_map(rollout(self.predictor.attention([image])), model)  # [1, 行数, 列数]
        return overlay(pixels, maps, min_side=VISIBLE)[0]


def examples_of(loaded, directory, data_dir=None, invert=False, count=10):
    """一个运行的测试部分里的几张(各类轮流),存成 PNG,作网页上的例子。

    Args:
        loaded (LoadedRun | LoadedModel | None): 见 ``Predictor``;不是运行的没有数据,也就没有例子。
        directory (str | Path): 存到哪里。
        data_dir (str | None): 数据所在的目录;``None`` 用训练时的,读不到就没有例子。
        invert (bool): 页面会把图片反色,所以先反色一次。
        count (int): 几张。

    Returns:
        list[str]: 文件的路径。

    Raises:
        UserError: 给了 data_dir,而里面没有数据。
    """
    if not isinstance(loaded, LoadedRun):
        return []
    try:
        part = load_run_data(loaded, data_dir).test
    except UserError:
        if data_dir is not None:
            raise
        return []
    indices, images = varied_images(part, count)  # [B], [B, H, W, C]
    paths = [Path(directory, f"{index}.png") for index in indices]
    for path, image in zip(paths, images):
        image = 255 - image if invert else image
        if loaded.info.full_range:  # PNG 里放不下浮点数,放得下 16 位的整数
            top = (loaded.info.pixel_max or {}).get("I", 65535)
            image = np.rint(image * (top / 255)).astype("uint16")
        to_pillow(image).save(path)
    return list(map(str, paths))
