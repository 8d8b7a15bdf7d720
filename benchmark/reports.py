"""性能对比的结果:表和图。数字都来自同名的 JSON。"""

from paddle_vit.system.pictures import figure_and_words

__all__ = ["TASKS", "growth_figure", "growth_table", "machine_line", "race_figure", "race_table"]

TASKS = {"train": "训练", "predict": "预测"}
_AXES = {"tokens": "token 数", "batch": "一批的张数", "depth": "层数", "dim": "嵌入维度"}
_NAMES = {"lesson": "课程写法", "ours": "本项目"}
_COLORS = {"lesson": "#8d99ae", "ours": "#d1495b"}
_DASHES = {"train": "-", "predict": "--"}


def machine_line(machine):
    """一行说明机器和版本。"""
    memory = f",{machine['memory_bytes'] / 2**30:.0f} GiB 内存" if machine["memory_bytes"] else ""
    versions = ",".join([f"Python {machine['python']}", *machine["versions"]])
    instructions = f"({machine['instructions']})" if machine["instructions"] else ""
    return f"{machine['cpu']}{instructions},{machine['cores']} 核{memory},{machine['system']};{versions}"


def _times(value):
    return "—" if value is None else f"{value:.2f}×"


def race_table(rows):
    """一个模型、一个项目的对比表。"""
    header = ["", "图像/秒", "最慢–最快", "GFLOP/s", "占峰值", "比课程写法", "比 PyTorch", "峰值内存"]
    table = [header]
    for row in rows:
        if "unavailable" in row:
            table.append([row["name"], row["unavailable"], *["—"] * (len(header) - 2)])
            continue
        table.append(
            [
                row["name"],
                f"{row['images_per_second']:.1f}",
                f"{row['slowest']:.1f}–{row['fastest']:.1f}",
                f"{row['gflops']:.0f}",
                f"{row['share_of_peak']:.0%}",
                _times(row.get("ratio_to_lesson")),
                _times(row.get("ratio_to_torch-float32")),
                f"{row['peak_memory_bytes'] / 2**20:.0f} MiB",
            ]
        )
    return table


def growth_table(rows):
    """随规模增长的表:每张图像每步的毫秒数,和占矩阵乘峰值的比例。"""
    columns = sorted({(row["task"], row["contender"]) for row in rows}, key=lambda key: (key[0] != "train", key[1]))
    table = [["毫秒/张(占峰值)", *(f"{TASKS[task]} {_NAMES[contender]}" for task, contender in columns)]]
    cells = {(row["axis"], row["value"], row["task"], row["contender"]): row for row in rows}
    for axis, value in dict.fromkeys((row["axis"], row["value"]) for row in rows):
        mine = [cells[(axis, value, *column)] for column in columns]
        times = [f"{1e3 * row['seconds_per_image']:.3g}({row['share_of_peak']:.0%})" for row in mine]
        table.append([f"{_AXES[axis]} {value}", *times])
    return table


# ---- 图 ----


def race_figure(rows, title):
    """每个模型、每个项目一格的横条图,条上写每秒图像数和比课程写法的倍数。"""
    groups = list(dict.fromkeys((row["model"], row["task"]) for row in rows))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, words = figure_and_words(6.5 * columns, 3.2 * lines + 0.6)
    style = words.style
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, (model, task) in zip(panels, groups):
        mine = [row for row in rows if (row["model"], row["task"]) == (model, task) and "gflops" in row][::-1]
        speeds = [row["images_per_second"] for row in mine]
        errors = [
            [row["images_per_second"] - row["slowest"] for row in mine],
            [row["fastest"] - row["images_per_second"] for row in mine],
        ]
        colors = [_COLORS["ours" if row["contender"].startswith("ours") else "lesson"] for row in mine]
        panel.barh(range(len(mine)), speeds, xerr=errors, color=colors, ecolor="#333333", capsize=2)
        panel.set_yticks(range(len(mine)), [words(row["name"], row["contender"]) for row in mine], **style)
        for i, row in enumerate(mine):
            ratio = row.get("ratio_to_lesson")
            text = f"{row['images_per_second']:.1f}" + (f" ({ratio:.1f}×)" if ratio else "")
            panel.text(row["fastest"], i, f" {text}", va="center", fontsize=8)
        panel.set_xlim(0, 1.3 * max(row["fastest"] for row in mine))
        panel.set_title(f"{model} {words(TASKS[task], task)}", **style)
        panel.set_xlabel(words("图像/秒", "images / s"), **style)
    for panel in panels[len(groups) :]:
        panel.axis("off")
    figure.suptitle(words.writable(title, "benchmark"), fontsize=9, **style)
    return figure


def growth_figure(rows, title):
    """随 token 数、一批的张数、层数、维度:上面是时间(双对数坐标),下面是占矩阵乘峰值的比例。"""
    names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, words = figure_and_words(3.6 * len(names), 7)
    style = words.style
    panels = figure.subplots(2, len(names), sharex="col", sharey="row", squeeze=False)
    for (above, below), axis in zip(panels.T, names):
        for task, contender in dict.fromkeys((row["task"], row["contender"]) for row in rows):
            mine = [row for row in rows if (row["axis"], row["task"], row["contender"]) == (axis, task, contender)]
            x = [row["value"] for row in mine]
            label = words(f"{_NAMES[contender]} {TASKS[task]}", f"{contender} {task}")
            line = dict(marker="o", markersize=3, color=_COLORS[contender], linestyle=_DASHES[task], label=label)
            above.plot(x, [1e3 * row["seconds_per_image"] for row in mine], **line)
            below.plot(x, [100 * row["share_of_peak"] for row in mine], **line)
        above.set_yscale("log")
        below.axhline(100, color="#333333", linewidth=1)
        below.set_ylim(0, 110)
        below.set_xscale("log", base=2)
        below.set_xticks(x, map(str, x))
        below.set_xlabel(words(_AXES[axis], axis), **style)
        for panel in (above, below):
            panel.grid(alpha=0.3)
    above, below = panels[:, 0]
    above.set_ylabel(words("每张图像的毫秒数", "ms per image"), **style)
    below.set_ylabel(words("占矩阵乘峰值,%", "% of matmul peak"), **style)
    below.annotate(words("上限:只有矩阵乘", "limit: matmul only"), (x[0], 102), fontsize=8, **style)
    above.legend(prop=words.legend)
    figure.suptitle(words.writable(title, "growth"), fontsize=9, **style)
    return figure
