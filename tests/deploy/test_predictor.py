import threading

import numpy as np
import paddle
import pytest
from PIL import Image
from support.exports import IMAGES, loaded

from paddle_vit import Predictor, UserError
from paddle_vit.attention.recording import attention_weights
from paddle_vit.data.images import to_input
from paddle_vit.deploy.export import export_model
from paddle_vit.runs.loading import LoadedModel
from paddle_vit.system import runtime
from paddle_vit.system.fitting import fit_named

RNG = np.random.default_rng(0)
ORIENTATION = 0x0112  # EXIF 里的朝向
PICTURES = [Image.fromarray(RNG.integers(0, 256, (20 + i, 17, 3), dtype="uint8")) for i in range(7)]


@pytest.fixture(scope="module")
def source():
    return loaded("class token")


@pytest.fixture(scope="module", params=["eager", "inference", "export"])
def predictor(request, source, tmp_path_factory):
    if request.param != "export":
        return Predictor(source, request.param)
    directory = tmp_path_factory.mktemp("export") / "out"
    export_model(source, directory, IMAGES[:2], onnx=False)
    return Predictor(directory)


@paddle.no_grad()
def expected(source, pictures):
    logits = source.model(paddle.to_tensor(to_input(pictures, source.info))).numpy().astype("float64")
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_probabilities_are_the_softmax_of_the_eager_model(predictor, source, batch_size):
    found = predictor.probabilities(PICTURES, batch_size=batch_size)
    np.testing.assert_allclose(found, expected(source, PICTURES), atol=1e-4)
    assert found.dtype == np.float32 and predictor.probabilities([]).shape == (0, 7)


def test_labels_are_sorted(predictor, source):
    for prediction, row in zip(predictor(PICTURES, top=4), expected(source, PICTURES)):
        order = np.argsort(-row)[:4]
        assert prediction.labels == tuple(source.info.classes[k] for k in order)
        np.testing.assert_allclose(prediction.probabilities, row[order], atol=1e-4)
        assert (prediction.label, prediction.probability) == (prediction.labels[0], prediction.probabilities[0])
    assert len(predictor(PICTURES[0], top=100).labels) == 7


def test_paths_pictures_and_arrays_are_the_same(predictor, tmp_path):
    picture = PICTURES[0]
    picture.save(tmp_path / "a.png")
    answers = [predictor(one) for one in (picture, np.asarray(picture), tmp_path / "a.png", str(tmp_path / "a.png"))]
    assert all(answer == answers[0] for answer in answers)
    for two in (np.stack([np.asarray(picture)] * 2), [picture, str(tmp_path / "a.png")]):
        for answer in predictor(two):  # 两张一批,舍入不同
            assert answer.labels == answers[0].labels
            np.testing.assert_allclose(answer.probabilities, answers[0].probabilities, atol=1e-5)
    assert list(predictor.each(one for one in [picture])) == [answers[0]]
    grey = np.asarray(picture.convert("L"))
    assert predictor(grey) == predictor(grey[..., None]) == predictor(picture.convert("L"))
    inverted = Image.fromarray(255 - np.asarray(picture))
    assert predictor(picture, invert=True) == predictor(inverted)


@pytest.mark.parametrize(
    "image, words",
    [
        (np.zeros((4, 4), "float32"), "float32"),
        (np.zeros((4, 4, 2), "uint8"), r"\[4, 4, 2\]"),
        (np.zeros((0, 4, 3), "uint8"), "没有像素"),
        (np.zeros(4, "uint8"), r"\[4\]"),
        ("none.png", "none.png"),
        (".", "目录"),
        (np.zeros((5, 8, 8), "uint8"), r"list\("),
        (b"bytes", "bytes"),
        (None, "NoneType"),
        (3, "int"),
    ],
)
def test_what_is_no_image(predictor, image, words):
    with pytest.raises(UserError, match=words):
        predictor([PICTURES[0], image])
    with pytest.raises(UserError, match=words):
        predictor(image)
    assert predictor(PICTURES[0]).label in predictor.info.classes  # 之后照样能用


def test_a_picture_whose_file_is_cut_or_closed(predictor, tmp_path):
    PICTURES[0].save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    closed = Image.open(tmp_path / "whole.png")
    closed.close()
    for picture in (Image.open(tmp_path / "cut.png"), closed):
        with pytest.raises(UserError, match="不完整"):
            predictor(picture)


def test_one_picture_where_several_are_wanted(predictor):
    for one in (PICTURES[0], np.asarray(PICTURES[0]), "a.png"):
        with pytest.raises(UserError, match="列表"):
            predictor.probabilities(one)
        with pytest.raises(UserError, match="列表"):
            list(predictor.each(one))


@pytest.mark.parametrize(
    "settings, words",
    [(dict(top=0), "top=0"), (dict(top=1.5), "top=1.5"), (dict(batch_size=0), "batch_size=0")],
)
def test_bad_settings(predictor, settings, words):
    with pytest.raises(UserError, match=words):
        predictor(PICTURES, **settings)


@pytest.mark.parametrize("settings", [dict(engine="OpenVINO"), dict(precision="int8"), dict(threads=0)])
def test_bad_settings_of_the_engine(source, settings, tmp_path):
    """一个字也不能悄悄地当作别的。"""
    export_model(source, tmp_path / "out", IMAGES[:2], onnx=False)
    ((name, value),) = settings.items()
    for of in (source, tmp_path / "out"):
        with pytest.raises(UserError, match=f"{name}={value!r}"):
            Predictor(of, **settings)


def test_bfloat16_needs_the_cpu_for_an_export_too(source, tmp_path, monkeypatch):
    """没有 bfloat16 指令时 OpenVINO 悄悄地用 float32 算,答案都对,名字却说是 bfloat16。"""
    export_model(source, tmp_path / "out", IMAGES[:2], onnx=False)
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: ("GenuineIntel", {"avx2"}))
    for of in (source, tmp_path / "out"):
        with pytest.raises(UserError, match="avx512_bf16"):
            Predictor(of, precision="bfloat16")


def test_what_is_no_source(source):
    for wrong in (source.model, None, b"runs/x"):
        with pytest.raises(UserError, match=type(wrong).__name__):
            Predictor(wrong)


def test_several_threads_use_the_same(predictor, source):
    right = expected(source, PICTURES)
    wrong = []

    def work(number):
        for i in range(20):
            k = (number + i) % len(PICTURES)
            found = predictor.probabilities(PICTURES[k : k + 1])
            if not np.allclose(found, right[k : k + 1], atol=1e-4):
                wrong.append((number, i))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_attention_while_other_threads_predict(source):
    predictor = Predictor(source, "eager")
    right = attention_weights(source.model, to_input(PICTURES[:1], source.info))
    probabilities = expected(source, PICTURES[1:])
    wrong, done = [], threading.Event()

    def work():
        while not done.is_set():
            if not np.allclose(predictor.probabilities(PICTURES[1:]), probabilities, atol=1e-4):
                wrong.append("probabilities")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            np.testing.assert_array_equal(predictor.attention(PICTURES[:1]), right)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_an_export_has_no_eager_model(source, tmp_path):
    export_model(source, tmp_path / "out", IMAGES[:2], onnx=False)
    with pytest.raises(UserError, match="--engine eager"):
        Predictor(tmp_path / "out", "eager")
    predictor = Predictor(tmp_path / "out")
    assert predictor.model is None
    with pytest.raises(UserError, match="注意力"):
        predictor.attention(PICTURES[:1])


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_a_turned_photo_is_the_same_from_a_path_and_from_pillow(source, tmp_path, turn):
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    PICTURES[3].save(tmp_path / "phone.png", exif=exif)
    predictor = Predictor(source, "eager")
    with Image.open(tmp_path / "phone.png") as opened:
        assert predictor(opened) == predictor(tmp_path / "phone.png")


def test_mean_std_and_fit_can_be_stated(source):
    predictor = Predictor(source, "eager")
    before = predictor(PICTURES[6])
    predictor.restate([0.2], [0.3], fit_named("squash"))
    assert (predictor.info.mean, predictor.info.std) == ((0.2,) * 3, (0.3,) * 3)
    np.testing.assert_allclose(
        predictor.probabilities(PICTURES),
        expected(LoadedModel(*_restated(source, predictor.info)), PICTURES),
        atol=1e-4,
    )
    assert predictor(PICTURES[6]) != before
    for mean, std in (([0.1, 0.2], None), (None, [0.0]), ([128.0], [64.0])):
        with pytest.raises(UserError, match=r"不合法|太大"):
            predictor.restate(mean, std)


def _restated(source, info):
    return source.source, info, source.model, source.arguments
