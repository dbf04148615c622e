"""One message where there is not enough memory, on a processor or a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contextseg.errors import ContextsegError

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate",
    "unable to allocate",
    "failed to allocate",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "paging file is too small",  # Windows
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, and so cuDNN, cuSOLVER, cuFFT
    "allocation_failed",
    "failed to map segment",  # of a library that is loaded
)

MEMORY_REMEDY = (
    "close other programs, crop the scans or plan a coarser spacing_mm, or use a machine with more "
    "memory"
)
"""What helps everywhere."""


def is_memory_error(error: BaseException) -> bool:
    """Whether an exception says that there was not enough memory, on a processor or a GPU.

    Args:
        error: Any exception.

    Returns:
        True for `MemoryError`, and for what torch raises in its place.

    Example:
        >>> is_memory_error(RuntimeError("CUDA out of memory")), is_memory_error(ValueError("x"))
        (True, False)
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    text = str(error).lower()
    of_memory = isinstance(error, RuntimeError | OSError | ImportError)
    return of_memory and any(sign in text for sign in _SIGNS)


@contextmanager
def out_of_memory(where: str | Path, remedy: str) -> Iterator[None]:
    """Turn "out of memory" inside the block into a `ContextsegError`.

    Args:
        where: What the error is about, such as the name of a case.
        remedy: What to lower.

    Raises:
        ContextsegError: There was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if not is_memory_error(error):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ContextsegError(where, f"out of memory ({reason})", remedy) from error


def raise_memory_error(
    where: str | Path, error: BaseException, remedy: str = MEMORY_REMEDY
) -> None:
    """Raise the error about memory, where that is what a reader of any file raised.

    Called where whatever is raised means that a file is damaged; for want of memory it is not.

    Args:
        where: The file.
        error: What was raised.
        remedy: What to do.

    Raises:
        ContextsegError: There was not enough memory.
    """
    if is_memory_error(error):
        with out_of_memory(where, remedy):
            raise error
