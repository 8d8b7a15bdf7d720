import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
# 一次几秒钟的训练
TINY = (
    "--recipe none --patch-size 4 --embed-dim 8 --depth 1 --num-heads 2 --epochs 2 --batch-size 128 --lr 0.01 "
    "--crop-padding 1 --ema 0.9 --dropout 0.1 --mixup 0.2 --position-embedding learnable"
).split()


@pytest.fixture(autouse=True)
def fixed_seed():
    paddle.seed(0)
    np.random.seed(0)


def run_script(name, *args, check=None, timeout=300, cwd=None, env=None):
    """运行 scripts/ 里的脚本;check 是期望的状态码。"""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})},
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """一个训练完的小运行,只读。"""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    run_script("train", *TINY, "--output", directory, check=0)
    return directory


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """README 的第二步,原样执行:自带的 digits 上的默认训练;只读。"""
    directory = tmp_path_factory.mktemp("default")
    run_script("train", cwd=directory, check=0, timeout=900)
    (run,) = (directory / "runs").iterdir()
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
