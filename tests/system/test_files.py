"""打印的命令里的路径,复制过去就能用。"""

import os
import shlex
from pathlib import Path

import pytest

from paddle_vit.config import make_config
from paddle_vit.config_files import load_config, save_config
from paddle_vit.system.files import quoted

ODD = ["a run", "my'run", 'a"b', "a$b", "a(1)", "a;b", "我的 运行", "*", ""]


@pytest.mark.skipif(os.name != "posix", reason="Windows 的引号是另一种")
@pytest.mark.parametrize("path", ["runs/digits-1126", "我的图片/猫.png", "a~b", *ODD])
def test_a_quoted_path_is_one_word(path):
    assert shlex.split(f"python scripts/train.py --resume {quoted(path)}")[3:] == [path]
    assert (quoted(Path(path)) == str(Path(path))) == (path not in ODD or path == "")


def test_a_relative_data_dir_is_remembered_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config({"dataset": "folder", "data_dir": "../图片"})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path).data_dir == str(tmp_path.parent / "图片")
    save_config(make_config({}), tmp_path / "config.yaml")
    assert load_config(tmp_path).data_dir is None
