import os
import shutil
import signal
import socket

# 几个测试进程和它们起动的训练挤在几个核上:等着的线程马上睡,不要空转(Intel OpenMP 默认空转 0.2 秒)
os.environ.setdefault("KMP_BLOCKTIME", "0")

import numpy as np
import paddle
import pytest
from filelock import FileLock
from PIL import Image
from support.running import TINY, end_all, run_script

from paddle_vit.kernels import tensors


def pytest_configure(config):
    """在后台(``pytest &``、nohup)运行时信号被忽略,子进程会继承;要发它们给子进程,先恢复原样。"""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # 自己照旧不理,子进程不继承函数


def pytest_collection_modifyitems(items):
    """慢的测试时限宽一些;最慢的先做:两个进程分着跑时,最后不会只剩它。"""
    for item in items:
        if "default_run" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(1800))  # 含训练,或等别的测试进程训练完
        elif item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
    items.sort(key=lambda item: "default_run" not in item.fixturenames)


@pytest.fixture(params=["kernels", "without"])
def kernels(request, monkeypatch):
    """有没有编译的内核。"""
    if request.param == "without":
        monkeypatch.setattr(tensors, "load_kernels", lambda: None)
    else:
        assert tensors.load_kernels() is not None
    return request.param


@pytest.fixture(autouse=True)
def fixed_seed():
    paddle.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    end_all()


def made_once(tmp_path_factory, name, make):
    """几个测试进程共用的目录:谁先要,谁来做,别的等它做完。"""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(str(root / f"{name}.lock")):
        if not (root / name / "done").exists():
            (root / name).mkdir()
            make(root / name)
            (root / name / "done").touch()
    return root / name


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """一个训练完的小运行,只读。"""
    make = lambda directory: run_script("train", *TINY, "--output", directory / "tiny", check=0)
    return made_once(tmp_path_factory, "runs", make) / "tiny"


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """README 的第二步,原样执行:自带的 digits 上的默认训练;只读。"""
    make = lambda directory: run_script("train", cwd=directory, check=0, timeout=1500)
    (run,) = (made_once(tmp_path_factory, "default", make) / "runs").iterdir()
    return run


@pytest.fixture
def picture_folder(tmp_path):
    """三类各六张的图片文件夹,大小、格式和 Pillow 模式各不相同。"""
    rng = np.random.default_rng(0)
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "1"]
    for label, name in enumerate(("猫", "狗", "鸟")):
        directory = tmp_path / "pictures" / "train" / name
        directory.mkdir(parents=True)
        for i, mode in enumerate(modes):
            pixels = rng.integers(0, 60, (20 + i, 30 - i, 3), dtype="uint8")
            pixels[..., label] += 180
            suffix = "tif" if mode == "CMYK" else "png"
            Image.fromarray(pixels).convert(mode).save(directory / f"{i}.{suffix}")
    return tmp_path / "pictures"


@pytest.fixture
def busy_port():
    """有人在监听的端口。"""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        yield busy.getsockname()[1]


@pytest.fixture
def chromium(tmp_path):
    """真正的浏览器,没有窗口;没有装就跳过。"""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("没有 chromium 和 chromium-driver,不能看页面;Debian 上用 apt-get install 安装")
    webdriver = pytest.importorskip("selenium.webdriver", reason="没有 selenium,不能看页面(Python 3.9 上不装)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += f"disable-component-update disable-sync window-size=1400,1000 user-data-dir={tmp_path / 'profile'}"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield browser
    browser.quit()
