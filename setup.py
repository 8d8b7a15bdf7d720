from setuptools import find_packages, setup

# 新的 selenium 与 Python 3.9 上能装的其他包冲突,pip 会一直回溯;没有它时看浏览器的测试会跳过
SELENIUM = "selenium>=4.11; python_version >= '3.10'"

TEST = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "ruff>=0.15,<0.18", "mypy>=1.11"]
TEST += ["scipy", "nbclient>=0.8", "ipykernel>=6.20", SELENIUM]

PAGE = "gradio>=6,<7; python_version >= '3.10'"
EXPORT = ["onnx", "paddle2onnx==2.1.0; python_version < '3.13'", "onnxruntime"]  # 没有给 Python 3.13 的 paddle2onnx

setup(
    name="paddle_vit",
    version="0.1.0",
    description="从零开始学视觉 Transformer:课程里的层、模型、训练和 VisualDL 曲线(PaddlePaddle)",
    license="Apache-2.0",
    # 有了 package_dir,pip install -e 就写成路径:在放着这个目录的目录里运行,同名的目录也不会挡住它
    package_dir={"": "."},
    packages=find_packages(include=["paddle_vit", "paddle_vit.*"]),
    package_data={"paddle_vit": ["py.typed", "recipes/*.yaml", "weights/formats/*.yaml", "assets/*"]},
    python_requires=">=3.9,<3.14",
    install_requires=[
        "paddlepaddle>=3.1,<3.4",
        "visualdl==2.5.3",
        "numpy>=1.24,<3",
        "numba>=0.60",
        "pillow>=9.1",
        "pydantic>=2.6,<3",
        "pyyaml>=6",
        "einops>=0.6.1",
        "safetensors>=0.4",
        "filelock>=3.12",
        "tqdm>=4.60",
        "matplotlib>=3.6",
        "setuptools",
    ],
    extras_require={
        "lessons": ["jupyterlab>=4"],
        "export": EXPORT,
        "page": [PAGE],
        "test": TEST,
    },
)
