"""网页:放一张图片或写一个数字,看最可能的几类和注意力;另有一个 JSON 接口。页面用 Gradio,服务用它所用的 FastAPI。"""

import asyncio
import concurrent.futures
import html
import importlib.util
import io
import os
import signal
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..attention.maps import has_windows, overlay, rollout, token_map
from ..data.augment import resize_and_center_crop
from ..data.sources import read_image, varied_images
from ..errors import UserError
from ..runs.train import LoadedRun, load_run_data
from ..system.cli import check_port

__all__ = ["Classifier", "create_app", "create_page", "examples_of", "serve"]

MAX_BYTES = 20 << 20  # 一张图片的文件最多多大
FORM_BYTES = 64 << 10  # 网页把文件放在表单里传,表单别的部分最多多大
MAX_PIXELS = 50_000_000  # 一张图片最多多少像素
WORKERS = 2  # 同时处理几张:内存最多是几张大图
MAX_WAITING = 256  # 最多多少个请求在等,再多的立刻说忙
TOP = 5
VISIBLE = 280  # 图片和注意力图至少画这么大,像素
CSS = f"#picture img {{height: {VISIBLE}px; width: 100%; object-fit: contain}}"  # 8 像素的也看得清
BRUSH = 12  # 画笔的半径,像素;太细太粗都与数据里的笔画不像
MARGINS = {"digits": 0.0, "mnist": 0.2}  # 能写字的数据,字的四周留多少空白:digits 占满,MNIST 是 28 里的 20
TOO_MANY_BYTES = f"图片超过 {MAX_BYTES >> 20} MB:请先缩小。"
USAGE = "请用 POST,正文是图片文件的内容,如 curl --data-binary @图片.png 网址。"
NO_IMAGE = "这不是图片,或文件不完整:请换一张。"
NOT_DRAWN = "还没有写字:请点左边的画笔,再写一个数字。"
# 画板打开和清除之后,什么工具也没有选中;替使用者选画笔
CHOOSE_BRUSH = """() => setInterval(() => {
    const brush = document.querySelector("#drawing button[title=Brush]");
    if (brush && !document.querySelector("#drawing button.highlight")) brush.click();
}, 300)"""
TIMEOUT = 30  # 秒;一个请求的图片要在这么久之内传完
GRACE = 3  # 秒;结束时等正在算的请求多久


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
            return read_image(source, self.predictor.info.channels)
        except UserError:
            raise UserError(NO_IMAGE) from None

    def classify(self, source, drawn=False):
        """一张图片最可能的几类。

        Args:
            source (str | Path | bytes): 图片文件,或它的内容。
            drawn (bool): 它是在白纸上写的一个数字,大小和位置随意;只用于 ``MARGINS`` 里的数据。

        Returns:
            tuple: (``Prediction``, 交给模型的 PIL 图像)。

        Raises:
            UserError: 见 ``open``;或纸上什么也没有。
        """
        return self._workers.submit(self._classify, source, drawn).result()

    def _classify(self, source, drawn):
        image = self.open(source)
        if drawn or self.invert:
            image = ImageOps.invert(image)
        if drawn:
            image = framed(image, MARGINS[self.predictor.info.name])
        return self.predictor(image, TOP), image

    def attention(self, image):
        """注意力展开(rollout)盖在图像上,uint8 [H', W', 3];没有动态图的模型或是 Swin 时是 ``None``。"""
        model, info = self.predictor.model, self.predictor.info
        if model is None or has_windows(model):
            return None
        pixels = np.asarray(resize_and_center_crop(image, info.image_size))
        pixels = pixels.reshape(1, info.image_size, info.image_size, -1)  # [1, H, W, C]
        maps = token_map(rollout(self.predictor.attention([image])), model)  # [1, 行数, 列数]
        return overlay(pixels, maps, min_side=VISIBLE)[0]


def framed(image, margin):
    """黑底上的字,裁下来放在正方形的中间,四周留 margin 倍边长的空白:数据集里的字就是这样摆的。"""
    box = image.getbbox()
    if box is None:
        raise UserError(NOT_DRAWN)
    drawn = image.crop(box)
    side = round(max(drawn.size) * (1 + 2 * margin))
    square = Image.new(image.mode, (side, side))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square


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

    def refuse(status, text):
        return JSONResponse({"error": text}, status)

    class Limit:
        """Gradio 只限制表单里文件的大小,不限制表单别的部分和 JSON;这里限制整个正文。"""

        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            app, headers = self.app, dict(scope.get("headers", ()))
            if scope.get("path", "").startswith("/gradio_api/") and (
                b"transfer-encoding" in headers or int(headers.get(b"content-length", 0)) > MAX_BYTES + FORM_BYTES
            ):
                while (await receive()).get("more_body"):  # 不读完就回答,有的客户看不到回答
                    pass
                app = refuse(413, TOO_MANY_BYTES)
            await app(scope, receive, send)

    app = FastAPI(title="paddle_vit", docs_url=None, redoc_url=None)
    app.add_middleware(Limit)
    waiting = 0

    async def read_body(request):
        """请求里的全部字节;太大时是 ``None``。"""
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MAX_BYTES:
                return None
        return bytes(data)

    async def answer(request):
        kind = request.headers.get("content-type", "")
        if kind.startswith(("multipart/", "application/json")):
            return refuse(415, f"正文应是图片文件的内容,收到的是 {kind.split(';')[0]}:{USAGE}")
        try:
            data = await asyncio.wait_for(read_body(request), TIMEOUT)
        except asyncio.TimeoutError:
            return refuse(408, f"图片 {TIMEOUT} 秒还没有传完:请检查网络,或先缩小。")
        except ClientDisconnect:
            return refuse(400, "连接断了。")
        if data is None:
            return refuse(413, TOO_MANY_BYTES)
        if not data:
            return refuse(400, f"没有收到图片:{USAGE}")
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

    @app.get("/api/predict")
    async def explain():
        return refuse(405, USAGE)

    @app.get("/api/info")
    async def info():
        data = classifier.predictor.info
        return {"name": data.name, "classes": data.classes, "image_size": data.image_size, "channels": data.channels}

    page = create_page(classifier, examples)
    page.state_session_capacity = MAX_WAITING  # 每打开一次页面,Gradio 记下 65 KB;原来要到一万次才忘
    limits = dict(max_file_size=MAX_BYTES, allowed_paths=sorted({str(Path(path).parent) for path in examples}))
    app = gradio.mount_gradio_app(app, page, "/", footer_links=[], ssr_mode=False, css=CSS, **limits)
    page.has_launched = True  # 否则 Gradio 不检查路径:别人给出 /etc/passwd,就会复制到能下载的地方
    return app


def create_page(classifier, examples=()):
    """网页(``gradio.Blocks``);参数见 ``create_app``。"""
    import gradio

    def refuse(text):
        raise gradio.Error(text, print_exception=False)

    def show(path, drawn=False):
        try:
            prediction, image = classifier.classify(path, drawn)
        except UserError as error:
            refuse(str(error))
        bars = dict(zip(prediction.labels, prediction.probabilities))
        return bars, classifier.attention(image)

    def look(path):
        return ({}, None) if path is None else show(path)

    def look_at_drawing(path):
        return refuse(NOT_DRAWN) if path is None else show(path, drawn=True)

    info = classifier.predictor.info
    drawable = info.name in MARGINS
    attention = classifier.predictor.model is not None and not has_windows(classifier.predictor.model)
    with gradio.Blocks(title="paddle_vit 看图分类", analytics_enabled=False, delete_cache=(600, 600)) as page:
        words = html.escape(f"模型学的是 {info.name}:{_shorten(info.classes)}。")  # 类别名里可以有 <、& 和 *
        gradio.HTML(f"<h2>看图分类</h2><p>{words}</p>")
        with gradio.Row():
            with gradio.Column():
                with gradio.Tab("图片"):
                    label = f"放一张图片(最多 {MAX_BYTES >> 20} MB、{MAX_PIXELS // 10**4} 万像素)"
                    picture = gradio.Image(label=label, sources=["upload", "clipboard"], elem_id="picture")
                    # Gradio 自己打开图片时不限像素,坏图的提示是英文的;只要路径,由 Classifier 限制着打开
                    picture.preprocess = lambda payload: payload and payload.path
                    if examples:
                        # 不用 gradio.Examples:点一个例子,它就换掉 picture,上面的 preprocess 随之失去
                        samples = [[path] for path in examples]
                        gallery = gradio.Dataset(components=[picture], samples=samples, label="测试部分的例子")
                        gallery.click(lambda row: row[0], gallery, picture, api_visibility="private")
                if drawable:
                    with gradio.Tab("写一个数字"):
                        brush = gradio.Brush(default_size=BRUSH, colors=["#000000"], color_mode="fixed")
                        settings = dict(brush=brush, canvas_size=(280, 280), layers=False, transforms=())
                        drawing = gradio.Sketchpad(label="用鼠标写", elem_id="drawing", **settings)
                        drawing.preprocess = lambda payload: payload and payload.composite and payload.composite.path
                        drawing.accept_blobs = None  # 页面用不到;谁都能调用,而且不限大小
                        button = gradio.Button("认一认", variant="primary")
            with gradio.Column():
                bars = gradio.Label(label="最可能的几类", num_top_classes=TOP, elem_id="bars")
                heat = gradio.Image(label="模型看哪里(注意力展开)", visible=attention, elem_id="heat", buttons=[])
        settings = dict(api_visibility="private", concurrency_limit=WORKERS)
        picture.change(look, picture, [bars, heat], **settings)
        if drawable:
            button.click(look_at_drawing, drawing, [bars, heat], **settings)
            drawing.clear(lambda: ({}, None), None, [bars, heat], **settings)
            page.load(None, js=CHOOSE_BRUSH)
    return page.queue(max_size=MAX_WAITING)


def _shorten(names):
    return "、".join(names[:20]) + (f"等 {len(names)} 类" if len(names) > 20 else "")


def serve(classifier, data_dir=None, host="127.0.0.1", port=7860):
    """在前台启动网页,直到 Ctrl-C 或 SIGTERM;传来的图片和例子都在一个临时目录里,结束时删掉。

    Args:
        classifier (Classifier): 模型。
        data_dir (str | None): 例子从哪里来,见 ``examples_of``。
        host (str): 监听的地址;默认只有本机能打开。
        port (int): 端口,1–65535。

    Raises:
        UserError: 没有装 Gradio,端口被占用,或见 ``examples_of``。
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError('没有装 Gradio:请先 pip install -e ".[page]"(要 Python 3.10 以上)。')
    check_port(host, port)
    import uvicorn

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # 像 Ctrl-C 那样结束,临时目录才会删掉
    with tempfile.TemporaryDirectory(prefix="paddle_vit-") as directory:
        os.environ["GRADIO_TEMP_DIR"] = directory
        examples = examples_of(classifier.predictor.loaded, directory, data_dir, classifier.invert)
        app = create_app(classifier, examples)
        address = f"[{host}]" if ":" in host else host
        print(f"网页已启动:在浏览器里打开 http://{address}:{port} ,按 Ctrl-C 结束。", flush=True)
        settings = dict(log_level="critical", timeout_keep_alive=5, timeout_graceful_shutdown=GRACE)
        uvicorn.run(app, host=host, port=port, **settings)
