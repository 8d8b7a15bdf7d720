"""参赛者:本项目。``mode`` 是 ``eager``、``processes``(几个进程平分一批,梯度取平均)或 ``matmul``(矩阵乘的峰值)。"""

import paddle
from paddle_step import make_step, random_batch
from worker import serve

from paddle_vit import ViT, count_parameters
from paddle_vit.runtime import setup_runtime


def build(spec):
    version = {"version": f"Paddle {paddle.__version__}"}
    settings = setup_runtime("cpu", spec["threads"])
    paddle.seed(0)
    if spec["mode"] == "matmul":
        a, b = (paddle.randn([spec["size"], spec["size"]]) for _ in range(2))
        return (lambda: paddle.matmul(a, b)), version
    model = ViT(**spec["architecture"], qkv_bias=True, position_embedding="learnable")
    version["parameters"] = count_parameters(model)
    images, labels = random_batch(spec)
    if spec["mode"] == "processes":
        rank, world = settings["rank"], settings["processes"]
        images, labels = images[rank::world], labels[rank::world]
        model = paddle.DataParallel(model)
    return make_step(model, images, labels, spec["task"]), version


if __name__ == "__main__":
    serve(build)
