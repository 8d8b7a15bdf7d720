"""性能对比:同一个模型由各个参赛者轮流跑,量每秒图像数、GFLOP/s 和内存;以及时间怎样随规模增长、会不会越训越慢。

每个参赛者(``contenders/`` 里的一个文件)是单独的进程,几个进程同时活着,主进程轮流让它们各跑几步(甲乙丙甲乙丙……),
所以机器忽快忽慢时大家受的影响一样。参赛者的环境里去掉了一切性能变量,各用各的默认设置。
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import reports
from .errors import UserError
from .system.files import atomic_write
from .system.processes import group_environments, usable_cores

__all__ = ["Options", "flush_denormals", "forward_flops", "run_benchmark"]

_TASKS = {"train": "训练", "predict": "预测"}
# 名字 -> (结构, 一批几张)
_MODELS = {
    "ViT-Ti/16": (
        dict(
            image_size=224,
            patch_size=16,
            in_channels=3,
            num_classes=1000,
            embed_dim=192,
            depth=12,
            num_heads=3,
            pool="cls",
        ),
        16,
    ),
    "ViT-32/4": (
        dict(
            image_size=32, patch_size=4, in_channels=3, num_classes=10, embed_dim=128, depth=6, num_heads=8, pool="avg"
        ),
        128,
    ),
}
_QUICK_MODELS = {
    "tiny": (
        dict(
            image_size=16, patch_size=4, in_channels=3, num_classes=10, embed_dim=32, depth=2, num_heads=2, pool="cls"
        ),
        4,
    )
}
_PAUSE = 0.3  # 秒;Intel OpenMP 的线程跑完后空转 0.2 秒才睡,等它们睡了再轮到下一个


@dataclasses.dataclass(frozen=True)
class Contender:
    """一个参赛者。

    Attributes:
        key (str): 在 JSON 里的名字。
        name (str): 在表里的名字。
        file (str): ``contenders/`` 里的文件。
        mode (str): 交给它的 ``mode``。
        tasks (tuple[str, ...]): 参加哪些项目。
        packages (tuple[str, ...]): 需要的包;有的话由 ``--peer-python`` 运行。
        processes (int): 几个进程平分一批。
    """

    key: str
    name: str
    file: str
    mode: str
    tasks: tuple = ("train", "predict")
    packages: tuple = ()
    processes: int = 1


def _contenders(cores):
    torch, onnx = ("torch",), ("onnxruntime", "torch", "onnx", "onnxscript")
    several = [Contender(f"ours-{cores}-processes", f"本项目,{cores} 个进程", "our_vit.py", "processes", ("train",))]
    several = [dataclasses.replace(contender, processes=cores) for contender in several if cores > 1]
    return [
        Contender("lesson", "课程写法,默认设置", "lesson_vit.py", "float32"),
        Contender("ours", "本项目", "our_vit.py", "eager"),
        *several,
        Contender("ours-inference-float32", "本项目,推理引擎 float32", "our_vit.py", "float32", ("predict",)),
        Contender("ours-inference-bfloat16", "本项目,推理引擎 bfloat16", "our_vit.py", "bfloat16", ("predict",)),
        Contender("torch-float32", "PyTorch float32", "torch_vit.py", "float32", packages=torch),
        Contender("torch-bfloat16", "PyTorch bfloat16 autocast", "torch_vit.py", "bfloat16", packages=torch),
        Contender("torch-compile", "torch.compile float32", "torch_vit.py", "compile", packages=torch),
        Contender("onnx", "ONNX Runtime float32", "onnx_vit.py", "float32", ("predict",), packages=onnx),
    ]


_PEAK = Contender("peak", "矩阵乘", "our_vit.py", "matmul")


@dataclasses.dataclass(frozen=True)
class Options:
    """一次性能对比的设置。

    Attributes:
        output (Path): 结果的目录。
        tasks (tuple[str, ...]): ``'train'``、``'predict'`` 或两者。
        rounds (int): 轮流几轮。
        block_seconds (float): 每轮每个参赛者大约跑几秒(至少一步)。
        peer_python (str): 装着 PyTorch、ONNX Runtime 的 Python。
        quick (bool): 用很小的模型,几十秒跑完,只为检查能不能跑。
        steps (int): 「越训越慢」量多少步。
    """

    output: Path
    tasks: tuple = ("train", "predict")
    rounds: int = 5
    block_seconds: float = 2.0
    peer_python: str = sys.executable
    quick: bool = False
    steps: int = 1000


# ---- 浮点运算次数 ----


def forward_flops(image_size, patch_size, in_channels, num_classes, embed_dim, depth, num_heads, pool):
    """一张图像前向的浮点运算次数:矩阵乘里一次乘加算 2 次,归一化、softmax、GELU 不计。训练一步按前向的 3 倍算。

    Args: 见 ``ViT``;``num_heads`` 不影响结果。
    """
    D, patches = embed_dim, (image_size // patch_size) ** 2
    N = patches + (pool == "cls")
    patch_embedding = patches * D * in_channels * patch_size**2
    linear = N * 12 * D * D  # qkv 3 D^2,proj D^2,Mlp 8 D^2
    attention = 2 * N * N * D  # q k^T 和 w v,num_heads * N * N * d 各一次
    return 2 * (patch_embedding + depth * (linear + attention) + D * num_classes)


def _step_flops(architecture, batch, task):
    return forward_flops(**architecture) * batch * (3 if task == "train" else 1)


# ---- 参赛者的进程 ----


def _clean_environment():
    """去掉一切性能变量;Paddle 导入时会把 OMP_NUM_THREADS=1 写进环境,所以主进程里也有它们。"""
    prefixes = ("OMP_", "KMP_", "GOMP_", "MKL_", "FLAGS_", "PADDLE_", "MALLOC_", "TORCH", "DNNL_", "ONEDNN_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    # 编译也只用本进程,免得留下别的进程
    return {**environment, "PYTHONIOENCODING": "utf-8", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class Team:
    """一个参赛者的进程(一个或几个),用作上下文管理器:离开时进程一定已经结束。"""

    def __init__(self, contender, python=sys.executable):
        self.contender, self.python = contender, python
        self.processes, self.errors = [], []

    def __enter__(self):
        file = Path(__file__).parent / "contenders" / self.contender.file
        count = self.contender.processes
        for extra in group_environments(count) if count > 1 else [{}]:
            self.errors.append(tempfile.TemporaryFile())
            self.processes.append(
                subprocess.Popen(
                    [self.python, str(file)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.errors[-1],
                    env={**_clean_environment(), **extra},
                    start_new_session=True,  # Ctrl-C 只到主进程,由它来收拾
                )
            )
        return self

    def __exit__(self, *exception):
        self._kill()
        for process, error in zip(self.processes, self.errors):
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            error.close()

    def _kill(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()

    def send(self, command, argument):
        line = json.dumps([command, argument]).encode() + b"\n"
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):  # 已经退出;receive 会说明原因
                process.stdin.write(line)
                process.stdin.flush()

    def receive(self):
        """各进程的回答;有一个中途退出就报错。"""
        with concurrent.futures.ThreadPoolExecutor(len(self.processes)) as pool:
            waiting = [pool.submit(process.stdout.readline) for process in self.processes]
            try:
                for done in concurrent.futures.as_completed(waiting):
                    if not done.result():
                        raise UserError(self._obituary(waiting.index(done)))
            except BaseException:
                self._kill()  # 其余的线程这才读得到结尾
                raise
        return [json.loads(one.result()) for one in waiting]

    def _obituary(self, index):
        status = self.processes[index].wait()
        self.errors[index].seek(0)
        lines = self.errors[index].read().decode(errors="replace").strip().splitlines()
        reason = lines[-1].strip() if lines else "没有留下原因"
        return f"参赛者「{self.contender.name}」的进程中途退出(状态码 {status}):{reason}"

    def ask(self, command, argument):
        self.send(command, argument)
        return self.receive()

    def run(self, steps):
        """跑几步,返回 (每步的秒数, 峰值内存之和(字节))。"""
        replies = self.ask("run", steps)
        time.sleep(_PAUSE)
        return replies[0]["seconds"], sum(reply["peak_memory"] for reply in replies)


def _installed(python, packages):
    """哪些包没有装。"""
    if not packages:
        return []
    code = "import sys, importlib.util as u; print(*[p for p in sys.argv[1:] if u.find_spec(p) is None])"
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, env=_clean_environment())
    except OSError as error:
        raise UserError(f"--peer-python {python} 不能运行({error.strerror}):请给出一个 Python 的路径。") from None
    if done.returncode:
        raise UserError(f"--peer-python {python} 不是能用的 Python:请给出一个 Python 的路径。")
    return done.stdout.split()


# ---- 比赛 ----


def _race(name, architecture, batch, task, options):
    """一个模型、一个项目:全部参赛者轮流跑,返回表的若干行和矩阵乘的峰值(GFLOP/s)。"""
    cores = usable_cores()
    contenders = [contender for contender in _contenders(cores) if task in contender.tasks]
    spec = {"architecture": architecture, "batch": batch, "task": task}
    size = 256 if options.quick else 2048
    rows, teams = {}, {}
    print(f"{name} {_TASKS[task]}:准备,轮", end="", flush=True)
    with contextlib.ExitStack() as stack:
        peak = stack.enter_context(Team(_PEAK))
        peak.send("build", {"mode": "matmul", "size": size, "threads": cores})
        for contender in contenders:
            rows[contender.key] = {"model": name, "task": task, "contender": contender.key, "name": contender.name}
            python = options.peer_python if contender.packages else sys.executable
            missing = _installed(python, contender.packages)
            if missing:
                rows[contender.key].update(unavailable="未安装", reason=f"没有 {'、'.join(missing)}")
                continue
            team = teams[contender.key] = stack.enter_context(Team(contender, python))
            threads = max(1, cores // contender.processes)
            team.send("build", {**spec, "mode": contender.mode, "threads": threads})
        peak.receive()
        for key, team in list(teams.items()):
            reply = team.receive()[0]
            if "unavailable" in reply:
                rows[key].update(unavailable="不可用", reason=reply["unavailable"])
                del teams[key]
            else:
                rows[key].update(reply)
        _check_same_size(rows.values())
        steps = {}
        for key, team in {"peak": peak, **teams}.items():
            fastest = min(team.run(3)[0])
            steps[key] = 1 if options.quick else max(1, min(100, round(options.block_seconds / fastest)))
        times = {key: [] for key in steps}
        for i in range(options.rounds):
            print(f" {i + 1}/{options.rounds}", end="", flush=True)
            for key, team in {"peak": peak, **teams}.items():
                seconds, memory = team.run(steps[key])
                times[key].append(statistics.median(seconds))
                if key in rows:
                    rows[key]["peak_memory_bytes"] = memory
    print(flush=True)
    flops = _step_flops(architecture, batch, task)
    peak_gflops = 2 * size**3 / statistics.median(times["peak"]) / 1e9
    for key in teams:
        median = statistics.median(times[key])
        rows[key].update(
            images_per_second=batch / median,
            slowest=batch / max(times[key]),
            fastest=batch / min(times[key]),
            seconds_per_step=median,
            steps=steps[key] * options.rounds,
            gflops=flops / median / 1e9,
            share_of_peak=flops / median / 1e9 / peak_gflops,
        )
    speed = {key: row.get("images_per_second") for key, row in rows.items()}
    for row in rows.values():
        if "images_per_second" in row:
            for baseline in ("lesson", "torch-float32"):
                if speed[baseline]:
                    row[f"ratio_to_{baseline}"] = row["images_per_second"] / speed[baseline]
    return list(rows.values()), peak_gflops


def _check_same_size(rows):
    counts = {row["name"]: row["parameters"] for row in rows if "parameters" in row}
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"参赛者的模型不一样大:{counts}")


def machine():
    """这台机器和主要的版本。"""
    import paddle

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    memory = None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model,
        "cores": usable_cores(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "paddle": paddle.__version__,
    }


# ---- 时间怎样随规模增长 ----

_GROWTH_BASE = {"tokens": 64, "batch": 8, "depth": 4, "dim": 128}
_GROWTH = {
    "tokens": (16, 64, 256, 1024),
    "batch": (1, 4, 16, 64),
    "depth": (1, 2, 4, 8, 16),
    "dim": (32, 64, 128, 256, 512),
}
_QUICK_GROWTH_BASE = {"tokens": 16, "batch": 2, "depth": 1, "dim": 32}
_QUICK_GROWTH = {"tokens": (16, 64), "batch": (1, 2), "depth": (1, 2), "dim": (32, 64)}


def _growth_spec(tokens, batch, depth, dim, task):
    architecture = dict(
        image_size=4 * round(tokens**0.5),
        patch_size=4,
        in_channels=3,
        num_classes=10,
        embed_dim=dim,
        depth=depth,
        num_heads=dim // 32,
        pool="avg",
    )
    return {"architecture": architecture, "batch": batch, "task": task, "mode": "eager", "threads": usable_cores()}


def _growth(options):
    """课程写法和本项目,每次只变一个量,返回若干行。"""
    base = _QUICK_GROWTH_BASE if options.quick else _GROWTH_BASE
    values = _QUICK_GROWTH if options.quick else _GROWTH
    contenders = [contender for contender in _contenders(usable_cores()) if contender.key in ("lesson", "ours")]
    measured, rows = {}, []
    with contextlib.ExitStack() as stack:
        teams = [stack.enter_context(Team(contender)) for contender in contenders]
        for task in options.tasks:
            for axis in values:
                for value in values[axis]:
                    point = {**base, axis: value}
                    key = (task, *point.values())
                    if key not in measured:
                        print(f"{_TASKS[task]} {axis}={value} …", flush=True)
                        measured[key] = _growth_point(teams, _growth_spec(**point, task=task), options)
                    for contender, median in zip(contenders, measured[key]):
                        per_image = median / point["batch"]
                        row = {"task": task, "axis": axis, "value": value, "contender": contender.key}
                        rows.append({**row, "seconds_per_step": median, "seconds_per_image": per_image, **point})
    return rows


def _growth_point(teams, spec, options):
    """每个参赛者一步的秒数:各轮中位数里最小的,别的程序只会让一轮变慢。"""
    steps = []
    for team in teams:
        team.ask("build", spec)
        fastest = min(team.run(2)[0])
        steps.append(1 if options.quick else max(1, min(50, round(options.block_seconds / 4 / fastest))))
    times = [[] for _ in teams]
    for _ in range(min(options.rounds, 3)):
        for team, count, mine in zip(teams, steps, times):
            mine.append(statistics.median(team.run(count)[0]))
    return [min(mine) for mine in times]


# ---- 会不会越训越慢 ----


def flush_denormals(on=True):
    """让本线程的处理器把次正规数(subnormal,绝对值小于 1.2e-38)当作零。

    只用于 x86-64 的 Linux(glibc):经 C 库的 fegetenv / fesetenv 改写 MXCSR 寄存器的 FTZ 和 DAZ 两位。
    以后新建的线程继承它;Paddle 的 OpenMP 线程在每次并行计算开始时照抄主线程的。

    Returns:
        bool: 是否做到了;别的系统上什么也不做。
    """
    if platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64":
        return False
    libm = ctypes.CDLL("libm.so.6")
    environment = (ctypes.c_uint32 * 8)()  # fenv_t 共 32 字节,最后 4 字节是 MXCSR
    flush_to_zero, denormals_are_zero = 0x8000, 0x0040
    failed = libm.fegetenv(environment)
    environment[7] &= ~(flush_to_zero | denormals_are_zero)
    if on:
        environment[7] |= flush_to_zero | denormals_are_zero
    return not failed and libm.fesetenv(environment) == 0


_SLOWDOWN_DATA = {"ordinary": "普通数据", "zeros": "图像全零", "forward": "激活次正规", "backward": "梯度次正规"}


def _window(options):
    return 5 if options.quick else 100


def _slowdown(options):
    """几种数据,清零与不清零次正规数,轮流训练,每窗记一次每步的秒数;再逐个运算量一遍。"""
    window = _window(options)
    windows = options.steps // window
    trials = {}
    print("准备,步", end="", flush=True)
    with contextlib.ExitStack() as stack:
        teams = {}
        for data, name in _SLOWDOWN_DATA.items():
            for flush in (False, True):
                label = f"{name},{'清零' if flush else '不清零'}"
                team = stack.enter_context(Team(Contender(f"{data}-{flush}", label, "slowdown.py", "")))
                team.send("build", {"data": data, "flush": flush, "threads": usable_cores()})
                teams[data, flush] = team
        for key, team in teams.items():
            trials[key] = {"data": key[0], "flush": key[1], "name": team.contender.name, **team.receive()[0]}
            team.run(10)
            trials[key].update(seconds_per_step=[], subnormal_before=team.ask("count", None)[0])
        for i in range(windows):
            print(f" {(i + 1) * window}/{windows * window}", end="", flush=True)
            for key, team in teams.items():
                trials[key]["seconds_per_step"].append(statistics.median(team.run(window)[0]))
        print(flush=True)
        for key, team in teams.items():
            trials[key]["subnormal_after"] = team.ask("count", None)[0]
        operations = teams["ordinary", False].ask("operations", {"quick": options.quick})[0]
    return {"window": window, "trials": list(trials.values()), "operations": operations}


# ---- 一次运行 ----


def run_benchmark(options, kind="race"):
    """跑一次性能对比,打印表,把 JSON、Markdown 和 PNG 写进 ``options.output``。

    Args:
        options (Options): 设置。
        kind (str): ``'race'`` 各参赛者的对比;``'growth'`` 时间随规模增长;``'slowdown'`` 会不会越训越慢。

    Returns:
        dict: 与写进 JSON 的相同。

    Raises:
        UserError: 参赛者的进程中途退出,或 ``--peer-python`` 不能用。
    """
    window = _window(options)
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds} 不合法:至少要轮流 1 轮。")
    if options.steps < 2 * window:
        raise UserError(f"--steps {options.steps} 不合法:每 {window} 步记一次,至少要 {2 * window} 步。")
    _installed(options.peer_python, ("torch",))  # 尽早发现 --peer-python 不能用
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "kind": kind, "quick": options.quick}
    if kind == "race":
        models = _QUICK_MODELS if options.quick else _MODELS
        result.update(rows=[], peak_gflops=[])
        for name, (architecture, batch) in models.items():
            for task in options.tasks:
                rows, peak = _race(name, architecture, batch, task, options)
                result["rows"] += rows
                result["peak_gflops"].append(peak)
    elif kind == "growth":
        result["rows"] = _growth(options)
    else:
        result.update(_slowdown(options))
    versions = dict.fromkeys(row["version"] for row in result.get("rows", []) if "version" in row)
    result["machine"]["versions"] = list(versions) or [f"Paddle {result['machine']['paddle']}"]
    text, figure = _report(result)
    print(text)
    atomic_write(output / f"{kind}.json", f"{json.dumps(result, ensure_ascii=False, indent=1)}\n".encode())
    atomic_write(output / f"{kind}.md", f"{_report(result, reports.markdown)[0]}\n".encode())
    figure.savefig(output / f"{kind}.png")
    print(f"\n已写入 {output}/{kind}.json、{kind}.md 和 {kind}.png")
    return result


def _report(result, layout=reports.terminal):
    """结果的文字(表用 layout 排版)和图。"""
    line = reports.machine_line(result["machine"])
    parts = [line]
    if result["kind"] == "race":
        for model, task in dict.fromkeys((row["model"], row["task"]) for row in result["rows"]):
            mine = [row for row in result["rows"] if (row["model"], row["task"]) == (model, task)]
            parts += [f"{model} {_TASKS[task]}", layout(reports.race_table(mine))]
        reasons = {row["name"]: f"{row['unavailable']}:{row['reason']}" for row in result["rows"] if "reason" in row}
        parts += [f"{name} {reason}" for name, reason in reasons.items()]
        engines = sorted({row["engine"] for row in result["rows"] if "engine" in row})
        if engines:
            parts.append(
                f"推理引擎:{'、'.join(engines)}。取 class token 的模型,它在最后一层只算 class token,"
                "而 GFLOP/s 仍按整个模型的运算次数算。"
            )
        peaks = "–".join(f"{peak:.0f}" for peak in sorted({min(result["peak_gflops"]), max(result["peak_gflops"])}))
        parts.append(
            f"图像/秒是各轮中位数的中位数。占峰值:与同一次运行里量出的本机 float32 矩阵乘({peaks} GFLOP/s)之比。"
            "浮点运算次数:矩阵乘一次乘加算 2 次,训练是前向的 3 倍。峰值内存是进程的(几个进程的相加),含各自的库。"
        )
        figure = reports.race_figure(result["rows"], line)
    elif result["kind"] == "growth":
        parts.append(layout(reports.growth_table(result["rows"])))
        base = ",".join(f"{axis}={value}" for axis, value in _GROWTH_BASE.items())
        parts.append("每次只变一个量" + ("。" if result["quick"] else f",其余是 {base}。"))
        figure = reports.growth_figure(result["rows"], line)
    else:
        trials, operations = reports.slowdown_tables(result)
        parts += [layout(trials), "百分数是训练结束时次正规数(绝对值小于 1.2e-38)所占的比例。", layout(operations)]
        parts.append(reports.slowdown_verdict(result))
        figure = reports.slowdown_figure(result, line)
    return "\n\n".join(parts), figure
