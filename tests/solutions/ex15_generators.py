import itertools
import random
import threading

import numpy as np
import paddle


def batch_indices(count, batch_size, seed, epoch, shuffle=True, drop_last=False):
    def cut(order):
        iterator = iter(order)
        while batch := list(itertools.islice(iterator, batch_size)):
            if len(batch) == batch_size or not drop_last:
                yield batch

    order = range(count)
    if shuffle:
        order = random.Random(seed * 1_000_003 + epoch).sample(order, count)
    return list(cut(order))


def collate(samples, mean, std):
    images, labels = [], []
    for image, label in samples:
        image = paddle.to_tensor(image.transpose(2, 0, 1).astype("float32"))  # [C, H, W]
        images.append(paddle.vision.transforms.functional.normalize(image / 255, mean, std))
        labels.append(label)
    return paddle.stack(images), paddle.to_tensor(labels)


def shard(indices, rank, world):
    n = len(indices)
    cycle = itertools.cycle(indices)
    padded = list(itertools.islice(cycle, n + -n % world))
    size = len(padded) // world
    return padded[rank * size : (rank + 1) * size]


def worker_rng(seed, epoch, worker):
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, epoch, worker]))


def prefetch(items, depth=2):
    iterator = iter(items)
    ready, started = [], threading.Event()
    room, filled = threading.Semaphore(depth), threading.Semaphore(0)

    def run():
        started.set()
        kind = "item"
        while kind == "item":
            room.acquire()
            try:
                value = next(iterator)
            except StopIteration:
                kind, value = "end", None
            except Exception as error:  # noqa: BLE001
                kind, value = "error", error
            ready.append((kind, value))
            filled.release()

    threading.Thread(target=run, daemon=True).start()
    started.wait()

    def give():
        while True:
            filled.acquire()
            kind, value = ready.pop(0)
            room.release()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    return give()
