import collections
import math
import random
import threading

import numpy as np


def batch_indices(count, batch_size, seed, epoch, shuffle=True, drop_last=False):
    order = list(range(count))
    if shuffle:
        random.Random(f"{seed}, {epoch}").shuffle(order)
    batches, batch = [], []
    for index in order:
        batch.append(index)
        if len(batch) == batch_size:
            batches.append(batch)
            batch = []
    if batch and not drop_last:
        batches.append(batch)
    return batches


def collate(samples, mean, std):
    height, width, channels = samples[0][0].shape
    images = np.zeros((len(samples), channels, height, width), "float32")
    labels = np.zeros(len(samples), "int64")
    for b, (image, label) in enumerate(samples):
        labels[b] = label
        for c in range(channels):
            images[b, c] = (image[:, :, c] / 255.0 - mean[c]) / std[c]
    return images, labels


def shard(indices, rank, world):
    each = math.ceil(len(indices) / world)
    return [indices[i % len(indices)] for i in range(rank * each, (rank + 1) * each)]


def worker_rng(seed, epoch, worker):
    name = f"{seed}/{epoch}/{worker}".encode()
    return np.random.default_rng(int.from_bytes(name, "big"))


def prefetch(items, depth=2):
    ready, changed, state = collections.deque(), threading.Condition(), {"ended": False, "error": None}

    def run():
        try:
            for item in items:
                with changed:
                    changed.wait_for(lambda: len(ready) < depth)
                    ready.append(item)
                    changed.notify_all()
        except BaseException as error:  # noqa: BLE001
            state["error"] = error
        with changed:
            state["ended"] = True
            changed.notify_all()

    threading.Thread(target=run, daemon=True).start()
    while True:
        with changed:
            changed.wait_for(lambda: ready or state["ended"])
            if not ready:
                break
            item = ready.popleft()
            changed.notify_all()
        yield item
    if state["error"]:
        raise state["error"]
