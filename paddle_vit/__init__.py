"""从零开始学视觉 Transformer:课程里的层、模型和训练。导入没有副作用:不设设备,不改线程数,不打印。"""

import contextlib
import importlib
import io
import sys
import warnings
from typing import TYPE_CHECKING

# Paddle 导入时会抱怨没有 ccache、OMP_NUM_THREADS 大于 1,两者都无害
with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as _complaints:
    warnings.filterwarnings("ignore", message="No ccache found")
    import paddle  # noqa: F401

from .errors import UserError
from .family.equivalents import LinearPatchEmbedding, MultiHeadAttention, causal_mask
from .family.models import count_parameters, create_model, list_models
from .family.swin import SwinTransformer
from .layers import Attention, DropPath, EncoderLayer, Identity, Linear, Mlp, PatchEmbedding
from .positions import sincos_position_embedding, sincos_position_embedding_1d
from .vit import ViT
from .weights import describe_weights, export_weights, load_weights

__version__ = "0.1.0"

__all__ = [
    "Attention",
    "DropPath",
    "EncoderLayer",
    "Identity",
    "Linear",
    "LinearPatchEmbedding",
    "Measure",
    "Mlp",
    "MultiHeadAttention",
    "PatchEmbedding",
    "Predictor",
    "SwinTransformer",
    "Task",
    "UserError",
    "ViT",
    "causal_mask",
    "count_parameters",
    "create_model",
    "describe_runtime",
    "describe_weights",
    "export_weights",
    "launch",
    "list_models",
    "load_data",
    "load_run",
    "load_weights",
    "make_config",
    "normalize",
    "seed_everything",
    "setup_runtime",
    "sincos_position_embedding",
    "sincos_position_embedding_1d",
    "train",
    "use_chinese_font",
]

if TYPE_CHECKING:  # 编辑器和类型检查看这里;运行时用到才导入,见 __getattr__
    from .config import make_config
    from .data.augment import normalize
    from .data.sources import load_data
    from .deploy.predictor import Predictor
    from .runs.loading import load_run
    from .runs.train import launch, train
    from .system.pictures import use_chinese_font
    from .system.runtime import describe_runtime, seed_everything, setup_runtime
    from .tasks.task import Measure, Task

_WHEN_USED = {  # 导入各层要轻,这些要读设置、数据或画图的模块
    "Measure": ".tasks.task",
    "Predictor": ".deploy.predictor",
    "Task": ".tasks.task",
    "describe_runtime": ".system.runtime",
    "launch": ".runs.train",
    "load_data": ".data.sources",
    "load_run": ".runs.loading",
    "make_config": ".config",
    "normalize": ".data.augment",
    "seed_everything": ".system.runtime",
    "setup_runtime": ".system.runtime",
    "train": ".runs.train",
    "use_chinese_font": ".system.pictures",
}


def __getattr__(name):
    if name in _WHEN_USED:
        return getattr(importlib.import_module(_WHEN_USED[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


# 导入 Paddle 时打印的别的话照样显示
if sys.stderr is not None:  # pythonw 没有
    sys.stderr.writelines(line for line in _complaints.getvalue().splitlines(True) if "OMP_NUM_THREADS" not in line)
