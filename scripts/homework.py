"""作业:发作业、判作业、看进度。"""

import sys
from pathlib import Path

import ctrl_c  # noqa: F401

from paddle_vit.system.cli import ArgumentParser, run_main

sys.path[0] = str(Path(__file__).resolve().parents[1])  # 要的是检出的目录里的包,不是同名的这个脚本
from homework.grading.folder import check, start, status  # noqa: E402

DESCRIPTION = """作业:start 发作业,check 判作业,status 看进度。
全部通过时 check 以状态码 0 退出,有没通过的是 1,命令写错了是 2。"""


def main():
    parser = ArgumentParser(DESCRIPTION)
    parser.add_argument("command", choices=("start", "check", "status"), help="start 发作业,check 判作业,status 看进度")
    parser.add_argument("number", metavar="N", nargs="?", help="作业的号码(课的号码);start 可以用 all")
    parser.add_argument("--into", metavar="DIR", help="你的作业目录(默认:上次 start 用的;第一次是 my)")
    parser.add_argument("--file", metavar="F", help="check:直接给出要判的文件")
    parser.add_argument("--seconds", type=int, default=60, help="check:你的代码最多可以算多少秒(默认 60)")
    args = parser.parse_args()
    if args.file and args.command != "check":
        parser.error("--file 只用于 check")
    if args.command == "status":
        status(args.into)
    elif args.number is None:
        parser.error(f"the following arguments are required: N({args.command} 要写作业的号码)")
    elif args.command == "start":
        start(args.number, args.into)
    else:
        sys.exit(0 if check(args.number, args.into, args.file, args.seconds) else 1)


if __name__ == "__main__":
    run_main(main)
