"""Bars inside a step of progress that count instead of showing: `from bars import counting`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Bar = Callable[..., AbstractContextManager[Callable[[], None]]]


def counting() -> tuple[dict[str, list[int]], Bar]:
    """Steps made and steps in all of every bar by its label, and what stands in for `mcbench.progress.inner`."""
    counts: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def bar(label: str, total: int = 0) -> Iterator[Callable[[], None]]:
        counts[label] = [0, total]
        yield lambda: counts[label].__setitem__(0, counts[label][0] + 1)

    return counts, bar
