"""性能对比:课程写法、本项目、PyTorch、ONNX Runtime 轮流跑同一个模型;以及时间怎样随规模增长。

``teams`` 是参赛者和它们的进程,``race`` 是比赛,``growth`` 是随规模增长,``reports`` 是表和图;每个参赛者是
``contenders/`` 里的一个文件,在单独的进程里跑,环境里去掉了一切性能变量,各用各的默认设置。
"""

import contextlib
import json
import os
import platform
from pathlib import Path

from paddle_vit import UserError
from paddle_vit.system.files import atomic_write
from paddle_vit.system.processes import usable_cores
from paddle_vit.system.runtime import cpu_name, vector_instructions
from paddle_vit.system.tables import markdown, terminal

from . import reports
from .growth import GROWTH_BASE, measure_growth
from .race import MODELS, QUICK_MODELS, run_race
from .teams import Options, missing_packages

__all__ = ["Options", "run_benchmark"]


def machine():
    """这台机器和主要的版本。"""
    import paddle

    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu_name(),
        "instructions": vector_instructions(),
        "cores": usable_cores(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "paddle": paddle.__version__,
    }


def run_benchmark(options, kind="race"):
    """跑一次性能对比,打印表,把 JSON、Markdown 和 PNG 写进 ``options.output``。

    Args:
        options (Options): 设置。
        kind (str): ``'race'`` 各参赛者的对比;``'growth'`` 时间随规模增长。

    Returns:
        dict: 与写进 JSON 的相同。

    Raises:
        UserError: 参赛者的进程中途退出,或 ``--peer-python`` 不能用。
    """
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} 不合法:至少要轮流 1 轮。")
    missing_packages(options.peer_python, ("torch",))  # 尽早发现 --peer-python 不能用
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "kind": kind, "quick": options.quick}
    if kind == "race":
        models = QUICK_MODELS if options.quick else MODELS
        result.update(rows=[], peak_gflops=[])
        for name, (architecture, batch) in models.items():
            for task in options.tasks:
                rows, peak = run_race(name, architecture, batch, task, options)
                result["rows"] += rows
                result["peak_gflops"].append(peak)
    else:
        result["rows"] = measure_growth(options)
    versions = dict.fromkeys(row["version"] for row in result["rows"] if "version" in row)
    result["machine"]["versions"] = list(versions) or [f"Paddle {result['machine']['paddle']}"]
    text, figure = _report(result)
    print(text)
    atomic_write(output / f"{kind}.json", f"{json.dumps(result, ensure_ascii=False, indent=1)}\n".encode())
    atomic_write(output / f"{kind}.md", f"{_report(result, markdown)[0]}\n".encode())
    figure.savefig(output / f"{kind}.png")
    print(f"\n已写入 {output}/{kind}.json、{kind}.md 和 {kind}.png")
    return result


def _report(result, layout=terminal):
    """结果的文字(表用 layout 排版)和图。"""
    line = reports.machine_line(result["machine"])
    parts = [line]
    if result["kind"] == "race":
        for model, task in dict.fromkeys((row["model"], row["task"]) for row in result["rows"]):
            mine = [row for row in result["rows"] if (row["model"], row["task"]) == (model, task)]
            parts += [f"{model} {reports.TASKS[task]}", layout(reports.race_table(mine))]
        reasons = {row["name"]: f"{row['unavailable']}:{row['reason']}" for row in result["rows"] if "reason" in row}
        parts += [f"{name} {reason}" for name, reason in reasons.items()]
        engines = sorted({row["engine"] for row in result["rows"] if "engine" in row})
        if engines:
            parts.append(
                f"推理引擎:{'、'.join(engines)}。取 class token 的模型,它在最后一层只算 class token,"
                "而 GFLOP/s 仍按整个模型的运算次数算。"
            )
        peaks = "–".join(f"{peak:.0f}" for peak in sorted({min(result["peak_gflops"]), max(result["peak_gflops"])}))
        parts.append(
            f"图像/秒是各轮中位数的中位数。占峰值:与同一次运行里量出的本机 float32 矩阵乘({peaks} GFLOP/s)之比。"
            "浮点运算次数:矩阵乘一次乘加算 2 次,训练是前向的 3 倍。峰值内存是进程的(几个进程的相加),含各自的库。"
        )
        figure = reports.race_figure(result["rows"], line)
    else:
        parts.append(layout(reports.growth_table(result["rows"])))
        base = ",".join(f"{axis}={value}" for axis, value in GROWTH_BASE.items())
        parts.append("每次只变一个量" + ("。" if result["quick"] else f",其余是 {base}。"))
        figure = reports.growth_figure(result["rows"], line)
    return "\n\n".join(parts), figure
