"""JSON 接口:传来一张图片,回答最可能的几类。用 FastAPI。"""

# 不要 from __future__ import annotations:FastAPI 要看见接口函数的类型,而它们是在函数里导入的
import asyncio

from ..errors import UserError
from .classifier import MAX_BYTES, Classifier

__all__ = ["MAX_WAITING", "create_api"]


FORM_BYTES = 64 << 10  # 网页把文件放在表单里传,表单别的部分最多多大
MAX_WAITING = 256  # 最多多少个请求在等,再多的立刻说忙
TOO_MANY_BYTES = f"图片超过 {MAX_BYTES >> 20} MB:请先缩小。"
USAGE = "请用 POST,正文是图片文件的内容,如 curl --data-binary @图片.png 网址。"
TIMEOUT = 30  # 秒;一个请求的图片要在这么久之内传完


def create_api(classifier: Classifier):
    """接口,一个 FastAPI 应用:``POST /api/predict`` 是图片的分类,``GET /api/info`` 是模型的说明。

    Args:
        classifier (Classifier): 模型。

    Returns:
        fastapi.FastAPI
    """
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

    return app
