"""What Python on Windows has not: `resource`, and `fsync` of a handle that only reads."""

import fcntl
import os
import sys

_fsync = os.fsync


def _fsync_of_windows(file):
    number = file if isinstance(file, int) else file.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    _fsync(number)


os.fsync = _fsync_of_windows
sys.modules["resource"] = None  # importing it raises ImportError
