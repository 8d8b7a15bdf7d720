"""Hugging Face 的图像处理器和 timm 的变换算出的像素:图片怎样摆成模型的输入,参考结果写进 pixels.json 和 pixels.npz。

每张图片只留每 7 行、每 7 列一个点,文件才小;错开半个像素、插值不同,这些点上也看得出来。
"""

import json
from pathlib import Path

import numpy as np
import PIL
import timm.data
import transformers
from images import photo
from PIL import Image

HERE = Path(__file__).parent
SIZES = [(400, 300), (1024, 683), (300, 400), (224, 224), (100, 400)]  # (宽, 高)
STEP = 7
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
HALF = dict(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
SQUARE = {"height": 224, "width": 224}


def vit(**others):
    return {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "resample": 2, **HALF, **others}


HUGGING_FACE = {
    "vit": vit(),
    "vit_no_normalize": vit(do_normalize=False),
    "vit_no_rescale": vit(do_rescale=False, image_mean=[127.5] * 3, image_std=[127.5] * 3),
    "vit_rescale_factor": vit(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
    "vit_plain": vit(do_normalize=False, do_rescale=False),
    "vit_nearest": vit(resample=0),
    "vit_lanczos": vit(resample=1),
    "vit_box": vit(resample=4),
    "vit_hamming": vit(resample=5),
    "vit_wide": vit(size={"height": 112, "width": 224}, resample=3),
    "vit_int_size": {"image_processor_type": "ViTImageProcessor", "size": 224, **HALF},
    "vit_center_crop": vit(size={"height": 256, "width": 256}, do_center_crop=True, crop_size=SQUARE),
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": 256, "crop_size": 224, "resample": 3, **IMAGENET},
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": SQUARE,
        "resample": 3,
        **IMAGENET,
    },
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": 224, "crop_size": 224},
    "convnext": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 224},
        "crop_pct": 0.875,
        "resample": 3,
        **IMAGENET,
    },
}
TIMM = {
    "augreg": dict(crop_pct=0.9, interpolation="bicubic", mean=[0.5] * 3, std=[0.5] * 3),
    "deit3": dict(crop_pct=1.0, interpolation="bicubic"),
    "default": dict(crop_pct=0.875),
    "squash": dict(crop_pct=0.95, crop_mode="squash", interpolation="bilinear"),
    "border": dict(crop_pct=1.0, crop_mode="border", interpolation="bicubic"),
    "border_crop": dict(crop_pct=0.9, crop_mode="border", interpolation="bicubic"),
    "rectangle": dict(input_size=[3, 112, 224], crop_pct=0.9, interpolation="bicubic"),
    "lanczos": dict(crop_pct=0.96, interpolation="lanczos"),
}


def by_hugging_face(values, image):
    processor = getattr(transformers, values["image_processor_type"] + "Pil")(**values)
    return np.asarray(processor(image, return_tensors="np")["pixel_values"])[0]


def by_timm(values, image):
    data = timm.data.resolve_data_config(pretrained_cfg={"input_size": [3, 224, 224], **values})
    return timm.data.create_transform(**data, is_training=False)(image).numpy()


def main():
    settings, pixels = {}, {}
    for kind, cases, compute in (("huggingface", HUGGING_FACE, by_hugging_face), ("timm", TIMM, by_timm)):
        for name, values in cases.items():
            if kind == "timm":
                values = {"input_size": [3, 224, 224], **values}
            settings[f"{kind}_{name}"] = {"kind": kind, "values": values}
            for size in SIZES:
                found = compute(values, Image.fromarray(photo(*size)))
                pixels[f"{kind}_{name} {size[0]}x{size[1]}"] = found[:, ::STEP, ::STEP].astype("float32")
    packages = {"transformers": transformers.__version__, "timm": timm.__version__, "pillow": PIL.__version__}
    text = json.dumps({"packages": packages, "sizes": SIZES, "step": STEP, "cases": settings}, indent=1)
    (HERE / "pixels.json").write_text(text + "\n", encoding="utf-8")
    np.savez_compressed(HERE / "pixels.npz", **pixels)


if __name__ == "__main__":
    main()
