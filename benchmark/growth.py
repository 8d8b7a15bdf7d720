"""时间和占矩阵乘峰值的比例怎样随规模变:课程写法和本项目,token 数、一批的张数、层数、维度各变一遍。"""

import contextlib
import statistics

from paddle_vit.system.processes import usable_cores

from .race import step_flops
from .reports import TASKS
from .teams import Team, contenders, peak_team

__all__ = ["GROWTH_BASE", "measure_growth"]

GROWTH_BASE = {"tokens": 64, "batch": 8, "depth": 4, "dim": 128}
GROWTH = {
    "tokens": (16, 64, 256, 1024),
    "batch": (1, 4, 16, 64),
    "depth": (1, 2, 4, 8, 16),
    "dim": (32, 64, 128, 256, 512),
}
QUICK_GROWTH_BASE = {"tokens": 16, "batch": 2, "depth": 1, "dim": 32}
QUICK_GROWTH = {"tokens": (16, 64), "batch": (1, 2), "depth": (1, 2), "dim": (32, 64)}


def _growth_spec(tokens, batch, depth, dim, task):
    architecture = dict(
        image_size=4 * round(tokens**0.5),
        patch_size=4,
        in_channels=3,
        num_classes=10,
        embed_dim=dim,
        depth=depth,
        num_heads=dim // 32,
        pool="avg",
    )
    return {"architecture": architecture, "batch": batch, "task": task, "mode": "eager", "threads": usable_cores()}


def measure_growth(options):
    """课程写法和本项目,每次只变一个量,返回若干行。"""
    base = QUICK_GROWTH_BASE if options.quick else GROWTH_BASE
    values = QUICK_GROWTH if options.quick else GROWTH
    pair = [contender for contender in contenders(usable_cores()) if contender.key in ("lesson", "ours")]
    measured, peaks, rows = {}, [], []
    with contextlib.ExitStack() as stack:
        teams = [stack.enter_context(Team(contender)) for contender in pair]
        peak, peak_flops = peak_team(stack, options.quick)
        for task in options.tasks:
            for axis in values:
                for value in values[axis]:
                    point = {**base, axis: value}
                    key, spec = (task, *point.values()), _growth_spec(**point, task=task)
                    if key not in measured:
                        print(f"{TASKS[task]} {axis}={value} …", flush=True)
                        peaks.append(peak_flops / min(peak.take_steps(3)[0]))  # 机器忽快忽慢,所以每一点都量
                        measured[key] = _growth_point(teams, spec, options)
                    flops = step_flops(spec["architecture"], point["batch"], task)
                    for contender, one in zip(pair, measured[key]):
                        row = {"task": task, "axis": axis, "value": value, "contender": contender.key, **point}
                        row.update(seconds_per_step=one, seconds_per_image=one / point["batch"])
                        rows.append({**row, "gflops": flops / one / 1e9})
    for row in rows:  # 上限是整个运行里最快的矩阵乘
        row["share_of_peak"] = row["gflops"] * 1e9 / max(peaks)
    return rows


def _growth_point(teams, spec, options):
    """每个参赛者一步的秒数:各轮中位数里最小的,别的程序只会让一轮变慢。"""
    steps = []
    for team in teams:
        team.ask("build", spec)
        fastest = min(team.take_steps(2)[0])
        steps.append(1 if options.quick else max(1, min(50, round(options.block_seconds / 4 / fastest))))
    times = [[] for _ in teams]
    for _ in range(min(options.rounds, 3)):
        for team, count, mine in zip(teams, steps, times):
            mine.append(statistics.median(team.take_steps(count)[0]))
    return [min(mine) for mine in times]
