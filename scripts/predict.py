"""用训练好的模型给图片分类。"""

import dataclasses
import sys

from paddle_vit.cli import ArgumentParser, run
from paddle_vit.engines import add_engine_arguments, prediction_model
from paddle_vit.predict import expand_paths, predict
from paddle_vit.runs import load_model
from paddle_vit.runtime import setup_runtime


def main():
    parser = ArgumentParser("用训练好的模型给图片分类,打印最可能的几类和概率。")
    parser.add_argument(
        "model", metavar="MODEL", help="运行目录,如 runs/digits-0101-120000,或一个 .safetensors 权重文件"
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="图片文件、目录或通配符,如 photos/ 'a*.png'")
    parser.add_argument("--top", type=int, default=3, help="每张图片打印几类(默认 3)")
    parser.add_argument("--invert", action="store_true", help="先把图片反色;白底黑字的数字要加它(训练数据是黑底白字)")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="设备(默认 auto)")
    add_engine_arguments(parser)
    args = parser.parse_args()

    settings = setup_runtime(args.device)
    loaded = load_model(args.model)
    paths = expand_paths(args.images)
    model, _, note = prediction_model(loaded.model, settings, len(paths), args.engine, args.precision)
    if note:
        print(note, file=sys.stderr)
    loaded = dataclasses.replace(loaded, model=model)
    for path, ranking in predict(loaded, paths, args.top, args.invert):
        print(f"{path}\t" + "\t".join(f"{name} {probability:.2%}" for name, probability in ranking))


if __name__ == "__main__":
    run(main)
