import queue
import threading

import numpy as np


def batch_indices(count, batch_size, seed, epoch, shuffle=True, drop_last=False):
    order = np.argsort(np.random.default_rng((epoch, seed)).random(count)) if shuffle else np.arange(count)
    full = count // batch_size
    batches = list(order[: full * batch_size].reshape(full, batch_size))
    rest = order[full * batch_size :]
    return batches if drop_last or not len(rest) else [*batches, rest]


def collate(samples, mean, std):
    images, labels = map(np.array, zip(*samples))  # [B, H, W, C]
    scale = 1 / (255 * np.array(std))
    images = images * scale - np.array(mean) / std
    return np.moveaxis(images, 3, 1).astype("float32"), labels.astype("int64")


def shard(indices, rank, world):
    each = -(-len(indices) // world)
    return np.resize(indices, (each, world))[:, rank]


def worker_rng(seed, epoch, worker):
    child = np.random.SeedSequence(seed).spawn(epoch + 1)[epoch].spawn(worker + 1)[worker]
    return np.random.default_rng(child)


class Prefetcher(threading.Thread):
    def __init__(self, items, depth):
        super().__init__(daemon=True)
        self.items, self.ready = items, queue.Queue(depth)

    def run(self):
        try:
            for item in self.items:
                self.ready.put(lambda item=item: item)
            problem = StopIteration()
        except Exception as error:  # noqa: BLE001
            problem = error
        self.ready.put(problem)

    def __iter__(self):
        return self

    def __next__(self):
        got = self.ready.get()
        if isinstance(got, BaseException):
            self.ready.put(got)
            raise got
        return got()


def prefetch(items, depth=2):
    thread = Prefetcher(items, depth)
    thread.start()
    return thread
