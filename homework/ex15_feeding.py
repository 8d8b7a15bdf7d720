"""作业 15:手写数据加载器的五个零件:成批、拼批、分给各进程、增强的随机数、提前取。课程第 15 课。

检查:python scripts/homework.py check 15
"""

import time

import numpy as np


def batch_indices(count, batch_size, seed, epoch, shuffle=True, drop_last=False):
    """第 epoch 轮的各批下标。

    - 打乱的次序只由 (seed, epoch) 决定:同样的 (seed, epoch) 次序相同,(0, 1) 和 (1, 0) 也是不同的次序;
    - 不打乱时依次是 0, 1, …, count - 1;
    - 不要动全局的随机数状态(np.random.seed、random.seed、paddle.seed):别人也在用。

    Args:
        count (int): 一共多少张。
        batch_size (int): 几张一批。
        seed (int): 种子,不小于 0。
        epoch (int): 第几轮,从 0 起。
        shuffle (bool): 是否打乱。
        drop_last (bool): 最后不满的一批是否扔掉;正好满的不扔。

    Returns:
        list: 每批一个列表或一维 ndarray,里面是下标。
    """
    raise NotImplementedError("TODO")


def collate(samples, mean, std):
    """把一个个样本拼成一批,归一化:(像素 / 255 - mean) / std。

    Args:
        samples (list): 每项是 (图像 uint8 [H, W, C], 标签 int)。
        mean (list): 各通道的均值,[C],按像素 0–1。
        std (list): 各通道的标准差,[C],按像素 0–1。

    Returns:
        tuple: ``(images, labels)``:float32 [B, C, H, W],int64 [B];Tensor 或 ndarray 都可以。
    """
    raise NotImplementedError("TODO")


def shard(indices, rank, world):
    """world 个进程一起训练时,第 rank 个进程拿到的下标。

    - 各进程一样多,都是 ceil(n / world) 个:不一样多时,先做完的会永远等着别人;
    - 合起来每个下标至少一次;不能整除时,从 indices 的开头重复着补,补到够为止(n 可能比 world 还小);
    - 每隔 world 个取一个,还是切成连续的几段,都可以;
    - 不要改动传进来的 indices。

    Args:
        indices (list): 这一轮的全部下标,[n],n 不小于 1;各进程收到的相同。
        rank (int): 本进程的序号,0 到 world - 1。
        world (int): 进程总数。

    Returns:
        list: 下标,[ceil(n / world)];一维 ndarray 也可以。
    """
    raise NotImplementedError("TODO")


def worker_rng(seed, epoch, worker):
    """第 epoch 轮里,第 worker 个读取进程做数据增强用的随机数生成器。

    三个数里有一个不同,抽出的随机数就不同,(0, 0, 1)、(0, 1, 0)、(1, 0, 0) 也互不相同;三个数都相同,抽出的就相同。

    Args:
        seed, epoch, worker (int): 都不小于 0。

    Returns:
        numpy.random.Generator: 新的生成器。
    """
    raise NotImplementedError("TODO")


def prefetch(items, depth=2):
    """用一个线程提前取:按原来的次序逐个给出 items 的各项。

    - 调用者在用一项的时候,线程已经在取后面的;做好了还没有人要的最多 depth 项
      (线程手里可以另有一项),不能把 items 一口气取光;
    - items 里可以有 None、0、空列表,它们也是数据;
    - items 抛出异常时,前面的各项照常给出,然后在调用者这里抛出同一个异常,不能悄悄结束,也不能永远等下去。

    Args:
        items (Iterable): 只在线程里取,取完一遍为止。
        depth (int): 最多提前几项,不小于 1。

    Yields:
        items 的各项。
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex15_feeding.py
    print([list(rows) for rows in batch_indices(10, 4, seed=0, epoch=0)])
    image = np.zeros([4, 3, 3], "uint8")
    print(list(collate([(image, 1), (image, 2)], [0.5, 0.5, 0.5], [0.2, 0.2, 0.2])[0].shape))  # 应为 [2, 3, 4, 3]
    print([list(shard([5, 6, 7, 8, 9], rank, 2)) for rank in range(2)])
    print([worker_rng(0, 0, worker).integers(100, size=3).tolist() for worker in range(2)])
    started = time.perf_counter()
    for item in prefetch(time.sleep(0.1) or i for i in range(5)):
        time.sleep(0.1)
        print(item, f"{time.perf_counter() - started:.1f} 秒")
