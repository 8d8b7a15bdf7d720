"""网页:放一张图片或写一个数字,看最可能的几类和注意力;另有一个 JSON 接口。页面用 Gradio,服务用它所用的 FastAPI。"""

import asyncio
import importlib.util
import io
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .attention_maps import attention_weights, has_windows, overlay, rollout, token_map
from .augment import resize_and_center_crop
from .cli import check_port
from .data import read_image, to_input, varied_indices
from .errors import UserError
from .runs import LoadedRun, load_run_data

__all__ = ["Classifier", "create_app", "create_page", "examples_of", "serve"]

MAX_BYTES = 20 << 20  # 一张图片的文件最多多大
MAX_PIXELS = 50_000_000  # 一张图片最多多少像素
WORKERS = 2  # 同时处理几张:内存最多是几张大图
MAX_WAITING = 256  # 最多多少个请求在等,再多的立刻说忙
TOP = 5
VISIBLE = 280  # 注意力图至少画这么大,像素
TIMEOUT = 30  # 秒;一个请求的图片要在这么久之内传完


class Classifier:
    """网页和接口共用的:限制大小,一次只处理几张。

    Args:
        predictor (Predictor): 模型。
        invert (bool): 图片先反色。
    """

    def __init__(self, predictor, invert=False):
        self.predictor, self.invert = predictor, invert
        self._places = threading.BoundedSemaphore(WORKERS)
        self._drawing = threading.Lock()

    def open(self, source, name):
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
                    width, height = image.size
        except Image.DecompressionBombError:
            width = height = MAX_PIXELS
        except (OSError, SyntaxError, ValueError, EOFError):
            raise UserError(f"{name} 不是图片,或文件不完整:请换一张。") from None
        if width * height > MAX_PIXELS:
            raise UserError(f"{name} 的像素太多(超过 {MAX_PIXELS // 10**6} 百万):请先缩小再用。")
        if isinstance(source, io.BytesIO):
            source.seek(0)
        try:
            return read_image(source, self.predictor.info.channels)
        except UserError:
            raise UserError(f"{name} 不是图片,或文件不完整:请换一张。") from None

    def classify(self, source, name="图片", invert=None):
        """一张图片最可能的几类。

        Args:
            source (str | Path | bytes): 图片文件,或它的内容。
            name (str): 写进提示的名字。
            invert (bool | None): 先反色;``None`` 用构造时的。

        Returns:
            tuple: (``Prediction``, 读进来的 PIL 图像,反色之后的)。

        Raises:
            UserError: 见 ``open``。
        """
        with self._places:
            image = self.open(source, name)
            if self.invert if invert is None else invert:
                image = ImageOps.invert(image)
            return self.predictor(image, TOP), image

    def attention(self, image):
        """注意力展开(rollout)盖在图像上,uint8 [H', W', 3];没有动态图的模型或是 Swin 时是 ``None``。"""
        model, info = self.predictor.model, self.predictor.info
        if model is None or has_windows(model):
            return None
        pixels = np.asarray(resize_and_center_crop(image, info.image_size))
        pixels = pixels.reshape(1, info.image_size, info.image_size, -1)  # [1, H, W, C]
        with self._drawing:  # 记录注意力要在模型上挂钩子
            weights = attention_weights(model, to_input([image], info))  # [L, 1, h, N, N]
        maps = token_map(rollout(weights), model)  # [1, 行数, 列数]
        return overlay(pixels, maps, min_side=VISIBLE)[0]


def examples_of(loaded, directory, data_dir=None, count=10):
    """一个运行的测试部分里的几张(各类轮流),存成 PNG,作网页上的例子。

    Args:
        loaded (LoadedRun | LoadedModel | None): 见 ``Predictor``;不是运行的没有数据,也就没有例子。
        directory (str | Path): 存到哪里。
        data_dir (str | None): 数据所在的目录;``None`` 用训练时的,读不到就没有例子。
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
    indices = varied_indices(part.labels, min(count, len(part)))
    (images,) = part.fetch([(indices, None)])  # [B, H, W, C]
    paths = [Path(directory, f"{index}.png") for index in indices]
    for path, image in zip(paths, images):
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(path)
    return list(map(str, paths))


def create_app(classifier, examples=()):
    """网页和接口,一个 FastAPI 应用:``/`` 是网页,``POST /api/predict`` 是 JSON 接口,``GET /api/info`` 是模型的说明。

    Args:
        classifier (Classifier): 模型。
        examples (list[str]): 例子图片的路径。

    Returns:
        fastapi.FastAPI
    """
    import gradio
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect

    app = FastAPI(title="paddle_vit", docs_url=None, redoc_url=None)
    waiting = 0

    def refuse(status, text):
        return JSONResponse({"error": text}, status)

    async def read_body(request):
        """请求里的全部字节;太大时是 ``None``。"""
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MAX_BYTES:
                return None
        return bytes(data)

    async def answer(request):
        try:
            data = await asyncio.wait_for(read_body(request), TIMEOUT)
        except asyncio.TimeoutError:
            return refuse(408, f"图片 {TIMEOUT} 秒还没有传完:请检查网络,或先缩小。")
        except ClientDisconnect:
            return refuse(400, "连接断了。")
        if data is None:
            return refuse(413, f"图片超过 {MAX_BYTES >> 20} MB:请先缩小。")
        if not data:
            return refuse(400, "没有收到图片:请把图片文件的内容作为 POST 的正文。")
        try:
            prediction, _ = await run_in_threadpool(classifier.classify, data)
        except UserError as error:
            return refuse(400, str(error))
        ranking = [{"label": label, "probability": p} for label, p in zip(prediction.labels, prediction.probabilities)]
        return JSONResponse({**ranking[0], "top": ranking})

    @app.post("/api/predict")
    async def predict(request: Request):
        nonlocal waiting
        if waiting >= MAX_WAITING:
            return refuse(503, f"已经有 {MAX_WAITING} 个请求在等:请过一会儿再试。")
        waiting += 1
        try:
            return await answer(request)
        finally:
            waiting -= 1

    @app.get("/api/info")
    async def info():
        data = classifier.predictor.info
        return {"name": data.name, "classes": data.classes, "image_size": data.image_size, "channels": data.channels}

    page = create_page(classifier, examples)
    limits = dict(max_file_size=MAX_BYTES, allowed_paths=sorted({str(Path(path).parent) for path in examples}))
    return gradio.mount_gradio_app(app, page, "/", footer_links=[], ssr_mode=False, **limits)


def create_page(classifier, examples=()):
    """网页(``gradio.Blocks``);参数见 ``create_app``。"""
    import gradio

    def show(source, name, invert=None):
        try:
            prediction, image = classifier.classify(source, name, invert)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from None
        bars = dict(zip(prediction.labels, prediction.probabilities))
        return bars, classifier.attention(image)

    def look(path):
        return ({}, None) if path is None else show(path, "图片")

    def look_at_drawing(drawing):
        if drawing is None or drawing["composite"] is None or not np.asarray(drawing["composite"])[..., 3].any():
            raise gradio.Error("还没有写字:请在左边写一个数字。", print_exception=False)
        content = io.BytesIO()
        drawing["composite"].save(content, "png")
        return show(content.getvalue(), "写的字", invert=True)  # 纸是白的,数据里是黑底白字

    info = classifier.predictor.info
    drawable = info.name in ("digits", "mnist")
    attention = classifier.predictor.model is not None and not has_windows(classifier.predictor.model)
    with gradio.Blocks(title="paddle_vit 看图分类", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gradio.Markdown(f"## 看图分类\n模型学的是 {info.name}:{_shorten(info.classes)}。")
        with gradio.Row():
            with gradio.Column():
                with gradio.Tab("图片"):
                    picture = gradio.Image(label="放一张图片", sources=["upload", "clipboard"], elem_id="picture")
                    # Gradio 自己打开图片时,坏图和大图的提示是英文的;只要路径,由 Classifier 限制着打开
                    picture.preprocess = lambda payload: None if payload is None else payload.path
                    if examples:
                        gradio.Examples(list(examples), picture, label="测试部分的例子")
                if drawable:
                    with gradio.Tab("写一个数字"):
                        brush = gradio.Brush(default_size=24, colors=["#000000"], color_mode="fixed")
                        settings = dict(type="pil", brush=brush, canvas_size=(280, 280), layers=False, transforms=())
                        hint = "先点左边的画笔,再写"
                        drawing = gradio.Sketchpad(label="用鼠标写", placeholder=hint, elem_id="drawing", **settings)
                        button = gradio.Button("认一认", variant="primary")
            with gradio.Column():
                bars = gradio.Label(label="最可能的几类", num_top_classes=TOP, elem_id="bars")
                heat = gradio.Image(label="模型看哪里(注意力展开)", visible=attention, elem_id="heat", buttons=[])
        settings = dict(api_visibility="private", concurrency_limit=WORKERS)
        picture.change(look, picture, [bars, heat], **settings)
        if drawable:
            button.click(look_at_drawing, drawing, [bars, heat], **settings)
    return page.queue(max_size=MAX_WAITING)


def _shorten(names):
    return "、".join(names[:20]) + (f"等 {len(names)} 类" if len(names) > 20 else "")


def serve(classifier, examples=(), host="127.0.0.1", port=7860):
    """在前台启动网页,直到 Ctrl-C。

    Args:
        classifier (Classifier): 模型。
        examples (list[str]): 例子图片的路径。
        host (str): 监听的地址;默认只有本机能打开。
        port (int): 端口,1–65535。

    Raises:
        UserError: 没有装 Gradio,或端口被占用。
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError('没有装 Gradio:请先 pip install -e ".[page]"(要 Python 3.10 以上)。')
    check_port(host, port)
    import uvicorn

    app = create_app(classifier, examples)
    print(f"网页已启动:在浏览器里打开 http://{host}:{port} ,按 Ctrl-C 结束。", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="critical", timeout_keep_alive=5)
