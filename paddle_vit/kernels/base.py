"""内核(kernel)的公用部分:怎样编译,怎样由地址得到数组,MKL 的矩阵乘,指数函数。

内核是几个公式在 CPU 上的循环,由 numba 在使用者的机器上编译;公式写在 ``functional`` 里,那里先读。这里只讲怎样算得快:
Paddle 的逐元素运算只用一个核,求和、转置各走一遍内存;内核把相邻的几步合成一遍,用上全部的核,矩阵乘仍由 MKL 做。

数据都是 float32。``prange`` 把循环分给各个核;跨行求和时先分成 PARTS 段,各段的和再相加,所以结果与线程数无关。
一个内核有两个函数:``loop`` 是循环,参数是数组;``kernel`` 给别的模块调用,参数是 Tensor 的地址(``Tensor.data_ptr()``),
0 表示没有。合成一个不行:在 prange 里,numba 会把写进「不是参数的数组」的语句当作没用的删掉。按地址用到的临时数组,
要作为参数交给另一个函数(不能是 piece):在分配它的函数里,名字最后一次出现之后,numba 就放掉它的内存。
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import float32, njit, prange, types
from numba.extending import intrinsic

__all__ = ["HALF", "ONE", "PARTS", "ZERO", "add_parts", "add_rows", "address", "exp", "floats", "kernel"]
__all__ += ["loop", "matmul", "parallel_kernel", "part", "piece"]

PARTS = 32
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)

# 允许乘加合并、求和换次序,NaN 和无穷照常传播;除以零得无穷,不抛出异常
_SETTINGS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp", "reassoc"}}
loop = njit(parallel=True, **_SETTINGS)  # 用上各个核的循环
kernel = njit(cache=True, **_SETTINGS)  # 给别的模块调用的;编译好的代码存在 __pycache__ 里
parallel_kernel = njit(cache=True, parallel=True, **_SETTINGS)  # 两者合一,不直接写数组的才行
piece = njit(inline="always", **_SETTINGS)  # 循环里的一小段,编译时展开
part = njit(**_SETTINGS)  # 循环里的一段,不展开


@intrinsic
def _pointer(context, address):
    """整数地址 -> float* 。"""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(float32)(types.int64), generate


@piece
def floats(address, shape):
    """地址上的 float32 数组。"""
    return numba.carray(_pointer(address), shape)


@piece
def address(x):
    """数组的地址;numba 给的是无符号数,与 int64 相加会变成 float64。"""
    return np.int64(x.ctypes.data)


@intrinsic
def _call_sgemm(context, function, flags, sizes, scalars, addresses, strides):
    """调用 cblas_sgemm;参数各是一个元组。"""
    int_, float_ = ir.IntType(32), ir.FloatType()
    pointer = ir.PointerType(float_)

    def generate(context, builder, signature, args):
        function, *groups = args
        groups = [[builder.extract_value(group, i) for i in range(group.type.count)] for group in groups]
        (flags, sizes, (alpha, beta), addresses, strides) = groups
        order, *transposed = [builder.trunc(flag, int_) for flag in flags]
        sizes, strides = ([builder.trunc(value, int_) for value in values] for values in (sizes, strides))
        a, b, c = (builder.inttoptr(address, pointer) for address in addresses)
        kinds = [int_] * 6 + [float_, pointer, int_, pointer, int_, float_, pointer, int_]
        sgemm = builder.inttoptr(function, ir.PointerType(ir.FunctionType(ir.VoidType(), kinds)))
        builder.call(sgemm, [order, *transposed, *sizes, alpha, a, strides[0], b, strides[1], beta, c, strides[2]])
        return context.get_dummy_value()

    def several(kind, count):
        return types.UniTuple(kind, count)

    signature = types.void(
        types.int64,
        several(types.int64, 3),
        several(types.int64, 3),
        several(float32, 2),
        several(types.int64, 3),
        several(types.int64, 3),
    )
    return signature, generate


@piece
def matmul(sgemm, m, n, k, alpha, a_, lda, ta, b_, ldb, tb, beta, c_, ldc):
    """C = alpha * op(A) op(B) + beta * C,[m, n];sgemm 是 MKL 里 cblas_sgemm 的地址,ta、tb 为 1 表示转置。"""
    _call_sgemm(
        sgemm,
        (101, 111 + ta, 111 + tb),  # CblasRowMajor;CblasNoTrans 是 111,CblasTrans 是 112
        (m, n, k),
        (np.float32(alpha), np.float32(beta)),
        (a_, b_, c_),
        (lda, ldb, ldc),
    )


@piece
def exp(x):
    """e ** x,相对误差 2e-7:写成 2 ** n * e ** f,|f| <= ln 2 / 2,后者用 Taylor 级数的前几项。x < -87 当作 -87。"""
    x = np.float32(-87) if x < np.float32(-87) else x  # 这样写,NaN 还是 NaN
    n = np.floor(x * np.float32(1.4426950408889634) + HALF)
    f = x - n * np.float32(0.693359375)  # ln 2 分成两段来减,不丢精度
    f = f + n * np.float32(2.1219444005e-4)
    p = np.float32(1 / 5040) * f + np.float32(1 / 720)
    p = (p * f + np.float32(1 / 120)) * f + np.float32(1 / 24)
    p = (p * f + np.float32(1 / 6)) * f + HALF
    p = (p * f + ONE) * f + ONE
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)  # 2 ** n 就是指数位


@piece
def add_parts(parts, total):
    """parts[PARTS, D] 各段的和 -> total[D]。"""
    for j in range(total.size):
        total[j] = ZERO
    for p in range(parts.shape[0]):
        for j in range(total.size):
            total[j] += parts[p, j]


@loop
def add_rows(x, total):
    """x[M, D] 各行的和 -> total[D]。"""
    M, D = x.shape
    parts = np.zeros((PARTS, D), np.float32)
    for p in prange(PARTS):
        for r in range(M * p // PARTS, M * (p + 1) // PARTS):
            for j in range(D):
                parts[p, j] += x[r, j]
    add_parts(parts, total)
