"""训练体检:读一个运行目录,说出哪里出了问题、证据、原因和可以试的办法。"""

import sys

import ctrl_c  # noqa: F401

from paddle_vit.study.doctor import load_records, report
from paddle_vit.system.cli import ArgumentParser, run_main


def main():
    parser = ArgumentParser(
        "训练体检:读一个运行目录,说出哪里出了问题、证据、原因和可以试的办法。\n"
        "没有发现问题时状态码是 0,有发现是 1,目录或文件有误是 2。"
    )
    parser.add_argument("run", metavar="RUN", help="运行目录,如 runs/digits-1126-093000;训练途中也可以看")
    args = parser.parse_args()

    text, findings = report(load_records(args.run))
    print(text)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    run_main(main)
