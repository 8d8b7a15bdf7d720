"""性能对比的结果:表和图。数字都来自同名的 JSON。"""

from paddle_vit.system.pictures import figure_and_words

__all__ = ["TASKS", "growth_figure", "growth_table", "machine_line", "race_figure", "race_table"]

TASKS = {"train": "训练", "predict": "预测"}
_AXES = {"tokens": "token 数", "batch": "一批的张数", "depth": "层数", "dim": "嵌入维度"}


def machine_line(machine):
    """一行说明机器和版本。"""
    memory = f",{machine['memory_bytes'] / 2**30:.0f} GiB 内存" if machine["memory_bytes"] else ""
    versions = ",".join([f"Python {machine['python']}", *machine["versions"]])
    return f"{machine['cpu']},{machine['cores']} 核{memory},{machine['system']};{versions}"


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
    """随规模增长的表:每张图像每步的毫秒数。"""
    columns = sorted({(row["task"], row["contender"]) for row in rows}, key=lambda key: (key[0] != "train", key[1]))
    names = {"lesson": "课程写法", "ours": "本项目"}
    table = [["毫秒/张", *(f"{TASKS[task]} {names[contender]}" for task, contender in columns)]]
    cells = {(row["axis"], row["value"], row["task"], row["contender"]): row["seconds_per_image"] for row in rows}
    for axis, value in dict.fromkeys((row["axis"], row["value"]) for row in rows):
        times = [f"{1e3 * cells[axis, value, task, contender]:.3g}" for task, contender in columns]
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
        colors = ["#d1495b" if row["contender"].startswith("ours") else "#8d99ae" for row in mine]
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
    """时间随 token 数、一批的张数、层数、维度增长,双对数坐标。"""
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, words = figure_and_words(3.6 * len(axes_names), 4)
    style = words.style
    names = {"lesson": "课程写法", "ours": "本项目"}
    colors, dashes = {"lesson": "#8d99ae", "ours": "#d1495b"}, {"train": "-", "predict": "--"}
    for panel, axis in zip(figure.subplots(1, len(axes_names), sharey=True, squeeze=False)[0], axes_names):
        for task, contender in dict.fromkeys((row["task"], row["contender"]) for row in rows):
            mine = [row for row in rows if (row["axis"], row["task"], row["contender"]) == (axis, task, contender)]
            x, y = [row["value"] for row in mine], [1e3 * row["seconds_per_image"] for row in mine]
            label = words(f"{names[contender]} {TASKS[task]}", f"{contender} {task}")
            panel.plot(x, y, marker="o", markersize=3, color=colors[contender], linestyle=dashes[task], label=label)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(x, map(str, x))
        panel.grid(alpha=0.3)
        panel.set_xlabel(words(_AXES[axis], axis), **style)
        if axis == axes_names[0]:
            panel.set_ylabel(words("每张图像的毫秒数", "ms per image"), **style)
            panel.legend(prop=words.legend)
    figure.suptitle(words.writable(title, "growth"), fontsize=9, **style)
    return figure
