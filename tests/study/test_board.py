import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.running import (
    ROOT,
    address_of,
    assert_one_chinese_line,
    finish,
    free_port,
    run_here,
    run_script,
    script,
    start,
)


@pytest.fixture(scope="module")
def shown(tiny_run, tmp_path_factory):
    """一个运行,在它自己的目录里:别的测试不往里面放东西。"""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("board") / "runs" / "tiny")


@pytest.fixture(scope="module")
def board(shown):
    """真正的 VisualDL 服务;给出它打印的地址。"""
    command = [sys.executable, str(ROOT / "scripts" / "board.py"), str(shown.parent), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield address_of(process)
        process.kill()


def test_the_page_answers_without_a_language(board):
    """VisualDL 自己启动时,没有 Accept-Language 的请求得到 HTTP 500。"""
    with urllib.request.urlopen(f"{board}/app/", timeout=30) as answer:
        assert answer.status == 200


def test_the_server_knows_the_run_and_its_curves(board, shown):
    def ask(path):
        with urllib.request.urlopen(f"{board}/app/api/{path}", timeout=30) as answer:
            return json.loads(answer.read())["data"]

    (run,) = ask("runs")
    assert run == f"{shown.parent.name}/{shown.name}"
    values = ask(f"scalar/list?run={run}&tag=loss/val")
    assert [item[1] for item in values] == [1, 2]


def test_the_loss_chart_is_drawn_in_a_browser(board, chromium):
    from selenium.webdriver.support.ui import WebDriverWait

    chromium.get(f"{board}/app/scalar")
    # 第一组图表(loss)默认展开;图画在 canvas 上,数里面不是白色的像素
    count = """
        return [...document.querySelectorAll('canvas')].map(canvas => {
          const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          let colored = 0;
          for (let i = 0; i < data.length; i += 4)
            if (data[i + 3] > 0 && Math.max(data[i], data[i + 1], data[i + 2])
                - Math.min(data[i], data[i + 1], data[i + 2]) > 60) colored++;
          return colored;
        })"""
    charts = 4  # loss/train_step、loss/train、loss/val、loss/both;标题也画在图里
    WebDriverWait(chromium, 60).until(lambda page: sum(n > 50 for n in page.execute_script(count)) == charts)
    text = chromium.find_element("tag name", "body").text
    assert f"loss\n{charts}" in text
    assert "标量数据" in text  # 界面是中文


def test_the_graph_of_the_model_is_drawn_in_a_browser(board, chromium):
    """“网络结构 - 动态”画出各层;点开 EncoderLayer 再点开 Attention,看见 softmax。"""
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(chromium, 60)
    chromium.get(f"{board}/app/graph/dynamic_graph")
    wait.until(lambda page: page.find_elements("tag name", "iframe"))
    assert "网络结构 - 动态" in chromium.find_element("tag name", "body").text
    chromium.switch_to.frame(0)
    for layer in ("EncoderLayer[encoders.0]", "Attention[attn]"):
        assert "softmax" not in chromium.find_element("tag name", "body").text
        unfold = f"""
            for (const button of document.querySelectorAll('g.node-item-buttons'))
              if (button.parentElement.textContent.includes('{layer}'))
                return button.dispatchEvent(new MouseEvent('click', {{bubbles: true}}));
            return false;"""
        wait.until(lambda page, unfold=unfold: page.execute_script(unfold))
    wait.until(lambda page: "softmax" in page.find_element("tag name", "body").text)


def test_exports_are_not_listed_as_graphs(board, shown):
    export = shown.parent / "export"
    export.mkdir()
    (export / "model.pdmodel").touch()
    with urllib.request.urlopen(f"{board}/app/api/graph_runs", timeout=30) as answer:
        runs = json.loads(answer.read())["data"]
    shutil.rmtree(export)
    assert [Path(run).name for run in runs] == [shown.name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_stopping_it_is_silent(shown, number):
    """关掉终端:不打印 Paddle 的 C++ 调用栈。看过没有数据的页面,日志里也没有 Internal server error。"""
    process = start([sys.executable, script("board"), shown.parent, "--port", free_port()])
    address = address_of(process)
    for page in ("embedding/list", "text/tags", "hparams/importance", "hparams/list", "components", "scalar/tags"):
        with urllib.request.urlopen(f"{address}/app/api/{page}", timeout=30) as answer:
            assert json.loads(answer.read())["status"] == 0
    out, errors = finish(process, number)
    assert process.returncode == -number and out == errors == ""


@pytest.mark.parametrize("home", ["/dev/null/none", ""])
def test_a_home_that_cannot_be_written(shown, home):
    process = start(
        [sys.executable, script("board"), shown.parent, "--port", free_port()], env={**os.environ, "HOME": home}
    )
    with urllib.request.urlopen(f"{address_of(process)}/app/", timeout=30) as answer:
        assert answer.status == 200
    assert finish(process, signal.SIGTERM) == ("", "")


def test_a_record_file_stands_for_its_run(shown, busy_port):
    assert_one_chinese_line(run_here("board", shown / "vdlrecords.log", "--port", busy_port), busy_port)


def test_errors(tmp_path, shown, busy_port):
    assert_one_chinese_line(run_script("board", tmp_path), tmp_path)
    assert_one_chinese_line(run_here("board", shown, "--port", "0"), "--port", "0")
    assert_one_chinese_line(run_here("board", shown, "--port", busy_port), busy_port)
