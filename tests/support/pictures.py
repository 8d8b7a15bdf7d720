"""有毛病的图片文件夹。"""

import numpy as np
from PIL import Image


def bad_folder(root, kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), "uint8"))
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(4):
            image.save(root / "train" / name / f"{i}.jpg")
    target = root / "train" / "a" / "0.jpg"
    if kind == "text":
        (root / "train" / "a" / "note.png").write_text("not an image", encoding="utf-8")
    elif kind == "truncated":
        target.write_bytes(target.read_bytes()[:-700])
    elif kind == "no image":
        (root / "train" / "c").mkdir()
        (root / "train" / "c" / "readme.txt").write_text("", encoding="utf-8")
    elif kind == "few":
        (root / "train" / "c").mkdir()
        image.save(root / "train" / "c" / "1.jpg")
    elif kind == "unknown class":
        (root / "val" / "z").mkdir(parents=True)
    elif kind == "empty val":
        (root / "val" / "a").mkdir(parents=True)
