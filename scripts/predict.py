"""用训练好的模型给图片分类。"""

import sys

import ctrl_c  # noqa: F401

from paddle_vit.data.finding import Unused, expand_paths, far_from_square
from paddle_vit.data.images import UnreadableImage, bad_images, read_image
from paddle_vit.data.info import DARK_BACKGROUND
from paddle_vit.data.pixels import lightness
from paddle_vit.deploy.engines import add_engine_arguments
from paddle_vit.deploy.predictor import Predictor
from paddle_vit.deploy.results import PredictionTable, check_table
from paddle_vit.system.cli import ArgumentParser, numbers, run_main
from paddle_vit.system.files import quoted
from paddle_vit.system.fitting import FITS, fit_named
from paddle_vit.system.runtime import setup_runtime


def main():
    parser = ArgumentParser("用训练好的模型给图片分类,打印最可能的几类和概率。")
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="运行目录,如 runs/digits-0101-120000;scripts/export.py 导出的目录;或一个 .safetensors 权重文件",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="图片文件、目录或通配符,如 photos/ 'a*.png'")
    parser.add_argument("--top", type=int, default=3, help="每张图片打印几类(默认 3)")
    parser.add_argument(
        "--output", metavar="FILE", help="也写成表:.csv 或 .json;图片放在类别目录里的,还有正确率和混淆矩阵"
    )
    parser.add_argument("--invert", action="store_true", help="先把图片反色;白底黑字的数字要加它(训练数据是黑底白字)")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="设备(默认 auto)")
    parser.add_argument("--fit", choices=FITS, help="图片怎样摆成模型的大小:居中裁剪、压扁或补边;不给时与训练时相同")
    parser.add_argument("--mean", type=numbers, metavar="数,…", help="像素(0–1)各通道的均值;不给时用模型里写着的")
    parser.add_argument("--std", type=numbers, metavar="数,…", help="各通道的标准差;不给时用模型里写着的")
    add_engine_arguments(parser)
    args = parser.parse_args()

    if args.output is not None:
        check_table(args.output)
    settings, unused = setup_runtime(args.device), Unused()
    paths = expand_paths(args.images, unused)
    if line := unused.line():
        print(f"提示:{line}。", file=sys.stderr)
    predictor = Predictor(args.model, args.engine, args.precision, settings["threads"], len(paths))
    if predictor.note:
        print(predictor.note, file=sys.stderr)
    if (args.mean, args.std, args.fit) != (None, None, None):
        method = predictor.info.fit.interpolation
        predictor.restate(args.mean, args.std, None if args.fit is None else fit_named(args.fit, method))
        print(f"预处理:{predictor.info.describe()}", file=sys.stderr)
    hint = far_from_square(paths, predictor.info)
    if hint is not None:
        print(hint, file=sys.stderr)
    info, good, bad, light = predictor.info, [], [], []

    def readable():
        for path in paths:
            try:
                image = read_image(path, *info.form)
            except UnreadableImage as error:
                bad.append((path, error))
                continue
            good.append(path)
            if len(good) <= 200:  # 看一张图像要一点时间
                light.append(lightness(image))
            yield image

    table = PredictionTable(info.classes, args.images)
    for i, prediction in enumerate(predictor.each(readable(), args.top, args.invert)):
        print(f"{good[i]}\t{prediction}")
        table.add(good[i], prediction)
    every = bool(light) and min(light) > 160
    papers = good[: len(light)] if every else [path for path, value in zip(good, light) if value > 200]
    if info.name in DARK_BACKGROUND and not args.invert and papers:
        some = "" if every else f"(如 {quoted(papers[0])};黑底白字的请分开预测)"
        print(f"提示:{len(papers)} 张图片像是白底黑字,训练数据是黑底白字:请加 --invert{some}。", file=sys.stderr)
    table.bad += [(path, error.short) for path, error in bad]
    if summary := table.summary():
        print(summary, file=sys.stderr if args.output is None else sys.stdout)  # 标准输出里每行一张图片
    if args.output is not None:
        table.save(args.output)
        print(f"写好了 {args.output}")
    if bad:
        raise bad_images(bad, f"其余的 {len(good)} 个都预测了。" if good else "")


if __name__ == "__main__":
    run_main(main)
