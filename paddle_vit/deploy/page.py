"""网页:放一张图片或写一个数字,看最可能的几类和注意力。用 Gradio,与 JSON 接口是同一个服务。"""

import html
import importlib.util
import os
import signal
import tempfile
from pathlib import Path

from ..attention.recording import has_windows
from ..errors import UserError
from ..system.cli import check_port
from .api import MAX_WAITING, create_api
from .classifier import MAX_BYTES, MAX_PIXELS, TOP, VISIBLE, WORKERS, examples_of
from .drawing import BRUSH, LAYOUTS, NOT_DRAWN

__all__ = ["create_app", "create_page", "serve"]


CSS = f"#picture img {{height: {VISIBLE}px; width: 100%; object-fit: contain}}"  # 8 像素的也看得清
# 画板打开和清除之后,什么工具也没有选中;替使用者选画笔
CHOOSE_BRUSH = """() => setInterval(() => {
    const brush = document.querySelector("#drawing button[title=Brush]");
    if (brush && !document.querySelector("#drawing button.highlight")) brush.click();
}, 300)"""


GRACE = 3  # 秒;结束时等正在算的请求多久


def create_app(classifier, examples=()):
    """网页和接口,一个 FastAPI 应用:``/`` 是网页,其余见 ``api.create_api``。

    Args:
        classifier (Classifier): 模型。
        examples (list[str]): 例子图片的路径。

    Returns:
        fastapi.FastAPI
    """
    import gradio

    page = create_page(classifier, examples)
    page.state_session_capacity = MAX_WAITING  # 每打开一次页面,Gradio 记下 65 KB;原来要到一万次才忘
    limits = dict(max_file_size=MAX_BYTES, allowed_paths=sorted({str(Path(path).parent) for path in examples}))
    app = gradio.mount_gradio_app(create_api(classifier), page, "/", footer_links=[], ssr_mode=False, css=CSS, **limits)
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
    drawable = info.name in LAYOUTS
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
