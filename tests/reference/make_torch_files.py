"""Makes tests/reference/files/*: small files written by PyTorch, and the values they must read back as.

Run it in an environment with PyTorch (the files in the repository: torch 2.13.0, numpy 2.x):
    python tests/reference/make_torch_files.py
"""

import argparse
import collections
import pathlib
import pickle

import numpy as np
import torch

FILES = pathlib.Path(__file__).parent / "files"


def state_dict():
    """Every dtype and memory layout that the reader knows."""
    shared = torch.arange(24.0)
    return collections.OrderedDict(
        float32=torch.randn(2, 3),
        half=torch.randn(3).half(),
        bfloat16=torch.randn(2, 2).bfloat16(),
        double=torch.randn(3).double(),
        int64=torch.arange(4) - 2,
        int32=torch.arange(3, dtype=torch.int32),
        int16=torch.arange(3, dtype=torch.int16),
        int8=torch.arange(3, dtype=torch.int8) - 1,
        uint8=torch.arange(3, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        transposed=torch.arange(6.0).reshape(2, 3).t(),
        permuted=torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        shared_start=shared[:10],
        shared_step=shared[5:20:3],
        shared_columns=shared.reshape(4, 6)[:, 1:3],
        parameter=torch.nn.Parameter(torch.randn(2)),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
    )


def checkpoint(state):
    """What a training script saves: weights among an optimizer, arguments and random states."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    return {
        "epoch": np.float64(3),
        "loss": torch.tensor(1.0),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"last": [0.1, 0.2], "milestones": collections.Counter([3, 3])},
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs/a"), betas=(0.9, 0.999)),
        "model_ema": model.state_dict(),
        "model": state,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "sizes": [torch.Size([1, 2]), {3, 4}],
        "rng": [torch.get_rng_state()[:5], np.arange(3), None, True, 2**70, -1.5],
        "found": collections.defaultdict(list, {"a": [1]}),
    }


def main():
    torch.manual_seed(0)
    FILES.mkdir(exist_ok=True)
    state = state_dict()
    values = {name: value.detach() for name, value in state.items()}
    values = {name: value.float() if value.is_floating_point() else value for name, value in values.items()}
    np.savez_compressed(FILES / "torch_expected.npz", **{name: value.numpy() for name, value in values.items()})
    for name, zipped in (("zip", True), ("legacy", False)):
        torch.save(state, FILES / f"torch_{name}.pth", _use_new_zipfile_serialization=zipped)
        torch.save(checkpoint(state), FILES / f"torch_checkpoint_{name}.pth", _use_new_zipfile_serialization=zipped)
        whole = torch.nn.Sequential(torch.nn.Linear(2, 2))
        torch.save(whole, FILES / f"torch_module_{name}.pth", _use_new_zipfile_serialization=zipped)
    torch.save(state, FILES / "torch_zip_protocol4.pth", pickle_protocol=4)
    torch.serialization.set_crc32_options(False)
    torch.save(state, FILES / "torch_zip_without_crc.pth")
    torch.serialization.set_crc32_options(True)
    (FILES / "torch_pickle.pth").write_bytes(pickle.dumps({"x": torch.ones(2)}))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(FILES / "torch_script.pt"))
    torch.save({"x": torch.ones(1).expand(5)}, FILES / "torch_expanded.pth")
    torch.save({"x": torch.ones(3).to(torch.float8_e4m3fn)}, FILES / "torch_float8.pth")
    torch.save({"x": torch.ones(3).to_sparse()}, FILES / "torch_sparse.pth")
    torch.save({"x": torch.ones(3) + 0j}, FILES / "torch_complex.pth")


if __name__ == "__main__":
    main()
