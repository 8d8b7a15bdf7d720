from paddle_vit.system.tables import markdown, terminal


def test_wide_characters_are_aligned():
    text = terminal([["", "图像/秒"], ["课程写法", "1.0"], ["ours", "10.0"]])
    assert text.splitlines() == ["          图像/秒", "--------  -------", "课程写法      1.0", "ours         10.0"]


def test_markdown_has_a_header_and_a_line_of_dashes():
    text = markdown([["", "图像/秒"], ["本项目", "1.0"]])
    assert text.splitlines() == ["|  | 图像/秒 |", "|---|---:|", "| 本项目 | 1.0 |"]
