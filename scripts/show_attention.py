"""把训练好的运行的注意力画成图;不给图片时用验证部分的几张。"""

import sys
from pathlib import Path

import ctrl_c  # noqa: F401

from paddle_vit.runs.loading import load_run
from paddle_vit.study.attention_pictures import data_to_look_at, draw_attention, pictures_to_show
from paddle_vit.study.attention_share import measure_figure_share
from paddle_vit.system.cli import ArgumentParser, pair_of_numbers, run_main
from paddle_vit.system.pictures import font_advice
from paddle_vit.system.runtime import setup_runtime
from paddle_vit.system.tables import terminal


def main():
    parser = ArgumentParser("把训练好的运行的注意力画成图:各层各头、rollout、梯度加权、注意力距离、卷积核、位置编码。")
    parser.add_argument("run", metavar="RUN", help="运行目录,如 runs/digits-1126-093000")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="*", default=[], help="图片文件、目录或通配符;不给时用验证部分的几张"
    )
    parser.add_argument("--sample", type=int, help="不给 IMAGE 时用验证部分的几张,各类轮流(默认 4)")
    parser.add_argument("--output", help="图写到哪个目录(默认 RUN/attention)")
    parser.add_argument(
        "--query",
        type=pair_of_numbers,
        metavar="行,列",
        help="看哪个图块,从 0 数起,如 1,2;不给时看 class token 或所有图块的平均",
    )
    parser.add_argument("--layer", type=int, help="对比图里另画第几层,从 1 数起(默认最后一层)")
    parser.add_argument("--invert", action="store_true", help="先把图片反色;白底黑字的数字要加它(训练数据是黑底白字)")
    parser.add_argument("--measure", action="store_true", help="不画图,量测试部分的注意力有多少在图形上")
    parser.add_argument("--data-dir", help="数据所在的目录;不给时用训练时的")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="设备(默认 auto)")
    args = parser.parse_args()

    setup_runtime(args.device)
    loaded = load_run(args.run)
    if args.measure:
        tables = measure_figure_share(loaded, data_to_look_at(loaded, args.data_dir).test)
        print("\n\n".join(map(terminal, tables)))
        return
    pictures = pictures_to_show(loaded, args.images, args.sample, args.invert, args.data_dir)
    directory = args.output or Path(args.run) / "attention"
    for path in draw_attention(loaded, pictures, directory, args.query, args.layer):
        print(path, flush=True)
    if loaded.model.position_embedding is None:
        print("模型没有位置编码,不画 position.png。")
    sys.stderr.write(font_advice())


if __name__ == "__main__":
    run_main(main)
