"""全部设置:一个冻结的数据类(dataclass)。命令行、YAML 配方(recipe)和 ``config.yaml`` 都由它生成。

取值的先后:字段的默认值 < 配方 < 命令行。写错的名字、不合法的值都是错误,不会被忽略。
"""

import dataclasses
import difflib
import os
from argparse import SUPPRESS, BooleanOptionalAction
from pathlib import Path
from typing import Annotated, Literal, Optional, Union, get_args, get_origin

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from .errors import UserError
from .family.models import check_settings, full_name, model_settings
from .system.cli import ArgumentParser
from .system.files import read_yaml

__all__ = ["Config", "as_saved_before", "load_config", "make_config", "parse_config", "result_settings", "save_config"]

RECIPES = Path(__file__).parent / "recipes"
EXPORTED = ("description.json", "model.pdmodel", "model.pdiparams", "model.onnx")  # 导出的目录里的文件,最后一个可以没有
# 只关系到在哪里跑、写到哪里的设置,不影响结果;续训时可以换其中的前几个
RESUME_MAY_CHANGE = ("device", "threads", "processes", "workers", "data_dir")
_NO_RESULT = (*RESUME_MAY_CHANGE, "precision", "output", "resume", "recipe", "log_every", "attention_images")
_NO_RESULT += ("checkpoint_minutes",)
# 定义模型形状的设置:命令行上给了命名的模型时,配方里的这些不再适用
_SHAPE = "image_size patch_size embed_dim depth num_heads mlp_ratio qkv_bias qk_scale pool position_embedding".split()
_SHAPE += "position_std head class_token distillation_token register_tokens norm_after_pool layer_scale".split()
_SHAPE += ["qk_norm", "epsilon", "window_size"]
# 微调时沿用原来的运行的设置;其中这几个改了,权重也可能放得进去
_INHERITED = ["model", *_SHAPE]
_FREE = ("image_size", "position_std", "head", "window_size")
# 改过名字的设置:旧名 -> 现在的
_RENAMED = {"init_from": "weights"}

COMMAND_LINE = "命令行"
_AUTO_OR_COUNT = Union[Literal["auto"], Annotated[int, Field(ge=1, le=256)]]
_MODEL_DECIDES = "不给时由 --model 决定"


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Config:
    """训练的全部设置。每个字段的含义、单位和范围写在它自己的 ``Field`` 里,``--help`` 显示的就是它们。"""

    # 数据
    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "flowers102", "folder"] = Field(
        "digits", description="数据集;digits 随包自带,不用联网;folder 是自己的图片:DIR/train/类别/*.jpg"
    )
    data_dir: Optional[str] = Field(
        None, description="数据所在目录;不给时联网下载到 Paddle 的缓存;digits 随包自带,不用给"
    )
    val_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="从训练部分分出多少作验证集(比例);folder 缺 test/ 时也分出这么多作测试集"
    )
    classes: Optional[str] = Field(
        None, description="只用这几类,逗号隔开的名字或序号(从 0 数起),如 5,6,7;标签按这里的次序重新编号"
    )
    train_per_class: Optional[int] = Field(
        None, gt=0, description="训练图像每类最多几张(验证部分也是);按固定的种子挑,换 --seed 不变"
    )
    normalization: Literal["auto", "half", "imagenet", "data"] = Field(
        "auto",
        description="归一化用的均值和标准差:auto 微调时与权重相同,否则图片用 0.5、其余由数据算;half 都是 0.5;"
        "imagenet 是 ImageNet 的;data 由训练图像算",
    )
    grayscale: Optional[bool] = Field(
        None, description="把 folder 的图片读成灰度(1 个通道);不给时是彩色,微调时与原来的运行相同"
    )
    # 模型
    model: str = Field(
        "vit", description="模型名;vit 是课程里的模型,尺寸由下面的参数改;其余如 vit_tiny、vit_base_patch16_224"
    )
    image_size: Optional[int] = Field(None, gt=0, description="图像边长(像素);不给时由模型名或数据集决定")
    patch_size: Optional[int] = Field(None, gt=0, description=f"图块边长(像素),要整除图像边长;{_MODEL_DECIDES}")
    embed_dim: Optional[int] = Field(None, gt=0, description=f"嵌入维度 D;{_MODEL_DECIDES}")
    depth: Optional[int] = Field(None, gt=0, description=f"编码器层数;{_MODEL_DECIDES}")
    num_heads: Optional[int] = Field(None, gt=0, description=f"注意力头数,要整除 embed_dim;{_MODEL_DECIDES}")
    mlp_ratio: Optional[float] = Field(None, gt=0, description=f"Mlp 隐藏层宽度与 D 之比;{_MODEL_DECIDES}")
    qkv_bias: Optional[bool] = Field(None, description=f"q、k、v 是否有偏置;{_MODEL_DECIDES}")
    qk_scale: Optional[float] = Field(None, gt=0, description="q k^T 的缩放系数;不给时为 d ** -0.5")
    pool: Optional[Literal["avg", "cls"]] = Field(
        None, description=f"汇聚方式:avg 平均所有图块,cls 用 class token;{_MODEL_DECIDES}"
    )
    position_embedding: Optional[Literal["none", "learnable", "sincos", "sincos1d"]] = Field(
        None,
        description=f"位置编码:none 没有,learnable 可学习,sincos 二维正弦余弦,sincos1d 一维正弦余弦;{_MODEL_DECIDES}",
    )
    position_std: Optional[float] = Field(None, gt=0, description=f"可学习的位置编码初值的标准差;{_MODEL_DECIDES}")
    head: Optional[Literal["linear", "mlp"]] = Field(
        None, description=f"分类头:linear 一个线性层,mlp 两个线性层;{_MODEL_DECIDES}"
    )
    class_token: Optional[bool] = Field(None, description="有没有 class token;不给时 pool=cls 才有")
    distillation_token: Optional[bool] = Field(
        None, description=f"加一个蒸馏 token 和它的头(DeiT),预测时取两个头的平均;{_MODEL_DECIDES}"
    )
    register_tokens: Optional[int] = Field(None, ge=0, description=f"寄存器 token 的个数;{_MODEL_DECIDES}")
    norm_after_pool: Optional[bool] = Field(None, description=f"最后的层归一化在汇聚之后;{_MODEL_DECIDES}")
    layer_scale: Optional[float] = Field(None, gt=0, description="LayerScale 的初值,如 1e-4;不给时没有")
    qk_norm: Optional[bool] = Field(None, description=f"注意力里先把 q、k 归一化(QK norm);{_MODEL_DECIDES}")
    epsilon: Optional[float] = Field(None, gt=0, le=1e-3, description=f"层归一化里加在方差上的小数;{_MODEL_DECIDES}")
    window_size: Optional[int] = Field(None, gt=0, description=f"Swin 的窗口边长(图块);{_MODEL_DECIDES}")
    dropout: float = Field(0.0, ge=0, lt=1, description="随机失活概率(0–1)")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="注意力权重的随机失活概率(0–1)")
    drop_path: float = Field(0.0, ge=0, lt=1, description="最后一层的随机深度概率(0–1),各层从 0 线性增长到它")
    # 数据增强
    crop_padding: int = Field(0, ge=0, description="四周补零这么多像素再随机裁回原大小;0 关闭")
    crop_scale: float = Field(1.0, gt=0, le=1, description="随机缩放裁剪时面积的下限(比例);1 关闭")
    flip: bool = Field(False, description="随机左右翻转;手写数字不能翻转")
    rand_augment: int = Field(0, ge=0, le=4, description="RandAugment:每张图像随机做几种变换;0 关闭")
    rand_augment_magnitude: float = Field(9.0, ge=0, le=10, description="RandAugment 的强度(0–10)")
    random_erasing: float = Field(0.0, ge=0, le=1, description="随机擦除一块矩形的概率(0–1)")
    mixup: float = Field(0.0, ge=0, description="mixup 的 Beta 分布参数;0 关闭")
    cutmix: float = Field(0.0, ge=0, description="cutmix 的 Beta 分布参数;0 关闭;与 mixup 同开时每步各一半机会")
    # 微调和蒸馏
    weights: Optional[str] = Field(
        None, description="从这里的权重开始:运行目录、它的 best.safetensors、转换好的或别处的权重;别处的要写明 --model"
    )
    weights_table: Optional[str] = Field(None, description="别处的权重不认识时,给出张量名字的对照表(YAML)")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="逐层衰减学习率:每往下一层再乘这个数(0–1),头是 1 倍;1 不衰减"
    )
    teacher: Optional[str] = Field(None, description="蒸馏:老师的运行目录或权重文件")
    teacher_model: Optional[str] = Field(None, description="老师是别处的权重时,它的模型名")
    distillation: Optional[Literal["none", "hard", "soft"]] = Field(
        None, description="向老师学什么:hard 它判的类,soft 它的概率,none 不学;不给时有 --teacher 就是 hard"
    )
    distillation_alpha: float = Field(0.5, ge=0, le=1, description="老师那一项损失的份额(0–1),其余是标签的")
    distillation_temperature: float = Field(3.0, gt=0, description="soft 时的温度:越大,老师的概率越平")
    train_only: Literal["all", "head"] = Field(
        "all", description="训练哪些权重:all 全部;head 只训练分类头,其余冻结(线性探测,linear probing),快得多"
    )
    # 优化
    epochs: int = Field(100, gt=0, description="训练轮数(epoch)")
    batch_size: int = Field(64, gt=0, description="一次前向的图像数,所有进程合计")
    accumulate: int = Field(1, gt=0, description="累积几批梯度再更新一次;等效批大小 = batch_size * accumulate")
    lr: float = Field(1e-3, gt=0, description="学习率的峰值")
    min_lr: float = Field(1e-5, ge=0, description="余弦退火结束时的学习率")
    warmup_epochs: float = Field(5.0, ge=0, description="学习率线性预热的轮数;超过总轮数一半时按一半算")
    weight_decay: float = Field(0.05, ge=0, description="AdamW 的权重衰减;偏置、归一化层、token 和位置编码不衰减")
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW 的二阶矩系数")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="标签平滑(0–1)")
    clip_grad: float = Field(1.0, ge=0, description="梯度总范数的上限;0 不裁剪")
    ema: float = Field(
        0.0, ge=0, lt=1, description="权重的指数滑动平均(EMA)系数,如 0.999;0 关闭;开启时评估用平均后的权重"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="随机种子;同一种子得到同一结果")
    # 运行
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="设备;auto 有 GPU 就用 GPU")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="计算精度;auto 在 GPU 上用混合精度,在 CPU 上用 float32"
    )
    threads: Optional[int] = Field(None, gt=0, le=1024, description="每个进程的 CPU 线程数;不给时各进程平分可用的核")
    processes: _AUTO_OR_COUNT = Field(
        "auto", description="CPU 上用几个进程一起训练;auto 每核一个,每个每步至少 1000 个图块;结果只差舍入"
    )
    workers: int = Field(2, ge=0, description="读取图片文件的进程数;内存里的数据集和不到 500 张的图片用不到")
    output: Optional[str] = Field(None, description="运行目录;不给时为 runs/<数据集>-<时间>")
    resume: Optional[str] = Field(None, description="继续这个运行目录里没跑完的训练;设置沿用原来的")
    recipe: str = Field(
        "auto", description="配方:内置的名字、YAML 文件的路径,auto(用与数据集同名的内置配方)或 none(不用)"
    )
    log_every: int = Field(10, gt=0, description="每隔多少步往 VisualDL 写一次")
    attention_images: int = Field(
        4, ge=0, le=64, description="训练途中画几张验证图像的注意力,写到 VisualDL;0 不画,Swin 没有;不影响训练结果"
    )
    checkpoint_minutes: float = Field(
        5.0, gt=0, description="一轮很长时,每隔多少分钟也存一次检查点(多进程时每 20 步看一次);每轮结束总会存"
    )

    def model_arguments(self, info):
        """给 ``create_model`` 的全部参数(字典);没写明(``None``)的不在里面,由模型自己决定。

        Args:
            info (DataInfo): 数据集的说明,由它定图像边长、通道数和类别数。
        """
        return {
            "name": full_name(self.model),
            "image_size": info.image_size,
            "in_channels": info.channels,
            "num_classes": len(info.classes),
            **self.given_model_arguments(),
        }

    def given_model_arguments(self):
        """写明了的那些 ``create_model`` 参数(字典),不用知道数据集。"""
        names = [*_SHAPE[1:], *_REGULARIZATION]
        return {_ARGUMENTS.get(name, name): getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def distillation_kind(self):
        """蒸馏的方式:``'none'``、``'hard'`` 或 ``'soft'``。"""
        return self.distillation or ("none" if self.teacher is None else "hard")


_REGULARIZATION = ("dropout", "attention_dropout", "drop_path")
# 设置的名字 -> 模型的参数名,不同的那些
_ARGUMENTS = {"distillation_token": "distillation"}


_GROUPS = {"dataset": "数据", "model": "模型", "crop_padding": "数据增强", "weights": "微调和蒸馏", "epochs": "优化"}
_GROUPS["device"] = "运行"


def _choices(field):
    types = [field.type, *get_args(field.type)]
    if field.type == _AUTO_OR_COUNT:
        return None
    return next((get_args(t) for t in types if get_origin(t) is Literal), None)


def _value_name(field):
    types = {field.type, *get_args(field.type)}
    if field.type == _AUTO_OR_COUNT:
        return "auto|正整数"
    return "整数" if int in types else "数字" if float in types else "文字"


def _option(name):
    return "--" + name.replace("_", "-")


def _parser():
    parser = ArgumentParser(
        "训练一个视觉 Transformer。不带参数时在自带的 digits 手写数字上训练,不用联网。\n"
        "括号里是默认值;与数据集同名的内置配方会改其中一些(见 --recipe),命令行上给的最优先。",
        usage="python scripts/train.py [选项]",
        renamed={_option(before): _option(now) for before, now in _RENAMED.items()},
    )
    group = parser
    for field in dataclasses.fields(Config):
        if field.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[field.name])
        info = field.default
        default = "" if info.default is None else f"(默认 {info.default})"
        option = _option(field.name)
        help_text = f"{info.description}{default}".replace("%", "%%")
        if bool in (field.type, *get_args(field.type)):
            group.add_argument(option, action=BooleanOptionalAction, default=SUPPRESS, help=help_text)
        else:
            choices = _choices(field)
            metavar = "{" + ",".join(choices) + "}" if choices else _value_name(field)
            group.add_argument(option, default=SUPPRESS, metavar=metavar, help=help_text)
    return parser


def _explain(error, source):
    """pydantic 的第一个错误 -> 一行中文。"""
    first = error.errors()[0]
    name, given, context = str(first["loc"][0]), first["input"], first.get("ctx", {})
    known = [field.name for field in dataclasses.fields(Config)]
    if name not in known:
        close = _RENAMED.get(name) or next(iter(difflib.get_close_matches(name, known, n=1)), None)
        hint = f"是不是 {close}?" if close else "全部设置见 --help。"
        return UserError(f"{source}里有不认识的设置 {name!r}:{hint}")
    field = next(field for field in dataclasses.fields(Config) if field.name == name)
    bounds = {"gt": "大于", "ge": "大于等于", "lt": "小于", "le": "小于等于"}
    limit = next((f"{word} {context[key]:g}" for key, word in bounds.items() if key in context), None)
    choices = _choices(field)
    expected = (
        f"只能是 {'、'.join(choices)} 之一" if choices else f"应{limit}" if limit else f"应为{_value_name(field)}"
    )
    if bool in (field.type, *get_args(field.type)):
        expected = "应为 true 或 false"
    option = _option(name) if source == COMMAND_LINE else f"{source}里 {name}"
    return UserError(f"{option} 的值 {given!r} 不合法:{expected}。含义:{field.default.description}。")


def make_config(values, source="设置"):
    """由字典建立 ``Config``,检查每个名字和取值。

    Args:
        values (dict): 字段名 -> 值;数字可以是字符串。
        source (str): 这些值从哪里来,出错时写进提示。

    Raises:
        UserError: 有不认识的名字或不合法的值。
    """
    unknown = [name for name in values if not isinstance(name, str)]
    if unknown:
        raise UserError(f"{source}里有不认识的设置 {unknown[0]!r}:设置的名字见 --help。")
    try:
        config = Config(**values)
    except ValidationError as error:
        raise _explain(error, source) from None
    check_settings(config.model, config.given_model_arguments())
    if config.flip and config.dataset in ("digits", "mnist"):
        raise UserError(f"flip=True 不能用于 {config.dataset}:数字左右翻转后就不是原来的数字了,请去掉 --flip。")
    if config.min_lr > config.lr:
        raise UserError(f"min_lr={config.min_lr:g} 大于 lr={config.lr:g}:退火应从 lr 降到 min_lr,请改其中一个。")
    if config.dataset == "digits" and config.data_dir is not None:
        raise UserError(
            f"--data-dir {config.data_dir} 不能与 --dataset digits 同用:digits 随包自带,请去掉它或换数据集。"
        )
    if config.distillation in ("hard", "soft") and config.teacher is None:
        raise UserError(f"distillation={config.distillation} 要有老师:请用 --teacher 给出它的运行目录或权重文件。")
    for name, owner in (("teacher_model", "teacher"), ("weights_table", "weights")):
        if getattr(config, name) is not None and getattr(config, owner) is None:
            raise UserError(f"{_option(name)} 只与 {_option(owner)} 同用:请加上 {_option(owner)},或去掉它。")
    if config.grayscale and config.dataset != "folder":
        raise UserError(f"--grayscale 不能用于 {config.dataset}:只有 folder 能选灰度或彩色,请去掉它。")
    return config


def result_settings(config):
    """决定训练结果的那些设置(字典):续训时必须不变,也是 VisualDL 里比较各次运行的超参数。"""
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in _NO_RESULT}


def _read_yaml(path):
    values = read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} 的内容不是 设置: 值 的列表:请参照 paddle_vit/recipes 里的配方。")
    return _with_new_names(values)


def _with_new_names(settings):
    """旧版存的设置(字典):改过名字的换成现在的。"""
    return {_RENAMED.get(name, name): value for name, value in settings.items()}


def as_saved_before(settings):
    """旧版的运行存下的设置(字典)-> 现在的:改过名字的换名,当时没有的 epsilon 补上当时的 1e-5。"""
    return {"epsilon": 1e-5, **_with_new_names(settings)}


def _recipe_path(name, dataset, fine_tuning):
    if name == "none":
        return None
    if name == "auto":
        path = RECIPES / ("finetune.yaml" if fine_tuning else f"{dataset}.yaml")
        return path if path.exists() else None
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return Path(name)
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        known = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"是不是 {close[0]}?" if close else ""
        raise UserError(f"没有名为 {name!r} 的配方:{hint}内置的有 {'、'.join(known)};自己的配方请给 .yaml 文件的路径。")
    return path


def parse_config(argv=None):
    """由命令行参数(和它指定的配方,或要继续的运行)得到 ``Config``。

    Raises:
        UserError: 参数、配方或要继续的运行有误。
    """
    given = vars(_parser().parse_args(argv))
    if given.get("resume") is not None:
        return _resumed_config(given)
    path = _recipe_path(given.get("recipe", "auto"), given.get("dataset", "digits"), "weights" in given)
    recipe = {}
    if path is not None:
        recipe = _read_yaml(path)
        for name in ("resume", "recipe"):
            if name in recipe:
                raise UserError(f"配方 {path} 里不能有 {name}:它只能在命令行上给。")
        dataset = given.get("dataset", recipe.get("dataset", "digits"))
        make_config({**recipe, "dataset": dataset}, f"配方 {path} ")
        if full_name(given.get("model", "vit")) != "vit":
            recipe = {name: value for name, value in recipe.items() if name not in _SHAPE}
    if given.get("weights") is not None:
        recipe = {name: value for name, value in recipe.items() if name not in _INHERITED}
    wanted = {**recipe, **given}
    if wanted.get("weights") is None:
        return make_config(wanted, COMMAND_LINE)
    inherited = _inherited(wanted)
    config = make_config({**inherited, **wanted}, COMMAND_LINE)
    for name in inherited:
        mine, before = getattr(config, name), inherited[name]
        if name not in _FREE and mine != before and not (name == "model" and full_name(mine) == full_name(before)):
            raise UserError(
                f"{_option(name)} {mine} 与 {config.weights} 的 {before} 不同,它的权重就不能用了:"
                f"微调沿用原来的模型,请去掉 {_option(name)}。"
            )
    return config


def _inherited(wanted):
    """微调时从权重沿用的设置(字典):模型、它的形状、图像边长;folder 还有灰度或彩色。

    别处的权重里没有模型的名字,要由 ``--model`` 给;从它沿用的只有层归一化的 epsilon。
    """
    from .weights import describe_weights

    source = wanted["weights"]
    known = describe_weights(source, wanted.get("weights_table"))
    if known.model is None:
        if wanted.get("model") is None:
            raise UserError(f"{source} 是别处的权重,没有写明是哪个模型:请加上 --model{known.guess()}。")
        return {} if known.epsilon is None else {"epsilon": known.epsilon}
    settable = {_ARGUMENTS.get(name, name) for name in _SHAPE} | set(_REGULARIZATION)
    usual = {name: list(value) for name, value in model_settings(known.model["name"]).items() if type(value) is tuple}
    model = {name: value for name, value in known.model.items() if name not in usual or list(value) != usual[name]}
    for name, value in model.items():
        if (name not in settable and name not in ("name", "in_channels", "num_classes")) or isinstance(value, list):
            raise UserError(
                f"{source} 的模型改过 {name}(是 {value}),训练的设置里没有它:命令行上只能微调命名的模型,"
                "这个请在 Python 里用 create_model 和 load_weights。"
            )
    values = {name: model.get(_ARGUMENTS.get(name, name)) for name in _SHAPE}
    values["model"] = model["name"]
    if wanted.get("dataset") == "folder":
        values["grayscale"] = model["in_channels"] == 1
    return values


def _resumed_config(given):
    directory = given.pop("resume")
    saved = load_config(directory)
    if Path(given.pop("output", directory)).resolve() != Path(directory).resolve():
        raise UserError(f"--resume {directory} 只能接着写这个目录:请去掉 --output。")
    changed = make_config(
        {**dataclasses.asdict(saved), "output": directory, "resume": directory, **given}, COMMAND_LINE
    )
    for name in given:
        if name not in RESUME_MAY_CHANGE and getattr(changed, name) != getattr(saved, name):
            option = _option(name)
            raise UserError(
                f"{option} {given[name]} 与 {directory} 原来的 {getattr(saved, name)} 不同:续训沿用原来的设置,"
                f"请去掉 {option};要换设置,请用 --output 开一个新的运行。"
            )
    return changed


def save_config(config, path):
    """把全部设置写成 YAML,可以再作 ``--recipe`` 用。"""
    from .system.files import atomic_write

    values = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("output", "resume", "recipe")
    }
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    atomic_write(path, f"# 这次运行的全部设置;可以用 --recipe 再跑一次\n{text}".encode())


def load_config(directory):
    """读运行目录里的 ``config.yaml``。

    Raises:
        UserError: 不是运行目录,或文件损坏。
    """
    path = Path(directory) / "config.yaml"
    if not path.exists():
        if (Path(directory) / EXPORTED[0]).exists():
            raise UserError(
                f"{directory} 是导出的目录,这里要的是它所属的运行目录(在 scripts/train.py 建立的 runs/… 里)。"
            )
        raise UserError(
            f"{directory} 不是一个运行目录(里面没有 config.yaml):请给 scripts/train.py 建立的目录,如 runs/…。"
        )
    return make_config(as_saved_before(_read_yaml(path)), f"{path} ")
