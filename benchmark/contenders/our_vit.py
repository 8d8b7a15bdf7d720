"""参赛者:本项目。

``mode`` 是 ``eager``(动态图)、``processes``(几个进程平分一批,梯度相加)、``float32`` 或 ``bfloat16``(推理引擎)、
``matmul``(不是模型,量矩阵乘的峰值)。
"""

import paddle
from paddle_step import make_step, random_batch
from worker import Unavailable, serve

from paddle_vit import UserError, ViT, count_parameters
from paddle_vit.deploy.engines import prediction_model
from paddle_vit.system.processes import sum_gradients
from paddle_vit.system.runtime import setup_runtime
from paddle_vit.training.update import AdamW


def build(spec):
    info = {"version": f"Paddle {paddle.__version__}"}
    settings = setup_runtime("cpu", spec["threads"])
    paddle.seed(0)
    if spec["mode"] == "matmul":
        a, b = (paddle.randn([spec["size"], spec["size"]]) for _ in range(2))
        return (lambda: paddle.matmul(a, b)), info
    model = ViT(**spec["architecture"], qkv_bias=True, position_embedding="learnable")
    info["parameters"] = count_parameters(model)
    images, labels = random_batch(spec)
    rank, world = settings["rank"], settings["processes"]
    images, labels = images[rank::world], labels[rank::world]
    if spec["mode"] in ("float32", "bfloat16"):
        try:
            model, info["engine"], problem = prediction_model(model, settings, len(images), "inference", spec["mode"])
        except UserError as error:
            raise Unavailable(str(error)) from None
        if problem:
            raise Unavailable(problem)
    if world == 1:
        return make_step(model, images, labels, spec["task"], AdamW), info
    after_backward = lambda: sum_gradients(model.parameters(), [0.0])
    return make_step(model, images, labels, spec["task"], AdamW, 1 / world, after_backward), info


if __name__ == "__main__":
    serve(build)
