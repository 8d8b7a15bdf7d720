"""VisualDL 的记录文件:一条记录一次写完,续训从检查点那里接着写,磁盘满时报错而不是丢掉。"""

import errno
import os
import sys
import tempfile
from pathlib import Path

from ..errors import UserError
from ..system.run_files import VISUALDL

__all__ = ["import_visualdl", "make_writer"]


def import_visualdl() -> None:
    """第一次导入 visualdl;用它之前先调用。

    它一导入就在主目录里建 ``~/.visualdl``,本项目用不到它,主目录又可能只读、写满了,所以让它建在临时目录里,随即删掉。

    Raises:
        UserError: 临时目录也写不了。
    """
    if "visualdl" in sys.modules:
        return
    home = "USERPROFILE" if os.name == "nt" else "HOME"
    before = os.environ.get(home)
    try:
        with tempfile.TemporaryDirectory() as directory:
            os.environ[home] = directory
            import visualdl  # noqa: F401  重,用到才导入
    except OSError:
        raise UserError("VisualDL 要一个能写的临时目录,这里没有:请用环境变量 TMPDIR 给出一个。") from None
    finally:
        os.environ.pop(home, None)
        if before is not None:
            os.environ[home] = before


class _RecordFile:
    """VisualDL 的记录文件:一条记录一次写完,记得写到了哪里,写不下就抛出 ``OSError``。

    VisualDL 2.5.3 自带的写法由后台线程追加,写失败(如磁盘满)时只打印一行英文就丢掉记录,可能留下半条;
    它也不告诉调用者写到了哪里,续训时没法去掉检查点之后的记录。
    """

    def __init__(self, path, size):
        from visualdl.writer.record_writer import RecordWriter  # 重,用到才导入

        self._path = Path(path)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  由 close 关闭
        self._size = min(size, self._file.tell())
        self._file.truncate(self._size)  # 续训:去掉检查点之后的记录,它们会重新写一遍
        self._writer = RecordWriter(self)

    def add_record(self, record):
        self._writer.write(record.SerializeToString())

    def write(self, data):
        written = self._file.write(data)
        if written != len(data):
            self._file.truncate(self._size)  # 不留半条记录
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._size += written

    @property
    def size(self):
        return self._size

    def get_filename(self):
        return str(self._path)

    def flush(self):
        os.fsync(self._file.fileno())

    def close(self):
        self._file.close()


def make_writer(directory, size):
    """一个 ``visualdl.LogWriter``,只把它写文件的部分换成 ``_RecordFile``。"""
    import_visualdl()
    from visualdl import LogWriter  # 重,用到才导入

    class Writer(LogWriter):
        def _get_file_writer(self):
            if self._file_writer is None:
                self._file_writer = _RecordFile(Path(directory) / VISUALDL, size)
                self._all_writers[self._logdir] = self._file_writer
            return self._file_writer

    return Writer(logdir=str(directory))
