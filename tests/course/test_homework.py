import json
import runpy
import shutil
import time

import pytest
from support.planted import planted
from support.running import ROOT, run_script

from homework import grading
from homework.grading import folder, worker
from homework.grading.machinery import FAILED, PASSED, SKIPPED, Result
from paddle_vit import UserError
from paddle_vit.system import cli

SOLUTIONS = ROOT / "tests" / "solutions"


@pytest.fixture(autouse=True)
def remembered(tmp_path, monkeypatch):
    """In-process tests write the remembered folder here, not into the clone."""
    monkeypatch.setattr(folder, "REMEMBERED", tmp_path / "remembered")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "remembered"


@pytest.fixture
def verdicts(monkeypatch):
    """Stands in for the subprocess: a list of results, changed by the test."""
    results = []
    monkeypatch.setattr(folder, "grade_in_subprocess", lambda number, path, seconds: (list(results), ""))
    return results


def set_passed(results, passed, hint="想一想"):
    total = len(grading.exercise(10).checks)
    results[:] = [Result("一项", PASSED)] * passed + [Result("一项", FAILED, "不对", hint)] * (total - passed)


@pytest.fixture
def clone(tmp_path):
    """A copy of the parts of the clone a student uses, so that its remembered folder is the test's own."""
    for name in ("homework", "paddle_vit", "scripts"):
        ignore = shutil.ignore_patterns("__pycache__", ".folder")
        shutil.copytree(ROOT / name, tmp_path / "clone" / name, ignore=ignore)
    return tmp_path / "clone"


@pytest.fixture(params=["in process", pytest.param("script", marks=pytest.mark.slow)])
def homework(request, capsys, monkeypatch):
    """Runs scripts/homework.py with the given arguments, returns (status, stdout, stderr)."""

    def in_process(*args):
        monkeypatch.setattr("sys.argv", ["homework.py", *args])
        main = runpy.run_path(str(ROOT / "scripts" / "homework.py"))["main"]
        status = 0
        try:
            cli.run_main(main)
        except SystemExit as stopped:
            status = stopped.code
        return (status, *capsys.readouterr())

    def as_script(*args):
        clone = request.getfixturevalue("clone")
        script = str(clone / "scripts" / "homework")
        done = run_script(script, *args, cwd=clone.parent, env={"PYTHONPATH": str(clone)})
        return done.returncode, done.stdout, done.stderr

    return in_process if request.param == "in process" else as_script


def test_from_start_to_done(homework, tmp_path):
    status, out, _ = homework("start", "2", "--into", "我的")
    assert status == 0 and "ex02_attention.py" in out
    file = tmp_path / "我的" / "ex02_attention.py"
    status, _, error = homework("start", "2")
    assert status == 2 and "没有覆盖" in error and error.count("\n") == 1

    shutil.copy(planted(tmp_path, "ex02_attention", [("/ self.head_dim**0.5", "* 1")]), file)
    status, first, _ = homework("check", "2")
    assert status == 1
    assert "没有缩放" in first and "[0, 0, 0, 0] 应为" in first and "提示:" not in first
    status, second, _ = homework("check", "2")
    assert status == 1 and "没有缩放" in second and "提示:" in second

    shutil.copy(SOLUTIONS / "ex02_attention.py", file)
    status, out, _ = homework("check", "2")
    assert status == 0 and "通过 5 / 5 项,完成!" in out
    status, out, _ = homework("status")
    assert status == 0 and "2 完成(判过 3 次)" in out and out.count("未开始") == len(grading.FILES) - 1


def test_not_done_is_no_try_and_a_real_process_exits_with_1(tmp_path):
    shutil.copy(ROOT / "homework" / "ex10_rollout.py", tmp_path)
    done = run_script("homework", "check", "10", "--file", tmp_path / "ex10_rollout.py", check=1)
    assert "TODO 还没做" in done.stdout and "[不对]" not in done.stdout
    record = json.loads((tmp_path / ".homework.json").read_text())["10"]
    assert (record["tries"], record["passed"]) == (0, 0)


@pytest.mark.parametrize(
    "args, words",
    [
        (["start", "99"], ["99", "all"]),
        (["start", "-1"], ["-1"]),
        (["start"], ["缺少参数", "N"]),
        (["check", "all"], ["status"]),
        (["check", "3", "--into", "nowhere"], ["nowhere", "start 3"]),
        (["check", "3", "--file", "nothing.py"], ["nothing.py"]),
        (["check", "3", "--seconds", "0"], ["--seconds", "0"]),
        (["start", "3", "--file", "x.py"], ["--file"]),
        (["status", "--into", "nowhere"], ["nowhere"]),
        (["grade", "3"], ["grade", "start"]),
        (["start", "3", "--into", "/dev/null"], ["/dev/null"]),
        (["start", "3", "--into", str(ROOT / "homework")], ["--into"]),
    ],
)
@pytest.mark.parametrize("homework", ["in process"], indirect=True)
def test_wrong_commands(homework, args, words):
    status, _, error = homework(*args)
    assert status == 2 and error.startswith("错误:") and error.count("\n") == 1
    assert all(word in error for word in words), error


# ---- handing out ----


def test_start_all_leaves_what_is_there(tmp_path, capsys):
    mine = tmp_path / "my" / "ex05_encoder.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    folder.start("all", "my")
    assert mine.read_text() == "mine" and "没有动它" in capsys.readouterr().out
    names = sorted(path.name for path in mine.parent.glob("ex*.py"))
    assert names == sorted(f"{name}.py" for name in grading.FILES.values())
    template = ROOT / "homework" / "ex07_training.py"
    assert (tmp_path / "my" / template.name).read_bytes() == template.read_bytes()


def test_folder_is_remembered_as_long_as_it_exists(tmp_path, remembered):
    assert folder.remembered_folder().name == "my"
    folder.start("1", "here")
    assert folder.find_file(1, None, None) == tmp_path / "here" / "ex01_patches.py"
    shutil.rmtree(tmp_path / "here")
    assert folder.remembered_folder().name == "my"
    remembered.write_bytes(b"\xff\xfe\x00")
    assert folder.remembered_folder().name == "my"


def test_start_says_into_when_it_cannot_remember(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(folder, "REMEMBERED", tmp_path / "file" / "x")
    folder.start("1", "here")
    assert "check 1 --into here" in capsys.readouterr().out


# ---- counting ----


def test_hint_comes_with_the_second_failure_and_tries_are_counted(tmp_path, verdicts, capsys):
    folder.start("10", "my")
    (tmp_path / "my" / "ex10_rollout.py").write_text("# begun\n")
    set_passed(verdicts, 1)
    hints = []
    for _ in range(3):
        assert folder.check("10") is False
        hints.append("提示:想一想" in capsys.readouterr().out)
    assert hints == [False, True, True]
    folder.status()
    assert "10 进行中(通过 1 / 3 项,判过 3 次)" in capsys.readouterr().out
    set_passed(verdicts, 3)
    assert folder.check("10") is True
    folder.status()
    assert "10 完成(判过 4 次)" in capsys.readouterr().out


def test_status_tells_what_was_not_graded_or_changed_since(tmp_path, verdicts, capsys):
    folder.start("all", "my")
    mine = tmp_path / "my" / "ex10_rollout.py"
    folder.status()
    assert capsys.readouterr().out.count("未开始") == len(grading.FILES)
    mine.write_text("# begun\n")
    folder.status()
    assert "10 进行中(还没有判过)" in capsys.readouterr().out
    set_passed(verdicts, 3)
    folder.check("10")
    mine.write_text("# more\n")
    folder.status()
    assert "10 完成(判过 1 次,之后改过)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"10": 3}', '{"10": {"tries": "many"}}', '{"99": {}}', "\udcff"])
def test_broken_record_is_told_and_begun_again(tmp_path, verdicts, capsys, text):
    folder.start("10", "my")
    record = tmp_path / "my" / ".homework.json"
    record.write_bytes(text.encode("utf-8", "surrogateescape"))
    set_passed(verdicts, 0)
    folder.check("10")
    assert "读不懂" in capsys.readouterr().err
    assert json.loads(record.read_text())["10"]["tries"] == 1


def test_record_that_cannot_be_written_does_not_stop_grading(tmp_path, verdicts, capsys):
    folder.start("10", "my")
    (tmp_path / "my" / ".homework.json").mkdir()
    set_passed(verdicts, 3)
    assert folder.check("10") is True
    captured = capsys.readouterr()
    assert "记不下这一次" in captured.err and "完成" in captured.out


def test_file_option_keeps_its_record_beside_the_file(tmp_path, verdicts):
    path = tmp_path / "elsewhere" / "attempt.py"
    path.parent.mkdir()
    path.write_text("")
    set_passed(verdicts, 3)
    assert folder.check("10", file=path)
    assert (path.parent / ".homework.json").exists()


def test_missing_templates_are_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "TEMPLATES", tmp_path / "none")
    with pytest.raises(UserError, match="克隆"):
        folder.start("1", "my")


def test_long_output_is_cut_and_marked(tmp_path, monkeypatch, capsys):
    folder.start("10", "my")
    printed = "\n".join(f"line {i}" for i in range(50))
    monkeypatch.setattr(folder, "grade_in_subprocess", lambda *args: ([Result("一项", SKIPPED)], printed))
    folder.check("10")
    out = capsys.readouterr().out
    assert "  | line 49" in out and "  | line 29" not in out and "最后 20 行" in out


# ---- the separate process ----


def test_endless_loop_is_stopped_and_its_line_told(tmp_path):
    directory = tmp_path / "我的 作业"
    directory.mkdir()
    path = planted(directory, "ex10_rollout", [("    row = matrix[:, 0, 1:]\n", "    while True:\n        pass\n")])
    line = 1 + path.read_text(encoding="utf-8").splitlines().index("    while True:")
    started = time.monotonic()
    results, _ = worker.grade_in_subprocess(10, path, seconds=3)
    assert time.monotonic() - started < 60
    assert [result.verdict for result in results] == [PASSED, PASSED, FAILED]
    assert results[-1].mistakes == ("endless",) and "超过 3 秒" in results[-1].message
    assert f"第 {line} 行" in results[-1].message or f"第 {line + 1} 行" in results[-1].message


def test_crash_is_told_and_printing_kept(tmp_path):
    path = tmp_path / "ex10_rollout.py"
    path.write_text("import os\nprint('再见')\nos._exit(3)\n", encoding="utf-8")
    results, printed = worker.grade_in_subprocess(10, path)
    assert results[0].mistakes == ("crash",) and "状态 3" in results[0].message
    assert printed.strip() == "再见"


def test_subprocess_gives_the_same_results_as_in_process(tmp_path):
    path = planted(tmp_path, "ex11_finetuning", [("backbone_lr / head_lr", "backbone_lr")])
    (tmp_path / "helper.py").write_text("value = 1\n")
    path.write_text(f"import helper\n\nprint(helper.value)\n{path.read_text()}")
    results, printed = worker.grade_in_subprocess(11, path)
    in_process = grading.grade(grading.exercise(11), planted(tmp_path, "ex11_finetuning", [("/ head_lr", "")]))
    assert [(r.verdict, list(r.mistakes)) for r in results] == [(r.verdict, list(r.mistakes)) for r in in_process]
    assert printed.strip() == "1"


def test_endless_printing_is_stopped_and_only_its_end_kept(tmp_path):
    path = tmp_path / "ex10_rollout.py"
    path.write_text("while True:\n    print('x' * 1000)\n")
    results, printed = worker.grade_in_subprocess(10, path, seconds=1)
    assert results[0].mistakes == ("endless",) and "第 2 行" in results[0].message
    assert 0 < len(printed) <= worker.TAIL_BYTES


@pytest.mark.parametrize(
    "start",
    [
        "import subprocess\nsubprocess.Popen(['sleep', '300'])\n",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(300,)).start()\n",
    ],
)
def test_what_the_student_left_running_is_not_waited_for(tmp_path, start):
    path = tmp_path / "ex10_rollout.py"
    path.write_text(start + (SOLUTIONS / path.name).read_text(encoding="utf-8"), encoding="utf-8")
    started = time.monotonic()
    results, _ = worker.grade_in_subprocess(10, path)
    assert {result.verdict for result in results} == {PASSED} and time.monotonic() - started < 150


def test_files_named_like_modules_beside_the_homework_are_not_imported(tmp_path):
    shutil.copy(SOLUTIONS / "ex10_rollout.py", tmp_path)
    for name in ("random", "numpy", "paddle"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError")
    results, _ = worker.grade_in_subprocess(10, "ex10_rollout.py")  # the fixture made this the current directory
    assert {result.verdict for result in results} == {PASSED}
