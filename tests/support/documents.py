"""说明的各页(Markdown),和从里面取出代码、命令、链接的函数。"""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README_en.md")
DOCS = tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
PAGES = (
    *READMES,
    *DOCS,
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "lessons/README.md",
    "homework/README.md",
    "paddle_vit/assets/README.md",
    "tests/reference/README.md",
)
BLANK = "…"  # 要读者自己填的地方


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    """一页里某种语言的代码块。"""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.M | re.S)


def prose(page):
    """去掉代码块的正文。"""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.M | re.S)


def spans(page):
    """正文里反引号中的代码。"""
    return re.findall(r"`([^`\n]+)`", prose(page))


def runnable(page):
    """可以照着运行的 Python 代码块:没有要读者自己填的地方,也不是整个的训练脚本。"""
    return [block for block in blocks(page, "python") if BLANK not in block and "launch(" not in block]


def commands(page):
    """一页里对 ``scripts/*.py`` 的每次调用:(脚本名, 参数)。正文里不带参数的只是提到它,不算。"""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    mentioned = [span for span in spans(page) if re.match(r"python scripts/\w+\.py \S", span)]
    found = []
    for line in [*lines, *mentioned]:
        words = [word for word in shlex.split(line, comments=True) if word != BLANK]
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            for i, word in enumerate(words[:end]):
                if script := re.fullmatch(r"scripts/(\w+)\.py", word):
                    found.append((script[1], words[i + 1 : end]))
            words = words[end + 1 :]
    return found


def links(page):
    """一页里的相对链接和图片。"""
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", text(page))


def anchors(page):
    """一页里各个标题的锚,按 GitHub 的规则:小写,去掉标点,空格换成 ``-``。"""
    titles = re.findall(r"^#+ (.*)", prose(page), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
