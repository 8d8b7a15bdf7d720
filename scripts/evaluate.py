"""评估一个训练好的运行:损失、top-1、top-5 和每一类的正确率。"""

import sys
import time
from pathlib import Path

import ctrl_c  # noqa: F401

from paddle_vit.deploy.engines import add_engine_arguments, prediction_model
from paddle_vit.errors import UserError
from paddle_vit.runs.loading import load_run, load_run_data
from paddle_vit.system.cli import ArgumentParser, run_main
from paddle_vit.system.pictures import draw, font_advice, save_pixels
from paddle_vit.system.runtime import setup_runtime
from paddle_vit.tasks.classification import Classification


def main():
    parser = ArgumentParser("评估一个训练好的运行:损失、top-1、top-5 和每一类的正确率。")
    parser.add_argument("run", metavar="RUN", help="运行目录,如 runs/digits-1126-093000")
    parser.add_argument("--part", choices=("train", "val", "test"), default="test", help="在哪一部分上评估(默认 test)")
    parser.add_argument(
        "--data-dir", help="数据所在的目录;不给时用训练时的。可以只是一批别处的测试图片:DIR/类别/图片,或一个列表"
    )
    parser.add_argument(
        "--pictures", metavar="DIR", help="把混淆矩阵和错得最离谱的图像画到这个目录;给运行目录就是重画训练时的"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="设备(默认 auto)")
    add_engine_arguments(parser)
    args = parser.parse_args()

    settings = setup_runtime(args.device)
    loaded = load_run(args.run)
    task = Classification(load_run_data(loaded, args.data_dir), loaded.config)
    part = getattr(task.data, args.part)
    if not len(part):
        raise UserError(f"这些图片里没有 {args.part} 部分:请用 --part test,或给出训练时的数据。")
    model, engine, note = prediction_model(loaded.model, settings, len(part), args.engine, args.precision)
    if note:
        print(note, file=sys.stderr)
    started = time.perf_counter()
    result = task.evaluate(model, args.part)
    speed = len(part) / (time.perf_counter() - started)

    classes = loaded.info.classes
    print(f"{args.run} 在 {loaded.info.name} 的 {args.part} 部分({len(part)} 张)上:")
    print(f"引擎 {engine},每秒 {speed:.0f} 张(含读取数据)")
    top5 = f"  top-5 {result.top5:.2%}" if len(classes) > 5 else ""  # 不到六类时总是 100 %
    print(f"损失 {result.loss:.4f}  top-1 {result.top1:.2%}  平衡正确率 {result.top1_balanced:.2%}{top5}")
    confusion = result.confusion(len(classes))
    for name, row, right in zip(classes, confusion, confusion.diagonal()):
        total = row.sum()
        print(f"  {name}\t{right}/{total}" + (f"\t{right / total:.2%}" if total else ""))
    if args.pictures is not None:
        for _, figure, name in task.result_pictures(result, args.part):
            if figure is None:  # 全对了,没有错例
                continue
            print(save_pixels(draw(figure), Path(args.pictures) / name))
        sys.stderr.write(font_advice())


if __name__ == "__main__":
    run_main(main)
