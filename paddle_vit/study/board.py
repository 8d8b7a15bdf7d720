"""启动 VisualDL 的服务。"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from ..errors import UserError
from ..runs.visualdl_file import import_visualdl
from ..system.cli import check_port

__all__ = ["serve"]


def _once(times, function, seconds, *args):
    """代替 VisualDL 的 ``retry``:它算不出来时睡几秒再试,最后打印调用栈,其间整个页面都不动。"""
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        return function(*args)
    return None


def serve(logdir: str | Path, host: str = "127.0.0.1", port: int = 8040) -> None:
    """在前台启动 VisualDL,直到 Ctrl-C。

    语言固定为中文:浏览器不报告语言时,VisualDL 2.5.3 自己猜语言会出错,页面是 HTTP 500。

    Args:
        logdir (str | Path): 运行目录,或放着几个运行的目录。
        host (str): 监听的地址。
        port (int): 端口,1–65535。

    Raises:
        UserError: 目录里没有记录,或端口被占用。
    """
    if Path(logdir).is_file():  # 给了记录文件
        logdir = Path(logdir).parent
    if not any(Path(logdir).rglob("*vdlrecords*")):
        raise UserError(f"{logdir} 里没有 VisualDL 记录:请先运行 python scripts/train.py,或给出运行所在的目录。")
    check_port(host, port)

    import_visualdl()
    from visualdl.reader import graph_reader
    from visualdl.server import lib
    from visualdl.server.app import ParseArgs, create_app

    graph_reader.is_VDLGraph_file = lambda name: "vdlgraph" in name  # 不列出导出的 .pdmodel:名字都是 export

    lib.retry = _once
    logging.disable(logging.WARNING)  # 每个请求一行的访问日志
    logging.getLogger("vdl_logger").disabled = True  # 还没有数据的页面,它说是 Internal server error
    directory = Path(logdir).resolve()
    os.chdir(directory.parent)  # 页面上的运行名就是给 VisualDL 的路径,这样名字最短
    options = {"logdir": [directory.name], "host": host, "port": port, "language": "zh", "telemetry": False}
    app = create_app(ParseArgs(**options))
    print(f"VisualDL 已启动:在浏览器里打开 http://{host}:{port}/app/scalar ,按 Ctrl-C 结束。", flush=True)
    app.run(debug=False, host=host, port=port, threaded=False)
