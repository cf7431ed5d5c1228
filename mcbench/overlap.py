"""Was a method calibrated on the very text that a task asks? Counted in words, as contaminated training data is.

A run is 13 words in a row, as in GPT-3's search for overlap (Brown et al. 2020, https://arxiv.org/abs/2005.14165,
appendix C). Text of the same kind that is not the same text (the training split of an evaluated corpus) is not found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mcbench.items import Item

WORDS = 13
NOTED = 0.05  # the share from which on it is said; the set phrases of the reference world give up to 0.03
DETAIL = "calibration text asked"  # under this name a share stands in a result's details

Run = tuple[str, ...]


def runs_of(texts: Iterable[str]) -> frozenset[Run]:
    """Every run of words in the texts, each text by itself."""
    return frozenset(run for text in texts for run in _runs(text))


def share_asked(runs: Collection[Run], items: Sequence[Item]) -> float:
    """Which share of the runs stands in what the items hold; 0 where there is no run."""
    known = frozenset(runs)
    found = {run for item in items for text in _texts(dataclasses.asdict(item)) for run in _runs(text) if run in known}
    return len(found) / len(known) if known else 0.0


def _runs(text: str) -> Iterator[Run]:
    words = text.lower().split()
    return zip(*(words[start:] for start in range(WORDS)), strict=False)


def _texts(value: Any) -> Iterator[str]:
    """Every text inside a value of plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
