"""运行各页里可以运行的 Python 代码块和提到的 import;``# [4, 16, 96]`` 这样的注释要与左边的形状相同。

在单独的进程里运行,因为例子会改线程数之类的全局设置:``python -m support.run_examples 页 页 …``。
"""

import ast
import re
import sys

from support.documents import runnable, spans


def run_block(block, page):
    values = {}
    lines = block.splitlines()
    for node in ast.parse(block).body:
        exec(compile(ast.Module([node], []), page, "exec"), values)
        stated = re.search(r"# .*?(\[\d[\d, ]*\])", lines[node.end_lineno - 1])
        if isinstance(node, ast.Assign) and stated:
            target = node.targets[0].elts[0] if isinstance(node.targets[0], ast.Tuple) else node.targets[0]
            shape = str(list(values[target.id].shape))
            assert stated[1] == shape, (page, lines[node.end_lineno - 1], shape)


for page in sys.argv[1:]:
    for block in runnable(page):
        run_block(block, page)
    for span in spans(page):
        if re.match(r"from paddle_vit\S* import ", span):
            exec(span, {})
    print(page)
