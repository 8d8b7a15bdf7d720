"""作业 8:从空文件写出整个 ViT,训练、预测、保存、读回。课程第 8 课。

这里只写明要有什么、收什么、给什么;里面怎样分层、要不要 class token、用哪种位置编码、怎样训练,都由你定。
不要用 ``paddle_vit`` 里现成的层(判卷不管,作业是给自己做的)。检查:python scripts/homework.py check 8
"""

from paddle import nn


class ViT(nn.Layer):
    """视觉 Transformer:图像 [B, C, H, W] -> logits [B, K](不做 softmax)。

    Args:
        image_size (int): 图像边长,像素。
        patch_size (int): 图块边长,像素,整除 image_size。
        in_channels (int): 图像通道数 C。
        num_classes (int): 类别数 K。
        embed_dim (int): 嵌入维度 D。
        depth (int): 编码器层数,各层有自己的参数。
        num_heads (int): 头数,整除 embed_dim。
    """

    def __init__(self, image_size, patch_size, in_channels, num_classes, embed_dim, depth, num_heads):
        super().__init__()
        raise NotImplementedError("TODO")


def train(images, labels):
    """在 digits 上训练一个 ``ViT``。判卷给全部训练图像,要求没见过的图像上正确率至少 90 %,最多一分钟。

    Args:
        images (Tensor): [n, 1, 8, 8],0 到 1。
        labels (Tensor): int64,[n],0 到 9。

    Returns:
        ViT: 训练好的模型。
    """
    raise NotImplementedError("TODO")


def predict(model, images):
    """每张图像的类别;同一个模型、同一张图像,每次的答案相同,与同时预测的别的图像无关。

    Args:
        model (ViT): 可能正处于训练状态。
        images (Tensor): [n, C, H, W],n 可以是 1。

    Returns:
        Tensor 或 ndarray: 整数,[n]。
    """
    raise NotImplementedError("TODO")


def save(model, path):
    """把模型存成一个文件 path(文字),``load`` 只凭它就能建出同样的模型。"""
    raise NotImplementedError("TODO")


def load(path):
    """读回 ``save`` 存的模型:尺寸、权重都与当时相同,是一个新的对象。

    Returns:
        ViT
    """
    raise NotImplementedError("TODO")


if __name__ == "__main__":  # 在这里自己试:python ex08_whole_vit.py
    import paddle

    from paddle_vit import load_data, make_config

    data = load_data(make_config({"dataset": "digits"}))
    pixels, answers = ([p.images.transpose(0, 3, 1, 2) / 255.0, p.labels] for p in (data.train, data.val))
    trained = train(paddle.to_tensor(pixels[0].astype("float32")), paddle.to_tensor(pixels[1]))
    guesses = predict(trained, paddle.to_tensor(answers[0].astype("float32")))
    print(guesses.shape, "验证正确率", float((guesses == answers[1]).mean()))
