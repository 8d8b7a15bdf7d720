import queue
import threading

import numpy as np


def batch_indices(count, batch_size, seed, epoch, shuffle=True, drop_last=False):
    order = np.arange(count)
    if shuffle:
        order = np.random.default_rng([seed, epoch]).permutation(count)
    batches = [order[i : i + batch_size] for i in range(0, count, batch_size)]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


def collate(samples, mean, std):
    images = np.stack([image for image, _ in samples])  # [B, H, W, C]
    images = images.astype("float32") / 255
    images = (images - np.float32(mean)) / np.float32(std)
    images = images.transpose(0, 3, 1, 2)  # [B, C, H, W]
    return images, np.array([label for _, label in samples], "int64")


def shard(indices, rank, world):
    indices = list(indices)
    total = -(-len(indices) // world) * world
    padded = (indices * world)[:total]
    return padded[rank::world]


def worker_rng(seed, epoch, worker):
    return np.random.default_rng([seed, epoch, worker])


def prefetch(items, depth=2):
    ready = queue.Queue(maxsize=depth)

    def run():
        try:
            for item in items:
                ready.put((item, None, False))
            ready.put((None, None, True))
        except Exception as error:  # noqa: BLE001
            ready.put((None, error, True))

    threading.Thread(target=run, daemon=True).start()
    while True:
        item, error, ended = ready.get()
        if error is not None:
            raise error
        if ended:
            return
        yield item
