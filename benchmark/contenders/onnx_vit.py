"""参赛者:ONNX Runtime,只做预测。ONNX 文件由另一个进程从 ``torch_vit`` 的模型导出,它的内存不算在这里。"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from worker import Unavailable, serve

EXPORT = """
import json, sys, torch
from torch_vit import TorchViT
architecture, path = json.loads(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
model = TorchViT(**architecture).eval()
images = torch.zeros(2, architecture["in_channels"], architecture["image_size"], architecture["image_size"])
shapes = ({0: torch.export.Dim("batch")},)
torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=shapes, external_data=False)
print(sum(parameter.numel() for parameter in model.parameters()))
"""


def build(spec):
    architecture = spec["architecture"]
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "vit.onnx")
        done = subprocess.run(
            [sys.executable, "-c", EXPORT, json.dumps(architecture), path],
            cwd=Path(__file__).parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Unavailable(f"导出 ONNX 失败:{done.stderr.strip().splitlines()[-1]}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec["threads"]
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    size = architecture["image_size"]
    shape = [spec["batch"], architecture["in_channels"], size, size]
    images = np.random.default_rng(0).standard_normal(shape, dtype="float32")
    feed = {session.get_inputs()[0].name: images}
    info = {"parameters": int(done.stdout.split()[-1]), "version": f"ONNX Runtime {onnxruntime.__version__}"}
    return (lambda: session.run(None, feed)[0]), info


if __name__ == "__main__":
    serve(build)
