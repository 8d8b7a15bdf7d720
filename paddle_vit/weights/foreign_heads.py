"""预训练时才用的部分:自监督方法的投影头和解码器。微调时与别人的分类头一样丢掉,在报告里写明。"""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["pretraining_parts"]

# 叫法 -> 去掉前缀以后的名字
_PARTS = {
    "注意力汇聚": "head.probe head.attention.* head.layernorm.* head.mlp.fc* attn_pool.* MAPHead_0/*",
    "投影头": "head.[0-9].* head.mlp* head.last_layer* *dino_head.* *ibot_head.* *projector.* *predictor.*",
    "解码器": "decoder.* decoder_* mask_token",
    "动量编码器": "*momentum_encoder.*",
    "学生": "student.* module.student.*",
    "另一份权重": "ema.* model_ema.*",
}


def pretraining_parts(plain: dict[str, str]) -> dict[str, list[str]]:
    """文件里预训练时才用的部分。

    Args:
        plain (dict): {去掉前缀以后的名字: 文件里的名字}。

    Returns:
        dict: {叫法: 文件里的名字的列表}。
    """
    found: dict[str, list[str]] = {}
    for short, name in plain.items():
        kind = next((kind for kind, words in _PARTS.items() if any(fnmatchcase(short, w) for w in words.split())), None)
        if kind is not None:
            found.setdefault(kind, []).append(name)
    return found
