"""导出的说明:图片怎样变成模型的输入,写给别的程序的作者。"""

from __future__ import annotations

from ..checks import as_pair
from ..data.info import DataInfo

__all__ = ["preprocessing_steps"]


def preprocessing_steps(info: DataInfo) -> list[str]:
    """图片怎样变成模型的输入,一步一句。"""
    return [
        f"按 EXIF 摆正;{_pixel_step(info)};转成 mode(Pillow 的模式,RGB 按红、绿、蓝的次序)",
        *_placing_steps(info),
        "除以 255,减 mean,除以 std,每个通道各自的",
        "次序从 [高, 宽, 通道] 换成 [通道, 高, 宽]",
    ]


def _pixel_step(info):
    """透明和超过 8 位的像素怎样变成 0–255,写给别的程序的作者。"""
    if info.channels == 4:
        return "RGBA 的四个通道原样,不按透明度加权"
    tops = {"I": 65535, **(info.pixel_max or {})}
    names = {"I": "16 位灰度的值", "F": "浮点灰度的值"}
    last = ",不取整" if info.full_range else ""
    scales = [f"{names[kind]}截到 0–{top:g},乘 255 / {top:g}{last or ' 取整'}" for kind, top in sorted(tops.items())]
    return "透明处垫白;" + ";".join(scales)


def _placing_steps(info):
    """怎样把图片摆成模型的大小,写给别的程序的作者。"""
    fit, (height, width) = info.fit, as_pair(info.image_size, "image_size")
    method = f"Pillow 的 resize,{fit.interpolation.upper()},缩小时带抗锯齿"
    same = ";已经是这么大的不变" if fit.share == 1 else ""
    if fit.kind != "pad" and fit.rounding == "exact":
        box = {
            "crop": f"裁出正中间长宽比为 {width}:{height} 的最大一块(box 是小数,左右、上下各去掉一半)",
            "squash": "取整张图片,不管长宽比",
        }[fit.kind]
        box += "" if fit.share == 1 else f",再取它正中间、边长为 {fit.share:g} 倍的一块"
        return [f"{box},缩放成高 {height}、宽 {width}:{method}{same}"]
    ways = {
        "crop": "按短边缩放(长边按比例,取整)",
        "squash": "两边各自缩放",
        "pad": "按长边缩放(短边按比例,四舍五入)",
    }
    tall, wide = (int(side / fit.share + 1e-6) for side in (height, width))
    start = "(差 // 2)" if fit.rounding == "floor" else "round(差 / 2)"
    steps = [f"{ways[fit.kind]}到高 {tall}、宽 {wide}:{method}{same}"]
    if fit.kind == "pad":
        steps.append(
            f"补成高 {height}、宽 {width}:左、上补 差 // 2,颜色 {list(fit.fill) or 128};多出的从 {start} 处裁掉"
        )
    else:
        steps.append(f"从正中间裁出高 {height}、宽 {width},左上角在 {start} 处")
    return steps
