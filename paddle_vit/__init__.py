"""从零开始学视觉 Transformer:课程里的层、模型和训练。导入没有副作用:不设设备,不改线程数,不打印。"""

import contextlib
import io
import sys
import warnings

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
    "Mlp",
    "MultiHeadAttention",
    "PatchEmbedding",
    "Predictor",
    "SwinTransformer",
    "UserError",
    "ViT",
    "causal_mask",
    "count_parameters",
    "create_model",
    "describe_weights",
    "export_weights",
    "list_models",
    "load_weights",
    "sincos_position_embedding",
    "sincos_position_embedding_1d",
]


def __getattr__(name):
    """``Predictor`` 用到时才导入:它要读设置和数据的那些模块,而导入各层要轻。"""
    if name == "Predictor":
        from .deploy.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


# 导入 Paddle 时打印的别的话照样显示
sys.stderr.writelines(line for line in _complaints.getvalue().splitlines(True) if "OMP_NUM_THREADS" not in line)
