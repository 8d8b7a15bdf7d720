"""把训练完的运行列成一张表。"""

import ctrl_c  # noqa: F401

from paddle_vit.study.results_table import find_runs, results_table
from paddle_vit.system.cli import ArgumentParser, run_main
from paddle_vit.system.files import atomic_write
from paddle_vit.system.tables import markdown, terminal


def main():
    parser = ArgumentParser(
        "把训练完的运行列成一张表:同样的设置、几个种子是一行,第一列是再跑一次的命令。",
        usage="python scripts/results.py 目录 [目录 …] [--output FILE]",
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", help="运行目录,或装着运行目录的目录,如 runs")
    parser.add_argument("--output", metavar="FILE", help="也写成 Markdown 的表,如 results.md")
    args = parser.parse_args()
    table = results_table(find_runs(args.directories))
    print(terminal(table))
    if args.output:
        atomic_write(args.output, f"{markdown(table)}\n".encode())
        print(f"\n已写入 {args.output}")


if __name__ == "__main__":
    run_main(main)
