"""全部设置:一个冻结的数据类(dataclass)。命令行、YAML 配方(recipe)和 ``config.yaml`` 都由它生成。

每个设置的种类、范围、含义、分组和标记只写一次,就在它自己的那一行。写错的名字、不合法的值都是错误,不会被忽略。
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from .config_checks import check_together
from .errors import UserError
from .family.models import check_settings, full_name, full_settings
from .system.fitting import parse_size

__all__ = [
    "COMMAND_LINE",
    "Config",
    "Setting",
    "all_settings",
    "make_config",
    "option_of",
    "result_settings",
    "tagged",
]

COMMAND_LINE = "命令行"
_MODEL_DECIDES = "不给时由 --model 决定"

# 一个设置的标记:
# shape    定义模型的形状:``create_model`` 的参数。命令行上给了命名的模型时,配方里的不再适用;微调时沿用原来的
# free     是形状,但改了它,原来的权重也可能放得进去
# regular  ``create_model`` 的参数,但不是形状
# where    只关系到在哪里跑、写到哪里、写什么,不影响结果
# resume   不影响结果,而且续训时可以换
_TAGS = ("shape", "free", "regular", "where", "resume")


def _setting(default, group, description, tags="", gt=None, ge=None, lt=None, le=None, value_name=None):
    """一个设置:默认值、``--help`` 里的分组、含义、标记(空格隔开)、范围和值的叫法(不给时由类型定)。"""
    extra = {"group": group, "tags": tags.split(), "value_name": value_name}
    return Field(default, description=description, gt=gt, ge=ge, lt=lt, le=le, json_schema_extra=extra)


ImageSize = Annotated[Union[int, str], BeforeValidator(parse_size)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Config:
    """训练的全部设置。每个字段的含义、单位和范围写在它自己的那一行,``--help`` 显示的就是它们。"""

    # 数据
    task: Literal["classification"] = _setting("classification", "数据", "学什么;classification 是图像分类")
    dataset: Literal["digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "flowers102", "folder"] = _setting(
        "digits",
        "数据",
        "数据集;digits 随包自带,不用联网;folder 是自己的图片:DIR/train/类别/*.jpg,或 DIR/类别/*.jpg,或列表",
    )
    data_dir: Optional[str] = _setting(
        None, "数据", "数据所在目录;不给时联网下载到 Paddle 的缓存;digits 随包自带,不用给", "where resume"
    )
    val_fraction: float = _setting(
        0.1, "数据", "从训练部分分出多少作验证集(比例);folder 缺 test/ 时也分出这么多作测试集", gt=0, lt=0.5
    )
    classes: Optional[str] = _setting(
        None, "数据", "只用这几类,逗号隔开,全写名字或全写序号(从 0 数起),如 5,6,7;标签按这里的次序重新编号"
    )
    train_per_class: Optional[int] = _setting(
        None, "数据", "训练图像每类最多几张(验证部分也是);按固定的种子挑,换 --seed 不变", gt=0
    )
    normalization: Literal["auto", "half", "imagenet", "clip", "none", "data"] = _setting(
        "auto",
        "数据",
        "归一化用的均值和标准差:auto 微调时与权重相同,否则图片用 0.5、其余由数据算;half 都是 0.5;"
        "imagenet 是 ImageNet 的;clip 是 CLIP 的;none 不归一化,像素是 0–1;data 由训练图像算",
    )
    fit: Literal["auto", "crop", "squash", "pad"] = _setting(
        "auto",
        "数据",
        "图片的大小和形状不同时怎样摆:auto 微调时与权重相同,否则同 crop;crop 按短边缩放后居中裁剪;"
        "squash 不管长宽比缩放;pad 按长边缩放,短边补灰",
    )
    channels: Optional[int] = _setting(
        None,
        "数据",
        "folder 的图片读成几个通道:1 灰度;3 彩色(透明处垫白);4 RGBA 的四个通道都要;不给时是 3,微调时与原来的相同",
        value_name="1、3 或 4",
    )
    full_range: bool = _setting(
        False, "数据", "folder 的灰度图超过 8 位时保留全部精度,不降成 256 级;与 --channels 1 同用"
    )
    # 模型
    model: str = _setting(
        "vit", "模型", "模型名;vit 是课程里的模型,尺寸由下面的参数改;其余如 vit_tiny、vit_base_patch16_224"
    )
    image_size: Optional[ImageSize] = _setting(
        None,
        "模型",
        "图像边长(像素),或 高x宽,如 64x128;不给时由模型名或数据集决定",
        "shape free",
        value_name="边长(正整数)或 高x宽",
    )
    patch_size: Optional[int] = _setting(None, "模型", f"图块边长(像素),要整除图像边长;{_MODEL_DECIDES}", "shape", gt=0)
    embed_dim: Optional[int] = _setting(None, "模型", f"嵌入维度 D;{_MODEL_DECIDES}", "shape", gt=0)
    depth: Optional[int] = _setting(None, "模型", f"编码器层数;{_MODEL_DECIDES}", "shape", gt=0)
    num_heads: Optional[int] = _setting(None, "模型", f"注意力头数,要整除 embed_dim;{_MODEL_DECIDES}", "shape", gt=0)
    mlp_ratio: Optional[float] = _setting(None, "模型", f"Mlp 隐藏层宽度与 D 之比;{_MODEL_DECIDES}", "shape", gt=0)
    qkv_bias: Optional[bool] = _setting(None, "模型", f"q、k、v 是否有偏置;{_MODEL_DECIDES}", "shape")
    qk_scale: Optional[float] = _setting(None, "模型", "q k^T 的缩放系数;不给时为 d ** -0.5", "shape", gt=0)
    tokenizer: Optional[Literal["patch", "conv"]] = _setting(
        None, "模型", f"怎样得到 token:patch 切图块,conv 几层卷积和池化(CCT);{_MODEL_DECIDES}", "shape"
    )
    tokenizer_kernel: Optional[int] = _setting(
        None, "模型", f"tokenizer=conv 的卷积核边长(像素),奇数;{_MODEL_DECIDES}", "shape", ge=3
    )
    pool: Optional[Literal["avg", "cls", "seq"]] = _setting(
        None,
        "模型",
        f"汇聚方式:avg 平均所有图块,cls 用 class token,seq 按学到的权重平均(CCT);{_MODEL_DECIDES}",
        "shape",
    )
    position_embedding: Optional[Literal["none", "learnable", "sincos", "sincos1d"]] = _setting(
        None,
        "模型",
        f"位置编码:none 没有,learnable 可学习,sincos 二维正弦余弦,sincos1d 一维正弦余弦;{_MODEL_DECIDES}",
        "shape",
    )
    position_std: Optional[float] = _setting(
        None, "模型", f"可学习的位置编码初值的标准差;{_MODEL_DECIDES}", "shape free", gt=0
    )
    head: Optional[Literal["linear", "mlp"]] = _setting(
        None, "模型", f"分类头:linear 一个线性层,mlp 两个线性层;{_MODEL_DECIDES}", "shape free"
    )
    class_token: Optional[bool] = _setting(None, "模型", "有没有 class token;不给时 pool=cls 才有", "shape")
    distillation_token: Optional[bool] = _setting(
        None, "模型", f"加一个蒸馏 token 和它的头(DeiT),预测时取两个头的平均;{_MODEL_DECIDES}", "shape"
    )
    register_tokens: Optional[int] = _setting(None, "模型", f"寄存器 token 的个数;{_MODEL_DECIDES}", "shape", ge=0)
    norm_after_pool: Optional[bool] = _setting(None, "模型", f"最后的层归一化在汇聚之后;{_MODEL_DECIDES}", "shape")
    layer_scale: Optional[float] = _setting(None, "模型", "LayerScale 的初值,如 1e-4;不给时没有", "shape", gt=0)
    qk_norm: Optional[bool] = _setting(None, "模型", f"注意力里先把 q、k 归一化(QK norm);{_MODEL_DECIDES}", "shape")
    epsilon: Optional[float] = _setting(
        None, "模型", f"层归一化里加在方差上的小数;{_MODEL_DECIDES}", "shape", gt=0, le=1e-3
    )
    activation: Optional[Literal["gelu", "quick_gelu", "gelu_tanh"]] = _setting(
        None, "模型", f"Mlp 的激活函数;quick_gelu 和 gelu_tanh 是 GELU 的近似;{_MODEL_DECIDES}", "shape"
    )
    embed_norm: Optional[bool] = _setting(None, "模型", f"编码器之前也有层归一化(CLIP);{_MODEL_DECIDES}", "shape")
    trunk_norm: Optional[bool] = _setting(
        None, "模型", f"各层的第二个层归一化在主干上,不在残差分支里(CCT);{_MODEL_DECIDES}", "shape"
    )
    window_size: Optional[int] = _setting(None, "模型", f"Swin 的窗口边长(图块);{_MODEL_DECIDES}", "shape free", gt=0)
    dropout: float = _setting(0.0, "模型", "随机失活概率(0–1)", "regular", ge=0, lt=1)
    attention_dropout: float = _setting(0.0, "模型", "注意力权重的随机失活概率(0–1)", "regular", ge=0, lt=1)
    drop_path: float = _setting(0.0, "模型", "最后一层的随机深度概率(0–1),各层从 0 线性增长到它", "regular", ge=0, lt=1)
    # 数据增强
    crop_padding: int = _setting(0, "数据增强", "四周补零这么多像素再随机裁回原大小;0 关闭", ge=0)
    crop_scale: float = _setting(1.0, "数据增强", "随机缩放裁剪时面积的下限(比例);1 关闭", gt=0, le=1)
    flip: bool = _setting(False, "数据增强", "随机左右翻转;手写数字不能翻转")
    rand_augment: int = _setting(0, "数据增强", "RandAugment:每张图像随机做几种变换;0 关闭", ge=0, le=4)
    rand_augment_magnitude: float = _setting(9.0, "数据增强", "RandAugment 的强度(0–10)", ge=0, le=10)
    random_erasing: float = _setting(0.0, "数据增强", "随机擦除一块矩形的概率(0–1)", ge=0, le=1)
    mixup: float = _setting(0.0, "数据增强", "mixup 的 Beta 分布参数;0 关闭", ge=0)
    cutmix: float = _setting(0.0, "数据增强", "cutmix 的 Beta 分布参数;0 关闭;与 mixup 同开时每步各一半机会", ge=0)
    # 微调和蒸馏
    weights: Optional[str] = _setting(
        None,
        "微调和蒸馏",
        "从这里的权重开始:运行目录、它的 best.safetensors、转换好的或别处的权重;别处的要写明 --model",
    )
    weights_table: Optional[str] = _setting(None, "微调和蒸馏", "别处的权重不认识时,给出张量名字的对照表(YAML)")
    layer_decay: float = _setting(
        1.0, "微调和蒸馏", "逐层衰减学习率:每往下一层再乘这个数(0–1),头是 1 倍;1 不衰减", gt=0, le=1
    )
    teacher: Optional[str] = _setting(None, "微调和蒸馏", "蒸馏:老师的运行目录或权重文件")
    teacher_model: Optional[str] = _setting(None, "微调和蒸馏", "老师是别处的权重时,它的模型名")
    distillation: Optional[Literal["none", "hard", "soft"]] = _setting(
        None, "微调和蒸馏", "向老师学什么:hard 它判的类,soft 它的概率,none 不学;不给时有 --teacher 就是 hard"
    )
    distillation_alpha: float = _setting(0.5, "微调和蒸馏", "老师那一项损失的份额(0–1),其余是标签的", ge=0, le=1)
    distillation_temperature: float = _setting(3.0, "微调和蒸馏", "soft 时的温度:越大,老师的概率越平", gt=0)
    train_only: Literal["all", "head"] = _setting(
        "all", "微调和蒸馏", "训练哪些权重:all 全部;head 只训练分类头,其余冻结(线性探测,linear probing),快得多"
    )
    # 优化
    epochs: int = _setting(100, "优化", "训练轮数(epoch)", gt=0)
    batch_size: int = _setting(64, "优化", "一次前向的图像数,所有进程合计", gt=0)
    accumulate: int = _setting(1, "优化", "累积几批梯度再更新一次;等效批大小 = batch_size * accumulate", gt=0)
    optimizer: Literal["adamw", "muon"] = _setting(
        "adamw", "优化", "优化器;muon 把编码器里矩阵的动量正交化再走,短的训练学得快得多,每步约慢一成;其余参数仍用 adamw"
    )
    lr: float = _setting(1e-3, "优化", "学习率的峰值", gt=0)
    min_lr: float = _setting(1e-5, "优化", "余弦退火结束时的学习率", ge=0)
    warmup_epochs: float = _setting(5.0, "优化", "学习率线性预热的轮数;超过总轮数一半时按一半算", ge=0)
    weight_decay: float = _setting(0.05, "优化", "AdamW 的权重衰减;偏置、归一化层、token 和位置编码不衰减", ge=0)
    beta2: float = _setting(0.999, "优化", "AdamW 的二阶矩系数", gt=0, lt=1)
    label_smoothing: float = _setting(0.1, "优化", "标签平滑(0–1)", ge=0, lt=1)
    clip_grad: float = _setting(1.0, "优化", "梯度总范数的上限;0 不裁剪", ge=0)
    ema: float = _setting(
        0.0, "优化", "权重的指数滑动平均(EMA)系数,如 0.999;0 关闭;开启时评估用平均后的权重", ge=0, lt=1
    )
    recompute: bool = _setting(
        False, "优化", "编码器各层只留下输入,反向时再算一遍前向:内存少得多,时间约多三分之一,结果相同", "resume"
    )
    class_weights: Literal["none", "balanced"] = _setting(
        "none",
        "优化",
        "各类的损失怎样加权:none 一样重;balanced 与训练图像的张数成反比,少的类不会被忽略;最好的一轮改由平衡正确率选",
    )
    balanced_sampling: bool = _setting(
        False, "优化", "每轮从各类抽一样多的图像,少的类重复抽;最好的一轮改由平衡正确率(各类正确率的平均)选"
    )
    patience: Optional[int] = _setting(None, "优化", "连续这么多轮验证没有变好就停下;不给时训练满 --epochs 轮", gt=0)
    max_minutes: Optional[float] = _setting(
        None,
        "优化",
        "最多训练这么多分钟:量出速度,定出做得完的步数,学习率在那之前退火到底;轮数不超过 --epochs",
        gt=0,
    )
    seed: int = _setting(0, "优化", "随机种子;同一种子得到同一结果", ge=0, lt=2**31)
    # 运行
    device: Literal["auto", "cpu", "gpu"] = _setting("auto", "运行", "设备;auto 有 GPU 就用 GPU", "where resume")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _setting(
        "auto", "运行", "计算精度;auto 在 GPU 上用混合精度,在 CPU 上用 float32", "where"
    )
    threads: Optional[int] = _setting(
        None, "运行", "每个进程的 CPU 线程数;不给时各进程平分可用的核", "where resume", gt=0, le=1024
    )
    processes: int = _setting(
        1, "运行", "CPU 上用几个进程一起训练;一个进程已经用上全部的核;结果只差舍入", "where resume", gt=0, le=256
    )
    workers: int = _setting(
        2, "运行", "读取图片文件的进程数;内存里的数据集和不到 500 张的图片用不到", "where resume", ge=0
    )
    output: Optional[str] = _setting(None, "运行", "运行目录;不给时为 runs/<数据集>-<时间>", "where")
    resume: Optional[str] = _setting(None, "运行", "继续这个运行目录里没跑完的训练;设置沿用原来的", "where")
    recipe: str = _setting(
        "auto", "运行", "配方:内置的名字、YAML 文件的路径,auto(用与数据集同名的内置配方)或 none(不用)", "where"
    )
    log_every: int = _setting(10, "运行", "每隔多少步往 VisualDL 写一次", "where", gt=0)
    attention_images: int = _setting(
        4, "运行", "训练途中画几张验证图像的注意力,写到 VisualDL;0 不画,Swin 没有;不影响训练结果", "where", ge=0, le=64
    )
    checkpoint_minutes: float = _setting(
        5.0, "运行", "一轮很长时,每隔多少分钟也存一次检查点(多进程时每 20 步看一次);每轮结束总会存", "where", gt=0
    )

    def model_arguments(self, info) -> dict:
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

    def given_model_arguments(self) -> dict:
        """写明了的那些 ``create_model`` 参数(字典),不用知道数据集;图像边长由数据集定,不在里面。"""
        names = [*tagged("shape"), *tagged("regular")]
        values = {name: getattr(self, name) for name in names if name != "image_size"}
        return {name: value for name, value in values.items() if value is not None}

    def effective(self, name: str) -> Any:
        """一个设置实际的值:没写明的由模型的名字决定,模型也没有的是 ``None``。"""
        value = getattr(self, name)
        return full_settings(self.model).get(name) if value is None else value

    @property
    def distillation_kind(self) -> str:
        """蒸馏的方式:``'none'``、``'hard'`` 或 ``'soft'``。"""
        return self.distillation or ("none" if self.teacher is None else "hard")


@dataclasses.dataclass(frozen=True)
class Setting:
    """一个设置自己的说明,由 ``Config`` 的字段得来。

    Attributes:
        name (str): 名字,命令行上是 ``--`` 加上它,``_`` 换成 ``-``。
        default (Any): 默认值。
        group, description (str): 分组和含义。
        tags (tuple[str]): 标记,见文件开头。
        is_bool (bool): 是开关。
        choices (tuple[str] | None): 只能是这些。
        value_name (str): 值的种类的叫法。
    """

    name: str
    default: object
    group: str
    description: str
    tags: tuple
    is_bool: bool
    choices: tuple | None
    value_name: str


@functools.cache
def all_settings() -> tuple[Setting, ...]:
    """全部设置,按 ``Config`` 里的次序。"""
    hints = get_type_hints(Config, include_extras=True)
    return tuple(_describe(field.name, field.default, hints[field.name]) for field in dataclasses.fields(Config))


def _describe(name, info, hint):
    types = {hint, *get_args(hint)}
    choices = next((get_args(kind) for kind in types if get_origin(kind) is Literal), None)
    extra = info.json_schema_extra
    value_name = extra["value_name"] or ("整数" if int in types else "数字" if float in types else "文字")
    described = info.description, tuple(extra["tags"]), bool in types
    return Setting(name, info.default, extra["group"], *described, choices, value_name)


def tagged(tag: str) -> list[str]:
    """有某个标记的设置的名字。"""
    return [setting.name for setting in all_settings() if tag in setting.tags]


def option_of(name: str) -> str:
    """设置在命令行上的写法。"""
    return "--" + name.replace("_", "-")


def _explain(error, source):
    """pydantic 的第一个错误 -> 一行中文。"""
    first = error.errors()[0]
    name, given, context = str(first["loc"][0]), first["input"], first.get("ctx", {})
    known = {setting.name: setting for setting in all_settings()}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"是不是 {close[0]}?" if close else "全部设置见 --help。"
        return UserError(f"{source}里有不认识的设置 {name!r}:{hint}")
    setting = known[name]
    bounds = {"gt": "大于", "ge": "大于等于", "lt": "小于", "le": "小于等于"}
    limit = next((f"{word} {context[key]:g}" for key, word in bounds.items() if key in context), None)
    if setting.is_bool:
        expected = "应为 true 或 false"
    elif setting.choices:
        expected = f"只能是 {'、'.join(setting.choices)} 之一"
    else:
        expected = f"应{limit}" if limit else f"应为{setting.value_name}"
    option = option_of(name) if source == COMMAND_LINE else f"{source}里 {name}"
    return UserError(f"{option} 的值 {given!r} 不合法:{expected}。含义:{setting.description}。")


def make_config(values: dict, source: str = "设置") -> Config:
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
    check_together(config)
    return config


def result_settings(config: Config) -> dict:
    """决定训练结果的那些设置(字典):续训时必须不变,也是 VisualDL 里比较各次运行的超参数。"""
    where = tagged("where")
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in where}
