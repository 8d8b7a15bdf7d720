"""把别处的权重转换成本项目的文件;认不出格式时,写一份换名表的草稿。"""

from pathlib import Path

import ctrl_c  # noqa: F401

from paddle_vit.data.info import parse_info
from paddle_vit.errors import UserError
from paddle_vit.family.models import create_model
from paddle_vit.system.cli import ArgumentParser, numbers, run_main
from paddle_vit.system.files import atomic_write
from paddle_vit.system.fitting import FITS, INTERPOLATIONS, fit_named
from paddle_vit.weights import describe_weights, export_weights, propose_table
from paddle_vit.weights.checkpoint import read_description
from paddle_vit.weights.conversion import (
    assumptions,
    import_weights,
    parse_settings,
    read_class_names,
    why_not_predict,
)
from paddle_vit.weights.proposal import why_unknown


def main():
    parser = ArgumentParser(
        "把 timm、Hugging Face、PaddleViT、PaddleClas、Google 等的权重转换成本项目的 .safetensors。"
    )
    parser.add_argument("source", metavar="SOURCE", help="权重文件,或从 Hugging Face 下载的目录;不需要装 PyTorch")
    parser.add_argument("--model", help="模型名,如 vit_base_patch16_224;本项目自己的文件可以不给")
    parser.add_argument("--output", metavar="FILE", help="写到这个 .safetensors 文件")
    parser.add_argument("--table", metavar="YAML", help="换名表;不给时由张量的名字认出格式")
    parser.add_argument("--propose", metavar="YAML", help="不转换,只写一份换名表的草稿,填好以后交给 --table")
    parser.add_argument("--image-size", type=int, help="换成这个图像边长(像素),位置编码随之改大小")
    parser.add_argument(
        "--set", metavar="名字=值", action="append", default=[], help="模型的其他参数,如 num_heads=6;可以多次"
    )
    parser.add_argument("--class-names", metavar="FILE", help="类别名文件,UTF-8,一行一个")
    parser.add_argument(
        "--mean",
        type=numbers,
        metavar="数,…",
        help="像素(0–1)各通道的均值,如 0.5 或 0.485,0.456,0.406",
    )
    parser.add_argument(
        "--std", type=numbers, metavar="数,…", help="各通道的标准差,与 --mean 一起给;都不给时用权重里写着的"
    )
    parser.add_argument(
        "--fit", choices=FITS, help="图片怎样摆成模型的大小:居中裁剪、压扁或补边;不给时用权重旁边写着的,没有就裁剪"
    )
    parser.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        metavar="NAME",
        help=f"缩放图片的插值,与 --fit 一起给;{'、'.join(INTERPOLATIONS)} 之一,默认 bicubic",
    )
    parser.add_argument("--resize-patches", action="store_true", help="图块边长不同时,图块嵌入的卷积核也改大小")
    parser.add_argument("--no-strict", action="store_true", help="缺少的张量保持随机的初值,多出的不用,都写在报告里")
    parser.add_argument("--export-timm", metavar="FILE", help="另外写一份 timm 名字的 .safetensors")
    parser.add_argument("--verbose", action="store_true", help="打印每个张量的去处")
    args = parser.parse_args()

    if args.interpolation is not None and args.fit is None:
        raise UserError("--interpolation 只与 --fit 一起给:请加上 --fit,或去掉它。")
    settings = parse_settings(args.set)
    if args.image_size is not None:
        settings["image_size"] = args.image_size
    if args.propose is not None:
        if Path(args.propose).exists():
            raise UserError(f"{args.propose} 已经有了,草稿不覆盖它:请换一个名字,或先把它移走。")
        model = create_model(args.model or "vit", **settings)
        table = propose_table(model, args.source)
        atomic_write(Path(args.propose), table.encode())
        print(f"换名表的草稿写在 {args.propose}:核对以后填好 ?,再用 --table {args.propose} 转换。")
        reason = why_unknown(model, args.source, table)
        if reason:
            print(f"提示:{reason}")
        return
    if args.output is None:
        parser.error("the following arguments are required: --output")
    model, report = import_weights(
        args.source,
        args.output,
        args.model,
        settings,
        read_class_names(args.class_names) if args.class_names else None,
        mean=args.mean,
        std=args.std,
        fit=None if args.fit is None else fit_named(args.fit, args.interpolation or "bicubic"),
        table=args.table,
        resize_patches=args.resize_patches,
        strict=not args.no_strict,
    )
    print(report)
    if args.verbose:
        print(report.details())
    print(f"写好了 {args.output}")
    data = (read_description(args.output) or (None, None))[1]
    if data is None:
        print(f"提示:{why_not_predict(args.output)}")
    else:
        print(f"预处理:{parse_info(data, args.output).describe()}")
    facts = (  # (哪一项, 改它的选项, 使用者给的)
        ("normalization", "--mean、--std", args.mean),
        ("fit", "--fit", args.fit),
        ("epsilon", "--set epsilon=…", settings.get("epsilon")),
        ("classes", "--class-names", args.class_names),
    )
    options = {fact: option for fact, option, given in facts if given is None}
    line = assumptions(describe_weights(args.source, args.table, args.model), options)
    if line is not None:
        print(line)
    if args.export_timm is not None:
        print(f"写好了 {args.export_timm};在 timm 里:{export_weights(model, args.export_timm)}")


if __name__ == "__main__":
    run_main(main)
