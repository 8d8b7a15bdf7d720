"""生成参考结果的脚本共用的部分:随机权重、扰动检查、写文件和 cases.json。"""

import importlib.metadata
import json
import platform
import re
from pathlib import Path

import numpy as np
from images import image_batch

FOLDER = Path(__file__).parent
MANIFEST = FOLDER / "cases.json"
TOLERANCE = 1e-4
# 往残差流里写的层:缩小到 0.01 倍,残差流的方差就小,层归一化的 epsilon 写错才看得出来
WRITERS = re.compile(
    r"(^patch|patch_embed\w*\.(proj|projection|patch_embedding|patch_embed)|reduction|o_proj|out_proj|linear2|fc2|to_out\.0"
    r"|attention\.output\.dense|layer\.\d+\.output\.dense|attn\.proj|attn\.out|conv_proj|to_patch_embedding\.1"
    r"|fn\.net\.3|net\.4|conv_layers\.\d\.0)\.(weight|bias)$"
)
# Swin 在图块嵌入之后就有一个层归一化,缩小它的输入就够了
PATCHES = re.compile(r"patch_embed\w*\.(proj|projection|patch_embed)\.(weight|bias)$")
SWAPS = [
    ("q_proj", "k_proj"),
    ("norm1", "norm2"),
    ("pre_norm", "norm1"),
    ("layernorm_before", "layernorm_after"),
    ("attn_norm", "mlp_norm"),
    ("cls_classifier", "distillation_classifier"),
    ("head.", "head_dist."),
    ("classifier.", "classifier_dist."),
    ("cls_token", "distillation_token"),
    ("cls_token", "dist_token"),
    ("q_norm", "k_norm"),
    ("ls1", "ls2"),
    (".0.norm.", ".1.norm."),
]


def random_values(state, seed):
    """按种子给每个张量新的值:{名字: 初值} -> {名字: float32 数组};整数张量(索引表)原样留下。"""
    rng = np.random.default_rng(seed)
    is_swin = any("bias_table" in name for name in state)
    quiet = PATCHES if is_swin else WRITERS
    values = {}
    for name, value in state.items():
        value = np.asarray(value)
        if value.dtype.kind != "f" or name.endswith("attn_mask"):
            values[name] = value
            continue
        if value.ndim == 1 and np.ptp(value) == 0 and value.flat[0] != 0:  # 层归一化的 weight、layer scale
            new = rng.uniform(0.5, 1.5, value.shape) * np.where(rng.random(value.shape) < 0.2, -1, 1)
        elif value.ndim == 1:
            new = rng.normal(0, 0.3, value.shape)
        elif "bias_table" in name:
            new = rng.normal(0, 1, value.shape)
        elif value.ndim == 3 and value.shape[0] == 1:  # class token、位置编码等
            new = rng.normal(0, 0.01, value.shape)
        else:
            fan_in = value.size / max(value.shape[0], 1) if value.ndim == 4 else np.sqrt(value.size)
            new = rng.normal(0, 1.5 / np.sqrt(fan_in), value.shape)
        values[name] = (new * (0.01 if quiet.search(name) else 1)).astype("float32")
    return values


def _variants(state):
    """几种导入时容易犯的错误:逐个产生 (错误的名称, 被改的张量)。"""
    for name, value in state.items():
        if value.dtype.kind != "f" or name.endswith(
            ("k_proj.bias", "key.bias", "k_norm.bias", "attn_mask", "mask_token")
        ):
            continue  # 给每个 k 加同一个向量,softmax 不变
        if value.size > 1 and not np.array_equal(np.roll(value, 1), value):
            yield "one tensor rolled by one", {name: np.roll(value, 1)}
        if value.ndim == 2 and value.shape[0] == value.shape[1]:
            yield "square matrix transposed", {name: value.T}
        if value.ndim == 4:
            yield "patch kernel transposed", {name: value.transpose(0, 1, 3, 2)}
        if value.ndim == 3 and value.shape[1] > 3:
            yield "position table reversed", {name: value[:, ::-1]}
            side = int(np.sqrt(value.shape[1]))
            prefix = value.shape[1] - side * side
            grid = value[:, prefix:].reshape(side, side, -1).transpose(1, 0, 2).reshape(1, side * side, -1)
            yield "position grid transposed", {name: np.concatenate([value[:, :prefix], grid], axis=1)}
        if "bias_table" in name:
            side = int(np.sqrt(len(value)))
            yield "bias table transposed", {name: value.reshape(side, side, -1).transpose(1, 0, 2).reshape(value.shape)}
        if re.search(r"(qkv|in_proj)[._]weight", name):
            axis = 0 if value.shape[0] == 3 * value.shape[1] else 1
            q, k, v = np.split(value, 3, axis)
            yield "q and k swapped", {name: np.concatenate([k, q, v], axis)}
        for left, right in SWAPS:
            other = name.replace(left, right)
            if other != name and other in state and state[other].shape == value.shape:
                yield f"{left} and {right} swapped", {name: state[other], other: value}


def check_sensitivity(run, state, more=()):
    """每一种错误最少使输出变多少;少于容差的 10 倍时停下:那样的参考结果查不出这种错误。

    Args:
        run: {名字: 数组} -> 输出数组。
        state (dict): 正确的权重。
        more: 另外的 (名称, 输出数组),例如换了 epsilon 的。

    Returns:
        dict: {错误的名称: 最大差}。
    """
    right = run(state)
    worst = {}
    for mistake, changed in _variants(state):
        difference = float(np.abs(run({**state, **changed}) - right).max())
        if difference < 10 * TOLERANCE:
            raise SystemExit(f"{mistake}: {list(changed)} 只使输出变了 {difference:.1e},参考结果不够敏感。")
        worst[mistake] = min(difference, worst.get(mistake, np.inf))
    for mistake, wrong in more:
        worst[mistake] = float(np.abs(wrong - right).max())
        if worst[mistake] < 10 * TOLERANCE:
            raise SystemExit(f"{mistake}: 只使输出变了 {worst[mistake]:.1e},参考结果不够敏感。")
    return {mistake: float(f"{value:.2g}") for mistake, value in sorted(worst.items())}


def case_folder(case):
    """这个例子的文件夹,没有就建。"""
    folder = FOLDER / "cases" / case
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def input_images(image_size, count=2):
    """边长 image_size 像素的一批输入,[B, 3, H, W]。"""
    return image_batch(count, 3, image_size, image_size)


def packages(*names):
    """{包名: 版本},连同 Python 的。"""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def add_case(case, **entry):
    """把一个例子写进 cases.json(同名的换掉);各项的意义见 README.md。"""
    cases = json.loads(MANIFEST.read_text("utf-8")) if MANIFEST.exists() else {}
    cases[case] = {"tolerance": TOLERANCE, **entry}
    MANIFEST.write_text(json.dumps(dict(sorted(cases.items())), ensure_ascii=False, indent=1) + "\n", "utf-8")
    print(case, entry.get("sensitivity", ""))
