"""比较两个运行的结果,读回曲线。"""

import json

import numpy as np
from safetensors.numpy import load_file

TIMES = ("seconds", "images_per_second", "data_wait")


def final_state(directory):
    """训练结束时的一切,去掉与时间有关的数字。"""
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [{name: value for name, value in line.items() if name not in TIMES} for line in metrics]
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return metrics, {name: value for name, value in summary.items() if name not in TIMES}


def assert_same_end(first, second):
    assert final_state(first) == final_state(second)
    tensors, others = load_file(first / "last.safetensors"), load_file(second / "last.safetensors")
    assert tensors.keys() == others.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], others[name], err_msg=name)
    curves = [visualdl_scalars(directory) for directory in (first, second)]
    assert curves[0] == curves[1]


def visualdl_scalars(directory):
    from visualdl import LogReader

    reader = LogReader(file_path=str(directory / "vdlrecords.log"))
    tags = sorted(tag for tag in reader.get_tags()["scalar"] if not tag.startswith("speed") and "seconds" not in tag)
    return {tag: [(item.id, item.value) for item in reader.get_data("scalar", tag)] for tag in tags}


def read_metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_scalars(directory, tag):
    from visualdl import LogReader

    return [
        (item.id, item.value) for item in LogReader(file_path=str(directory / "vdlrecords.log")).get_data("scalar", tag)
    ]
