"""会不会越训越慢:在让数值趋于零的数据上训练,数出次正规数(subnormal / denormal),并逐个量运算的快慢。

次正规数是绝对值小于 1.2e-38 的 float32;有的处理器算它要慢几十倍。
"""

import statistics
import time

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle_step import random_batch
from worker import serve

from .. import ViT, functional
from ..benchmark import flush_denormals
from ..system.runtime import setup_runtime

ARCHITECTURE = dict(
    image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=96, depth=3, num_heads=8, qkv_bias=True
)


def subnormal_counts(arrays):
    """(次正规数的个数, 总个数)。看二进制位:指数全零而尾数不为零;清零模式下比大小会把它们当成零。"""
    bits = [np.ascontiguousarray(array).view("uint32") & 0x7FFFFFFF for array in arrays]
    return int(sum(((b > 0) & (b < 0x00800000)).sum() for b in bits)), sum(b.size for b in bits)


class Trial:
    """一种数据上的训练。

    - ordinary:随机的图像和类别。
    - zeros:先 10 步普通数据,以后图像全零、类别全是 0:损失和梯度趋于零,AdamW 的动量按 0.9 的幂衰减。
    - forward:各层归一化的 weight 都是 1e-39,残差分支上的激活从头到尾是次正规数。
    - backward:损失乘以 1e-37,梯度和动量从头到尾是次正规数。

    后两种的学习率是 0,免得权重离开这个状态;计算一点不少。
    """

    def build(self, spec):
        setup_runtime("cpu", spec["threads"])
        flushed = flush_denormals() if spec["flush"] else False
        paddle.seed(0)
        self.data, self.steps = spec["data"], 0
        self.model = ViT(**ARCHITECTURE, position_embedding="learnable", position_std=0.5)
        images, labels = random_batch({"architecture": ARCHITECTURE, "batch": 32})
        self.images, self.labels = paddle.to_tensor(images), paddle.to_tensor(labels)
        if self.data == "forward":
            for layer in self.model.encoders.sublayers():
                if isinstance(layer, nn.LayerNorm):
                    layer.weight.set_value(paddle.full_like(layer.weight, 1e-39))
        self.loss_scale = 1e-37 if self.data == "backward" else 1.0
        learning_rate = 0.0 if self.data in ("forward", "backward") else 1e-3
        self.optimizer = paddle.optimizer.AdamW(learning_rate, parameters=self.model.parameters(), weight_decay=0.05)
        return self.step, {"flushed": flushed}

    def loss(self):
        return F.cross_entropy(self.model(self.images), self.labels) * self.loss_scale

    def step(self):
        if self.data == "zeros" and self.steps == 10:
            self.images, self.labels = paddle.zeros_like(self.images), paddle.zeros_like(self.labels)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.steps += 1
        return float(loss)

    def count(self, argument):
        """激活、梯度和 AdamW 动量里次正规数的比例。"""
        activations = []
        hooks = [
            layer.register_forward_post_hook(lambda layer, inputs, output: activations.append(output.numpy()))
            for layer in self.model.sublayers()
            if not layer.sublayers() and not isinstance(layer, (nn.Dropout, nn.Softmax))
        ]
        loss = self.loss()
        for hook in hooks:
            hook.remove()
        loss.backward()
        groups = {
            "activations": activations,
            "gradients": [p.grad.numpy() for p in self.model.parameters()],
            "moments": [v.numpy() for k, v in self.optimizer.state_dict().items() if "moment" in k],
        }
        self.optimizer.clear_grad()
        counts = {name: subnormal_counts(arrays) for name, arrays in groups.items()}
        return {"loss": float(loss) / self.loss_scale, **{name: few / total for name, (few, total) in counts.items()}}

    def operations(self, spec):
        """逐个运算:输入是普通数、次正规数、清零模式下的次正规数时,一次的秒数;以及输出里次正规数的比例。"""
        M, repeats = (64, 3) if spec["quick"] else (4096, 30)
        rows = []
        for name, make in OPERATIONS.items():
            cases = [(make(M, 1.0), False), (make(M, 1e-39), False), (make(M, 1e-39), True)]
            times = [[] for _ in cases]
            for _ in range(repeats):
                for (run, flush), mine in zip(cases, times):
                    flush_denormals(flush)
                    start = time.perf_counter()
                    run()
                    mine.append(time.perf_counter() - start)
            shares = []
            for run, flush in cases:
                flush_denormals(flush)
                few, total = subnormal_counts([run().numpy()])
                shares.append(few / total)
            flush_denormals(False)
            row = dict(zip(("normal", "subnormal", "flushed"), map(statistics.median, times)))
            rows.append({"operation": name, **row, "output_share": shares})
        return rows


def _elementwise(function):
    def make(M, scale):
        x = paddle.randn([M, 512]) * scale
        return lambda: function(x)

    return make


def _backward(function):
    def make(M, scale):
        x, gradient = paddle.randn([M, 512]), paddle.randn([M, 512]) * scale
        x.stop_gradient = False
        y = function(x)
        return lambda: paddle.grad(y, x, gradient, retain_graph=True)[0]

    return make


def _matmul(M, scale):
    x, weight = paddle.randn([M, 512]) * scale, paddle.randn([512, 512])
    return lambda: paddle.matmul(x, weight)


def _matmul_underflow(M, scale):
    root = scale**0.5  # 两边都是普通数,乘积才是次正规数
    x, weight = paddle.randn([M, 512]) * root, paddle.randn([512, 512]) * (root / 20)
    return lambda: paddle.matmul(x, weight)


def _softmax(M, scale):
    x = paddle.randn([M, 512]) - (0.0 if scale == 1 else 95.0)  # 每行一个 0,其余约 -95:概率约 1e-41
    x[:, 0] = 0.0
    return lambda: F.softmax(x)


def _adamw(M, scale):
    weight = paddle.create_parameter([M, 512], "float32")
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=[weight], weight_decay=0.05)
    gradient = paddle.randn([M, 512]) * scale
    moments = []

    def run():
        weight.grad = gradient
        optimizer.step()
        if not moments:
            moments.extend(v for k, v in optimizer.state_dict().items() if "moment1" in k)
        return moments[0]

    run()
    return run


OPERATIONS = {
    "matmul": _matmul,
    "matmul_underflow": _matmul_underflow,
    "add": _elementwise(lambda x: x + x),
    "multiply": _elementwise(lambda x: x * 0.7),
    "F.gelu": _elementwise(F.gelu),
    "functional.gelu": _elementwise(functional.gelu),
    "F.layer_norm": _elementwise(lambda x: F.layer_norm(x, [512])),
    "F.softmax": _softmax,
    "F.gelu backward": _backward(F.gelu),
    "F.softmax backward": _backward(F.softmax),
    "F.layer_norm backward": _backward(lambda x: F.layer_norm(x, [512])),
    "AdamW": _adamw,
}


if __name__ == "__main__":
    trial = Trial()
    serve(trial.build, count=trial.count, operations=trial.operations)
