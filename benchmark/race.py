"""比赛:同一个模型由各个参赛者轮流跑几步(甲乙丙甲乙丙……),量每秒图像数、GFLOP/s 和内存。

几个进程同时活着,没轮到的在等,所以机器忽快忽慢时大家受的影响一样。
"""

import contextlib
import statistics
import sys

from paddle_vit.system.processes import usable_cores

from .reports import TASKS
from .teams import Team, contenders, missing_packages, peak_team

__all__ = ["MODELS", "QUICK_MODELS", "forward_flops", "run_race", "step_flops"]

# 名字 -> (结构, 一批几张)
_IMAGES = dict(
    image_size=32, patch_size=4, in_channels=3, num_classes=10, embed_dim=128, depth=6, num_heads=8, pool="avg"
)
MODELS = {
    "digits": (dict(_IMAGES, image_size=8, patch_size=2, in_channels=1, embed_dim=96, depth=3), 64),
    "Fashion-MNIST": (dict(_IMAGES, image_size=28, in_channels=1, embed_dim=96, depth=4, num_heads=4), 128),
    "ViT-32/4": (_IMAGES, 128),
    "ViT-Ti/16": (
        dict(
            image_size=224,
            patch_size=16,
            in_channels=3,
            num_classes=1000,
            embed_dim=192,
            depth=12,
            num_heads=3,
            pool="cls",
        ),
        16,
    ),
}
QUICK_MODELS = {
    "tiny": (
        dict(
            image_size=16, patch_size=4, in_channels=3, num_classes=10, embed_dim=32, depth=2, num_heads=2, pool="cls"
        ),
        4,
    )
}


def forward_flops(image_size, patch_size, in_channels, num_classes, embed_dim, depth, num_heads, pool):
    """一张图像前向的浮点运算次数:矩阵乘里一次乘加算 2 次,归一化、softmax、GELU 不计。训练一步按前向的 3 倍算。

    Args: 见 ``ViT``;``num_heads`` 不影响结果。
    """
    D, patches = embed_dim, (image_size // patch_size) ** 2
    N = patches + (pool == "cls")
    patch_embedding = patches * D * in_channels * patch_size**2
    linear = N * 12 * D * D  # qkv 3 D^2,proj D^2,Mlp 8 D^2
    attention = 2 * N * N * D  # q k^T 和 w v,num_heads * N * N * d 各一次
    return 2 * (patch_embedding + depth * (linear + attention) + D * num_classes)


def step_flops(architecture, batch, task):
    """一批的一步的浮点运算次数;训练是前向的 3 倍。"""
    return forward_flops(**architecture) * batch * (3 if task == "train" else 1)


def run_race(name, architecture, batch, task, options):
    """一个模型、一个项目:全部参赛者轮流跑,返回表的若干行和矩阵乘的峰值(GFLOP/s)。"""
    cores = usable_cores()
    entered = [contender for contender in contenders(cores) if task in contender.tasks]
    spec = {"architecture": architecture, "batch": batch, "task": task}
    rows, teams = {}, {}
    print(f"{name} {TASKS[task]}:准备,轮", end="", flush=True)
    with contextlib.ExitStack() as stack:
        peak, peak_flops = peak_team(stack, options.quick)
        for contender in entered:
            rows[contender.key] = {"model": name, "task": task, "contender": contender.key, "name": contender.name}
            python = options.peer_python if contender.packages else sys.executable
            missing = missing_packages(python, contender.packages)
            if missing:
                rows[contender.key].update(unavailable="未安装", reason=f"没有 {'、'.join(missing)}")
                continue
            team = teams[contender.key] = stack.enter_context(Team(contender, python))
            threads = max(1, cores // contender.processes)
            team.send("build", {**spec, "mode": contender.mode, "threads": threads})
        for key, team in list(teams.items()):
            reply = team.receive()[0]
            if "unavailable" in reply:
                rows[key].update(unavailable="不可用", reason=reply["unavailable"])
                del teams[key]
            else:
                rows[key].update(reply)
        _check_same_size(rows.values())
        steps = {}
        for key, team in {"peak": peak, **teams}.items():
            fastest = min(team.take_steps(3)[0])
            steps[key] = 1 if options.quick else max(1, min(100, round(options.block_seconds / fastest)))
        times = {key: [] for key in steps}
        for i in range(options.rounds):
            print(f" {i + 1}/{options.rounds}", end="", flush=True)
            for key, team in {"peak": peak, **teams}.items():
                seconds, memory = team.take_steps(steps[key])
                times[key].append(statistics.median(seconds))
                if key in rows:
                    rows[key]["peak_memory_bytes"] = memory
    print(flush=True)
    flops = step_flops(architecture, batch, task)
    peak_gflops = peak_flops / statistics.median(times["peak"]) / 1e9
    for key in teams:
        median = statistics.median(times[key])
        rows[key].update(
            images_per_second=batch / median,
            slowest=batch / max(times[key]),
            fastest=batch / min(times[key]),
            seconds_per_step=median,
            steps=steps[key] * options.rounds,
            gflops=flops / median / 1e9,
            share_of_peak=flops / median / 1e9 / peak_gflops,
        )
    speed = {key: row.get("images_per_second") for key, row in rows.items()}
    for row in rows.values():
        if "images_per_second" in row:
            for baseline in ("lesson", "torch-float32"):
                if speed[baseline]:
                    row[f"ratio_to_{baseline}"] = row["images_per_second"] / speed[baseline]
    return list(rows.values()), peak_gflops


def _check_same_size(rows):
    counts = {row["name"]: row["parameters"] for row in rows if "parameters" in row}
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"参赛者的模型不一样大:{counts}")
