"""网页:放一张图片或写一个数字,看最可能的几类和注意力;另有 JSON 接口。"""

import sys

import ctrl_c  # noqa: F401

from paddle_vit.deploy.classifier import Classifier
from paddle_vit.deploy.engines import add_engine_arguments
from paddle_vit.deploy.page import serve
from paddle_vit.deploy.predictor import Predictor
from paddle_vit.system.cli import ArgumentParser, run_main
from paddle_vit.system.runtime import setup_runtime


def main():
    parser = ArgumentParser("网页:放一张图片或写一个数字,看最可能的几类和注意力;另有 JSON 接口。")
    parser.add_argument(
        "model", metavar="MODEL", help="运行目录,如 runs/digits-0101-120000;导出的目录;或一个 .safetensors 权重文件"
    )
    parser.add_argument("--host", default="127.0.0.1", help="监听的地址(默认 127.0.0.1,只有本机能打开)")
    parser.add_argument("--port", type=int, default=7860, help="端口(默认 7860)")
    parser.add_argument("--data-dir", help="数据所在的目录,取测试部分作例子;不给时用训练时的")
    parser.add_argument("--invert", action="store_true", help="先把图片反色")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="设备(默认 auto)")
    add_engine_arguments(parser)
    args = parser.parse_args()

    settings = setup_runtime(args.device)
    predictor = Predictor(args.model, args.engine, args.precision, settings["threads"])
    if predictor.note:
        print(predictor.note, file=sys.stderr)
    serve(Classifier(predictor, args.invert), args.data_dir, args.host, args.port)


if __name__ == "__main__":
    run_main(main)
