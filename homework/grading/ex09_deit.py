"""作业 9 的检查:软蒸馏和硬蒸馏的损失,两个头,mixup 和 cutmix。"""

import numpy as np
import paddle

from .machinery import Exercise, Wrong, compare, expect_gradients, tensor

MISTAKES = {
    "kl_swapped": "KL 的方向反了:应为 KL(老师 ‖ 学生) = Σ q (ln q - ln p),q 是老师的概率,在前面。",
    "cross_entropy": "少减了老师的熵:你算的是交叉熵 -Σ q ln p,KL 是 Σ q (ln q - ln p)。",
    "mean_over_classes": "多除了类别数 K:KL 应对类求和,只对一批取平均(F.kl_div 用 reduction='batchmean')。",
    "soft_sum": "KL 没有对一批取平均。",
    "no_log": "F.kl_div 的第一个参数应是对数概率:学生的一边用 log_softmax,不是 softmax。",
    "no_square": "忘了乘 τ²:温度越高梯度越小,乘 τ² 才与标签的损失一样大。",
    "once_tau": "乘的是 τ,应为 τ²:logits 除以 τ 使梯度缩小一次,概率变平又缩小一次。",
    "teacher_cold": "老师的 logits 没有除以温度 τ:两边要用同一个温度。",
    "student_cold": "学生的 logits 没有除以温度 τ:两边要用同一个温度。",
    "both_cold": "没有用温度:两边的 logits 都要先除以 τ 再 softmax。",
    "temperature_after": "温度用在了 softmax 之后:应先把 logits 除以 τ,再 softmax。",
    "teacher_gradient": "梯度流进了老师:老师不再学习,算损失之前先 teacher_logits.detach()。",
    "hard_from_student": "硬标签取自学生自己:应是老师的 logits 的 argmax,否则学生只是越来越相信自己。",
    "soft_targets": "老师那一项用了老师的概率:硬蒸馏只学老师判的那一类(argmax)。",
    "labels_for_both": "两个头都在学标签:蒸馏 token 的头应学老师判的那一类。",
    "class_for_both": "两项用的都是 class token 的头:老师那一项应用蒸馏 token 的头。",
    "distillation_for_both": "两项用的都是蒸馏 token 的头:标签那一项应用 class token 的头。",
    "heads_swapped": "两个头用反了:class token 的头学标签,蒸馏 token 的头学老师。",
    "alpha_swapped": "alpha 用反了:老师那一项占 alpha,标签那一项占 1 - alpha。",
    "no_alpha": "两项直接相加了:应乘上各自的份额 1 - alpha 和 alpha。",
    "loss_sum": "损失没有对一批取平均。",
    "softmax_twice": "softmax 做了两次:F.cross_entropy 自己带 softmax,给它的应是 logits。",
    "distillation_only": "预测时只用了蒸馏 token 的头:应是两个头的平均。",
    "class_only": "预测时只用了 class token 的头:应是两个头的平均。",
    "not_halved": "两个头只相加,没有除以 2。",
    "probabilities": "平均的是概率:应平均两个头的 logits,不做 softmax。",
    "not_mixed": "标签没有混合:图像里有两张,标签也要按同样的比例混合。",
    "one_side": "λ 只乘在一边:应为 keep * 自己 + (1 - keep) * 对方。",
    "keep_swapped": "份额用反了:自己留 keep,对方占 1 - keep。",
    "labels_swapped": "标签的份额反了:自己的标签占留下的份额,对方的占其余。",
    "wrong_partner": "没有照 order 找对方:第 i 张应与 images[order[i]] 混合,你与倒过来的第 B - 1 - i 张混合。",
    "labels_partner": "标签没有照 order 找对方:第 i 张的标签应与 targets[order[i]] 混合。",
    "ratio": "比例没有改正:方框被图像的边截掉一部分,标签要按实际留下的面积混合,不是 keep。",
    "no_root": "方框的边长少了平方根:面积占 1 - keep,边长各乘 √(1 - keep)。",
    "box_keeps": "方框的面积反了:挖掉的是 1 - keep,边长各乘 √(1 - keep)。",
    "center_swapped": "方框的行和列反了:center 是 (行, 列),images 是 [B, C, 行, 列]。",
    "corner": "center 是方框的中心,你把它当成了左上角。",
    "not_clipped": "方框没有截到图像里:截到 0–H、0–W 之后再算面积;负的下标在 Python 里是从末尾数起。",
    "in_place": "改动了传进来的 images:先 images.clone(),或用 paddle.where 得到新的。",
}
EXERCISE = Exercise(9, "DeiT:蒸馏,mixup 和 cutmix", MISTAKES)
SHAPE = ("kl_swapped", "cross_entropy", "mean_over_classes", "soft_sum", "no_log")
TEMPERATURE = ("no_square", "once_tau", "teacher_cold", "student_cold", "both_cold", "temperature_after")
LOSS = list(MISTAKES)[list(MISTAKES).index("hard_from_student") : list(MISTAKES).index("distillation_only")]
HEADS = ("distillation_only", "class_only", "not_halved", "probabilities")
MIX = ("not_mixed", "one_side", "keep_swapped", "labels_swapped", "wrong_partner", "labels_partner")
BOX = ("not_mixed", "ratio", "no_root", "box_keeps", "center_swapped", "corner", "not_clipped")
BOX = (*BOX, "labels_swapped", "wrong_partner", "labels_partner")


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def soft_reference(student, teacher, tau, wrong=()):
    both = "both_cold" in wrong or "temperature_after" in wrong
    log_p = log_softmax(student / (1 if both or "student_cold" in wrong else tau))  # [B, K]
    log_q = log_softmax(teacher / (1 if both or "teacher_cold" in wrong else tau))  # [B, K]
    if "temperature_after" in wrong:
        log_p, log_q = log_p - np.log(tau), log_q - np.log(tau)
    if "kl_swapped" in wrong:
        log_p, log_q = log_q, log_p
    entropy = 0 if "cross_entropy" in wrong else log_q
    terms = np.exp(log_q) * (entropy - (np.exp(log_p) if "no_log" in wrong else log_p))  # [B, K]
    total = terms.mean() if "mean_over_classes" in wrong else terms.sum()
    total = total if {"mean_over_classes", "soft_sum"} & set(wrong) else total / len(student)
    return np.array(total * (1 if "no_square" in wrong else tau if "once_tau" in wrong else tau**2))


def soft_inputs():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 5)) * 2, rng.standard_normal((4, 5)) * 2


def compare_soft(function, tau, names):
    student, teacher = soft_inputs()
    got = function(tensor(student), tensor(teacher), tau)
    compare(
        f"τ = {tau:g} 的损失", got, lambda wrong: soft_reference(student, teacher, tau, wrong), EXERCISE.only(names)
    )


@EXERCISE.check(
    "soft_loss",
    "KL 散度(τ = 1)",
    "log_p、log_q 是两边的 F.log_softmax,(log_q.exp() * (log_q - log_p)).sum(-1).mean()。",
)
def check_divergence(function):
    compare_soft(function, 1.0, SHAPE)


@EXERCISE.check("soft_loss", "温度", "两边的 logits 都除以 τ,最后乘 τ²。")
def check_temperature(function):
    compare_soft(function, 3.0, TEMPERATURE)


@EXERCISE.check("soft_loss", "梯度只流向学生", "teacher_logits.detach(),学生的一边不要 detach。")
def check_teacher_gradient(function):
    student, teacher = (tensor(x) for x in soft_inputs())
    student.stop_gradient = teacher.stop_gradient = False
    expect_gradients(function(student, teacher, 2.0), {"student_logits": student})
    if teacher.grad is not None and np.any(teacher.grad.numpy()):
        EXERCISE.fail("teacher_gradient")


def loss_reference(class_logits, distillation_logits, teacher_logits, labels, alpha, wrong=()):
    K = class_logits.shape[1]
    if "heads_swapped" in wrong:
        class_logits, distillation_logits = distillation_logits, class_logits
    if "class_for_both" in wrong:
        distillation_logits = class_logits
    if "distillation_for_both" in wrong:
        class_logits = distillation_logits
    taught = np.eye(K)[(distillation_logits if "hard_from_student" in wrong else teacher_logits).argmax(1)]  # [B, K]
    if "soft_targets" in wrong:
        taught = np.exp(log_softmax(teacher_logits))
    if "labels_for_both" in wrong:
        taught = np.eye(K)[labels]

    def cross_entropy(logits, targets):
        logits = np.exp(log_softmax(logits)) if "softmax_twice" in wrong else logits
        losses = -(targets * log_softmax(logits)).sum(axis=1)  # [B]
        return losses.sum() if "loss_sum" in wrong else losses.mean()

    shares = (1, 1) if "no_alpha" in wrong else (alpha, 1 - alpha) if "alpha_swapped" in wrong else (1 - alpha, alpha)
    by_labels, by_teacher = cross_entropy(class_logits, np.eye(K)[labels]), cross_entropy(distillation_logits, taught)
    return np.array(shares[0] * by_labels + shares[1] * by_teacher)


@EXERCISE.check(
    "deit_loss", "硬蒸馏的损失", "老师的类是 teacher_logits.argmax(-1);两个 F.cross_entropy,各乘自己的份额。"
)
def check_loss(function):
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((3, 6, 5)) * 2, rng.integers(0, 5, 6)
    got = function(*map(tensor, logits), paddle.to_tensor(labels), 0.3)
    compare("损失", got, lambda wrong: loss_reference(*logits, labels, 0.3, wrong), EXERCISE.only(LOSS))


@EXERCISE.check("deit_loss", "两个头都有梯度", "损失里不要用 numpy() 或 detach。")
def check_loss_gradient(function):
    rng = np.random.default_rng(2)
    heads = [tensor(x) for x in rng.standard_normal((2, 6, 5))]
    for head in heads:
        head.stop_gradient = False
    loss = function(*heads, tensor(rng.standard_normal((6, 5))), paddle.to_tensor(rng.integers(0, 5, 6)), 0.5)
    expect_gradients(loss, dict(zip(("class_logits", "distillation_logits"), heads)))


def predict_reference(a, b, wrong=()):
    if "probabilities" in wrong:
        a, b = np.exp(log_softmax(a)), np.exp(log_softmax(b))
    a, b = (b if "distillation_only" in wrong else a), (a if "class_only" in wrong else b)
    return (a + b) / (1 if "not_halved" in wrong else 2)


@EXERCISE.check("predict", "两个头的平均", "相加,除以 2。")
def check_predict(function):
    a, b = np.random.default_rng(3).standard_normal((2, 4, 5))
    compare(
        "logits", function(tensor(a), tensor(b)), lambda wrong: predict_reference(a, b, wrong), EXERCISE.only(HEADS)
    )


def mix(own, other, keep, wrong):
    """两样各占 keep 和 1 - keep。"""
    return keep * own + (1 if "one_side" in wrong else 1 - keep) * other


def mix_targets(targets, order, keep, wrong):
    if "not_mixed" in wrong:
        return targets
    other = targets[::-1] if "labels_partner" in wrong else targets[order]
    return mix(targets, other, 1 - keep if "labels_swapped" in wrong else keep, wrong)


def mixup_reference(images, targets, order, keep, wrong=()):
    keep = 1 - keep if "keep_swapped" in wrong else keep
    other = images[::-1] if "wrong_partner" in wrong else images[order]
    return mix(images, other, keep, wrong), mix_targets(targets, order, keep, wrong)


def box_reference(shape, keep, center, wrong=()):
    """方框的 (上, 下, 左, 右),和截过之后的高、宽。"""
    cut = keep if "box_keeps" in wrong else 1 - keep
    edges = []
    for size, middle in zip(shape, center[::-1] if "center_swapped" in wrong else center):
        length = size * (cut if "no_root" in wrong else cut**0.5)
        start = middle if "corner" in wrong else middle - length / 2
        pair = np.rint([start, start + length])
        edges += [int(edge) for edge in (pair if "not_clipped" in wrong else np.clip(pair, 0, size))]
    return edges


def cutmix_reference(images, targets, order, keep, center, wrong=()):
    H, W = images.shape[2:]
    top, bottom, left, right = box_reference((H, W), keep, center, wrong)
    other, mixed = images[::-1] if "wrong_partner" in wrong else images[order], images.copy()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    left_over = keep if "ratio" in wrong else 1 - (bottom - top) * (right - left) / (H * W)
    return mixed, mix_targets(targets, order, left_over, wrong)


def compare_mix(function, reference, names, *numbers):
    """一批 5 张 6 x 8 的图像,与参考的图像和标签比。"""
    rng = np.random.default_rng(4)
    images, targets = rng.standard_normal((5, 2, 6, 8)), np.eye(4)[[0, 1, 2, 3, 1]]
    order = np.array([2, 3, 1, 4, 0])
    given = tensor(images)
    outputs = function(given, tensor(targets), paddle.to_tensor(order), *numbers)
    if not isinstance(outputs, (tuple, list)) or len(outputs) != 2:
        raise Wrong("应返回两样:(images, targets)。", ["no_return"])
    for index, name in enumerate(("images", "targets")):

        def answer(wrong, index=index):
            return reference(images, targets, order, *numbers, wrong)[index]

        compare(name, outputs[index], answer, EXERCISE.only(names))
    if not np.array_equal(given.numpy(), images.astype("float32")):
        EXERCISE.fail("in_place")


@EXERCISE.check("mixup", "图像和标签", "keep * x + (1 - keep) * x[order],图像和标签各一次。")
def check_mixup(function):
    compare_mix(function, mixup_reference, MIX, 0.7)


@EXERCISE.check("cutmix", "方框在图像里面", "先算上下左右四个整数,再把对方的这一块放进来。")
def check_box(function):
    compare_mix(
        function, cutmix_reference, [name for name in BOX if name not in ("ratio", "not_clipped")], 0.75, (2.6, 4.2)
    )


@EXERCISE.check(
    "cutmix", "方框被边截掉一部分", "max(…, 0)、min(…, H);比例是 1 - 方框的面积 / (H * W),用截过之后的边算。"
)
def check_clipped(function):
    compare_mix(function, cutmix_reference, BOX, 0.6, (5.2, 6.7))
    compare_mix(function, cutmix_reference, BOX, 0.6, (1, 0.8))
