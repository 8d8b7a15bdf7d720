"""作业 8 的检查:整个 ViT,训练、预测、保存、读回。只看行为,不管里面怎样写。"""

import functools
import tempfile
from pathlib import Path

import numpy as np
import paddle

from .machinery import Exercise, Wrong, as_array, compare, expect_gradients, expect_no_hidden_layers, tensor

MISTAKES = {
    "tokens_left": "没有汇聚:每个 token 都给了一份分数;应取平均或取 class token,变成每张图像一个向量,再经过头。",
    "probabilities": "输出已经是概率了(每行之和为 1):交叉熵自己会做 softmax,ViT 应给出 logits。",
    "shared_layers": "加深一层,参数的个数没有按一层增加:各层用了同一个对象([layer] * depth),或没有用 depth。",
    "no_position": "打乱图块,分数一点也不变:没有位置编码,或没有用上。",
    "pixels_ignored": "改动一些像素,分数不变:有的像素没有进入任何一个图块(图块切漏了,或位置没有全覆盖)。",
    "batch_mixed": "换掉一批里别的图像,这一张的分数也变了:各图像应各算各的(用了批归一化,或注意力沿错了轴)。",
    "guessing": "正确率和瞎猜差不多:没有训练、训练完没有用上,或标签没有跟着图像一起打乱。",
    "too_weak": "学到了一些,正确率不够:多训练几轮,或调学习率(AdamW 用 0.003 左右),位置编码的初值大一些。",
    "not_eval": "同一张图像预测两次,答案不同:预测之前应 model.eval(),关掉随机失活。",
    "logits_returned": "返回的是各类的分数,应为类别:沿类别的轴 argmax。",
    "squeezed": "只有一张图像时返回的形状不是 [1]:不要用没有写明轴的 squeeze()。",
    "wrong_axis": "argmax 沿错了轴:应沿类别的轴(最后一轴)。",
    "fresh_weights": "读回来的权重不是存的那些:建了新模型,没有 set_state_dict,或存的时候没有存权重。",
    "fixed_size": "读回来的模型尺寸不对:建模型用的参数也要存进文件,不能写死。",
    "same_object": "读回来的就是原来的那个对象:改动它,原来的也跟着变;应从文件建一个新的。",
    "not_written": "没有在给出的路径上写文件。",
}
EXERCISE = Exercise(8, "从空文件写出整个 ViT", MISTAKES)
SIZES = (8, 2, 1, 10, 16, 2, 2)
OTHER_SIZES = (12, 3, 3, 7, 24, 3, 4)
ENOUGH = 0.9  # 没见过的图像上的正确率


def build(kind, sizes=SIZES):
    names = ("image_size", "patch_size", "in_channels", "num_classes", "embed_dim", "depth", "num_heads")
    paddle.seed(0)
    model = kind(**dict(zip(names, sizes)))
    model.eval()
    return model


def pictures(count, sizes=SIZES, seed=0):
    """随机的图像,[count, C, H, W]。"""
    size, _, channels, *_ = sizes
    return np.random.default_rng(seed).random((count, channels, size, size))


def logits_of(model, images):
    return as_array("输出", model(tensor(images)))


def spread(model):
    """把分数拉开:每个参数加一点固定的噪声,免得初值里有 0,看不出谁影响谁。"""
    rng = np.random.default_rng(5)
    for parameter in model.parameters():
        parameter.set_value(parameter.numpy() + 0.2 * rng.standard_normal(parameter.shape).astype("float32"))
    return model


@EXERCISE.check("ViT", "输出的形状", "图像 -> 图块 -> 编码器 -> 层归一化 -> 每张图像一个向量 -> 头。")
def check_shape(kind):
    for sizes in (SIZES, OTHER_SIZES):
        got = logits_of(build(kind, sizes), pictures(2, sizes))
        if got.ndim == 3 and got.shape[-1] == sizes[3]:
            EXERCISE.fail("tokens_left")
        compare("输出(只看形状)", got * 0, lambda wrong, sizes=sizes: np.zeros((2, sizes[3])))


@EXERCISE.check("ViT", "输出的是 logits", "最后一层是 nn.Linear,后面什么也没有。")
def check_logits(kind):
    got = logits_of(spread(build(kind)), pictures(4))
    if np.allclose(got.sum(axis=1), 1, atol=1e-4) and (got >= 0).all():
        EXERCISE.fail("probabilities")


@EXERCISE.check("ViT", "各层有自己的参数", "nn.LayerList([层(…) for _ in range(depth)])。")
def check_depth(kind):
    counts = []
    for depth in (1, 2, 3):
        model = build(kind, (*SIZES[:5], depth, SIZES[6]))
        expect_no_hidden_layers(model)
        counts.append(sum(parameter.size for parameter in model.parameters()))
    if counts[1] == counts[0] or counts[2] - counts[1] != counts[1] - counts[0]:
        EXERCISE.fail("shared_layers", f"(1、2、3 层:{counts[0]}、{counts[1]}、{counts[2]} 个)")


@EXERCISE.check("ViT", "每个像素、每个位置都有用", "位置编码加在全部图块 token 上;卷积的核和步长都是 patch_size。")
def check_pixels(kind):
    model, image = spread(build(kind)), pictures(1)
    base = logits_of(model, image)
    turned = image.reshape(1, 1, 4, 2, 8)[:, :, [1, 0, 3, 2]].reshape(1, 1, 8, 8)  # 上下相邻的两行图块对调
    if np.allclose(logits_of(model, turned), base, atol=1e-5):
        EXERCISE.fail("no_position")
    changed = np.repeat(image, 64, axis=0)
    changed[np.arange(64), 0, np.arange(64) // 8, np.arange(64) % 8] += 1  # 每次只改一个像素
    ignored = (np.abs(logits_of(model, changed) - base) < 1e-7).all(axis=1)
    if ignored.any():
        EXERCISE.fail("pixels_ignored", f"(64 个里有 {int(ignored.sum())} 个)")


@EXERCISE.check("ViT", "各图像互不影响", "批的轴始终在最前面;用 LayerNorm,不用 BatchNorm。")
def check_batch(kind):
    model, images = spread(build(kind)), pictures(4)
    for layer in model.sublayers():
        if "BatchNorm" in type(layer).__name__:
            layer.train()  # 训练时它才看别的图像
    other = np.concatenate([images[:1], pictures(3, seed=9)])
    if not np.allclose(logits_of(model, images)[0], logits_of(model, other)[0], atol=1e-4):
        EXERCISE.fail("batch_mixed")


@EXERCISE.check("ViT", "每个参数都有梯度", "不要 detach、numpy();建了的层都要用上。")
def check_gradients(kind):
    model = spread(build(kind))
    expect_gradients(model(tensor(pictures(4))), dict(model.named_parameters()))


def digits():
    """(训练图像, 标签, 没见过的图像, 标签);图像是 [n, 1, 8, 8],0 到 1。"""
    from paddle_vit import load_data, make_config

    data = load_data(make_config({"dataset": "digits"}))
    parts = [(p.images.transpose(0, 3, 1, 2).astype("float32") / 255, p.labels) for p in (data.train, data.val)]
    return [array for part in parts for array in part]


@EXERCISE.check("train", "在 digits 上训练", "先反复喂同一批,看损失降不降得到 0;打乱时图像和标签用同一组下标。")
def check_training(function):
    student(function, "ViT")
    images, labels, unseen, answers = digits()
    paddle.seed(0)
    model = function(paddle.to_tensor(images), paddle.to_tensor(labels.astype("int64")))
    if not isinstance(model, paddle.nn.Layer):
        raise Wrong(f"train 应返回训练好的 ViT,得到 {type(model).__name__}:忘了 return。", ["no_return"])
    model.eval()
    right = float((logits_of(model, unseen).argmax(axis=1) == answers).mean())
    if right < 0.3:
        EXERCISE.fail("guessing", f"({right:.0%},至少应为 {ENOUGH:.0%})")
    if right < ENOUGH:
        EXERCISE.fail("too_weak", f"({right:.1%},至少应为 {ENOUGH:.0%})")


@EXERCISE.check("predict", "给出类别", "model.eval();with paddle.no_grad():;argmax(axis=-1)。")
def check_classes(function):
    model, images = spread(build(student(function, "ViT"))), pictures(7)
    expected = logits_of(model, images).argmax(axis=1)
    got = as_array("predict 的结果", function(model, tensor(images)))
    if got.shape == (7, SIZES[3]):
        EXERCISE.fail("logits_returned")
    if got.shape == (SIZES[3],):
        EXERCISE.fail("wrong_axis")
    compare("类别", got, lambda wrong: expected.astype("float64"))


@EXERCISE.check("predict", "一张图像", "n = 1 时也返回 [1]。")
def check_one_image(function):
    got = as_array("predict 的结果", function(build(student(function, "ViT")), tensor(pictures(1))))
    if got.shape == ():
        EXERCISE.fail("squeezed")
    compare("类别(只看形状)", got * 0, lambda wrong: np.zeros(1))


class _Noisy(paddle.nn.Layer):
    """代替学生的 ViT:训练状态下分数是随机的。"""

    def forward(self, x):
        return paddle.randn([x.shape[0], 10]) if self.training else paddle.arange(10.0).expand([x.shape[0], 10])


@EXERCISE.check("predict", "每次的答案相同", "训练状态的模型也会交给 predict:先 model.eval()。")
def check_same_answer(function):
    noisy = _Noisy()
    noisy.train()
    if set(as_array("predict 的结果", function(noisy, tensor(pictures(20)))).tolist()) != {9.0}:
        EXERCISE.fail("not_eval")


def student(function, name):
    """学生文件里的另一个名字;ViT 要先通过它自己的各项。"""
    if name not in function.__globals__:
        raise Wrong(f"文件里没有 {name}:名字要与模板相同,请不要改名或删掉。", ["missing_name"])
    found = function.__globals__[name]
    if name == "ViT":
        check_structure(found)
    return found


@functools.cache
def check_structure(kind):
    """学生的 ViT 通过了它自己的各项;没有时抛出 ``Wrong``。几项检查都要问,通过了就不再查。"""
    try:
        for check in STRUCTURE:
            check(kind)
    except (Wrong, ValueError, TypeError):
        raise Wrong("ViT 还没有全部通过:先改好它,这一项才有意义。") from None


STRUCTURE = (check_shape, check_logits, check_depth, check_pixels, check_batch, check_gradients)


@EXERCISE.check("load", "存下来再读回", "把建模型的参数(字典)和 state_dict() 放进一个字典,用 paddle.save 存。")
def check_saving(load):
    with tempfile.TemporaryDirectory() as folder:
        for number, sizes in enumerate((SIZES, OTHER_SIZES)):
            model, path = spread(build(student(load, "ViT"), sizes)), Path(folder, f"model{number}.pdparams")
            images = pictures(3, sizes)
            expected = logits_of(model, images)
            student(load, "save")(model, str(path))
            if not path.is_file():
                EXERCISE.fail("not_written")
            again = restored(load, path, model)
            if not np.allclose(logits_of(again, images), expected, atol=1e-5):
                EXERCISE.fail("fresh_weights")
            for parameter in again.parameters():
                parameter.set_value(parameter * 0)
            if not np.allclose(logits_of(model, images), expected, atol=1e-5):
                EXERCISE.fail("same_object")


def restored(load, path, model):
    """读回来的模型,尺寸与 model 的相同。"""
    try:
        again = load(str(path))
        shapes = [[list(parameter.shape) for parameter in m.parameters()] for m in (again, model)]
    except (ValueError, AssertionError, KeyError) as error:
        EXERCISE.fail("fixed_size", f"({type(error).__name__})")
    if shapes[0] != shapes[1]:
        EXERCISE.fail("fixed_size")
    again.eval()
    return again
