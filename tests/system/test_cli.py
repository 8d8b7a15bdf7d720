import contextlib
import io
import os
import subprocess
import sys
import threading

import pytest
from support.running import PATIENCE, TINY, run_here, script

from paddle_vit import UserError
from paddle_vit.system import cli
from paddle_vit.system.files import read_text, read_yaml


def test_os_errors_are_chinese_sentences():
    for number in (1, 2, 13, 17, 20, 21, 28, 30, 36, 5):
        text = cli.describe_os_error(OSError(number, "reason", "file.txt"), "file.txt")
        assert "\n" not in text and text.endswith("。")


@pytest.mark.parametrize(
    "error, status, word",
    [
        (UserError("说明"), 2, "错误:说明"),
        (OSError(28, "No space left on device", "x"), 2, "磁盘已满"),
        (MemoryError(), 2, "内存"),
        (KeyboardInterrupt("接着训练"), 130, "已中断。接着训练"),
    ],
)
def test_user_errors_are_one_line(capsys, error, status, word):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run_main(main)
    assert stopped.value.code == status
    text = capsys.readouterr().err
    assert word in text and text.count("\n") == 1


@pytest.mark.parametrize("error", [OSError("(External) Error message in backward"), ZeroDivisionError()])
def test_program_errors_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        cli.run_main(main)


def test_pair_of_numbers_and_options_between_positionals():
    parser = cli.ArgumentParser("")
    parser.add_argument("run")
    parser.add_argument("images", nargs="*")
    parser.add_argument("--query", type=cli.pair_of_numbers)
    for text in ("1,2", "1, 2", "1\uff0c2"):
        args = parser.parse_args(["run", "--query", text, "a.png"])
        assert (args.run, args.images, args.query) == ("run", ["a.png"], (1, 2))
    for text in ("1", "1,2,3", "a,b", "1.5,2"):
        with pytest.raises(UserError, match=r"--query.*1,2"):
            parser.parse_args(["run", "--query", text])
    with pytest.raises(UserError, match="run"):
        parser.parse_args([])
    with pytest.raises(UserError, match=r"--queri.*--query"):
        parser.parse_args(["run", "--queri", "1,2"])


@pytest.mark.parametrize(
    "content, word",
    [
        (b"[" * 100_000, "YAML"),
        (b"a: &x [1, 2]\nb: *x\n", "第 2 行"),
        ("名字: 猫".encode("gbk"), "UTF-8"),
        (b"a: 1\n" * 50_000, "KB"),
        (None, "管道"),
    ],
)
def test_text_files_that_would_take_for_ever(tmp_path, content, word):
    path = tmp_path / "config.yaml"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=word):
        read_yaml(path)


def test_a_text_file_of_5_gigabytes(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(UserError, match="KB"):
        read_text(tmp_path / "config.json")


class OutStream(io.StringIO):
    """像笔记本里的 ``ipykernel.iostream.OutStream``:能写,没有 reconfigure,没有文件号。"""


@pytest.mark.parametrize(
    "name, args",
    [
        ("predict", ["none", "x.png"]),
        ("train", ["--epochs", "-3"]),
        ("doctor", ["none"]),
        ("evaluate", ["none"]),
        ("board", ["none"]),
    ],
)
def test_scripts_in_a_notebook(name, args):
    """``%run scripts/….py``:输出不是控制台。"""
    out, errors = OutStream(), OutStream()
    assert run_here(name, *args, streams=(out, errors)).returncode == 2
    assert errors.getvalue().startswith("错误:") and errors.getvalue().count("\n") == 1 and out.getvalue() == ""


def test_training_in_a_notebook(tmp_path):
    out = OutStream()
    done = run_here("train", *TINY, "--epochs", "1", "--output", tmp_path / "run", streams=(out, OutStream()))
    assert done.returncode == 0 and "完成:测试 top-1" in out.getvalue()


def test_a_broken_pipe_in_a_notebook():
    def main():
        raise BrokenPipeError

    with contextlib.redirect_stdout(OutStream()), pytest.raises(SystemExit) as stopped:
        cli.run_main(main)
    assert stopped.value.code == 1


def test_scripts_in_a_thread_of_a_notebook():
    ended = []

    def run():
        with contextlib.suppress(SystemExit):
            cli.run_main(lambda: ended.append(True))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert ended == [True]


def test_without_a_console(tmp_path):
    """``pythonw``:sys.stdout 和 sys.stderr 是 None。"""
    program = f"""
import runpy, sys
sys.stdout = sys.stderr = None
sys.path.insert(0, {str(script("train").parent)!r})
sys.argv = ["train.py", *{[*TINY, "--epochs", "1", "--output", str(tmp_path / "run")]!r}]
runpy.run_path({str(script("train"))!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stdout == done.stderr == ""
    assert (tmp_path / "run" / "summary.json").exists()
