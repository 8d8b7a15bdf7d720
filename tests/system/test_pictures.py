import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from paddle_vit.attention import maps_figure
from paddle_vit.system import pictures
from paddle_vit.system.pictures import confusion_figure, figure_and_words, mistakes_figure, use_chinese_font

INSTALLED = {font.name for font in fontManager.ttflist}
needs_font = pytest.mark.skipif(not INSTALLED & set(pictures._CJK_FONTS), reason="没有装中文字体")


@pytest.fixture(autouse=True)
def default_settings():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def draw(text):
    """画一行字,返回像素和「缺字形」的警告。"""
    figure = Figure(figsize=(3, 1))
    canvas = FigureCanvasAgg(figure)
    figure.text(0.1, 0.4, text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba()), [w for w in caught if "missing from" in str(w.message)]


@needs_font
def test_chinese_is_drawn_only_after_use_chinese_font():
    boxes, missing = draw("损失")
    assert missing
    font = use_chinese_font()
    assert font in INSTALLED
    glyphs, missing = draw("损失")
    assert not missing
    assert (boxes != glyphs).any()
    assert matplotlib.rcParams["font.family"][0] == font
    assert matplotlib.rcParams["axes.unicode_minus"] is False


def test_figures_and_notebooks_choose_the_same_font():
    before = dict(matplotlib.rcParams)
    font = figure_and_words(1, 1)[1].font
    assert dict(matplotlib.rcParams) == before  # figure_and_words 不改全局设置
    assert use_chinese_font() == font


def test_without_a_chinese_font_nothing_changes(monkeypatch):
    monkeypatch.setattr(pictures, "_CJK_FONTS", ("No Such Font",))
    before = dict(matplotlib.rcParams)
    assert use_chinese_font() is None
    assert dict(matplotlib.rcParams) == before
    assert figure_and_words(1, 1)[1].font is None


@pytest.fixture
def without_chinese(monkeypatch):
    """matplotlib 记着的字体里没有中文的。"""
    files = {font.fname for font in fontManager.ttflist if font.name in pictures._CJK_FONTS}
    latin = [font for font in fontManager.ttflist if font.fname not in files]
    monkeypatch.setattr(fontManager, "ttflist", latin)


@needs_font
def test_a_font_newer_than_the_cache_of_matplotlib_is_found(without_chinese):
    font = use_chinese_font()
    assert font in pictures._CJK_FONTS
    assert not draw("损失")[1]


def test_an_unreadable_font_is_passed_over(without_chinese, monkeypatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(tmp_path / "broken.ttf")])
    assert figure_and_words(1, 1)[1].font is None


def test_without_a_chinese_font_only_chinese_is_replaced(monkeypatch):
    monkeypatch.setattr(pictures, "_CJK_FONTS", ())
    words = figure_and_words(1, 1)[1]
    assert words.writable("3 → 5 80%", "-") == "3 → 5 80%"  # 箭头不是中文
    assert words.writable("chaîne ± Ωμέγα", "-") == "chaîne ± Ωμέγα"
    assert words.writable("猫 → 狗", "-") == "-"
    assert (words("损失", "loss"), words.font) == ("loss", None)


def test_the_captions_of_digits_need_no_chinese_font(monkeypatch):
    monkeypatch.setattr(pictures, "_CJK_FONTS", ())
    image = np.zeros((8, 8, 1), "uint8")
    guesses = [(0, 1, 0.8), (2, 0, 0.9)]
    figure = mistakes_figure([image, image], guesses, ["3", "5", "猫"], "测试集上错得最离谱的图像")
    assert [axes.get_title() for axes in figure.axes[:2]] == ["3 → 5 80%", "#2 → 3 90%"]


def test_without_a_chinese_font_no_picture_hides_what_it_shows(monkeypatch):
    monkeypatch.setattr(pictures, "_CJK_FONTS", ())
    confusion = confusion_figure(np.eye(3, dtype=int), ["猫", "dog", "鸟"], "混淆矩阵")
    assert [label.get_text() for label in confusion.axes[0].get_xticklabels()] == ["#0", "dog", "#2"]
    maps = {"rollout": np.ones((2, 2, 2)), "梯度加权": np.ones((2, 2, 2))}
    (axes,) = maps_figure(np.zeros((2, 8, 8, 1), "uint8"), maps, ["猫 → 狗", "5 → 3"]).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["image", "rollout", "map 2"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["image 1", "5 → 3"]


def test_only_without_a_chinese_font_it_is_advised(monkeypatch):
    monkeypatch.setattr(pictures, "_chinese_font", lambda: "Noto Sans CJK SC")
    assert pictures.font_advice() == ""
    monkeypatch.setattr(pictures, "_chinese_font", lambda: None)
    assert "fonts-noto-cjk" in pictures.font_advice() and pictures.font_advice().count("\n") == 1
