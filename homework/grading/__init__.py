"""作业的判卷:每一课一份练习,从易到难地检查,认得出常见的错误。

``machinery.py`` 是判卷的机制(练习、检查、比较、报告);``ex….py`` 是各练习的检查和它们认得的错误;
``worker.py`` 在单独的进程里判一个文件;``folder.py`` 管学生的目录:发作业、记次数、看进度。学生的文件在 homework/。
"""

import importlib

from paddle_vit.errors import UserError

from .machinery import grade, load

__all__ = ["FILES", "exercise", "grade", "load"]

_NAMES = (
    "ex00_classifier",
    "ex01_patches",
    "ex02_attention",
    "ex03_einsum",
    "ex04_mask_and_cost",
    "ex05_encoder",
    "ex06_position",
    "ex07_training",
    "ex08_whole_vit",
    "ex09_deit",
    "ex10_rollout",
    "ex11_finetuning",
    "ex12_window_attention",
    "ex13_swin",
    "ex14_conv_tokenizer",
    "ex15_feeding",
)
FILES = {int(name[2:4]): name for name in _NAMES}  # 练习的号码就是课的号码


def exercise(number):
    """第 number 份练习。

    Args:
        number (int): 课的号码。

    Raises:
        UserError: 没有这个号码。
    """
    if number not in FILES:
        raise UserError(f"没有作业 {number}:号码应在 0 到 {max(FILES)} 之间。")
    return importlib.import_module(f".{FILES[number]}", __package__).EXERCISE
