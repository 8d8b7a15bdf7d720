"""比较各个开关:每次只改一个设置,几个种子各训练一次,列表并画图。"""

import sys
from pathlib import Path

import ctrl_c  # noqa: F401

from paddle_vit.runs.command_line import parse_config
from paddle_vit.study.comparison import compare, parse_seeds, parse_vary
from paddle_vit.system.cli import ArgumentParser, run_main
from paddle_vit.system.pictures import font_advice


def main():
    parser = ArgumentParser(
        "比较各个开关:每次只在基准上改一个设置,几个种子各训练一次,按验证集的 top-1 列表并画图。\n"
        "其余参数都是 scripts/train.py 的,它们定出基准。中断之后再执行一次同样的命令,做完的不重做,没做完的接着做。",
        usage="python scripts/compare.py --vary 设置=值,值 [--vary …] [--seeds 0,1,2]\n"
        "            [--output DIR] [训练的参数]",
    )
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="NAME=A,B",
        help="比较一个设置的几个值,如 pool=avg,cls;可以多次",
    )
    parser.add_argument("--seeds", default="0,1,2", help="种子,逗号隔开(默认 0,1,2)")
    parser.add_argument("--output", metavar="DIR", default="runs/compare", help="结果的目录(默认 runs/compare)")
    args, rest = parser.parse_known_args()
    script = Path(__file__).with_name("train.py")
    compare(parse_config(rest), parse_vary(args.vary), parse_seeds(args.seeds), args.output, script)
    sys.stderr.write(font_advice())


if __name__ == "__main__":
    run_main(main)
