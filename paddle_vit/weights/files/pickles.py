"""读 pickle,但什么也不执行。

pickle 不是数据,是一段程序:``pickle.load`` 会照着它导入模块、调用函数,一个权重文件因此能在你的电脑上运行任何命令。
这里不用 ``pickle.Unpickler``,而是按标准库 ``pickletools`` 的操作码表逐条解释这段程序:数、字符串、列表、字典照常建立;
“导入 os.system”只得到一个写着 os.system 的名字(``Name``);“调用”只认调用者给出的几个张量构造函数,别的一律拒绝。
"""

import io
import pickletools

from ...errors import UserError

__all__ = ["Inert", "Malformed", "Name", "Payload", "read_pickle", "shown"]

# 一个大模型连同优化器状态不到 10 万步;再多的不是权重,而是想让读它的程序停不下来
MAX_OPERATIONS = 250_000
MAX_TEXT = 500  # 字节;更长的字符串和所有的字节串都留在文件里,只记位置


class Malformed(Exception):
    """这些字节不是完整的 pickle。"""


class Name:
    """pickle 要导入的东西的名字,如 ``os.system``;只是名字,不会导入。"""

    def __init__(self, module, attribute):
        self.module, self.attribute = module, attribute

    @property
    def text(self):
        return f"{self.module}.{self.attribute}"


class Inert:
    """认识但用不到的对象,如 ``argparse.Namespace``:不建立它,存进去的东西也都忘掉。"""


class Payload:
    """还留在文件里的一段字节。

    Attributes:
        start, length (int): 在文件里的位置和长度(字节)。
        is_text (bool): 是 UTF-8 的文字;协议 2 把一个字节存成一个字符(latin-1)。
    """

    def __init__(self, start, length, is_text):
        self.start, self.length, self.is_text = start, length, is_text


def shown(text):
    """文件里的名字放进提示之前:去掉控制字符,免得一行变成几行或改了终端的颜色,太长的截断。"""
    text = "".join(c if c.isprintable() else "?" for c in str(text)[:81])
    return text if len(text) <= 80 else text[:80] + "…"


def read_pickle(file, start, end, call, persistent=None):
    """解释文件里的一段 pickle。

    Args:
        file (BinaryIO): 可以 ``seek`` 的文件。
        start, end (int): pickle 从哪里开始,最多到哪里(字节);``end`` 不超过文件长度。
        call (Callable): ``call(name, args)`` 给出“调用 name”的结果;不认识的名字由它拒绝。
        persistent (Callable | None): ``persistent(id)`` 给出 pickle 之外的东西(PyTorch 的 storage);``None`` 是不许有。

    Returns:
        tuple: (值, pickle 结束的位置)。值由 None、数、str、tuple、list、dict、``Name``、``Inert``、``Payload`` 和
        ``call``、``persistent`` 的结果组成。

    Raises:
        Malformed: 不是 pickle,或不完整。
        UserError: ``call`` 拒绝了它,或它长得不像权重。
    """
    machine = _Machine(call, persistent)
    file.seek(start)
    for _ in range(MAX_OPERATIONS):
        name, argument = _next_operation(file, end)
        if name == "STOP":
            if file.tell() > end:
                raise Malformed("文件提前结束")
            return machine.pop(), file.tell()
        operation = getattr(machine, name, None)
        if operation is None:
            raise Malformed(f"不支持的操作 {name}")
        operation(argument)
    raise UserError(f"{file.name} 里的 pickle 超过 {MAX_OPERATIONS} 步:这不是单纯的权重,请换一个文件。")


def _next_operation(file, end):
    """读一个操作码和它的参数。"""
    try:
        operation = pickletools.code2op[file.read(1).decode("latin-1")]
        kind = operation.arg
        if kind is None:
            argument = None
        elif kind.n >= 0:
            argument = kind.reader(file)
        elif kind.n == pickletools.UP_TO_NEWLINE:
            argument = _line_argument(file, operation.name, kind)
        else:
            argument = _sized_argument(file, end, operation.name, kind)
    except (KeyError, ValueError, IndexError):
        raise Malformed("不认识的操作码或参数") from None
    return operation.name, argument


def _line_argument(file, name, kind):
    """写成一行(名字是两行)文字的参数:数由 ``kind`` 读;协议 0 的文字里的转义不用理会。"""
    lines = [file.readline(MAX_TEXT) for _ in range(2 if name in ("GLOBAL", "INST") else 1)]
    if not all(line.endswith(b"\n") for line in lines):
        raise Malformed("一行太长,或文件提前结束")
    if len(lines) == 2:
        return [line[:-1].decode("utf-8") for line in lines]
    if name in ("STRING", "UNICODE", "PERSID"):
        return lines[0].strip(b"'\"\n").decode("latin-1")
    if len(lines[0]) > 100:
        raise Malformed("一个数有一百多位")
    return kind.reader(io.BytesIO(lines[0]))


# 长度写在参数开头的操作:长度占几个字节
_SIZE_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


def _sized_argument(file, end, name, kind):
    """先写长度、再写内容的参数:短的文字和整数读出来,其余只记下位置。"""
    length = int.from_bytes(file.read(_SIZE_BYTES[kind.n]), "little")
    start = file.tell()
    if length > end - start:
        raise Malformed("文件提前结束")
    if name.startswith("LONG") and length <= 255:
        return int.from_bytes(file.read(length), "little", signed=True)
    if "BYTE" not in name and length <= MAX_TEXT:
        return file.read(length).decode("utf-8" if "UNICODE" in name else "latin-1")
    file.seek(length, io.SEEK_CUR)
    return Payload(start, length, "UNICODE" in name)


class _Machine:
    """pickle 的栈式机器:有方法的操作才允许,方法的名字就是操作码的名字(含义见 ``pickletools``)。"""

    def __init__(self, call, persistent):
        self.stack, self.marks, self.memo = [], [], {}
        self._call, self._persistent = call, persistent

    def pop(self):
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Malformed("栈空了")
        return self.stack.pop()

    def pop_to_mark(self):
        if not self.marks:
            raise Malformed("没有 MARK")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def push(self, value):
        self.stack.append(value)

    def top(self):
        value = self.pop()
        self.stack.append(value)
        return value

    def call(self, function, args):
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise Malformed("调用的不是函数")
        self.push(self._call(function.text, args))

    # 值

    BININT = BININT1 = BININT2 = LONG1 = LONG4 = INT = LONG = FLOAT = BINFLOAT = push
    UNICODE = BINUNICODE = SHORT_BINUNICODE = BINUNICODE8 = STRING = BINSTRING = SHORT_BINSTRING = push
    BINBYTES = SHORT_BINBYTES = BINBYTES8 = BYTEARRAY8 = push

    def NONE(self, _):
        self.push(None)

    def NEWTRUE(self, _):
        self.push(True)

    def NEWFALSE(self, _):
        self.push(False)

    # 容器

    def EMPTY_TUPLE(self, _):
        self.push(())

    def EMPTY_LIST(self, _):
        self.push([])

    def EMPTY_DICT(self, _):
        self.push({})

    def EMPTY_SET(self, _):
        self.push(Inert())

    def MARK(self, _):
        self.marks.append(len(self.stack))

    def TUPLE(self, _):
        self.push(tuple(self.pop_to_mark()))

    def TUPLE1(self, _):
        self.push((self.pop(),))

    def TUPLE2(self, _):
        second = self.pop()
        self.push((self.pop(), second))

    def TUPLE3(self, _):
        third, second = self.pop(), self.pop()
        self.push((self.pop(), second, third))

    def LIST(self, _):
        self.push(self.pop_to_mark())

    def DICT(self, _):
        items = self.pop_to_mark()
        self.push({})
        self._set(items)

    def FROZENSET(self, _):
        self.pop_to_mark()
        self.push(Inert())

    def APPEND(self, _):
        self._extend([self.pop()])

    def APPENDS(self, _):
        self._extend(self.pop_to_mark())

    def ADDITEMS(self, _):
        self._extend(self.pop_to_mark())

    def SETITEM(self, _):
        value = self.pop()
        self._set([self.pop(), value])

    def SETITEMS(self, _):
        self._set(self.pop_to_mark())

    def _extend(self, items):
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise Malformed("放进了不是列表的东西")

    def _set(self, items):
        target = self.top()
        if len(items) % 2 or not isinstance(target, (dict, Inert)):
            raise Malformed("放进了不是字典的东西")
        if isinstance(target, dict):  # 张量的名字都是 str,别的键用不到
            target.update((key, value) for key, value in zip(items[::2], items[1::2]) if isinstance(key, str))

    # 栈和备忘录(memo)

    def POP(self, _):
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def POP_MARK(self, _):
        self.pop_to_mark()

    def DUP(self, _):
        self.push(self.top())

    def PUT(self, index):
        if index > MAX_OPERATIONS:  # 编号从 0 起逐个加一;乱编的大数能让字典变得极慢
            raise Malformed("备忘录的编号太大")
        self.memo[index] = self.top()

    BINPUT = LONG_BINPUT = PUT

    def MEMOIZE(self, _):
        self.memo[len(self.memo)] = self.top()

    def GET(self, index):
        if index not in self.memo:
            raise Malformed("备忘录里没有")
        self.push(self.memo[index])

    BINGET = LONG_BINGET = GET

    def PROTO(self, _):
        pass

    FRAME = PROTO

    # 名字、调用和状态

    def GLOBAL(self, names):
        self.push(Name(*names))

    def STACK_GLOBAL(self, _):
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("名字不是文字")
        self.push(Name(module, name))

    def REDUCE(self, _):
        args = self.pop()
        self.call(self.pop(), args)

    NEWOBJ = REDUCE

    def NEWOBJ_EX(self, _):
        self.pop()
        self.REDUCE(None)

    def INST(self, names):
        self.call(Name(*names), tuple(self.pop_to_mark()))

    def OBJ(self, _):
        function, *args = self.pop_to_mark() or [None]
        self.call(function, tuple(args))

    def BUILD(self, _):
        state, target = self.pop(), self.top()
        if isinstance(target, Name):
            self._call(target.text, ())  # 改一个类或函数的属性,与调用它一样要认识它
        elif hasattr(target, "set_state"):
            target.set_state(state)
        if isinstance(state, dict) and isinstance(state.get("__setstate__"), Name):  # 再来一个状态时就会调用它
            self._call(state["__setstate__"].text, ())

    def BINPERSID(self, _):
        if self._persistent is None:
            raise Malformed("有文件以外的内容")
        self.push(self._persistent(self.pop()))
