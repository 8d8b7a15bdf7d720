import dataclasses
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from support.results import assert_same_end
from support.running import TINY, assert_one_chinese_line, run_here, run_script

from paddle_vit import UserError
from paddle_vit.attention.maps import rollout, token_map
from paddle_vit.attention.recording import attention_weights
from paddle_vit.config import make_config, result_settings
from paddle_vit.data.augment import normalize
from paddle_vit.data.parts import varied_indices
from paddle_vit.data.sources import load_data
from paddle_vit.family.swin import SwinTransformer
from paddle_vit.runs.loading import LoadedRun, build_model, load_run
from paddle_vit.study.attention_pictures import data_to_look_at, draw_attention, pictures_to_show
from paddle_vit.study.attention_share import figure_mask, figure_ratio, measure_figure_share, otsu_threshold

rng = np.random.default_rng(0)


def test_otsu_has_the_largest_variance_between_the_groups():
    image = np.concatenate([rng.normal(60, 15, 300), rng.normal(170, 20, 200)]).clip(0, 255).astype("uint8")

    def spread(threshold):
        dark, bright = image[image <= threshold].astype(float), image[image > threshold].astype(float)
        return len(dark) * len(bright) * (dark.mean() - bright.mean()) ** 2

    thresholds = range(image.min(), image.max())
    best = max(spread(threshold) for threshold in thresholds)
    np.testing.assert_allclose(spread(otsu_threshold(image)), best)


def test_figure_mask_is_the_share_of_bright_pixels():
    images = np.full((2, 4, 8, 3), 10, "uint8")
    images[0, :2, :4] = 200  # 左上的图块全亮
    images[0, 2:, 4] = 200  # 右下的图块亮四分之一
    images[1, :, 6:] = 90  # 右边两个图块各亮一半
    masks = figure_mask(images, (2, 2))
    np.testing.assert_allclose(masks, [[[1, 0], [0, 0.25]], [[0, 0.5], [0, 0.5]]])


def test_figure_ratio_closed_forms():
    masks = rng.random((3, 4, 4))
    np.testing.assert_allclose(figure_ratio(np.full((3, 4, 4), 0.3), masks), 1)
    whole = np.zeros((1, 2, 2))
    whole[0, 0] = 1
    np.testing.assert_allclose(figure_ratio(3 * whole + (1 - whole), whole), 3)
    assert np.isnan(figure_ratio(np.ones((2, 2, 2)), np.stack([np.zeros((2, 2)), np.ones((2, 2))]))).all()
    maps, half = np.array([[[4.0, 1.0]]]), np.array([[[0.5, 0.0]]])  # 图形 4,背景 (0.5 * 4 + 1) / 1.5 = 2
    np.testing.assert_allclose(figure_ratio(maps, half), 2)


def test_varied_indices_take_turns():
    labels = np.array([2, 2, 0, 1, 0, 2, 2])
    assert varied_indices(labels, 5).tolist() == [2, 3, 0, 4, 1]
    assert varied_indices(labels, 99).tolist() == [2, 3, 0, 4, 1, 5, 6]
    assert len(varied_indices(labels, 0)) == 0


def test_measure_equals_a_plain_computation():
    options = dict(patch_size=2, embed_dim=8, depth=2, num_heads=2, position_embedding="learnable", position_std=2)
    config = make_config(options)
    data = load_data(config)
    part, model = data.val, build_model(config, data.info)
    model.eval()
    loaded = LoadedRun(None, config, data.info, model)
    table, by_share, classes = measure_figure_share(loaded, part)
    ratios, pixel_ratios, weights, shares = [], [], [], []
    for image in part.images:
        inputs = normalize(image[None], loaded.info.mean, loaded.info.std)
        weight = token_map(rollout(attention_weights(loaded.model, inputs)), loaded.model)[0]  # [4, 4]
        figure = image[..., 0] > otsu_threshold(image)
        per_pixel = weight.repeat(2, axis=0).repeat(2, axis=1)
        pixel_ratios.append(per_pixel[figure].mean() / per_pixel[~figure].mean())
        share = figure.reshape(4, 2, 4, 2).mean(axis=(1, 3))
        ratios.append(weight[share > 0].mean() / weight[share == 0].mean())
        weights.append(weight / weight.mean())
        shares.append(share)
    ratios = np.array(ratios)
    mean, interval = (float(text) for text in table[1][1].split(" ± "))
    assert table[1][0] == "rollout" and abs(mean - ratios.mean()) < 1e-3
    assert abs(interval - 1.96 * ratios.std(ddof=1) / np.sqrt(len(ratios))) < 1e-3
    assert abs(float(table[1][2].rstrip("%")) / 100 - (ratios > 1).mean()) < 1e-3
    assert abs(float(table[1][5].split()[0]) - np.mean(pixel_ratios)) < 1e-3
    weights, shares = np.array(weights), np.array(shares)
    below_half = (shares > 0) & (shares <= 0.5)
    assert by_share[2][:2] == ["一半以下", f"{below_half.mean():.0%}"]
    assert abs(float(by_share[2][2]) - weights[below_half].mean()) < 0.01
    assert classes[0][:2] == ["类别", "rollout"] and classes[8][0] == "7"
    assert abs(float(classes[8][1]) - ratios[part.labels == 7].mean()) < 0.01
    assert {len(row) for row in table} == {6} and {len(row) for row in classes} == {5} and len(classes) == 11


def test_attention_does_not_change_the_training(tiny_run, tmp_path):
    from visualdl import LogReader

    run = tmp_path / "run"
    run_script("train", *TINY, "--attention-images", "0", "--output", run, check=0)
    assert_same_end(tiny_run, run)
    assert (run / "best.safetensors").read_bytes() == (tiny_run / "best.safetensors").read_bytes()
    reader = LogReader(file_path=str(tiny_run / "vdlrecords.log"))
    assert [item.id for item in reader.get_data("image", "attention/heads")] == [1, 2]
    assert [item.id for item in reader.get_data("image", "attention/rollout")] == [1, 2]
    assert not any("attention" in tag for tag in LogReader(file_path=str(run / "vdlrecords.log")).get_tags()["image"])
    assert "attention_images" not in result_settings(make_config({}))


def test_show_attention(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    done = run_script("show_attention", run, "--sample", "2", check=0)
    names = [line.rsplit("/", 1)[1] for line in done.stdout.splitlines()]
    assert re.sub(r"val\d+", "val", " ".join(names)) == (
        "heads_1_val.png heads_2_val.png maps.png distance.png filters.png position.png"
    )
    for line in done.stdout.splitlines():
        assert str(run / "attention") in line
        with Image.open(line) as image:
            assert image.width >= 400 and len(image.convert("L").getcolors()) > 10
    assert done.stderr == ""
    Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype="uint8")).save(tmp_path / "我的图.png")
    args = ["--query", "1,0", "--layer", "1", "--output", tmp_path / "out", tmp_path / "我的图.png", "--invert"]
    run_script("show_attention", run, *args, check=0)
    assert (tmp_path / "out" / "heads_1_我的图.png").exists()
    assert (tmp_path / "out" / "maps.png").read_bytes() != (run / "attention" / "maps.png").read_bytes()
    (run / "attention" / "heads_of_mine.png").touch()  # 不是它画的
    run_script("show_attention", run, "--sample", "1", check=0)
    heads = sorted(path.name for path in (run / "attention").glob("heads_*"))
    assert re.sub(r"val\d+", "val", " ".join(heads)) == "heads_1_val.png heads_of_mine.png"
    measured = run_script("show_attention", run, "--measure", check=0).stdout
    assert [table.split()[0] for table in measured.split("\n\n")] == ["注意力图", "图块", "类别"]


def test_errors(tiny_run, tmp_path):
    (tmp_path / "text.png").write_text("x", encoding="utf-8")
    text = str(tmp_path / "text.png")
    loaded = load_run(tiny_run)
    for given, words in (
        (([], 17), "17 张.*16"),
        (([], 0), "0 张"),
        (([text], None), "text.png 不是图片"),
        (([text], 2), "--sample 2"),
        (([], None, True), "--invert"),
    ):
        with pytest.raises(UserError, match=words):
            pictures_to_show(loaded, *given)
    pictures = pictures_to_show(loaded, [], 1)
    for given, words in ((((2, 0), None), "2 行 2 列"), ((None, 2), "--layer 2.*1 层"), ((None, 0), "--layer 0")):
        with pytest.raises(UserError, match=words):
            list(draw_attention(loaded, pictures, tmp_path / "out", *given))
    assert not (tmp_path / "out").exists()
    done = run_script("show_attention", tiny_run, "--query", "2;0", "--output", tmp_path / "out")
    assert_one_chinese_line(done, "--query", "2;0", "1,2")
    assert_one_chinese_line(run_here("show_attention", tiny_run, "--output", "/dev/null/x"), "/dev/null")
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "best.safetensors").unlink()
    assert_one_chinese_line(run_here("show_attention", run), "best.safetensors")


def test_a_class_token_without_positions_and_own_pictures(picture_folder, tmp_path):
    run = tmp_path / "run"
    args = "--recipe none --image-size 16 --patch-size 8 --embed-dim 8 --depth 2 --epochs 1 --batch-size 4".split()
    args += ["--pool", "cls", "--dataset", "folder", "--data-dir", picture_folder]
    run_script("train", *args, "--output", run, check=0)
    done = run_script("show_attention", run, picture_folder / "train" / "猫", check=0)
    assert done.stdout.count("heads_") == 6 and "没有位置编码" in done.stdout
    assert not (run / "attention" / "position.png").exists()
    loaded = load_run(run)
    with pytest.raises(UserError, match=r"黑底.*folder"):
        measure_figure_share(loaded, None)
    moved = picture_folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="pictures"):
        pictures_to_show(loaded, [], 1)
    assert pictures_to_show(loaded, [], 1, data_dir=str(moved)).images.shape == (1, 16, 16, 3)


@pytest.mark.slow
def test_the_default_run_looks_at_the_digits(default_run):
    """默认的训练:rollout 在图形上的权重明显比背景多,也比没训练过的模型多。"""
    loaded = load_run(default_run)
    table, *_ = measure_figure_share(loaded, load_data(loaded.config).test)
    print(table)
    trained, untrained = (float(table[1][column].split()[0]) for column in (1, 4))
    assert trained > 1.1 and trained > untrained + 0.05


def test_swin_is_refused_before_its_data_are_read(tiny_run):
    swin = SwinTransformer(8, 2, 1, 3, embed_dim=8, depths=(1, 1), num_heads=(1, 2))
    loaded = dataclasses.replace(load_run(tiny_run), model=swin)
    for read in (data_to_look_at, lambda run: pictures_to_show(run, [], 1)):
        with pytest.raises(UserError, match="小窗口"):
            read(dataclasses.replace(loaded, config=None))
