"""打开 VisualDL 看训练曲线,界面是中文。"""

import ctrl_c  # noqa: F401

from paddle_vit.study.board import serve
from paddle_vit.system.cli import ArgumentParser, run_main


def main():
    parser = ArgumentParser("打开 VisualDL 看训练曲线,界面是中文。按 Ctrl-C 结束。")
    parser.add_argument(
        "logdir", metavar="DIR", nargs="?", default="runs", help="运行目录,或放着几个运行的目录(默认 runs)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="监听的地址(默认 127.0.0.1,只有本机能看)")
    parser.add_argument("--port", type=int, default=8040, help="端口(默认 8040)")
    args = parser.parse_args()
    serve(args.logdir, args.host, args.port)


if __name__ == "__main__":
    run_main(main)
