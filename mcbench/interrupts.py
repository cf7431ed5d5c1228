"""Ctrl-C that is never lost: Python drops it where it arrives inside a destructor or a callback of C code.

Inside `heard` every Ctrl-C is remembered as well as raised. `require_none` raises it again at the borders of stages,
and `asked` says at the end whether there was one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130  # what shells return for a program that Ctrl-C has ended


class _State:
    listening = False
    asked = False


def asked() -> bool:
    """Whether Ctrl-C was pressed since `listen`, or inside the current `heard`."""
    return _State.asked


def require_none() -> None:
    """Raises KeyboardInterrupt where Ctrl-C was pressed and whoever got it has dropped it."""
    if _State.asked:
        raise KeyboardInterrupt


def listen() -> None:
    """Remembers each Ctrl-C from here to the end of the process; for the main thread, which alone gets signals."""
    signal.signal(signal.SIGINT, _note)
    sys.unraisablehook = _unraisable
    _State.listening = True


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """The same inside the block alone; nothing where the process listens already, or this is another thread."""
    if _State.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    listen()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
        _State.asked = _State.listening = False


def leave_at_once() -> None:
    """From here on Ctrl-C ends the process without a word: for the last moments, when all is said and written."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def _note(number: int, frame: FrameType | None) -> None:
    _State.asked = True
    raise KeyboardInterrupt


def _unraisable(unraisable: Any) -> None:
    """An exception in a destructor concerns nobody who waits for a result; a Ctrl-C there was noted already."""
    if os.environ.get("MCBENCH_DEBUG"):
        sys.__unraisablehook__(unraisable)
