"""学生的作业目录:发作业、判作业、记次数、看进度。

目录里的 ``.homework.json`` 记着每份作业判过几次、通过几项;删掉它只是从头计数。
``homework/.folder`` 记着最后一次 ``start`` 用的目录,``check`` 和 ``status`` 不写 --into 时就用它。
"""

import json
import sys
import zlib
from pathlib import Path

from paddle_vit.errors import UserError
from paddle_vit.system.files import atomic_write, quoted

from . import FILES, exercise
from .machinery import FAILED, PASSED, SKIPPED, TODO
from .worker import grade_in_subprocess

__all__ = ["check", "start", "status"]

TEMPLATES = Path(__file__).parents[1]
REMEMBERED = TEMPLATES / ".folder"
RECORDS = ".homework.json"
DEFAULT_FOLDER = "my"
PRINTED_LINES = 20  # 学生打印的文字最多显示多少行
MARKS = {PASSED: "[通过]", FAILED: "[不对]", TODO: "[没做]", SKIPPED: "[跳过]"}


def warn(text):
    print(f"提醒:{text}", file=sys.stderr)


# ---- 目录 ----


def _short(path):
    """在当前目录里的路径写成相对的。"""
    path, here = Path(path).resolve(), Path.cwd()
    return path.relative_to(here) if here in path.parents else path


def remembered_folder():
    """最后一次 start 用的目录;没有时是当前目录下的 my。"""
    try:
        text = REMEMBERED.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    return Path(text) if text and Path(text).is_dir() else Path(DEFAULT_FOLDER)


def read_records(folder):
    """每份作业的记录:号码 -> ``{'tries': 次数, 'failed': 没通过的次数, 'passed': 项, 'total': 项, 'crc32': 文件}``。"""
    path = folder / RECORDS
    if not path.exists():
        return {}
    names = {"tries", "failed", "passed", "total", "crc32"}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        good = all(int(n) in FILES and all(type(r[k]) is int for k in names) for n, r in records.items())
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        good = False
    if not good:
        warn(f"{path} 读不懂,次数从头算起;作业文件不受影响。")
        return {}
    return records


def write_records(folder, records):
    try:
        atomic_write(folder / RECORDS, json.dumps(records, indent=1).encode())
    except UserError as error:
        warn(f"记不下这一次:{error}")


def checksum(path):
    return zlib.crc32(path.read_bytes())


# ---- 三个命令 ----


def numbers_from(text):
    """命令行上的 N 或 all -> 号码的列表。

    Raises:
        UserError: 不是 0–9,也不是 all。
    """
    if text == "all":
        return list(FILES)
    if not (text.isascii() and text.isdigit() and int(text) in FILES):
        raise UserError(f"没有作业 {text}:号码应在 0 到 {max(FILES)} 之间,或用 all 表示全部。")
    return [int(text)]


def start(number, into=None):
    """把作业的模板复制到学生的目录,绝不覆盖已有的文件。

    Args:
        number (str): 课的号码,或 'all'。
        into (str | None): 目录;``None`` 是上次用的,第一次是 my。

    Raises:
        UserError: 号码不对,文件已经有了,或目录写不了。
    """
    folder = Path(into) if into else remembered_folder()
    numbers = numbers_from(number)
    if not TEMPLATES.is_dir():
        raise UserError(f"没有作业的模板目录 {TEMPLATES}:请在克隆下来的项目里用 pip install -e . 安装。")
    if folder.resolve() == TEMPLATES.resolve():
        raise UserError(f"{folder} 是模板所在的目录:请用 --into 换一个目录,例如 --into {DEFAULT_FOLDER}。")
    for n in numbers:
        target = folder / f"{FILES[n]}.py"
        if not target.exists():
            atomic_write(target, (TEMPLATES / target.name).read_bytes())
            print(f"作业 {n}({exercise(n).title}):{target}")
        elif len(numbers) > 1:
            print(f"作业 {n}({exercise(n).title}):{target} 已经有了,没有动它")
        else:
            raise UserError(f"{target} 已经有了,没有覆盖它:想重做就先把它改名或删掉,或用 --into 换一个目录。")
    try:
        atomic_write(REMEMBERED, str(folder.resolve()).encode())
        print("把文件里的 TODO 换成你的代码,然后:python scripts/homework.py check", number if number != "all" else "0")
    except UserError:
        print(
            f"把文件里的 TODO 换成你的代码,然后:python scripts/homework.py check {numbers[0]} --into {quoted(folder)}"
        )


def find_file(number, into, file):
    """要判的文件。

    Raises:
        UserError: 没有这个文件。
    """
    path = Path(file) if file else (Path(into) if into else remembered_folder()) / f"{FILES[number]}.py"
    if not path.is_file():
        into_text = f" --into {quoted(into)}" if into else ""
        advice = "请检查路径" if file else f"请先运行 python scripts/homework.py start {number}{into_text}"
        raise UserError(f"没有文件 {path}:{advice}。")
    return path


def check(number, into=None, file=None, seconds=60):
    """判一份作业,打印报告,记一次。

    Args:
        number (str): '0'–'9'。
        into (str | None): 学生的目录;``None`` 是上次用的。
        file (str | None): 直接给出文件;记录在它旁边。
        seconds (int): 学生的代码可以用多少秒。

    Returns:
        bool: 是否全部通过。

    Raises:
        UserError: 号码不对,或没有文件。
    """
    if number == "all":
        raise UserError("check 一次判一份作业:请写 0 到 9 的号码;全部的进度用 status 看。")
    if seconds < 1:
        raise UserError(f"--seconds {seconds} 不合法:应为正整数,单位秒。")
    (n,) = numbers_from(number)
    path = find_file(n, into, file)
    folder = path.parent
    records = read_records(folder)
    task = exercise(n)
    results, printed = grade_in_subprocess(n, path, seconds)
    passed = sum(result.verdict == PASSED for result in results)
    total = len(task.checks)
    old = records.get(str(n), {"tries": 0, "failed": 0})
    tried = passed == total or any(result.verdict == FAILED for result in results)  # 只是没做不算一次
    failed = old["failed"] + (tried and passed < total)
    records[str(n)] = {
        "tries": old["tries"] + tried,
        "failed": failed,
        "passed": passed,
        "total": total,
        "crc32": checksum(path),
    }
    write_records(folder, records)
    print(f"作业 {n}:{task.title}({_short(path)})")
    for line in report_lines(results, show_hints=failed >= 2):
        print(line)
    lines = printed.strip().splitlines()
    if lines:
        print(f"你的程序打印的内容{f'(最后 {PRINTED_LINES} 行)' if len(lines) > PRINTED_LINES else ''}:")
        print("\n".join(f"  | {line}" for line in lines[-PRINTED_LINES:]))
    print(f"通过 {passed} / {total} 项" + (",完成!" if passed == total else "。"))
    return passed == total


def report_lines(results, show_hints):
    """报告:每项一行,没通过的下面是原因,第二次没通过起有提示。"""
    for result in results:
        yield f"  {MARKS[result.verdict]} {result.title}"
        for line in result.message.splitlines():
            yield f"         {line}"
        if result.hint and show_hints:
            yield f"         提示:{result.hint}"
    if any(result.hint for result in results) and not show_hints:
        yield "  (再试一次;还不对的话会给出提示)"


def status(into=None):
    """打印每份作业的进度。

    Args:
        into (str | None): 学生的目录;``None`` 是上次用的。
    """
    folder = Path(into) if into else remembered_folder()
    if into and not folder.is_dir():
        raise UserError(f"没有目录 {folder}:请先运行 python scripts/homework.py start 0 --into {quoted(folder)}。")
    records = read_records(folder)
    print(f"作业目录:{_short(folder)}")
    for n, name in FILES.items():
        path, record = folder / f"{name}.py", records.get(str(n))
        print(f"  {n:>2} {progress(path, record)}  {exercise(n).title}")


def progress(path, record):
    """一份作业的进度:未开始(没有文件,或还是模板的原样)、进行中或完成。"""
    template = TEMPLATES / path.name
    if not path.exists() or (template.exists() and path.read_bytes() == template.read_bytes()):
        return "未开始"
    if record is None:
        return "进行中(还没有判过)"
    changed = ",之后改过" if checksum(path) != record["crc32"] else ""
    if record["passed"] == record["total"]:
        return f"完成(判过 {record['tries']} 次{changed})"
    return f"进行中(通过 {record['passed']} / {record['total']} 项,判过 {record['tries']} 次{changed})"
