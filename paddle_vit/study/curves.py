"""几组运行的验证曲线画在一起,列出测试集的结果:设置选好以后才看它。"""

import glob
import itertools
import statistics
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..runs.logs import load_metrics
from ..system.files import quoted, read_json
from ..system.pictures import figure_and_words
from ..system.run_files import SUMMARY
from ..system.tables import terminal

__all__ = ["curves_figure", "curves_table", "draw_curves", "parse_groups"]


def parse_groups(texts):
    """``['微调=runs/a-seed*', …]`` -> ``{'微调': [运行目录, …], …}``。

    Raises:
        UserError: 写法不对、名字重复,或没有对应的目录。
    """
    groups = {}
    for text in texts:
        name, _, pattern = text.partition("=")
        found = sorted(Path(path) for path in glob.glob(pattern) if Path(path).is_dir())
        if not name or not pattern or name in groups:
            raise UserError(f"{text} 不合法:应为 名字=运行目录的通配符,如 微调=runs/tune/base-seed*,名字不能重复。")
        if not found:
            raise UserError(f"{text} 里没有运行目录:请检查 {pattern},通配符要加引号。")
        groups[name] = found
    return groups


def draw_curves(groups, output):
    """把几组运行(每组几个种子)的验证曲线画在一张图里,并打印正确率的表。

    Args:
        groups (dict): 名字 -> 运行目录的列表,都要训练完,每组里的轮数相同。
        output (str | Path): 图写到哪个文件,.png。

    Raises:
        UserError: 有的运行没有训练完,或轮数不同。
    """
    curves, summaries = {}, {}
    for name, directories in groups.items():
        summaries[name] = [read_json(path / SUMMARY) for path in directories]
        if None in summaries[name]:
            path = directories[summaries[name].index(None)]
            raise UserError(f"{path} 还没有训练完:请先用 scripts/train.py --resume {quoted(path)} 训练完。")
        tops = [[line["val_top1"] for line in load_metrics(path, ("val_top1",))] for path in directories]
        if len({len(top) for top in tops}) > 1:
            raise UserError(f"{name} 的几个运行轮数不同({'、'.join(str(len(top)) for top in tops)}):请分开画。")
        curves[name] = np.array(tops)  # [种子, 轮]
    print(terminal(curves_table(curves, summaries)))
    figure, output = curves_figure(curves), Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    print(f"\n已写入 {output}")


def curves_table(curves, summaries):
    """每组一行:最后一轮的验证 top-1 和最佳权重的测试 top-1,平均和各个种子的范围。

    Args:
        curves (dict): 名字 -> 验证 top-1,[种子, 轮]。
        summaries (dict): 名字 -> 各个运行的 summary.json。
    """
    table = [["", "种子", "验证 top-1 平均", "最低–最高", "测试 top-1 平均", "最低–最高"]]
    for name, tops in curves.items():
        cells = [name, str(len(tops))]
        for values in (tops[:, -1].tolist(), [summary["test_top1"] for summary in summaries[name]]):
            cells += [f"{statistics.mean(values):.2%}", f"{min(values):.2%}–{max(values):.2%}"]
        table.append(cells)
    return table


def curves_figure(curves):
    """每组一条验证 top-1 曲线:线是各个种子的平均,带是最低到最高。

    Args:
        curves (dict): 名字 -> 验证 top-1,[种子, 轮]。

    Returns:
        matplotlib.figure.Figure
    """
    figure, words = figure_and_words(7, 4)
    style = words.style
    panel = figure.subplots()
    colors = itertools.cycle(["#1d7874", "#d1495b", "#edae49", "#00798c", "#8d99ae"])
    for (name, tops), color in zip(curves.items(), colors):
        epochs = np.arange(1, tops.shape[1] + 1)
        panel.plot(epochs, 100 * tops.mean(axis=0), color=color, linewidth=2, label=name)
        panel.fill_between(epochs, 100 * tops.min(axis=0), 100 * tops.max(axis=0), color=color, alpha=0.2, linewidth=0)
    panel.grid(alpha=0.3)
    panel.set_xlabel(words("轮", "epoch"), **style)
    panel.set_ylabel(words("验证 top-1(%)", "validation top-1 (%)"), **style)
    n = "、".join(sorted({str(len(tops)) for tops in curves.values()}))
    title = words(f"线是 {n} 个种子的平均,带是最低到最高", "line: mean over seeds; band: range")
    panel.set_title(title, fontsize=10, **style)
    panel.legend(loc="lower right", prop={"family": style.get("fontfamily")})
    return figure
