"""网页上写的数字,摆成数据里的样子:与手算的位置比较。认不认得出,见 ``test_page.py``。"""

import numpy as np
import pytest
from PIL import Image

from paddle_vit.deploy.drawing import LAYOUTS, laid_out


@pytest.mark.parametrize("slope", [-0.6, -0.25, 0.3])
def test_a_slanted_stroke_is_put_upright(slope):
    """一根斜杠:扶正以后,每行墨迹的中间在同一列,上下不动。"""
    image = np.zeros((60, 120), "uint8")
    for row in range(10, 50):
        column = round(60 + slope * (row - 30))
        image[row, column - 3 : column + 4] = 255
    laid = np.asarray(laid_out(Image.fromarray(image), LAYOUTS["digits"])).astype(float)
    assert laid.shape == (40, 40)
    middles = (laid * np.arange(40)).sum(1) / laid.sum(1)
    assert np.ptp(middles) < 1.2 and np.ptp(image.argmax(1)[10:50]) > 9


def test_what_is_upright_or_one_line_stays():
    upright = np.zeros((30, 30), "uint8")
    upright[5:25, 8:18] = 255
    np.testing.assert_array_equal(
        laid_out(Image.fromarray(upright), LAYOUTS["digits"]), np.pad(upright[5:25, 8:18], ((0, 0), (5, 5)))
    )
    line = np.zeros((30, 30), "uint8")
    line[7, 3:23] = 255  # 一行高:没有倾斜可言,压到一个像素宽
    np.testing.assert_array_equal(laid_out(Image.fromarray(line), LAYOUTS["digits"]), [[255]])


def test_wide_digits_are_narrowed_as_in_the_data():
    wide = np.zeros((50, 90), "uint8")
    wide[10:40, 5:85] = 255
    laid = np.asarray(laid_out(Image.fromarray(wide), LAYOUTS["digits"]))
    assert laid.shape == (30, 30) and ((laid > 128).sum(1) == 24).all()
