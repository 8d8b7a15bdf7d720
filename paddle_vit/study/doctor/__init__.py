"""训练体检(doctor):读一个运行目录,说出哪里出了问题、证据、原因和可以试的办法。"""

from .diagnosis import diagnose, report
from .records import Finding, Run, load_records

__all__ = ["Finding", "Run", "diagnose", "load_records", "report"]
