"""导出训练好的模型:Paddle Inference 的静态图、ONNX 和说明,写完与动态图核对。"""

from pathlib import Path

import ctrl_c  # noqa: F401

from paddle_vit.data.finding import expand_paths
from paddle_vit.deploy.export import compare_precisions, export_model, real_images
from paddle_vit.runs.loading import LoadedRun, load_model
from paddle_vit.system.cli import ArgumentParser, run_main
from paddle_vit.system.runtime import setup_runtime


def main():
    parser = ArgumentParser("导出训练好的模型:Paddle Inference 的静态图、ONNX 和说明,写完读回来与动态图核对。")
    parser.add_argument(
        "model", metavar="MODEL", help="运行目录,如 runs/digits-0101-120000,或一个 .safetensors 权重文件"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="写到这个目录(默认:运行目录里的 export;权重文件是当前目录里的 export)"
    )
    parser.add_argument(
        "--images", metavar="IMAGE", nargs="+", default=[], help="用这些图片核对(默认:测试部分的 100 张)"
    )
    parser.add_argument("--data-dir", help="数据所在的目录;不给时用训练时的")
    parser.add_argument("--no-onnx", action="store_true", help="不要 ONNX 文件")
    parser.add_argument(
        "--bfloat16", action="store_true", help="另外在整个测试部分上比较 float32 与 bfloat16 的正确率和速度"
    )
    args = parser.parse_args()

    settings = setup_runtime("cpu")
    loaded = load_model(args.model)
    if isinstance(loaded, LoadedRun) and loaded.summary is None:
        print("提示:这次训练还没有完成,导出的是到现在为止最好的一轮。")
    if args.bfloat16:
        comparison = compare_precisions(loaded, settings, args.data_dir)
    output = args.output or (Path(args.model) / "export" if Path(args.model).is_dir() else "export")
    images = real_images(loaded, expand_paths(args.images), args.data_dir)
    differences = export_model(loaded, output, images, onnx=not args.no_onnx)
    print(f"写好了 {output}:静态图{'' if args.no_onnx else '、ONNX'} 和 description.json")
    for engine, difference in differences.items():
        print(f"  {engine} 与动态图在 {len(images)} 张图像上的 logits 最多差 {difference:.1e}")
    if args.bfloat16:
        print(comparison)


if __name__ == "__main__":
    run_main(main)
