"""VisualDL 的记录文件:一条记录一次写完,续训从检查点那里接着写,磁盘满时报错而不是丢掉。"""

import errno
import os
from pathlib import Path

from ..system.run_files import VISUALDL

__all__ = ["make_writer"]


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
    from visualdl import LogWriter  # 重,用到才导入

    class Writer(LogWriter):
        def _get_file_writer(self):
            if self._file_writer is None:
                self._file_writer = _RecordFile(Path(directory) / VISUALDL, size)
                self._all_writers[self._logdir] = self._file_writer
            return self._file_writer

    return Writer(logdir=str(directory))
