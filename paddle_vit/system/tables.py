"""给人看的表:终端里对齐的文字(汉字占两列),和同一张表的 Markdown。"""

from __future__ import annotations

import unicodedata

__all__ = ["markdown", "terminal"]


def _width(text):
    """终端里占几列:汉字和全角标点占两列。"""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def terminal(table: list[list]) -> str:
    """对齐的文字表;第一列靠左,其余靠右。table 是若干行,第一行是表头。"""
    widths = [max(map(_width, column)) for column in zip(*table)]
    lines = []
    for row in table:
        cells = [" " * (width - _width(cell)) for cell, width in zip(row, widths)]  # 各格要补的空格
        lines.append("  ".join(text + pad if i == 0 else pad + text for i, (text, pad) in enumerate(zip(row, cells))))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown(table: list[list]) -> str:
    """同一张表的 Markdown。"""
    header, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([header, "|---|" + "---:|" * (len(table[0]) - 1), *rows])
