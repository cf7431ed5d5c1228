"""Ctrl-C that is never lost: Python drops it where it arrives inside a destructor or a callback of C code.

The signals of `kill` and of a terminal that closes are taken as Ctrl-C, so that they too clean up and say how to go on.
Inside `heard` every one is remembered as well as raised. `require_none` raises it again at the borders of stages,
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

SIGNALS = tuple(s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None)) is not None)
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
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # `nohup` and `&` in a script ask for it to be ignored
            signal.signal(each, _note)
    sys.unraisablehook = _unraisable
    _State.listening = True


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """The same inside the block alone; nothing where the process listens already, or this is another thread."""
    if _State.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    hook = sys.unraisablehook
    with kept():
        listen()
        try:
            yield
        finally:
            sys.unraisablehook = hook
            _State.asked = _State.listening = False


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Puts the handling of signals back that a library replaces inside the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:  # one that C code has set
                signal.signal(each, handler)


def leave_at_once() -> None:
    """From here on Ctrl-C ends the process without a word: for the last moments, when all is said and written."""
    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, lambda *_: os._exit(INTERRUPTED))


def leave() -> None:
    """Ends a process that was interrupted, for `atexit`: what Python does after that no handler of ours can guard."""
    if _State.asked:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(INTERRUPTED)


def _note(number: int, frame: FrameType | None) -> None:
    _State.asked = True
    raise KeyboardInterrupt


def _unraisable(unraisable: Any) -> None:
    """An exception in a destructor concerns nobody who waits for a result; a Ctrl-C there was noted already."""
    if os.environ.get("MCBENCH_DEBUG"):
        sys.__unraisablehook__(unraisable)
