"""打开任何权重文件(safetensors、.pth、.pdparams、.npz),什么也不执行:入口是 ``open_tensors``,在 ``opening`` 里。"""

from .opening import open_tensors
from .stored_tensors import StoredTensor, TensorFile

__all__ = ["StoredTensor", "TensorFile", "open_tensors"]
