"""把几组运行的验证曲线画在一张图里。"""

import sys

import ctrl_c  # noqa: F401

from paddle_vit.study.curves import draw_curves, parse_groups
from paddle_vit.system.cli import ArgumentParser, run_main
from paddle_vit.system.pictures import font_advice


def main():
    parser = ArgumentParser(
        "把几组运行(每组是同样设置的几个种子)的验证曲线画在一张图里,并打印验证和测试的 top-1。",
        usage="python scripts/curves.py 名字=运行目录的通配符 [名字=…] [--output FILE]",
    )
    parser.add_argument(
        "groups", metavar="NAME=PATTERN", nargs="+", help="如 '微调=runs/tune/base-seed*';通配符要加引号"
    )
    parser.add_argument("--output", metavar="FILE", default="runs/curves.png", help="图的文件(默认 runs/curves.png)")
    args = parser.parse_args()
    draw_curves(parse_groups(args.groups), args.output)
    sys.stderr.write(font_advice())


if __name__ == "__main__":
    run_main(main)
