"""几个设置放在一起说不通的,在这里查;一个设置自己的范围写在 ``config`` 里。"""

from __future__ import annotations

from .errors import UserError

__all__ = ["check_together"]


def check_together(config) -> None:
    """几个设置互相矛盾时抛出 ``UserError``。

    Args:
        config (Config): 全部设置,每个自己都合法。
    """
    if config.flip and config.dataset in ("digits", "mnist"):
        raise UserError(f"flip=True 不能用于 {config.dataset}:数字左右翻转后就不是原来的数字了,请去掉 --flip。")
    if config.min_lr > config.lr:
        raise UserError(f"min_lr={config.min_lr:g} 大于 lr={config.lr:g}:退火应从 lr 降到 min_lr,请改其中一个。")
    if config.dataset == "digits" and config.data_dir is not None:
        raise UserError(
            f"--data-dir {config.data_dir} 不能与 --dataset digits 同用,digits 随包自带:"
            "自己的图片请加 --dataset folder,别的数据集请写它的名字,否则请去掉它。"
        )
    if config.distillation in ("hard", "soft") and config.teacher is None:
        raise UserError(f"distillation={config.distillation} 要有老师:请用 --teacher 给出它的运行目录或权重文件。")
    for name, owner in (("teacher_model", "teacher"), ("weights_table", "weights")):
        if getattr(config, name) is not None and getattr(config, owner) is None:
            option = name.replace("_", "-")
            raise UserError(f"--{option} 只与 --{owner} 同用:请加上 --{owner},或去掉它。")
    if config.class_weights != "none" and config.balanced_sampling:
        raise UserError("--class-weights balanced 与 --balanced-sampling 同用会补偿两次:请只留一个。")
    _check_pixels(config)


def _check_pixels(config):
    """图片的通道和精度说不通时抛出 ``UserError``。"""
    channels = config.channels
    if channels is not None and config.dataset != "folder":
        raise UserError(f"--channels {channels} 不能用于 {config.dataset}:只有 folder 能选灰度或彩色,请去掉它。")
    if channels not in (None, 1, 3, 4):
        raise UserError(f"--channels {channels} 不合法:只能是 1(灰度)、3(彩色)或 4(RGBA)。")
    if config.full_range and channels != 1:
        raise UserError("--full-range 只用于灰度图:请加上 --dataset folder --channels 1,或去掉它。")
    if config.full_range and config.rand_augment:
        raise UserError("--rand-augment 的变换只会 256 级的像素,不能与 --full-range 同用:请用 --rand-augment 0。")
