"""训练一个视觉 Transformer。不带参数时在自带的 digits 上训练;全部参数见 --help。"""

from functools import partial

from paddle_vit.cli import run
from paddle_vit.config import parse_config
from paddle_vit.data import load_data
from paddle_vit.logs import RunLog
from paddle_vit.processes import choose_processes, companions, one_after_another
from paddle_vit.runs import build_model, first_weights, open_run, patches_per_image, source_statistics
from paddle_vit.runtime import autocast_dtype, describe_runtime, pick_device, seed_everything, setup_runtime
from paddle_vit.training import fit
from paddle_vit.weights import save_report


def main():
    config = parse_config()
    device, patches = pick_device(config.device), patches_per_image(config)
    with companions(choose_processes(config.processes, device, config.batch_size, patches)):
        train(config)


def train(config):
    runtime = setup_runtime(config.device, config.threads)
    rank, world = runtime["rank"], runtime["processes"]
    precision = autocast_dtype(config.precision, runtime["device"])
    if rank == 0:
        print(f"{describe_runtime(runtime)}\n读取数据 {config.dataset} …", flush=True)
    with one_after_another(rank, world):
        data = source_statistics(load_data(config), config)
    seed_everything(config.seed)
    model = build_model(config, data.info)
    report = first_weights(model, config, data.info)
    with open_run(config, data.info, rank, world) as directory:
        if rank == 0:
            print(f"运行目录 {directory};看曲线:python scripts/board.py {directory.parent}", flush=True)
        if rank == 0 and report is not None:
            print(report, flush=True)
            save_report(report, directory / "init.json")
        make_log = partial(RunLog, directory, config.epochs, every=config.log_every, enabled=rank == 0)
        fit(model, data, config, directory, make_log, precision, rank, world)


if __name__ == "__main__":
    run(main)
