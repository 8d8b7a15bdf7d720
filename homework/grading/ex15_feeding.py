"""作业 15 的检查:成批、拼批、分给各进程、增强的随机数、提前取。"""

import random
import threading
import time

import numpy as np
import paddle

from .machinery import Exercise, Wrong, as_array, compare

MISTAKES = {
    "not_shuffled": "没有打乱:shuffle=True 时次序应是随机的。",
    "same_groups": "只打乱了批的次序(或一批之内的次序):每一批总是同样的那几张;应先打乱全部下标,再切成批。",
    "with_replacement": "有的下标重复,有的没有用到:打乱是一个排列(permutation),不是有放回地抽。",
    "same_every_epoch": "每一轮的次序都一样:种子里忘了 epoch。",
    "seed_ignored": "换了 seed 次序却不变:种子里忘了 seed。",
    "seed_plus_epoch": "(seed, epoch) 是 (0, 1) 和 (1, 0) 时次序相同:加在一起会撞上,用 default_rng([seed, epoch])。",
    "not_reproducible": "同样的 (seed, epoch) 两次的次序不同:随机数要由 seed 和 epoch 决定,不能用全局的状态或时间。",
    "global_state": "动了全局的随机数状态(np.random 或 random):请新建自己的生成器,如 np.random.default_rng。",
    "last_batch_lost": "最后不满的一批丢了:drop_last=False 时要留着。",
    "last_batch_kept": "最后不满的一批没有扔掉:drop_last=True 时要扔。",
    "full_batch_dropped": "正好满的最后一批也被扔掉了:drop_last 只扔不满的。",
    "no_scale": "没有除以 255:像素是 0–255,mean 和 std 是按 0–1 算的。",
    "hwc": "没有换轴:通道还在最后,[B, H, W, C];应为 [B, C, H, W]。",
    "reshaped": "用 reshape 换轴:形状对了,各通道的像素混在了一起;应用 transpose。",
    "width_height": "高和宽换错了位置:应从 [B, H, W, C] 到 [B, C, H, W]。",
    "integer_division": "除以 255 的结果成了整数(用了 // 255,或又 astype('uint8')):除了 255 都变成 0。",
    "uint8_overflow": "在 uint8 上做减法:不够减时从 255 重新数起;应先 astype('float32')。",
    "mean_before_scale": "先减了 mean 才除以 255:mean 是按 0–1 算的,应先除以 255。",
    "no_mean": "没有减 mean。",
    "no_std": "没有除以 std。",
    "times_std": "乘了 std,应除以 std。",
    "wrong_axis": "mean 和 std 沿宽度用了,应沿通道:在 [B, C, H, W] 上,形状要先变成 [C, 1, 1]。",
    "images_dtype": "图像的类型应为 float32:模型的权重是 float32。",
    "labels_dtype": "标签的类型应为 int64。",
    "labels_order": "标签和图像没有对上:标签的次序要与图像相同。",
    "mutated": "改动了传进来的列表(打乱、append 或 += 都会改):调用者还要用它;请先复制一份,indices = list(indices)。",
    "ranks_same": "各进程拿到的一样:每个进程都把全部数据做一遍,等于没有分。",
    "unequal": "各进程拿到的不一样多:要补到 ceil(n / world) 个,否则先做完的会永远等下去。",
    "remainder_lost": "分不匀的余数扔掉了:有的图像哪个进程也没有拿到。",
    "not_covered": "各进程合起来有漏的,也有多给的:每个下标至少一次,只有补的才重复。",
    "padded_elsewhere": "补的不是开头的下标:应从 indices 的开头重复着补。",
    "padded_once": "n 比 world 小得多时没有补够:开头的下标可能要重复好几遍。",
    "same_in_workers": "各读取进程的随机数一样:增强会成倍地重复;种子里忘了 worker。",
    "same_in_epochs": "每一轮的随机数一样:每张图每轮都增强成同一个样子;种子里忘了 epoch。",
    "rng_seed_ignored": "换了 seed 随机数却不变:种子里忘了 seed。",
    "collision": "不同的 (seed, epoch, worker) 抽出了同样的数:相加、拼在一起都会撞上;三个数放进列表作种子。",
    "rng_not_reproducible": "同样的 (seed, epoch, worker) 两次抽出不同的随机数:每次要由这三个数新建生成器。",
    "hangs": "调用者永远等下去了:items 完了或抛出异常以后,线程要留下一个结束的标记。",
    "stops_early": "遇到 None(或 0、空列表)就停了:它们也是数据,结束的标记要用数据里不会有的东西。",
    "tail_lost": "最后几项丢了。",
    "not_ahead": "没有提前取:调用者在用一项的时候,线程应已经在取后面的。",
    "unbounded": "没有上限:做好了还没有人要的最多 depth 项,队列要有上限(maxsize),不能把 items 一口气取光。",
    "depth_ignored": "没有用 depth:提前的项数不到 depth。",
    "swallowed": "items 抛出的异常不见了:调用者以为正常结束,少了数据也不知道。",
    "error_early": "异常来得太早:它前面的各项应先照常给出。",
    "other_error": "抛出的不是 items 的那个异常:应原样抛出,调用者要靠它知道是哪里坏了。",
}
EXERCISE = Exercise(15, "数据加载器的零件", MISTAKES)
PIXELS = list(MISTAKES)[list(MISTAKES).index("no_scale") : list(MISTAKES).index("images_dtype")]
SECONDS = 5  # 一串几乎不用时间的数据,这么久还没有取完就是停住了


def indices_of(name, value):
    """一串下标 -> int 的列表。"""
    array = as_array(name, np.asarray(value) if isinstance(value, (list, tuple, range)) else value)
    if array.ndim != 1 or (array != array.round()).any():
        raise Wrong(f"{name} 应是一串下标,得到形状 {list(array.shape)} 的数。", ["type"])
    return array.astype(int).tolist()


def batches(function, *args, **options):
    """学生的各批,每批一个列表。"""
    got = function(*args, **options)
    if got is None:
        raise Wrong("batch_indices 是 None:还没写完,或忘了 return。", ["no_return"])
    return [indices_of(f"第 {i} 批", rows) for i, rows in enumerate(got)]


def flat(lists):
    return [item for items in lists for item in items]


def expect_sizes(got, count, batch_size, drop_last):
    """各批的大小对。"""
    sizes = [len(rows) for rows in got]
    full, rest = divmod(count, batch_size)
    expected = [batch_size] * full + ([rest] if rest and not drop_last else [])
    if sizes == expected:
        return
    details = f"各批的大小应为 {expected},得到 {sizes}({count} 张,{batch_size} 张一批,drop_last={drop_last})。"
    if rest and sizes == [batch_size] * full:
        EXERCISE.fail("last_batch_lost", details)
    if rest and drop_last and sizes == [*expected, rest]:
        EXERCISE.fail("last_batch_kept", details)
    if not rest and drop_last and sizes == expected[:-1]:
        EXERCISE.fail("full_batch_dropped", details)
    raise Wrong(details)


@EXERCISE.check("batch_indices", "不打乱时的各批", "np.arange(count),每隔 batch_size 切一段。")
def check_plain_batches(function):
    for count, batch_size in ((10, 4), (12, 4), (3, 5)):
        got = batches(function, count, batch_size, 0, 0, shuffle=False)
        expect_sizes(got, count, batch_size, False)
        if flat(got) != list(range(count)):
            raise Wrong(f"不打乱时下标应为 {list(range(count))},得到 {flat(got)}。")


@EXERCISE.check("batch_indices", "扔掉最后一批", "drop_last 只看最后一批的长度是不是小于 batch_size。")
def check_drop_last(function):
    for count, batch_size in ((10, 4), (12, 4), (3, 5)):
        expect_sizes(batches(function, count, batch_size, 0, 0, False, True), count, batch_size, True)


def in_fixed_blocks(rows, size):
    """每批是不是原来相邻的那几张。"""
    return all(sorted(row) == list(range(min(row), min(row) + len(row))) and min(row) % size == 0 for row in rows)


@EXERCISE.check("batch_indices", "打乱", "先打乱全部下标(permutation),再切成批。")
def check_shuffled(function):
    got = batches(function, 60, 6, 3, 1)
    if sorted(flat(got)) != list(range(60)):
        EXERCISE.fail("with_replacement", f"0–59 里有 {60 - len(set(flat(got)))} 个没有用到。")
    if flat(got) == list(range(60)):
        EXERCISE.fail("not_shuffled")
    if in_fixed_blocks(got, 6):
        EXERCISE.fail("same_groups", f"例如第 0 批是 {got[0]}。")
    for drop_last in (False, True):
        expect_sizes(batches(function, 10, 4, 0, 0, True, drop_last), 10, 4, drop_last)


def global_states():
    return [np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()]


def expect_own_generator(call):
    """call 不动全局的随机数状态。"""
    before = global_states()
    call()
    if global_states() != before:
        EXERCISE.fail("global_state")


def orders(function, pairs):
    """每个 (seed, epoch) 的次序;每次先换掉全局的状态。"""
    found = []
    for i, (seed, epoch) in enumerate(pairs):
        np.random.seed(100 + i)
        random.seed(100 + i)
        paddle.seed(100 + i)
        found.append(flat(batches(function, 50, 7, seed, epoch)))
    return found


@EXERCISE.check(
    "batch_indices", "种子和第几轮", "rng = np.random.default_rng([seed, epoch]),再 rng.permutation(count)。"
)
def check_seed_and_epoch(function):
    first, again, epoch, seed, crossed = orders(function, [(0, 0), (0, 0), (0, 1), (1, 0), (2, 0)])
    if first == epoch and first == seed:
        raise Wrong(f"{MISTAKES['same_every_epoch']}\n{MISTAKES['seed_ignored']}", ["same_every_epoch", "seed_ignored"])
    if first != again:
        EXERCISE.fail("not_reproducible")
    if first == epoch:
        EXERCISE.fail("same_every_epoch")
    if first == seed:
        EXERCISE.fail("seed_ignored")
    if epoch == seed or orders(function, [(1, 1)])[0] == crossed:
        EXERCISE.fail("seed_plus_epoch")
    expect_own_generator(lambda: batches(function, 50, 7, 0, 0))


# ---- 拼批 ----


def collate_reference(samples, mean, std, wrong=()):
    images = np.stack([image for image, _ in samples])  # [B, H, W, C]
    mean, std = np.array(mean), np.array(std)
    axis = (-1, 1) if "wrong_axis" in wrong else (-1,)  # W 与 C 一样大,沿哪一轴都不报错
    shift = 0 if "no_mean" in wrong else mean.reshape(axis)
    scale = 1 if "no_std" in wrong else 1 / std.reshape(axis) if "times_std" in wrong else std.reshape(axis)
    if "uint8_overflow" in wrong:
        images = (images - (255 * mean).astype("uint8").reshape(axis)) / 255 / scale
    elif "mean_before_scale" in wrong:
        images = (images - shift) / 255 / scale
    else:
        images = images / (1 if "no_scale" in wrong else 255)
        images = np.floor(images) if "integer_division" in wrong else images
        images = (images - shift) / scale
    B, H, W, C = images.shape
    if "hwc" in wrong:
        return images
    if "reshaped" in wrong:
        return images.reshape(B, C, H, W)
    return images.transpose(0, 3, 2, 1) if "width_height" in wrong else images.transpose(0, 3, 1, 2)


def samples_of(sizes):
    rng = np.random.default_rng(5)
    return [(rng.integers(0, 256, sizes, "uint8"), int(label)) for label in (7, 2, 9, 0, 4)]


def collated(function, sizes):
    """(样本, mean, std, 学生的图像, 学生的标签)。"""
    samples = samples_of(sizes)
    samples[0][0].flat[:2] = 255, 0
    mean, std = [0.6, 0.45, 0.3][: sizes[-1]], [0.2, 0.3, 0.25][: sizes[-1]]
    got = function([(image.copy(), label) for image, label in samples], mean, std)
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong("应返回两样:(images, labels)。", ["no_return"])
    return samples, mean, std, *got


def dtype_of(value):
    return str(value.dtype).split(".")[-1]


@EXERCISE.check("collate", "图像的数值和形状", "astype('float32') / 255,减 mean,除以 std,最后 transpose(0, 3, 1, 2)。")
def check_images(function):
    for sizes in ((4, 3, 3), (2, 5, 1)):
        samples, mean, std, images, _ = collated(function, sizes)
        names = [name for name in PIXELS if name != "wrong_axis" or sizes[1] == sizes[2]]

        def answer(wrong, known=(samples, mean, std)):
            return collate_reference(*known, wrong)

        compare("images", images, answer, EXERCISE.only(names))
        if dtype_of(images) != "float32":
            EXERCISE.fail("images_dtype", f"得到 {dtype_of(images)}。")


@EXERCISE.check("collate", "标签", "np.array([label for _, label in samples], 'int64')。")
def check_labels(function):
    samples, _, _, _, labels = collated(function, (4, 3, 3))
    expected = [label for _, label in samples]
    got = as_array("labels", labels)
    if got.shape == (5,) and got.tolist() != expected and sorted(got) == sorted(expected):
        EXERCISE.fail("labels_order", f"应为 {expected},得到 {got.astype(int).tolist()}。")
    compare("labels", labels, lambda wrong: np.array(expected, "float64"))
    if dtype_of(labels) != "int64":
        EXERCISE.fail("labels_dtype", f"得到 {dtype_of(labels)}。")


# ---- 分给各进程 ----


def shards(function, indices, world):
    """各进程的下标;核对传进去的列表没有变。"""
    found = []
    for rank in range(world):
        given = list(indices)
        found.append(indices_of(f"第 {rank} 个进程的下标", function(given, rank, world)))
        if given != list(indices):
            EXERCISE.fail("mutated", f"传进去 {list(indices)},之后变成 {given}。")
    return found


def check_shards(function, cases):
    for indices, world in cases:
        n, each = len(indices), -(-len(indices) // world)
        got = shards(function, indices, world)
        everything = sorted(flat(got))
        details = f"\n{n} 个下标 {indices} 分给 {world} 个进程,得到 {got}。"
        if min(n, world) > 1 and all(rows == got[0] for rows in got):
            EXERCISE.fail("ranks_same", details)
        sizes = {len(rows) for rows in got}
        if sizes != {each}:
            if everything == sorted(indices):
                EXERCISE.fail("unequal", details)
            if sizes == {n // world}:
                EXERCISE.fail("remainder_lost", details)
            if 2 * n < world and len(everything) == 2 * n:
                EXERCISE.fail("padded_once", details)
            raise Wrong(f"每个进程应拿到 {each} 个,得到 {[len(rows) for rows in got]} 个。{details}")
        expected = sorted((list(indices) * world)[: each * world])
        if everything == expected:
            continue
        if not set(indices) <= set(everything):
            EXERCISE.fail("not_covered", details)
        EXERCISE.fail("padded_elsewhere", details)


@EXERCISE.check("shard", "分得匀时", "indices[rank::world],或第 rank 段。")
def check_even_shards(function):
    check_shards(function, [([5, 3, 8, 1, 9, 2], 3), ([4, 7, 0, 6], 1), (list(range(20, 32)), 4)])


@EXERCISE.check(
    "shard", "分不匀时,补开头的", "先补成 ceil(n / world) * world 个:indices + indices[:差几个],不要用 +=。"
)
def check_uneven_shards(function):
    check_shards(function, [([5, 3, 8, 1, 9, 2, 7], 3), ([4, 7, 0, 6, 11, 12, 13, 14, 15, 16], 4)])


@EXERCISE.check("shard", "下标比进程少时", "(indices * world)[:total] 总是够长。")
def check_few_shards(function):
    check_shards(function, [([4, 7, 9], 5), ([6, 2], 7)])


# ---- 增强的随机数 ----


def drawn(function, *numbers):
    rng = function(*numbers)
    if not isinstance(rng, (np.random.Generator, np.random.RandomState)):
        raise Wrong(f"应返回 numpy.random.Generator,得到 {type(rng).__name__}。", ["type"])
    return rng.random(4).tolist()


@EXERCISE.check("worker_rng", "每个进程、每一轮、每个种子各不相同", "np.random.default_rng([seed, epoch, worker])。")
def check_different(function):
    first = drawn(function, 3, 4, 5)
    for changed, name in (
        ((3, 4, 6), "same_in_workers"),
        ((3, 9, 5), "same_in_epochs"),
        ((8, 4, 5), "rng_seed_ignored"),
    ):
        if drawn(function, *changed) == first:
            EXERCISE.fail(name)


@EXERCISE.check("worker_rng", "能复现,不撞在一起", "把三个数放进一个列表当种子,不要加在一起。")
def check_reproducible(function):
    random.seed(1)
    np.random.seed(1)
    first = drawn(function, 0, 0, 1)
    np.random.seed(2)
    if drawn(function, 0, 0, 1) != first:
        EXERCISE.fail("rng_not_reproducible")
    expect_own_generator(lambda: drawn(function, 0, 1, 2))
    triples = [
        (0, 0, 1),
        (0, 1, 0),
        (1, 0, 0),
        (1, 11, 0),
        (11, 1, 0),
        (1, 1, 10),
        (0, 0, 10),
        (0, 0, 100),
        (0, 0, 1000),
    ]
    seen = {}
    for triple in triples:
        other = seen.setdefault(tuple(drawn(function, *triple)), triple)
        if other != triple:
            EXERCISE.fail("collision", f"例如 {other} 和 {triple}。")


# ---- 提前取 ----


def finished(function):
    """在另一个线程里执行 function,返回它的结果;停住了就不等了。"""
    outcome = {}

    def run():
        try:
            outcome["value"] = function()
        except BaseException as error:  # noqa: BLE001  学生的代码可以抛出任何异常,由判卷的线程再抛出
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        EXERCISE.fail("hangs")
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def iterator_of(function, *args):
    got = function(*args)
    if not hasattr(got, "__iter__"):
        raise Wrong(f"prefetch 应给出一个迭代器(可以写成有 yield 的函数),得到 {type(got).__name__}。", ["no_return"])
    return iter(got)


@EXERCISE.check("prefetch", "一项不少,次序不变", "用一个别处不会有的 object() 作结束的标记,用 is 比较。")
def check_order(function):
    items = [3, None, 0, np.zeros(2), [], "", False, (1, 2), 8]
    for depth in (1, 3, 20):
        got = finished(lambda depth=depth: list(iterator_of(function, iter(items), depth)))
        same = [a is b for a, b in zip(got, items)]
        if len(got) == len(items) and all(same):
            continue
        if all(same) and len(got) in (1, 2, 4):  # 后一项是 None、0 或 []
            EXERCISE.fail("stops_early", f"应有 {len(items)} 项,得到 {len(got)} 项。")
        if all(same) and got:
            EXERCISE.fail("tail_lost", f"应有 {len(items)} 项,得到 {len(got)} 项。")
        raise Wrong(f"应为 {items},得到 {got}。")
    if finished(lambda: list(iterator_of(function, iter([]), 2))):
        raise Wrong("items 是空的,却给出了东西。")


def taken_ahead(function, depth):
    """用第一项的时候,一共取了几项;取的人有足够的时间。"""
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    def run():
        iterator = iterator_of(function, items(), depth)
        next(iterator)
        end = time.monotonic() + SECONDS - 2
        while len(taken) < 1 + depth and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)  # 没有上限的,这时早就超过了
        return len(taken), iterator  # 留着迭代器:它一结束,线程可能跟着结束

    return finished(run)[0]


@EXERCISE.check("prefetch", "提前取,但不多取", "queue.Queue(maxsize=depth):满了 put 就等着。")
def check_ahead(function):
    for depth in (1, 4):
        count = taken_ahead(function, depth)
        details = f"用第 1 项的时候(depth={depth}),一共取了 {count} 项。"
        if count > depth + 2:
            EXERCISE.fail("unbounded", details)
        if count < 2:
            EXERCISE.fail("not_ahead", details)
        if count < 1 + depth:
            EXERCISE.fail("depth_ignored", details)


class BadPicture(ValueError):
    """检查用的异常。"""


@EXERCISE.check("prefetch", "items 抛出异常", "线程里 try … except,把异常放进队列;取出来的是异常就 raise。")
def check_error(function):
    def items():
        yield from range(3)
        raise BadPicture("第 3 张坏了")

    got = []

    def run():
        try:
            for item in iterator_of(function, items(), 2):
                got.append(item)
        except Exception as error:  # noqa: BLE001  看它是不是 items 的那个
            return error
        return None

    error = finished(run)
    if error is None:
        EXERCISE.fail("swallowed", f"给出了 {got} 就结束了。")
    if not isinstance(error, BadPicture):
        EXERCISE.fail("other_error", f"应为 BadPicture,得到 {type(error).__name__}:{error}")
    if got != [0, 1, 2]:
        EXERCISE.fail("error_early", f"应先给出 [0, 1, 2],得到 {got}。")
