"""性能对比的参赛者:每个文件是一个单独的进程,由 ``benchmark`` 启动,不要直接导入。

``torch_vit.py`` 和 ``onnx_vit.py`` 可以由没有 Paddle 的另一个 Python 运行,所以这里的文件彼此之间用普通的名字导入。
"""
