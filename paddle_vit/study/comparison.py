"""比较各个开关:每次只改一个设置,几个种子各训练一次,按验证集的正确率列表、画图。

选设置是在验证集上选,所以这里不看测试集。每个训练是一次 ``scripts/train.py``,中断后再执行一次同样的命令就接着做。
设置选好以后,``curves`` 把几组运行的曲线画在一起,这时才看测试集。
"""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from ..config import make_config, result_settings
from ..config_files import load_config, save_config
from ..errors import UserError
from ..runs.logs import load_metrics
from ..system.files import atomic_write, read_json
from ..system.pictures import figure_and_words
from ..system.run_files import CONFIG, SUMMARY
from ..system.tables import markdown, terminal

__all__ = ["Variant", "compare", "comparison_figure", "comparison_table", "parse_seeds", "parse_vary", "variants"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """一个变体:在基准上改了一个设置。

    Attributes:
        switch (str): 设置的名字。
        value (str): 它的值,写成文字。
        is_base (bool): 这个值就是基准的,没有改。
        config (Config): 全部设置。
    """

    switch: str
    value: str
    is_base: bool
    config: object

    def directory(self, output, seed):
        """种子为 seed 的运行目录;基准只训练一次,各组共用。"""
        name = "base" if self.is_base else f"{self.switch}-{self.value.replace('/', '_')}"
        return Path(output) / f"{name}-seed{seed}"


def parse_vary(texts):
    """``['pool=avg,cls', …]`` -> ``{'pool': ['avg', 'cls'], …}``。

    Raises:
        UserError: 写法不对,或同一个设置写了两次。
    """
    vary = {}
    for text in texts:
        name, _, values = text.partition("=")
        name, values = name.replace("-", "_"), [value for value in values.split(",") if value]
        if not values:
            raise UserError(f"--vary {text} 不合法:应为 设置=值,值,如 --vary pool=avg,cls。")
        if name in vary:
            raise UserError(f"--vary {text} 重复:{name} 的各个值请写在一起,如 {name}=a,b。")
        vary[name] = values
    return vary


def parse_seeds(text):
    """``'0,1,2'`` -> ``[0, 1, 2]``。

    Raises:
        UserError: 不是逗号隔开的整数,或有重复。
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise UserError(f"--seeds {text} 不合法:应为逗号隔开、互不相同的整数,如 0,1,2。")
    return [int(part) for part in parts]


def variants(base, vary):
    """要训练的变体:每个开关一组,组里第一个是基准,其余各改这一个设置。

    Args:
        base (Config): 基准。
        vary (dict): 设置的名字 -> 要试的值(文字)。

    Returns:
        list[Variant]

    Raises:
        UserError: 设置的名字或值不合法,或这个设置不影响结果。
    """
    found = []
    for name, values in vary.items():
        configs = [make_config({**dataclasses.asdict(base), name: value}, "命令行") for value in values]
        if name not in result_settings(base) or name == "seed":
            raise UserError(f"--vary {name}=… 不能比较:它不影响结果,或由别的参数给出(种子用 --seeds)。")
        found.append(Variant(name, _text(base.effective(name)), True, base))
        for config in configs:
            variant = Variant(name, _text(config.effective(name)), False, config)
            if variant.value not in [other.value for other in found if other.switch == name]:
                found.append(variant)
    return found


def _text(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def compare(base, vary, seeds, output, script):
    """训练每个变体、每个种子,打印表,把 compare.json、compare.md 和 compare.png 写进 output。

    已经有 summary.json 的运行直接用,没训练完的续训。

    Args:
        base (Config): 基准;其中的 seed、output 不用。
        vary (dict): ``parse_vary`` 的结果。
        seeds (list[int]): 种子。
        output (str | Path): 放各次运行和结果的目录。
        script (str | Path): scripts/train.py。

    Returns:
        list[dict]: 每个变体一项,与写进 JSON 的相同。

    Raises:
        UserError: 设置不合法、output 里是别的设置的运行,或有训练失败。
    """
    if base.resume is not None:
        raise UserError("比较时不能用 --resume:再执行一次同样的命令,没做完的会接着做。")
    todo = variants(base, vary)
    jobs = {v.directory(output, seed): (v, seed) for seed in seeds for v in todo}
    for directory, (variant, seed) in jobs.items():
        _check_settings(directory, dataclasses.replace(variant.config, seed=seed))
    for i, (directory, (variant, seed)) in enumerate(jobs.items(), 1):
        if not (directory / SUMMARY).exists():
            print(f"[{i}/{len(jobs)}] {directory.name} …", flush=True)
            _train(dataclasses.replace(variant.config, seed=seed), directory, script)
    rows = [_row(variant, [variant.directory(output, seed) for seed in seeds]) for variant in todo]
    table, note = comparison_table(rows), _note(rows)
    print(f"{terminal(table)}\n\n{note}")
    atomic_write(Path(output) / "compare.json", f"{json.dumps(rows, ensure_ascii=False, indent=1)}\n".encode())
    atomic_write(Path(output) / "compare.md", f"{markdown(table)}\n\n{note}\n".encode())
    comparison_figure(rows).savefig(Path(output) / "compare.png")
    print(f"\n已写入 {output}/compare.json、compare.md 和 compare.png")
    return rows


def _check_settings(directory, config):
    if not (directory / CONFIG).exists():
        return
    before, now = result_settings(load_config(directory)), result_settings(config)
    changed = next((name for name in now if now[name] != before[name]), None)
    if changed is not None:
        raise UserError(
            f"{directory} 里是另一种设置的运行({changed} 当时是 {before[changed]},现在是 {now[changed]}):"
            "请用原来的设置,或用 --output 换一个目录。"
        )


def _train(config, directory, script):
    """在另一个进程里训练;它的输出写进运行目录旁边的 .log 文件。"""
    if (directory / CONFIG).exists():
        arguments = ["--resume", directory]
    else:
        recipe = directory.with_name(f"{directory.name}.yaml")
        save_config(config, recipe)
        arguments = ["--recipe", recipe, "--output", directory]
    log = directory.with_name(f"{directory.name}.log")
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            process.wait()
        except KeyboardInterrupt:  # 终端把 Ctrl-C 也发给了它:等它存好检查点
            process.wait()
            raise KeyboardInterrupt("接着比较:再执行一次同样的命令。") from None
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["没有输出"]
        raise UserError(f"{directory} 没有训练完,它最后说:{lines[-1]}(全部输出在 {log})")


def _row(variant, directories):
    """一个变体各个种子的结果。"""
    summaries = [read_json(path / SUMMARY) for path in directories]
    curves = [load_metrics(path, ("val_top1",)) for path in directories]
    return {
        "switch": variant.switch,
        "value": variant.value,
        "is_base": variant.is_base,
        "val_top1": [curve[-1]["val_top1"] for curve in curves],
        "best_val_top1": [summary["val_top1"] for summary in summaries],
        "parameters": summaries[0]["parameters"],
        "images_per_second": statistics.median(line["images_per_second"] for curve in curves for line in curve),
    }


def _verdict(row, base):
    """与基准相比:两边各个种子的范围不重叠,才说高或低;只有一个种子时看不出。"""
    if row["is_base"]:
        return "基准"
    if len(row["val_top1"]) == 1:
        return "看不出"
    if min(row["val_top1"]) > max(base["val_top1"]):
        return "高于基准"
    if max(row["val_top1"]) < min(base["val_top1"]):
        return "低于基准"
    return "波动之内"


def _base_of(rows):
    return next(row for row in rows if row["is_base"])


def comparison_table(rows):
    """结果的表:若干行文字,第一行是表头。"""
    table = [["", "验证 top-1 平均", "最低–最高", "与基准之差", "判断", "最好一轮", "参数", "图像/秒"]]
    base = _base_of(rows)
    average = statistics.mean(base["val_top1"])
    for row in rows:
        mean = statistics.mean(row["val_top1"])
        table.append(
            [
                f"{row['switch']}={row['value']}",
                f"{mean:.2%}",
                f"{min(row['val_top1']):.2%}–{max(row['val_top1']):.2%}",
                "—" if row["is_base"] else f"{100 * (mean - average):+.2f}",
                _verdict(row, base),
                f"{statistics.mean(row['best_val_top1']):.2%}",
                f"{row['parameters']:,}",
                f"{row['images_per_second']:.0f}",
            ]
        )
    return table


def _note(rows):
    """怎样读这张表。"""
    n = len(rows[0]["val_top1"])
    chance = 2 / math.comb(2 * n, n)
    text = f"每个变体 {n} 个种子。top-1 是最后一轮的;“最好一轮”是各次训练里最高的一轮,挑过,所以偏高。差的单位是百分点。"
    if n == 1:
        return text + "一个种子不知道波动有多大,看不出差别是不是碰巧。"
    return f"{text}范围与基准不重叠才算有差别:其实没有差别时,{n} 对 {n} 个种子也有 {chance:.0%} 的机会碰巧完全分开。"


def comparison_figure(rows):
    """每个变体一行:各个种子的点、范围和平均;灰带是基准的范围。

    Args:
        rows (list[dict]): ``compare`` 的结果。

    Returns:
        matplotlib.figure.Figure
    """
    figure, words = figure_and_words(8, 1.4 + 0.42 * len(rows))
    style = words.style
    panel = figure.subplots()
    base = _base_of(rows)
    band = [100 * value for value in (min(base["val_top1"]), max(base["val_top1"]))]
    panel.axvspan(*band, color="#8d99ae", alpha=0.25, linewidth=0)
    colors = {
        "基准": "#333333",
        "波动之内": "#8d99ae",
        "看不出": "#8d99ae",
        "高于基准": "#1d7874",
        "低于基准": "#d1495b",
    }
    for i, row in enumerate(rows):
        color = colors[_verdict(row, base)]
        values = [100 * value for value in row["val_top1"]]
        panel.plot([min(values), max(values)], [i, i], color=color, linewidth=2)
        panel.plot(values, [i] * len(values), "o", color=color, markersize=5, alpha=0.6)
        panel.plot(statistics.mean(values), i, "D", color=color, markersize=8)
        if i and row["switch"] != rows[i - 1]["switch"]:
            panel.axhline(i - 0.5, color="#cccccc", linewidth=0.8)
    mark = words("(基准)", " (base)")
    labels = [f"{row['switch']}={row['value']}{mark if row['is_base'] else ''}" for row in rows]
    panel.set_yticks(range(len(rows)), labels, **style)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)
    panel.set_xlabel(words("最后一轮的验证 top-1(%)", "validation top-1, last epoch (%)"), **style)
    n = len(base["val_top1"])
    title = f"每次只改一个设置,{n} 个种子:圆点是各个种子,菱形是平均,灰带是基准的范围"
    panel.set_title(words(title, "dots: seeds; diamond: mean; band: range of the base"), fontsize=10, **style)
    return figure
