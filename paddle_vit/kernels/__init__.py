"""CPU 上由 numba 编译的循环:``loading`` 准备它们,``tensors`` 把 Tensor 交给它们,其余的是循环本身。"""
