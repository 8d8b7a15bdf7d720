"""训练体检的结论:哪些检查,按什么次序,怎样说。

检查分四组:

- ``SETUP``:数据和模型本身有没有装错。各查各的,都报。
- ``FAILURES``:为什么没学会。按病因排好先后,只报第一个;``SETUP`` 里已经有足以解释的发现时,除了 NaN 都不报。
- ``CONSEQUENCES``:学会了,但是还不够好;上面没有发现病因时才报。
- ``OTHERS``:与别的互不相干的。
"""

from __future__ import annotations

from .failures import (
    check_diverging,
    check_learning_rate_too_high,
    check_learning_rate_too_low,
    check_no_warmup,
    check_not_finite,
    check_patch_size,
    check_shuffled_labels,
    check_stuck,
    check_too_few_steps,
    check_train_and_validation_disagree,
)
from .others import (
    check_data_wait,
    check_neglected_class,
    check_overfitting,
    check_too_few_epochs,
    check_unfinished,
)
from .records import Finding, Run
from .setup import (
    check_blank_images,
    check_frozen,
    check_head,
    check_labels,
    check_normalization,
    check_softmax,
    check_unused,
)

__all__ = ["diagnose", "report"]


# 检查 -> (名字, 它要用到的记录);记录是 health.json 里的键,或 metrics(至少训练完一轮)
SETUP = {
    check_blank_images: ("图像有没有内容", ("sample",)),
    check_normalization: ("归一化", ("sample", "seen")),
    check_labels: ("标签的分布", ("labels",)),
    check_softmax: ("softmax 做了几次", ("seen",)),
    check_head: ("分类头有没有装上", ("first_steps",)),
    check_frozen: ("冻结的参数", ("parameters",)),
    check_unused: ("没用到的参数", ("parameters",)),
}


FAILURES = {
    check_not_finite: ("NaN", ()),
    check_diverging: ("发散", ("metrics",)),
    check_learning_rate_too_high: ("学习率太大", ("metrics", "updates")),
    check_no_warmup: ("预热", ("metrics", "first_steps")),
    check_learning_rate_too_low: ("学习率太小", ("metrics", "updates")),
    check_shuffled_labels: ("标签与图像对不对得上", ("metrics", "sample")),
    check_train_and_validation_disagree: ("训练和验证对不对得上", ("metrics",)),
    check_too_few_steps: ("更新的次数", ("metrics",)),
    check_stuck: ("损失停在 ln(类别数)", ("metrics",)),
    check_patch_size: ("图块大小", ("metrics",)),
}


CONSEQUENCES = {
    check_neglected_class: ("各类认得怎样", ("labels", "predicted", "right")),
    check_overfitting: ("过拟合", ("metrics",)),
    check_too_few_epochs: ("轮数", ("metrics",)),
}


OTHERS = {
    check_data_wait: ("读数据的时间", ("metrics",)),
    check_unfinished: ("训练完成了没有", ()),
}


def diagnose(run: Run) -> tuple[list[Finding], list[str]]:
    """做全部检查。

    Args:
        run (Run): 见 ``load_records``。

    Returns:
        tuple[list[Finding], list[str]]: 发现,病因在前;因为没有记录而跳过的检查的名字。
    """
    available = {*run.health, *(["metrics"] if run.metrics else [])}
    skipped = [
        name
        for name, needs in {**SETUP, **FAILURES, **CONSEQUENCES, **OTHERS}.values()
        if not available.issuperset(needs)
    ]

    def findings_of(checks):
        ready = (check for check, (_, needs) in checks.items() if available.issuperset(needs))
        return [finding for finding in (check(run) for check in ready) if finding is not None]

    findings = findings_of(SETUP)
    explained = any(finding.explains_failure for finding in findings)
    failures = findings_of({check_not_finite: FAILURES[check_not_finite]} if explained else FAILURES)[:1]
    findings += failures
    if not explained and not failures:
        findings += findings_of(CONSEQUENCES)
    return findings + findings_of(OTHERS), skipped


def report(run: Run) -> tuple[str, int]:
    """诊断的文字,和有几个发现。

    Args:
        run (Run): 见 ``load_records``。

    Returns:
        tuple[str, int]
    """
    findings, skipped = diagnose(run)
    done, total = len(run.metrics), run.config.epochs
    state = "正在训练" if run.running else "已完成" if run.summary is not None else "没有完成"
    line = f"{run.directory}:{run.info.name},{len(run.info.classes)} 类,{done}/{total} 轮,{state}"
    if run.metrics:
        last = run.metrics[-1]
        line += f",训练 loss {last['train_loss']:.4f},验证 loss {last['val_loss']:.4f} top-1 {last['val_top1']:.2%}"
    lines = [line, "", f"发现 {len(findings)} 个问题,病因在前:" if findings else "没有发现问题。"]
    for number, finding in enumerate(findings, 1):
        lines += [
            f"{number}. {finding.name}",
            f"   证据:{finding.evidence}",
            f"   原因:{finding.why}",
            f"   试试:{finding.advice}",
        ]
    if skipped:
        lines += ["", f"没有记录,跳过:{'、'.join(skipped)}"]
    return "\n".join(lines), len(findings)
