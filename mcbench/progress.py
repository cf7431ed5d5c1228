"""Says on stderr how far a long step is and how much longer it takes; says little where nobody is watching."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from mcbench.files import printable
from mcbench.interrupts import require_none

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

NOTEWORTHY_SECONDS = 2.0  # a step that was shorter leaves no line behind


@contextlib.contextmanager
def muted(quiet: bool = True) -> Iterator[None]:
    """Nothing is shown inside the block, where `quiet`."""
    before, _Shown.muted = _Shown.muted, _Shown.muted or quiet
    try:
        yield
    finally:
        _Shown.muted = before


def track(steps: Iterable[T], total: int | None = None, label: str = "") -> Iterator[T]:
    """Yields `steps`, showing which of `total` it is at and the time left; one bar may run inside another.

    On a terminal the bar disappears when it is done. A step of two seconds or more that is not part of another one
    leaves one line behind, which is all that is written where stderr is no terminal.
    """
    with _bar(label, total) as advance:
        for step in steps:
            yield step
            require_none()
            advance()


@contextlib.contextmanager
def inner(label: str, total: int | None = None) -> Iterator[Callable[[], object]]:
    """A bar inside that of a step which is going on, moved on by calling what it gives; nothing by itself.

    Without a `total` it says what is going on and for how long. For engine code that is also called alone, where it
    must not write to stderr.
    """
    if _Shown.muted or not _Shown.depth:
        yield lambda: None
        return
    with _bar(label, total) as advance:
        yield advance


@contextlib.contextmanager
def stage(label: str) -> Iterator[None]:
    """Shows that something without countable steps is going on; ends as `track` does."""
    with _bar(label, None):
        yield


class _Shown:
    """What is on the terminal: one display holds the bars of all steps that run inside each other."""

    muted = False
    depth = 0
    display: Progress | None = None


class _Advance:
    """Counts the steps done, on the bar where there is one."""

    def __init__(self, label: str, total: int | None) -> None:
        self.done, self.total, self.label = 0, total, printable(label)
        self._display = _Shown.display
        self._bar = self._display.add_task(self.label, total=total) if self._display else None

    def __call__(self) -> None:
        self.done += 1
        if self._display is not None and self._bar is not None:
            self._display.advance(self._bar)

    def remove(self) -> None:
        if self._display is not None and self._bar is not None:
            self._display.remove_task(self._bar)

    def summary(self, seconds: float) -> str:
        steps = f"{self.done} of {self.total}, " if self.total is not None and self.done != self.total else ""
        return f"{self.label}: {steps}{seconds:.0f} s"


@contextlib.contextmanager
def _bar(label: str, total: int | None) -> Iterator[_Advance]:
    require_none()
    if _Shown.muted:
        yield _Advance(label, total)
        return
    started = time.monotonic()
    if not _Shown.depth and sys.stderr is not None and sys.stderr.isatty():
        _Shown.display = _new_display()
        _Shown.display.start()
    _Shown.depth += 1
    advance = _Advance(label, total)
    try:
        yield advance
    finally:
        advance.remove()
        _Shown.depth -= 1
        if not _Shown.depth:
            if _Shown.display is not None:
                _Shown.display.stop()
            _Shown.display = None
            seconds = time.monotonic() - started
            if seconds >= NOTEWORTHY_SECONDS and sys.stderr is not None:
                with contextlib.suppress(OSError):  # a full disk behind it ends no run
                    sys.stderr.write(f"{advance.summary(seconds)}\n")
                    sys.stderr.flush()


def _new_display() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=4,
        speed_estimate_period=600,  # a step may take minutes; rich's half a minute would forget it
    )
