"""作业 11 的检查:换分类头,冻结主干,参数分组。"""

import numpy as np
import paddle

from paddle_vit.vit import ViT

from .machinery import Exercise, Wrong, as_array

MISTAKES = {
    "old_head": "分类头没有换:输出还是原来的类别数。",
    "head_added": "主干之后接错了:新的头应接在 D 维的特征上(Linear(D, 新的类别数)),放在 model.head。",
    "backbone_reset": "主干的权重变了:应留着训练好的权重,只换 model.head,不要重建模型。",
    "head_zero": "新的分类头的权重全是同一个数:各类的梯度会一样,用 nn.Linear 的默认初始化。",
    "new_model": "应返回同一个模型(修改它的 head),你返回了别的对象。",
    "head_frozen": "分类头也被冻结了:它要训练。",
    "inverted": "冻结反了:stop_gradient = True 才是不训练。",
    "part_frozen": "主干没有全部冻结。",
    "not_frozen": "主干没有冻结。",
    "frozen_in_groups": "组里有被冻结的参数:stop_gradient 为 True 的不要放进去。",
    "missing_parameters": "有要训练的参数不在任何一组里。",
    "duplicate": "有的参数放进了不止一组。",
    "absolute_rate": "组的 learning_rate 写成了学习率本身:它是对优化器的学习率的倍数,应为 backbone_lr / head_lr。",
    "rates_swapped": "两组的学习率调换了:主干用小的。",
    "same_rate": "主干和分类头的学习率相同:主干那组要写 'learning_rate': backbone_lr / head_lr。",
    "ratio_inverted": "倍数反了:应为 backbone_lr / head_lr。",
    "empty_group": "有空的组:主干全部冻结时不要放空的组。",
}
EXERCISE = Exercise(11, "微调:新的头、冻结、参数分组", MISTAKES)


def model_of(num_classes=10):
    return ViT(
        image_size=8, patch_size=4, in_channels=1, num_classes=num_classes, embed_dim=8, depth=2, num_heads=2,
        pool="cls", position_embedding="learnable",
    )  # fmt: skip


def is_head(name):
    return name.startswith("head.")


def snapshot(model):
    return {name: p.numpy().copy() for name, p in model.named_parameters() if not is_head(name)}


def names_of(names):
    names = list(names)
    return f"({'、'.join(names[:3])}{'…' if len(names) > 3 else ''},共 {len(names)} 个)"


@EXERCISE.check("replace_head", "新的分类头", "model.head = nn.Linear(D, num_classes),D = model.head.weight.shape[0]。")
def check_head(function):
    model = model_of()
    before = snapshot(model)
    returned = function(model, 3)
    if returned is None:
        raise Wrong("没有返回模型:忘了 return model。", ["no_return"])
    if returned is not model:
        EXERCISE.fail("new_model")
    got = list(as_array("输出", model(paddle.zeros([2, 1, 8, 8]))).shape)
    if got == [2, 10]:
        EXERCISE.fail("old_head", "应为 3 类,得到 10 类。")
    weight = getattr(model.head, "weight", None)
    if got != [2, 3] or weight is None or list(weight.shape) != [8, 3]:
        EXERCISE.fail("head_added", f"输出的形状应为 [2, 3],得到 {got}。")
    after = snapshot(model)
    changed = [name for name in before if name not in after or not np.array_equal(before[name], after[name])]
    if changed:
        EXERCISE.fail("backbone_reset", names_of(changed))
    if np.ptp(weight.numpy()) == 0:
        EXERCISE.fail("head_zero")


@EXERCISE.check(
    "freeze_backbone", "冻结主干", "对 named_parameters() 循环,名字不以 'head.' 开头的 stop_gradient = True。"
)
def check_freeze(function):
    model = model_of()
    if function(model) is None:
        raise Wrong("没有返回模型:忘了 return model。", ["no_return"])
    frozen = {name: p.stop_gradient for name, p in model.named_parameters()}
    head = [name for name in frozen if is_head(name)]
    training = [name for name in frozen if not is_head(name) and not frozen[name]]
    if all(frozen[name] for name in head):
        EXERCISE.fail("inverted" if len(training) == len(frozen) - len(head) else "head_frozen")
    if len(training) == len(frozen) - len(head):
        EXERCISE.fail("not_frozen")
    if training:
        EXERCISE.fail("part_frozen", f"还在训练的有{names_of(training)}。")
    if any(frozen[name] for name in head):
        EXERCISE.fail("head_frozen", names_of(name for name in head if frozen[name]))


@EXERCISE.check("freeze_backbone", "训练一步,只有分类头变", "冻结的参数没有梯度,优化器也就不会改它。")
def check_frozen_step(function):
    model = model_of()
    function(model)
    before, head = snapshot(model), model.head.weight.numpy().copy()
    optimizer = paddle.optimizer.SGD(0.5, parameters=model.parameters())
    model(paddle.ones([2, 1, 8, 8])).square().sum().backward()
    optimizer.step()
    changed = [name for name, value in snapshot(model).items() if not np.array_equal(before[name], value)]
    if changed:
        EXERCISE.fail("part_frozen", names_of(changed))
    if np.array_equal(head, model.head.weight.numpy()):
        EXERCISE.fail("head_frozen")


def grouped(function, model, head_lr, backbone_lr):
    """调用学生的函数,核对组的样子,返回 [(参数的名字, 倍数)]。"""
    groups = function(model, head_lr, backbone_lr)
    good = isinstance(groups, (list, tuple)) and all(isinstance(g, dict) and "params" in g for g in groups)
    if not good:
        raise Wrong("应返回列表,里面是字典 {'params': [参数…], 'learning_rate': 倍数}。", ["type"])
    names = {id(p): name for name, p in model.named_parameters()}
    pairs = []
    for group in groups:
        parameters = list(group["params"])
        if not parameters:
            EXERCISE.fail("empty_group")
        group["params"] = parameters
        for parameter in parameters:
            if id(parameter) not in names:
                raise Wrong("'params' 里应放参数本身(model.parameters() 里的),不是名字或别的。", ["type"])
            pairs.append((names[id(parameter)], float(group.get("learning_rate", 1.0))))
    listed = [name for name, _ in pairs]
    repeated = sorted({name for name in listed if listed.count(name) > 1})
    if repeated:
        EXERCISE.fail("duplicate", names_of(repeated))
    wanted = [name for name, p in model.named_parameters() if not p.stop_gradient]
    extra = [name for name in listed if name not in wanted]
    if extra:
        EXERCISE.fail("frozen_in_groups", names_of(extra))
    missing = [name for name in wanted if name not in listed]
    if missing:
        EXERCISE.fail("missing_parameters", names_of(missing))
    return groups, pairs


@EXERCISE.check("parameter_groups", "两组的学习率", "主干的 'learning_rate' 是 backbone_lr / head_lr,分类头的是 1.0。")
def check_rates(function):
    model = model_of()
    head_lr, backbone_lr = 0.05, 0.002
    _, pairs = grouped(function, model, head_lr, backbone_lr)
    head = {rate for name, rate in pairs if is_head(name)}
    backbone = {rate for name, rate in pairs if not is_head(name)}

    def close(rates, expected):
        return all(abs(rate - expected) < 1e-6 for rate in rates)

    ratio = backbone_lr / head_lr
    if close(head, 1.0) and close(backbone, ratio):
        return
    details = f"分类头的倍数应为 1.0,得到 {sorted(head)};主干的倍数应为 {ratio:g},得到 {sorted(backbone)}。"
    if close(head, ratio) and close(backbone, 1.0):
        EXERCISE.fail("rates_swapped", details)
    if close(backbone, backbone_lr):
        EXERCISE.fail("absolute_rate", details)
    if close(backbone, head_lr / backbone_lr):
        EXERCISE.fail("ratio_inverted", details)
    if close(head | backbone, 1.0):
        EXERCISE.fail("same_rate", details)
    raise Wrong(details)


@EXERCISE.check("parameter_groups", "有冻结的参数时", "跳过 stop_gradient 为 True 的;没有参数的组不要放进列表。")
def check_frozen_groups(function):
    model = model_of()
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not (is_head(name) or name.startswith("norm."))
    grouped(function, model, 0.1, 0.01)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not is_head(name)
    grouped(function, model, 0.1, 0.01)


@EXERCISE.check("parameter_groups", "交给优化器训练一步", "每个参数走的一步 = 优化器的学习率 * 倍数 * 梯度(SGD)。")
def check_optimizer(function):
    model = model_of()
    groups, pairs = grouped(function, model, 0.05, 0.002)
    optimizer = paddle.optimizer.SGD(0.05, parameters=groups)
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    model(paddle.ones([2, 1, 8, 8])).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        step = 0.05 * dict(pairs)[name] * parameter.grad.numpy()
        if not np.allclose(before[name] - parameter.numpy(), step, atol=1e-5):
            raise Wrong(f"{name} 走的一步与学习率不符。")
