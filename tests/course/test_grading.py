import inspect
import re
import shutil

import numpy as np
import pytest
from support.planted import PLANTED, SOLUTIONS, planted
from support.running import ROOT

from homework import grading
from homework.grading import machinery
from paddle_vit import UserError


def grade(path):
    return grading.grade(grading.exercise(int(path.name[2:4])), path)


def mistakes(results):
    return {name for result in results for name in result.mistakes}


@pytest.mark.parametrize("path", sorted(SOLUTIONS.glob("*.py")), ids=lambda path: path.stem)
def test_right_solutions_in_every_style_pass_without_complaint(path):
    for result in grade(path):
        assert result.verdict == machinery.PASSED and not result.message, result


@pytest.mark.parametrize(
    "name, mistake, patches", PLANTED, ids=[f"{p[0][:4]}-{p[1]}-{i}" for i, p in enumerate(PLANTED)]
)
def test_planted_mistake_is_named_and_no_other(tmp_path, name, mistake, patches):
    results = grade(planted(tmp_path, name, patches))
    assert mistakes(results) == {mistake}, results
    texts = grading.exercise(int(name[2:4])).mistakes
    if mistake in texts:
        assert any(texts[mistake] in result.message for result in results)


def test_every_mistake_the_grader_knows_is_planted():
    known = {name for number in grading.FILES for name in grading.exercise(number).mistakes}
    assert known <= {mistake for _, mistake, _ in PLANTED}


def test_two_mistakes_at_once_are_both_named(tmp_path):
    wanted = {"no_scale", "softmax_over_queries"}
    chosen = [patches for name, mistake, patches in PLANTED if name == "ex02_attention" and mistake in wanted]
    path = planted(tmp_path, "ex02_attention", [patch for patches in chosen for patch in patches])
    assert mistakes(grade(path)) == wanted


UNKNOWN = [
    ("ex00_classifier", "return e / e.sum(axis=1, keepdim=True)", "return e / e.sum(axis=1, keepdim=True) + 0.1"),
    ("ex01_patches", "return x", "return x * 1.01"),
    ("ex02_attention", "self.head_dim**0.5", "1.9"),
    ("ex05_encoder", "x = x + z\n        return x", "x = x + 2 * z\n        return x"),
    ("ex06_position", "10000.0", "1000.0"),
    ("ex07_training", "math.pi * p", "3 * p"),
    ("ex08_whole_vit", "argmax(axis=-1)", "argmin(axis=-1)"),
    ("ex10_rollout", "0.5 * a + 0.5", "0.7 * a + 0.3"),
    ("ex03_einsum", "** 0.5", "** 0.4"),
    ("ex11_finetuning", "backbone_lr / head_lr", "backbone_lr / head_lr / 7"),
    ("ex14_conv_tokenizer", "F.relu(z + x)", "F.relu(z + 2 * x)"),
    ("ex15_feeding", "/ 255", "/ 250"),
    ("ex04_mask_and_cost", "-1e9", "-3.0"),
    ("ex12_window_attention", "x = x.transpose([0, 1, 3, 2, 4, 5])", "x = x.transpose([0, 1, 3, 2, 4, 5]) * 2"),
    ("ex12_window_attention", "y * gamma", "y * 1.1 * gamma"),
    ("ex13_swin", "-100.0)", "-7.0)"),
    ("ex13_swin", "scores + bias", "scores + 3 * bias"),
    ("ex04_mask_and_cost", "K * N * D * D", "K * N * D * D + 17"),
    ("ex09_deit", "temperature**2", "temperature**1.5"),
    ("ex09_deit", "(H * W)", "(H * W - 1)"),
]


@pytest.mark.parametrize("name, old, new", UNKNOWN)
def test_unknown_mistake_gets_no_name_but_the_numbers(tmp_path, name, old, new):
    results = grade(planted(tmp_path, name, [(old, new)]))
    assert not mistakes(results)
    assert any("应为" in result.message and "得到" in result.message for result in results)


def test_in_place_addition_is_named_where_it_breaks_the_gradient(tmp_path):
    *others, last = grade(planted(tmp_path, "ex05_encoder", [("x = x + z", "x.add_(z)")]))
    assert all(result.verdict == machinery.PASSED for result in others)
    assert "原地运算" in last.message


def test_assignment_into_a_tensor_that_breaks_the_gradient_is_told(tmp_path):
    z = "z = paddle.matmul(weights, v)"
    *_, last = grade(
        planted(tmp_path, "ex02_attention", [(z, f"{z}\n        weights[:, :, 0] = weights[:, :, 0] * 1")])
    )
    assert last.verdict == machinery.FAILED and "w[i] = …" in last.message


def test_other_layers_than_linear_are_not_called_a_wrong_width(tmp_path):
    path = tmp_path / "ex05_encoder.py"
    source = (SOLUTIONS / path.name).read_text(encoding="utf-8")
    convs = re.sub(r"nn\.Linear\((.*)\)\n", r"nn.Conv1D(\1, 1)\n", source)
    assert convs != source
    path.write_text(convs, encoding="utf-8")
    assert mistakes(grade(path)[:3]) == {"roles"}


@pytest.mark.parametrize("name", grading.FILES.values())
def test_template_is_not_done_rather_than_wrong(name):
    results = grade(ROOT / "homework" / f"{name}.py")
    assert {result.verdict for result in results} == {machinery.TODO, machinery.SKIPPED}
    assert not mistakes(results) and any("TODO 还没做" in result.message for result in results)


@pytest.mark.parametrize("name", grading.FILES.values())
def test_templates_own_trial_runs_with_the_solution(name, capsys):
    template = (ROOT / "homework" / f"{name}.py").read_text(encoding="utf-8")
    imports = "\n".join(re.findall(r"^(?:import|from) .*", template, re.M))
    solution = (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8")
    trial = template[template.index("if __name__") :]
    exec(f"{imports}\n{solution}\n{trial}", {"__name__": "__main__"})
    printed = capsys.readouterr().out
    for shape in re.findall(r"\[\d+(?:, \d+)+\]", "".join(re.findall(r"# 应为.*", trial))):
        assert shape in printed, printed


@pytest.mark.parametrize("name", grading.FILES.values())
def test_template_and_solution_have_the_same_signatures(name):
    template, solution = (grading.load(folder / f"{name}.py") for folder in (ROOT / "homework", SOLUTIONS))
    for check in grading.exercise(int(name[2:4])).checks:
        assert inspect.signature(template[check.part]) == inspect.signature(solution[check.part])


def test_exercise_numbers_are_checked():
    assert [grading.exercise(number).number for number in grading.FILES] == list(range(len(grading.FILES)))
    with pytest.raises(UserError, match="作业 99"):
        grading.exercise(99)


# ---- comparing ----


def test_first_difference_is_the_first_one_with_both_values():
    expected = np.zeros((2, 3))
    got = expected.copy()
    got[1, 0], got[1, 2] = 5, 7
    with pytest.raises(machinery.Wrong) as caught:
        machinery.compare("y", got, lambda wrong: expected)
    for part in ("y[1, 0]", "应为 0.0000", "得到 5.0000", "[2, 3]", "6 个数里有 2 个"):
        assert part in str(caught.value)


def test_wrong_shape_is_told_with_both_shapes():
    with pytest.raises(machinery.Wrong, match=r"应为 \[2, 3\],得到 \[3, 2\]"):
        machinery.compare("y", np.zeros((3, 2)), lambda wrong: np.zeros((2, 3)))


def test_nan_is_different():
    with pytest.raises(machinery.Wrong, match="nan"):
        machinery.compare("y", np.array([np.nan]), lambda wrong: np.array([1.0]))


@pytest.mark.parametrize("value, word", [(None, "return"), (..., "return"), ("text", "str"), ([1], "list")])
def test_things_that_are_no_numbers_are_told(value, word):
    with pytest.raises(machinery.Wrong, match=word):
        machinery.as_array("y", value)


# ---- files that cannot be read ----


@pytest.mark.parametrize(
    "data, words",
    [
        ("# 中文\n".encode("gbk"), ["UTF-8", "GBK"]),
        ("# 中文\n".encode("utf-16"), ["UTF-8"]),
        (b"x = 1\ndef f(:\n", ["第 2 行", "语法", "def f(:"]),
        (b"if True:\nx = 1\n", ["第 2 行", "语法"]),
        (b"x = 1\x00\n", []),
        (b"\n\nraise ValueError('first\\nsecond')\n", ["第 3 行", "ValueError:first"]),
        (b"import sys\nsys.exit(0)\n", ["第 2 行", "sys.exit"]),
        (b"name = input()\n", ["第 1 行", "input"]),
        (b"import no_such_module\n", ["no_such_module"]),
    ],
)
def test_unreadable_file_is_explained_and_nothing_else_is_checked(tmp_path, monkeypatch, data, words):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    path = tmp_path / "ex10_rollout.py"
    path.write_bytes(data)
    first, *others = grade(path)
    assert first.verdict == machinery.FAILED and others
    assert all(result.verdict == machinery.SKIPPED for result in others)
    for word in words:
        assert word in first.message
    assert "Traceback" not in first.message and len(first.message.splitlines()) <= 3


def test_byte_order_mark_and_declared_encoding_are_read(tmp_path):
    source = (SOLUTIONS / "ex10_rollout.py").read_text(encoding="utf-8")
    for data in (source.encode("utf-8-sig"), b"# coding: gbk\n" + f"# 中文\n{source}".encode("gbk")):
        path = tmp_path / "ex10_rollout.py"
        path.write_bytes(data)
        assert all(result.verdict == machinery.PASSED for result in grade(path))


def test_exception_names_the_students_own_line(tmp_path):
    path = planted(tmp_path, "ex02_attention", [("paddle.matmul(weights, v)", "paddle.matmul(weights, x[:, :3])")])
    number = 1 + path.read_text(encoding="utf-8").splitlines().index("        z = paddle.matmul(weights, x[:, :3])")
    (failed,) = [result for result in grade(path) if result.verdict == machinery.FAILED]
    assert f"第 {number} 行" in failed.message and "ValueError" in failed.message
    assert "Hint" not in failed.message and len(failed.message.splitlines()) == 2


def test_forgotten_super_init_is_named(tmp_path):
    path = planted(tmp_path, "ex02_attention", [("        super().__init__()\n", "")])
    assert "忘了在 __init__ 的第一行写 super().__init__()" in grade(path)[0].message


def test_one_part_wrong_does_not_hide_the_others(tmp_path):
    path = planted(tmp_path, "ex10_rollout", [("0.5 * a + ", "")])
    verdicts = [result.verdict for result in grade(path)]
    assert verdicts == [machinery.FAILED, machinery.SKIPPED, machinery.PASSED]


def test_grading_changes_nothing_in_the_students_folder(tmp_path):
    path = tmp_path / "ex00_classifier.py"
    shutil.copy(SOLUTIONS / path.name, path)
    grade(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
