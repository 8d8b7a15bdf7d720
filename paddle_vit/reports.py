"""性能对比的结果:终端里的表、Markdown 的表和图。数字都来自同名的 JSON。"""

import unicodedata

from .system.pictures import figure_and_font, text_style

__all__ = ["growth_figure", "growth_table", "machine_line", "markdown", "race_figure", "race_table"]
__all__ += ["slowdown_figure", "slowdown_tables", "slowdown_verdict", "terminal"]

_TASKS = {"train": "训练", "predict": "预测"}
_AXES = {"tokens": "token 数", "batch": "一批的张数", "depth": "层数", "dim": "嵌入维度"}


def _width(text):
    """终端里占几列:汉字和全角标点占两列。"""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def terminal(table):
    """对齐的文字表;第一列靠左,其余靠右。table 是若干行,第一行是表头。"""
    widths = [max(map(_width, column)) for column in zip(*table)]
    lines = []
    for row in table:
        cells = [" " * (width - _width(cell)) for cell, width in zip(row, widths)]  # 各格要补的空格
        lines.append("  ".join(text + pad if i == 0 else pad + text for i, (text, pad) in enumerate(zip(row, cells))))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown(table):
    """同一张表的 Markdown。"""
    header, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([header, "|---|" + "---:|" * (len(table[0]) - 1), *rows])


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
    table = [["毫秒/张", *(f"{_TASKS[task]} {names[contender]}" for task, contender in columns)]]
    cells = {(row["axis"], row["value"], row["task"], row["contender"]): row["seconds_per_image"] for row in rows}
    for axis, value in dict.fromkeys((row["axis"], row["value"]) for row in rows):
        times = [f"{1e3 * cells[axis, value, task, contender]:.3g}" for task, contender in columns]
        table.append([f"{_AXES[axis]} {value}", *times])
    return table


def slowdown_tables(result):
    """「越训越慢」的两张表:各种数据上的训练,和逐个运算。"""
    window = result["window"]
    header = [
        "",
        f"头 {window} 步 毫秒",
        f"末 {window} 步 毫秒",
        "末/头",
        "比同时的普通数据",
        "激活",
        "梯度",
        "动量",
        "损失",
    ]
    trials = [header]
    for trial, ratio in zip(result["trials"], _ratios_to_ordinary(result)):
        first, last = trial["seconds_per_step"][0], trial["seconds_per_step"][-1]
        after = trial["subnormal_after"]
        shares = [f"{after[name]:.2%}" for name in ("activations", "gradients", "moments")]
        times = [f"{1e3 * first:.2f}", f"{1e3 * last:.2f}", _times(last / first), _times(ratio)]
        trials.append([trial["name"], *times, *shares, f"{after['loss']:.3g}"])
    operations = [["运算", "普通数 毫秒", "次正规数 毫秒", "清零后 毫秒", "次正规/普通"]]
    for row in result["operations"]:
        times = [f"{1e3 * row[name]:.3f}" for name in ("normal", "subnormal", "flushed")]
        operations.append([row["operation"], *times, _times(row["subnormal"] / row["normal"])])
    return trials, operations


def slowdown_verdict(result):
    """几句话说清:各种数据比普通数据慢多少,清零以后呢。"""
    ratios = {(t["data"], t["flush"]): r for t, r in zip(result["trials"], _ratios_to_ordinary(result))}
    names = {t["data"]: t["name"].split(",")[0] for t in result["trials"]}
    parts = [f"{name} {ratios[data, False]:.2f}×、清零后 {ratios[data, True]:.2f}×" for data, name in names.items()]
    return "最快一段里一步的时间(不清零的普通数据为 1):" + ";".join(parts) + "。"


def _ratios_to_ordinary(result):
    """最快一段与普通数据(不清零)的最快一段之比:别的程序只会让一段变慢,最快的一段受干扰最少。"""
    fastest = [min(trial["seconds_per_step"]) for trial in result["trials"]]
    base = next(s for s, t in zip(fastest, result["trials"]) if t["data"] == "ordinary" and not t["flush"])
    return [seconds / base for seconds in fastest]


# ---- 图 ----


def race_figure(rows, title):
    """每个模型、每个项目一格的横条图,条上写每秒图像数和比课程写法的倍数。"""
    groups = list(dict.fromkeys((row["model"], row["task"]) for row in rows))
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, font = figure_and_font(6.5 * columns, 3.2 * lines + 0.6)
    style = text_style(font)
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
        panel.set_yticks(range(len(mine)), [row["name"] if font else row["contender"] for row in mine], **style)
        for i, row in enumerate(mine):
            ratio = row.get("ratio_to_lesson")
            text = f"{row['images_per_second']:.1f}" + (f" ({ratio:.1f}×)" if ratio else "")
            panel.text(row["fastest"], i, f" {text}", va="center", fontsize=8)
        panel.set_xlim(0, 1.3 * max(row["fastest"] for row in mine))
        panel.set_title(f"{model} {_TASKS[task] if font else task}", **style)
        panel.set_xlabel("图像/秒" if font else "images / s", **style)
    for panel in panels[len(groups) :]:
        panel.axis("off")
    figure.suptitle(title if font or title.isascii() else "benchmark", fontsize=9, **style)
    return figure


def growth_figure(rows, title):
    """时间随 token 数、一批的张数、层数、维度增长,双对数坐标。"""
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    figure, font = figure_and_font(3.6 * len(axes_names), 4)
    style = text_style(font)
    names = {"lesson": "课程写法", "ours": "本项目"}
    colors, dashes = {"lesson": "#8d99ae", "ours": "#d1495b"}, {"train": "-", "predict": "--"}
    for panel, axis in zip(figure.subplots(1, len(axes_names), sharey=True, squeeze=False)[0], axes_names):
        for task, contender in dict.fromkeys((row["task"], row["contender"]) for row in rows):
            mine = [row for row in rows if (row["axis"], row["task"], row["contender"]) == (axis, task, contender)]
            x, y = [row["value"] for row in mine], [1e3 * row["seconds_per_image"] for row in mine]
            label = f"{names[contender]} {_TASKS[task]}" if font else f"{contender} {task}"
            panel.plot(x, y, marker="o", markersize=3, color=colors[contender], linestyle=dashes[task], label=label)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(x, map(str, x))
        panel.grid(alpha=0.3)
        panel.set_xlabel(_AXES[axis] if font else axis, **style)
        if axis == axes_names[0]:
            panel.set_ylabel("每张图像的毫秒数" if font else "ms per image", **style)
            panel.legend(prop={"family": font, "size": 8} if font else {"size": 8})
    figure.suptitle(title if font or title.isascii() else "growth", fontsize=9, **style)
    return figure


def slowdown_figure(result, title):
    """每步的时间随步数,每种数据两条线。"""
    figure, font = figure_and_font(9, 4)
    style = text_style(font)
    panel = figure.subplots()
    colors = {"ordinary": "#8d99ae", "zeros": "#1d7874", "forward": "#d1495b", "backward": "#edae49"}
    for trial in result["trials"]:
        y = [1e3 * seconds for seconds in trial["seconds_per_step"]]
        x = [(i + 1) * result["window"] for i in range(len(y))]
        label = trial["name"] if font else f"{trial['data']} flush={trial['flush']}"
        panel.plot(x, y, color=colors[trial["data"]], linestyle="--" if trial["flush"] else "-", label=label)
    panel.set_ylim(0)
    panel.grid(alpha=0.3)
    panel.set_xlabel("步" if font else "step", **style)
    panel.set_ylabel("每步的毫秒数" if font else "ms per step", **style)
    panel.legend(ncols=4, prop={"family": font, "size": 8} if font else {"size": 8})
    panel.set_title(title if font or title.isascii() else "slow-down", fontsize=9, **style)
    return figure
