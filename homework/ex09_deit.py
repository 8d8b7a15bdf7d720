"""作业 9:DeiT——软蒸馏和硬蒸馏的损失,两个头,mixup 和 cutmix。课程第 9 课。

检查:python scripts/homework.py check 9
"""

import paddle
import paddle.nn.functional as F


def soft_loss(student_logits, teacher_logits, temperature):
    """软蒸馏的损失:τ² KL(老师 ‖ 学生),两边的 logits 都先除以温度 τ 再 softmax;对一批取平均。

    梯度只流向学生,不流向老师。

    Args:
        student_logits (Tensor): 学生的,[B, K]。
        teacher_logits (Tensor): 老师的,[B, K]。
        temperature (float): 温度 τ。

    Returns:
        Tensor: 一个数。
    """
    raise NotImplementedError("TODO")


def deit_loss(class_logits, distillation_logits, teacher_logits, labels, alpha):
    """DeiT 的硬蒸馏:class token 的头学标签,蒸馏 token 的头学老师判的那一类,两个交叉熵各占 1 - alpha 和 alpha。

    Args:
        class_logits (Tensor): class token 的头的,[B, K]。
        distillation_logits (Tensor): 蒸馏 token 的头的,[B, K]。
        teacher_logits (Tensor): 老师的,[B, K]。
        labels (Tensor): 真正的类,int64,[B]。
        alpha (float): 老师那一项的份额,0–1。

    Returns:
        Tensor: 一个数,一批的平均。
    """
    raise NotImplementedError("TODO")


def predict(class_logits, distillation_logits):
    """预测:两个头的 logits 的平均。

    Args:
        class_logits, distillation_logits (Tensor): 各 [B, K]。

    Returns:
        Tensor: [B, K]。
    """
    raise NotImplementedError("TODO")


def mixup(images, targets, order, keep):
    """mixup:第 i 张图像留 keep 份,与第 order[i] 张的 1 - keep 份相加;标签分布按同样的比例混合。

    Args:
        images (Tensor): [B, C, H, W]。
        targets (Tensor): 标签分布,[B, K]。
        order (Tensor): 与谁混合,int64,[B],是 0 … B-1 的一个排列。
        keep (float): 自己留下的份额 λ,0–1。

    Returns:
        tuple: ``(images [B, C, H, W], targets [B, K])``。
    """
    raise NotImplementedError("TODO")


def cutmix(images, targets, order, keep, center):
    """cutmix:第 i 张图像挖掉一块,换成第 order[i] 张同一处的;标签分布按实际留下的面积混合。

    方框高 H * √(1 - keep),宽 W * √(1 - keep),中心在第 center[0] 行、第 center[1] 列(像素,可以是小数)。上下边是
    round(中心 ± 高 / 2),左右边同理,不含下边和右边;再截到图像里:0 到 H,0 到 W。截过之后,留下的面积就不再是 keep 了。

    Args:
        images (Tensor): [B, C, H, W];不要改动它,返回新的。
        targets (Tensor): 标签分布,[B, K]。
        order (Tensor): 与谁混合,int64,[B],是 0 … B-1 的一个排列。
        keep (float): 截之前留下的面积,0–1。
        center (tuple): 方框的中心 (行, 列),像素。

    Returns:
        tuple: ``(images [B, C, H, W], targets [B, K])``。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex09_deit.py
    student, teacher, labels = paddle.randn([4, 3]), paddle.randn([4, 3]), paddle.to_tensor([0, 1, 2, 0])
    print("老师的概率,温度 1 和 3", F.softmax(teacher), F.softmax(teacher / 3))
    print([float(soft_loss(student, teacher, temperature)) for temperature in (1.0, 3.0, 10.0)])
    print(deit_loss(student, predict(student, teacher), teacher, labels, 0.5))
    images, targets, order = paddle.arange(4.0).reshape([4, 1, 1, 1]).expand([4, 1, 6, 6]), paddle.eye(4), 3 - labels
    print(mixup(images, targets, order, 0.7)[1])
    print(cutmix(images, targets, order, 0.75, (1, 3))[0][0, 0])
