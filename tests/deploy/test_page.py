"""网页和 JSON 接口:真正的服务,真正的浏览器,坏的请求,很多请求。"""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.running import ROOT, address_of, assert_one_chinese_line, finish, free_port, run_here, run_script

from paddle_vit.data.parts import varied_images
from paddle_vit.deploy.classifier import Classifier, examples_of
from paddle_vit.deploy.page import create_page
from paddle_vit.deploy.predictor import Predictor
from paddle_vit.errors import UserError
from paddle_vit.runs.loading import load_run, load_run_data

pytest.importorskip("gradio", reason='没有装 Gradio:pip install -e ".[page]"')
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def started(run, *args, host="127.0.0.1", env=None):
    """真正的服务,一直在 with 里:(端口, 进程)。"""
    port = free_port()
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), str(run), "--port", str(port), "--host", host, *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            assert address_of(process) == address
            yield port, process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(tiny_run):
    with started(tiny_run) as (port, process):
        yield port, process
        assert process.poll() is None, finish(process)


def png(image, **options):
    content = io.BytesIO()
    image.save(content, "png", **options)
    return content.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12), dtype="uint8"))


def ask(server, content, timeout=60):
    """(状态码, 回答)。"""
    request = urllib.request.Request(f"http://127.0.0.1:{server[0]}/api/predict", content, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def assert_right(server, tiny_run):
    status, answer = ask(server, png(PICTURE))
    expected = Predictor(tiny_run, "eager")(PICTURE, top=5)
    assert status == 200 and answer["label"] == expected.label
    assert [row["label"] for row in answer["top"]] == list(expected.labels)
    np.testing.assert_allclose([row["probability"] for row in answer["top"]], expected.probabilities, atol=1e-4)


def test_the_endpoint_answers_like_the_predictor(server, tiny_run):
    assert_right(server, tiny_run)
    with urllib.request.urlopen(f"http://127.0.0.1:{server[0]}/api/info", timeout=30) as answer:
        assert json.loads(answer.read())["classes"] == [str(i) for i in range(10)]


def png_header(width, height):
    """一张声明了大小、内容是空的 PNG。"""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD = {
    "text": (lambda: b"hello", 400, "不是图片"),
    "nothing": (lambda: b"", 400, "没有收到"),
    "truncated": (lambda: png(PICTURE)[:60], 400, "不是图片"),
    "100 megapixels": (lambda: png(Image.new("1", (10_000, 10_000))), 400, "像素太多"),
    "declared 4 gigapixels": (lambda: png_header(65_000, 65_000), 400, "像素太多"),
    "too many bytes": (lambda: bytes(21 << 20), 413, "20 MB"),
    "zip": (lambda: b"PK\x03\x04" + bytes(100), 400, "不是图片"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_answered_and_the_next_one_works(server, tiny_run, kind):
    content, status, words = BAD[kind]
    started = time.monotonic()
    found, answer = ask(server, content())
    assert (found, words in answer["error"]) == (status, True), answer
    assert time.monotonic() - started < 5
    assert_right(server, tiny_run)


def post(server, path, content, kind="application/json"):
    request = urllib.request.Request(f"http://127.0.0.1:{server[0]}{path}", content, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def upload(server, content):
    """像页面那样先把文件传上去;返回它在服务器上的路径。"""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + content + b"\r\n--x--\r\n"
    return post(server, "/gradio_api/upload", body, "multipart/form-data; boundary=x")[0]


def ask_page(server, name, value):
    """执行页面上的一个动作;返回 (成没成, 输出或错误)。"""
    address = f"http://127.0.0.1:{server[0]}"
    with urllib.request.urlopen(f"{address}/config", timeout=60) as answer:
        actions = {action["api_name"]: action["id"] for action in json.loads(answer.read())["dependencies"]}
    session = uuid.uuid4().hex
    body = {"data": [value], "fn_index": actions[name], "session_hash": session}
    post(server, "/gradio_api/queue/join", json.dumps(body).encode())
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash={session}", timeout=60) as lines:
        for line in lines:
            message = json.loads(line[5:]) if line.startswith(b"data:") else {}
            if message.get("msg") == "process_completed":
                return message["success"], message["output"].get("data") or message["output"]["error"]


def look(server, path):
    return ask_page(server, "look", {"path": path, "meta": {"_type": "gradio.FileData"}})


def look_at_drawing(server, *paths):
    composite, *layers = ({"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths)
    return ask_page(server, "look_at_drawing", {"background": None, "layers": layers, "composite": composite})


@pytest.mark.parametrize("action", [look, look_at_drawing])
@pytest.mark.parametrize("kind", sorted(set(BAD) - {"too many bytes"}))
def test_bad_pictures_on_the_page(server, tiny_run, kind, action):
    done, answer = action(server, upload(server, BAD[kind][0]()))
    assert not done and re.search("不是图片|像素太多", answer)
    done, (bars, attention) = look(server, upload(server, png(PICTURE)))
    assert done and bars["label"] == Predictor(tiny_run, "eager")(PICTURE).label and attention["path"]


def test_the_page_refuses_too_many_bytes(server):
    with pytest.raises(urllib.error.HTTPError, match="413"):
        upload(server, bytes(21 << 20))


def test_the_page_refuses_a_big_form_or_json(server):
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + bytes(30 << 20) + b"\r\n--x--\r\n"
    before = memory_of(server[1])
    for path, kind in [("upload", "multipart/form-data; boundary=x"), ("queue/join", "application/json")]:
        with pytest.raises(urllib.error.HTTPError, match="413") as caught:
            post(server, f"/gradio_api/{path}", form, kind)
        assert "20 MB" in json.loads(caught.value.read())["error"]
    assert memory_of(server[1]) - before < 20


def test_the_endpoint_explains_itself(server):
    for method, kind, status in [("GET", "", 405), ("POST", "multipart/form-data; boundary=x", 415)]:
        address = f"http://127.0.0.1:{server[0]}/api/predict"
        content = b"--x" if method == "POST" else None
        with pytest.raises(urllib.error.HTTPError, match=str(status)) as caught:
            urllib.request.urlopen(urllib.request.Request(address, content, {"Content-Type": kind}, method=method))
        assert "--data-binary" in json.loads(caught.value.read())["error"]


def test_layers_of_a_drawing_are_not_opened(server):
    huge = upload(server, png(Image.new("1", (6_000, 8_000))))  # 打开一层就是 200 MB
    before = memory_of(server[1])
    assert look_at_drawing(server, upload(server, png(Image.new("L", (28, 28)))), huge, huge, huge)[0]
    assert memory_of(server[1]) - before < 100


def test_the_page_reads_only_what_was_uploaded(server, tmp_path):
    PICTURE.save(tmp_path / "secret.png")
    for action in (look, look_at_drawing):
        done, answer = action(server, str(tmp_path / "secret.png"))
        assert not done and "secret.png" in answer


def test_a_cut_connection(server, tiny_run):
    for content in (png(PICTURE)[:50], b""):
        with socket.create_connection(("127.0.0.1", server[0])) as connection:
            connection.sendall(b"POST /api/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + content)
    assert_right(server, tiny_run)


def memory_of(process):
    """进程占用的内存,MB。"""
    return int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


def ask_many(server, count, clients, picture=PICTURE):
    """count 个请求,clients 个客户同时;返回每个请求的状态码。"""
    content = png(picture, compress_level=1)

    def client(number):
        connection = http.client.HTTPConnection("127.0.0.1", server[0], timeout=120)
        statuses = []
        for _ in range(number, count, clients):
            connection.request("POST", "/api/predict", content)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()
        return statuses

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return [status for statuses in pool.map(client, range(clients)) for status in statuses]


def test_200_requests_at_once(server, tiny_run):
    assert ask_many(server, 200, 200) == [200] * 200
    assert_right(server, tiny_run)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="内存从 Linux 的 /proc 读")
def test_1000_requests_from_50_clients_lose_none_and_leave_the_memory_flat(server):
    ask_many(server, 300, 50)  # 先热身
    before = memory_of(server[1])
    assert ask_many(server, 1000, 50) == [200] * 1000
    assert memory_of(server[1]) - before < 30


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="内存从 Linux 的 /proc 读")
def test_big_pictures_at_once_take_the_memory_of_two(server):
    before = memory_of(server[1])
    assert ask_many(server, 12, 12, Image.new("RGBA", (4_000, 3_000))) == [200] * 12
    assert memory_of(server[1]) - before < 700


@pytest.fixture
def browser(server, chromium):
    """打开了网页的 Chromium。"""
    chromium.implicitly_wait(60)  # 找不到就等
    chromium.get(f"http://127.0.0.1:{server[0]}/")
    return chromium


def wait(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def find(browser, selector):
    return browser.find_element("css selector", selector)


def test_a_picture_in_a_browser(browser, tiny_run, tmp_path):
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("hello")
    find(browser, "#picture input[type=file]").send_keys(str(tmp_path / "bad.png"))
    wait(lambda: "不是图片" in find(browser, "body").text)
    browser.refresh()
    find(browser, "#picture input[type=file]").send_keys(str(tmp_path / "a.png"))
    wait(lambda: "%" in find(browser, "#bars").text)
    expected = Predictor(tiny_run, "eager")(PICTURE, top=5)
    words = find(browser, "#bars").text.split()  # 标题,最可能的,然后是五行 类别 概率
    assert words[1] == expected.label and words[2::2] == list(expected.labels)
    assert words[3] == f"{expected.probability:.0%}"
    assert find(browser, "#heat img").get_property("naturalWidth") >= 280
    assert "测试部分的例子" in find(browser, "body").text
    browser.refresh()
    find(browser, ".gallery-item").click()
    wait(lambda: "%" in find(browser, "#bars").text)


def test_a_digit_drawn_in_a_browser(browser):
    """没有写时有提示;画一笔,就有五类和注意力图;清除之后再画也一样,画笔不用选。"""
    from selenium.webdriver.common.action_chains import ActionChains

    tab = next(tab for tab in browser.find_elements("css selector", "button[role=tab]") if tab.text == "写一个数字")
    tab.click()
    find(browser, "#drawing button.highlight[title=Brush]")
    button = next(button for button in browser.find_elements("css selector", "button") if button.text == "认一认")
    button.click()
    wait(lambda: "还没有写字" in find(browser, "body").text)
    for _ in range(2):
        find(browser, "#drawing button.highlight[title=Brush]")
        stroke = ActionChains(browser).move_to_element_with_offset(find(browser, "#drawing canvas"), 0, -90)
        stroke = stroke.click_and_hold()
        for _ in range(9):
            stroke = stroke.move_by_offset(0, 20)
        stroke.release().perform()
        time.sleep(1)  # 画布过一会儿才交出内容
        button.click()
        wait(lambda: "%" in find(browser, "#bars").text)
        words = find(browser, "#bars").text.split()
        assert len(set(words[2::2]) & set("0123456789")) == 5
        assert find(browser, "#heat img").get_property("naturalWidth") >= 280
        find(browser, "#drawing button[title='Clear canvas']").click()
        wait(lambda: "%" not in find(browser, "#bars").text)
        time.sleep(1)


def test_examples_are_right_with_invert(default_run, tmp_path):
    """--invert 是为白底黑字的图片;例子来自黑底白字的数据,照样认得。"""
    predictor = Predictor(default_run)
    classifier = Classifier(predictor, invert=True)
    paths = examples_of(predictor.loaded, tmp_path, invert=True)
    _, images = varied_images(load_run_data(predictor.loaded).test, len(paths))
    expected = [predictor(image[..., 0], top=5) for image in images]
    assert [classifier.classify(path)[0] for path in paths] == expected


@pytest.mark.parametrize("name, margin", [("digits", 0), ("mnist", 4)])
def test_a_drawing_is_inverted_and_laid_out(tiny_run, name, margin):
    """纸是白的、透明的,数据里是黑底白字;写在哪里都一样。"""
    ink = np.zeros((80, 90, 4), "uint8")
    ink[50:70, 5:9, 3] = 255  # 黑色的笔画,别处透明
    classifier = Classifier(Predictor(tiny_run, "eager"))
    classifier.predictor.info = dataclasses.replace(classifier.predictor.info, name=name)
    found, image = classifier.classify(png(Image.fromarray(ink)), drawn=True)
    expected = np.zeros((20 + 2 * margin, 20 + 2 * margin), "uint8")
    expected[margin : margin + 20, margin + 8 : margin + 12] = 255
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert found == classifier.predictor(expected, top=5)
    with pytest.raises(UserError, match="还没有写字"):
        classifier.classify(png(Image.new("RGBA", (80, 90))), drawn=True)


def test_digits_written_anywhere_are_recognised(default_run):
    """测试部分的数字用黑墨写在白纸的随机位置、随机大小。不裁下来摆正时,对的不到三成。"""
    part = load_run_data(load_run(default_run)).test
    classifier, rng, right = Classifier(Predictor(default_run)), np.random.default_rng(0), 0
    for pixels, label in zip(part.images[..., 0], part.labels):
        digit = Image.fromarray(pixels)
        digit = digit.crop(digit.point(lambda v: 255 * (v > 60)).getbbox())
        height = int(rng.integers(60, 240))
        width = min(max(8, digit.width * height // digit.height), 270)
        ink = digit.resize((width, height), Image.BICUBIC).point(lambda v: 255 * (v > 110))
        paper = Image.new("L", (280, 280), 255)
        paper.paste(0, (int(rng.integers(0, 281 - width)), int(rng.integers(0, 281 - height))), ink)
        right += classifier.classify(png(paper), drawn=True)[0].label == str(label)
    assert right / len(part) > 0.9


def test_slanted_digits_are_recognised(default_run):
    """测试部分的数字,往右斜和往左斜各 22°,用黑墨写在白纸上;不扶正时,对的约六成。"""
    part = load_run_data(load_run(default_run)).test
    classifier, right = Classifier(Predictor(default_run)), 0
    for number, (pixels, label) in enumerate(zip(part.images[..., 0], part.labels)):
        digit = Image.fromarray(pixels).resize((160, 200), Image.BICUBIC).point(lambda v: 255 * (v > 110))
        slope = 0.4 if number % 2 else -0.4
        paper = Image.new("L", (280, 280))
        paper.paste(digit, (60, 40))
        paper = paper.transform(paper.size, Image.AFFINE, (1, slope, -140 * slope, 0, 1, 0))
        right += classifier.classify(png(ImageOps.invert(paper)), drawn=True)[0].label == str(label)
    assert right / len(part) > 0.8


def test_the_right_class_appears_in_a_browser(default_run, chromium, tmp_path):
    """默认训练的模型,测试部分的一张数字。"""
    part = load_run_data(load_run(default_run)).test
    index = list(part.labels).index(3)
    Image.fromarray(part.images[index, ..., 0]).save(tmp_path / "digit.png")
    with started(default_run) as (port, _):
        chromium.implicitly_wait(60)
        chromium.get(f"http://127.0.0.1:{port}/")
        find(chromium, "#picture input[type=file]").send_keys(str(tmp_path / "digit.png"))
        wait(lambda: "%" in find(chromium, "#bars").text)
        assert find(chromium, "#bars").text.split()[1] == "3"


@pytest.mark.skipif(os.name != "posix", reason="Windows 没有 SIGTERM")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_end(tiny_run, tmp_path, name):
    """Ctrl-C 或 kill:没有调用栈,传来的图片和别的临时文件都删掉;有人连着不放也一样。"""
    with started(tiny_run, host="::1", env={**os.environ, "TMPDIR": str(tmp_path)}) as (port, process):
        address = f"http://[::1]:{port}/gradio_api"
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nhello\r\n--x--\r\n'
        request = urllib.request.Request(f"{address}/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})
        (path,) = json.loads(urllib.request.urlopen(request, timeout=60).read())
        assert Path(path).read_bytes() == b"hello" and tmp_path in Path(path).parents
        with urllib.request.urlopen(f"{address}/heartbeat/x", timeout=60):
            process.send_signal(getattr(signal, name))
            _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors, list(tmp_path.iterdir())) == (0, "", [])


def test_class_names_are_shown_as_they_are(tiny_run):
    predictor = Predictor(tiny_run, "eager")
    predictor.info = dataclasses.replace(predictor.info, classes=("<b>猫", "*狗*", *map(str, range(8))))
    page = create_page(Classifier(predictor))
    shown = "".join(str(getattr(block, "value", "")) for block in page.blocks.values())
    assert "&lt;b&gt;猫、*狗*、0" in shown


def test_errors(tiny_run, tmp_path, busy_port):
    assert_one_chinese_line(run_script("serve", tmp_path / "none"), "none")
    assert_one_chinese_line(run_here("serve", tiny_run, "--port", "0"), "--port", "0")
    assert_one_chinese_line(run_here("serve", tiny_run, "--port", busy_port), busy_port)
