import pytest
from PIL import Image

from paddle_vit import UserError
from paddle_vit.config import make_config
from paddle_vit.data.info import check_same_data, load_info, save_info
from paddle_vit.data.sources import load_data


def test_the_same_data_is_required(picture_folder):
    config = make_config({"dataset": "folder", "data_dir": str(picture_folder), "workers": 0})
    info = load_data(config).info
    check_same_data(info, load_data(config).info, "runs/x")
    Image.new("RGB", (9, 9)).save(picture_folder / "train" / "猫" / "new.png")
    more = load_data(config).info
    check_same_data(info, more, "runs/x", whole=False)
    with pytest.raises(UserError, match="张数"):
        check_same_data(info, more, "runs/x")
    (picture_folder / "train" / "猫").rename(picture_folder / "train" / "虎")
    with pytest.raises(UserError, match="虎"):
        check_same_data(info, load_data(config).info, "runs/x", whole=False)


def test_info_round_trip(tmp_path):
    info = load_data(make_config({})).info
    save_info(info, tmp_path / "data.json")
    assert load_info(tmp_path / "data.json") == info
    (tmp_path / "data.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="损坏"):
        load_info(tmp_path / "data.json")
