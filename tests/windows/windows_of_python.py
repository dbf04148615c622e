"""What Python on Windows has not, refuses, or does in another way.

It has no `resource`, `fcntl`, fork and SIGKILL; what is printed into a pipe is in cp1252. Refused:
`fsync` of a handle that only reads, a folder that is opened, links without the privilege for them,
names with `:` and the like or with a dot or a space at their end, names that differ in case alone,
and to rename, replace or delete what this process has open or mapped. A process that sends a signal
to itself ends, unless it is by `signal.raise_signal`.
"""

import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings

# filelock finds no lock of Windows here, and would say so in every program.
warnings.filterwarnings("ignore", "only soft file lock is available")

_fsync, _kill, _get_flags, _flags = os.fsync, os.kill, fcntl.fcntl, (fcntl.F_GETFL, os.O_ACCMODE)
_LONG_NUMBERS = [f"{name}{i}" for name in ("com", "lpt") for i in range(1, 10)]
_RESERVED = {"con", "prn", "aux", "nul", *_LONG_NUMBERS}
_SHARED = "The process cannot access the file because it is being used by another process"


def _fsync_of_windows(file):
    number = file if isinstance(file, int) else file.fileno()
    if _get_flags(number, _flags[0]) & _flags[1] == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    _fsync(number)


def _kill_of_windows(process, number):
    if process == os.getpid():
        raise OSError(22, "it would end here, whatever handles the signal")
    _kill(process, number)


def _audit(event, arguments):
    check = _CHECKS.get(event)
    if check and all(isinstance(each, str | bytes) for each in arguments[: check[1]]):
        check[0](*(os.path.abspath(os.fsdecode(each)) for each in arguments[: check[1]]))
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if os.path.isdir(path) and sys._getframe(1).f_code.co_filename != tempfile.__file__:
            raise PermissionError(13, "Permission denied", path)
        if (arguments[2] or 0) & os.O_CREAT:
            _created(path)


def _created(path):
    name = os.path.basename(path)
    stem = name.split(".")[0].rstrip().lower()
    if set(name) & set('<>:"|?*\\') or name != name.rstrip(". ") or stem in _RESERVED:
        raise OSError(22, "Invalid argument", path)
    folder = os.path.dirname(path)
    if not os.path.lexists(path) and os.path.isdir(folder):
        for other in os.listdir(folder):
            if other.lower() == name.lower():
                raise OSError(22, f"the same name on Windows as {other}", path)


def _deleted(path):
    """`path` is deleted or renamed."""
    if path.startswith(("/proc", "/dev")):
        return
    path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    for number in os.listdir("/proc/self/fd"):
        try:
            _refuse(path, os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _refuse(path, line.rstrip("\n").split(maxsplit=5)[-1])


def _refuse(path, opened):
    if opened == path or opened.startswith(f"{path}/"):
        raise PermissionError(13, _SHARED, opened)


def _renamed(source, target):
    _deleted(source)
    if os.path.lexists(target):
        _deleted(target)
    if source.lower() != target.lower():
        _created(target)


def _linked(target, place):
    raise OSError(22, "A required privilege is not held by the client", place)


_CHECKS = {
    "os.rename": (_renamed, 2),
    "os.remove": (_deleted, 1),
    "os.rmdir": (_deleted, 1),
    "os.mkdir": (_created, 1),
    "os.symlink": (_linked, 2),
}

os.fsync, os.kill = _fsync_of_windows, _kill_of_windows
for _module in ("resource", "fcntl"):
    sys.modules[_module] = None  # importing it raises ImportError
subprocess.Popen.kill = subprocess.Popen.terminate
for _name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1"):
    delattr(signal, _name)
for _name in ("fork", "forkpty", "sysconf", "sched_getaffinity", "mkfifo", "setsid", "killpg"):
    delattr(os, _name)
multiprocessing.context._default_context._default_context = multiprocessing.get_context("spawn")
shutil._use_fd_functions = False  # it opens folders
tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # the other is deleted while it is open
for _stream, _errors in ((sys.stdout, "strict"), (sys.stderr, "backslashreplace")):
    if _stream is not None and not _stream.isatty():
        _stream.reconfigure(encoding="cp1252", errors=_errors)
sys.addaudithook(_audit)
