"""Processes that share an output folder: each takes what it writes for itself, by a lock file that the system holds.

The system gives a lock back when its process ends, however that was; a lock file that nobody holds means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mcbench.errors import BadInput
from mcbench.files import require_writable
from mcbench.interrupts import require_none
from mcbench.progress import inner
from mcbench.sealed import note

if TYPE_CHECKING:
    from filelock import BaseFileLock

BRIEF_SECONDS = 2.0  # of waiting for another process, about which nothing is said
TURN_SECONDS = 1.0  # of waiting, after which Ctrl-C is looked for


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """One process after another: waits, and says so, until none is inside a block with the same lock file.

    Raises BadInput where its folder cannot be written, or lies on a file system without locks.
    """
    lock = _lock(path)
    if not _taken(lock, BRIEF_SECONDS):
        note(f"another process is writing to {str(path.parent)!r}; waiting until it is done")
        with inner(f"waiting for another process in {path.parent.name}"):
            while not _taken(lock, TURN_SECONDS):
                require_none()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps every other process that asks out of a folder; BadInput where one is in, otherwise as `in_turn`."""
    lock = _lock(folder / ".lock")
    if not _taken(lock, 0):
        raise BadInput(f"another process is writing to {str(folder)!r}; wait for it or choose another folder")
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    require_writable(path.parent)
    # a lock that the system does not hold would outlast a process that was killed
    return FileLock(path, fallback_to_soft=False)


def _taken(lock: BaseFileLock, seconds: float) -> bool:
    """Whether the lock could be had within that time; BadInput where it never can."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except OSError as error:
        raise BadInput(
            f"the lock {lock.lock_file!r} cannot be taken: {error.strerror or error}; put the output folder on a file "
            "system with locks, such as a local disk"
        ) from None
    return True
