"""CPU 上由 numba 编译的循环:``loading`` 准备它们,``loops`` 是循环本身。"""
