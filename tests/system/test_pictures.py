import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from paddle_vit.system import pictures
from paddle_vit.system.pictures import figure_and_words, use_chinese_font

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
