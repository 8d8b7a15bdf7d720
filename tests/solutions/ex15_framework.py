import collections
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
from paddle.io import BatchSampler, DistributedBatchSampler


def batch_indices(count, batch_size, seed, epoch, shuffle=True, drop_last=False):
    rng = np.random.RandomState([seed, epoch])
    order = rng.permutation(count).tolist() if shuffle else list(range(count))
    return list(BatchSampler(sampler=order, batch_size=batch_size, drop_last=drop_last))


def collate(samples, mean, std):
    images = paddle.stack([paddle.to_tensor(image).astype("float32") for image, _ in samples])  # [B, H, W, C]
    images = paddle.transpose(images, [0, 3, 1, 2])  # [B, C, H, W]
    mean, std = (paddle.to_tensor(v, "float32").reshape([1, -1, 1, 1]) for v in (mean, std))  # [1, C, 1, 1]
    return (images / 255 - mean) / std, paddle.to_tensor([label for _, label in samples], dtype="int64")


def shard(indices, rank, world):
    sampler = DistributedBatchSampler(indices, 1, num_replicas=world, rank=rank)
    return [indices[i] for (i,) in sampler]


def worker_rng(seed, epoch, worker):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((worker, epoch, seed))))


END = object()


def prefetch(items, depth=2):
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        futures = collections.deque(pool.submit(next, iterator, END) for _ in range(depth))
        while (item := futures.popleft().result()) is not END:
            futures.append(pool.submit(next, iterator, END))
            yield item
