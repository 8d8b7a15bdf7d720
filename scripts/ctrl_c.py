"""导入它以后,Ctrl-C 立即结束,不打印调用栈:导入 Paddle 要几秒,那时 ``run_main`` 还没有接手。各个脚本最先导入它。"""

import signal
import threading

in_main_thread = threading.current_thread() is threading.main_thread()
if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # 在后台被忽略的,照旧忽略
    signal.signal(signal.SIGINT, signal.SIG_DFL)
