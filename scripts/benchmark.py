"""性能对比:同一个模型,课程写法、本项目和(装了的话)PyTorch、ONNX Runtime 轮流跑,打印表并画图。"""

import sys
import time
from pathlib import Path

import ctrl_c  # noqa: F401

from paddle_vit.system.cli import ArgumentParser, run_main
from paddle_vit.system.pictures import font_advice

sys.path[0] = str(Path(__file__).resolve().parents[1])  # 要的是检出的目录里的包,不是同名的这个脚本
from benchmark import Options, run_benchmark  # noqa: E402


def main():
    parser = ArgumentParser("性能对比:课程写法、本项目、PyTorch、ONNX Runtime 轮流跑同一个模型,打印表并画图。")
    parser.add_argument("--growth", action="store_true", help="改为量时间怎样随 token 数、一批的张数、层数、维度增长")
    parser.add_argument("--only", choices=("training", "prediction"), help="只比训练或只比预测(默认都比)")
    parser.add_argument("--rounds", type=int, default=5, help="轮流几轮(默认 5)")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="装着 PyTorch 和 ONNX Runtime 的 Python(默认是现在这个)"
    )
    parser.add_argument("--quick", action="store_true", help="用很小的模型跑几步,只检查能不能跑;数字没有意义")
    parser.add_argument("--output", metavar="DIR", type=Path, help="结果的目录(默认 runs/benchmark-时间)")
    args = parser.parse_args()

    tasks = {None: ("train", "predict"), "training": ("train",), "prediction": ("predict",)}[args.only]
    options = Options(
        output=args.output or Path("runs") / time.strftime("benchmark-%Y%m%d-%H%M%S"),
        tasks=tasks,
        rounds=args.rounds,
        peer_python=args.peer_python,
        quick=args.quick,
    )
    run_benchmark(options, "growth" if args.growth else "race")
    sys.stderr.write(font_advice())


if __name__ == "__main__":
    run_main(main)
