"""运行目录和导出目录里的文件名,只在这里写。"""

__all__ = [
    "BEST",
    "CONFIG",
    "CONSTANTS",
    "DATA",
    "DESCRIPTION",
    "EXPORTED",
    "GRAPH",
    "HEALTH",
    "INIT",
    "LAST",
    "LOCK",
    "METRICS",
    "ONNX",
    "PROGRAM",
    "SUMMARY",
    "VISUALDL",
]

CONFIG = "config.yaml"  # 全部设置
DATA = "data.json"  # 数据集的说明
INIT = "init.json"  # 微调时每个张量从哪里来
BEST = "best.safetensors"  # 验证集上最好的权重,单独拿走也能用
LAST = "last.safetensors"  # 续训所需的一切
METRICS = "metrics.jsonl"  # 每轮一行
SUMMARY = "summary.json"  # 训练完的结果
HEALTH = "health.json"  # 体检的数据
VISUALDL = "vdlrecords.log"  # 固定的名字:VisualDL 只读目录里最新的一个文件,续训必须接着写同一个
GRAPH = "vdlgraph.log"  # 网络结构图
LOCK = ".lock"  # 正被一个训练使用

# 导出的目录里的
DESCRIPTION = "description.json"  # 类别名、怎样预处理、模型和训练的设置、核对的结果
PROGRAM = "model.pdmodel"  # 静态图
CONSTANTS = "model.pdiparams"  # 静态图的权重;与它同名,引擎这样找
ONNX = "model.onnx"  # 给别的程序,可以没有
EXPORTED = (DESCRIPTION, PROGRAM, CONSTANTS, ONNX)
