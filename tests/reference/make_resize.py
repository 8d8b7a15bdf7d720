"""缩放的参考结果:位置编码、Swin 的相对位置偏置表、图块卷积核,由 PyTorch 和 timm 算出,存成 resize.npz。"""

import numpy as np
import torch
import torch.nn.functional as F
from common import FOLDER, TOLERANCE, add_case, packages
from images import image_batch
from timm.layers import resample_abs_pos_embed, resample_patch_embed

POSITIONS = [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((7, 7), (12, 12)), ((12, 12), (7, 7)), ((14, 14), (10, 20))]
BIAS_TABLES = [(13, 23), (23, 13)]
PATCHES = [((16, 16), (32, 32)), ((16, 16), (8, 8)), ((16, 16), (14, 14)), ((16, 16), (12, 20))]
D = 2


def positions(grid, new_grid):
    """位置表 [1, 1 + N, D] -> [1, 1 + N', D]:第一行(class token)不变,其余按网格双三次缩放,抗锯齿。

    输入是 images.image_batch(1, D, 高, 宽) 按网格行优先排成 token,class token 那一行全是 0.5。
    """
    table = torch.from_numpy(image_batch(1, D, *grid)).flatten(2).transpose(1, 2)  # [1, N, D]
    resized = F.interpolate(
        torch.from_numpy(image_batch(1, D, *grid)), new_grid, mode="bicubic", antialias=True, align_corners=False
    )
    expected = resized.flatten(2).transpose(1, 2)  # [1, N', D]
    table = torch.cat([torch.full((1, 1, D), 0.5), table], dim=1)
    with_timm = resample_abs_pos_embed(table, list(new_grid), list(grid), num_prefix_tokens=1)
    if not torch.allclose(with_timm[:, 1:], expected, atol=1e-6):
        raise SystemExit("timm 的位置编码缩放与 F.interpolate 不同。")
    return with_timm


def bias_table(side, new_side):
    """偏置表 [side^2, h] -> [new_side^2, h],双三次,不抗锯齿(微软的载入代码这样做);输入同上,h = D。"""
    table = torch.from_numpy(image_batch(1, D, side, side))  # [1, h, side, side]
    return F.interpolate(table, (new_side, new_side), mode="bicubic").flatten(2)[0].T  # [new_side^2, h]


def patch_kernel(patch_size, new_size):
    """卷积核 [D, C, P, P] -> [D, C, P', P'],伪逆缩放(FlexiViT,arXiv 2212.08013);输入是 image_batch(D, 3, P, P)。"""
    return resample_patch_embed(torch.from_numpy(image_batch(D, 3, *patch_size)), list(new_size))


def size_name(size):
    return f"{size[0]}x{size[1]}"


def main():
    arrays = {f"position {size_name(old)} {size_name(new)}": positions(old, new) for old, new in POSITIONS}
    arrays.update({f"bias {old}x{old} {new}x{new}": bias_table(old, new) for old, new in BIAS_TABLES})
    arrays.update({f"patch {size_name(old)} {size_name(new)}": patch_kernel(old, new) for old, new in PATCHES})
    np.savez(FOLDER / "resize.npz", **{name: value.numpy() for name, value in arrays.items()})
    add_case(
        "resize",
        family="resize",
        expected="resize.npz",
        outputs=sorted(arrays),
        tolerance=TOLERANCE,
        made_by="make_resize.py",
        packages=packages("torch", "timm", "numpy"),
    )


if __name__ == "__main__":
    main()
