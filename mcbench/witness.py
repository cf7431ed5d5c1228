"""The witness of an evaluation: some answers are computed once more in the plain way, and the difference is recorded.

The longest request of every call is among them, and a few that are drawn at random. A fast way whose answers differ
by more than the tolerance is given up, and what it answered is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

TOLERANCE = 1e-3  # nats per token, in float32
TIMES_PLAIN = 3.0  # in 16 bits: of what the plain forward differs from itself with padding before the text
DRAWN = 3  # requests at most beside the longest
SHARE = 0.02  # of the tokens of a call that those drawn may have; one is drawn in any case
ROW = "witness"  # under which a sample shows what was found


class Answered(dict[int, T]):
    """Answers by position, and what the witness found of some of them: `witness` by the same positions."""

    def __init__(self, answers: Mapping[int, T], witness: Mapping[int, dict[str, Any]] | None = None) -> None:
        super().__init__(answers)
        self.witness = dict(witness or {})


def watched(length: Sequence[int], among: Sequence[int]) -> list[int]:
    """The positions whose answers are computed once more: the longest of those `among`, then a few drawn at random."""
    if not among:
        return []
    longest = max(among, key=lambda at: (length[at], -at))
    left = SHARE * sum(length[at] for at in among)
    drawn: list[int] = []
    for place in np.random.default_rng(len(among)).permutation(len(among)).tolist():
        at = among[place]
        if at == longest:
            continue
        left -= length[at]
        if len(drawn) == DRAWN or (drawn and left < 0):
            break
        drawn.append(at)
    return [longest, *drawn]


def noted(batch: Mapping[int, Any], at: int) -> dict[str, Any]:
    """What a sample says of the witness; nothing where its answer was computed once."""
    found = getattr(batch, "witness", {}).get(at)
    return {ROW: found} if found else {}


def sound(fact: Any) -> bool:
    """Whether a sample's entry is one that `merged` can take."""
    if not isinstance(fact, dict) or not isinstance(fact.get("given_up", []), list):
        return False
    numbers = [fact.get(name) for name in ("requests", "nats_per_token", "tolerance")]
    return all(isinstance(number, int | float) and number >= 0 for number in numbers)


def merged(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What several requests of one sample, or several samples, say together; empty where none says anything."""
    facts = [fact for fact in facts if fact]
    if not facts:
        return {}
    given_up = list(dict.fromkeys(name for fact in facts for name in fact.get("given_up", ())))
    return {
        "requests": sum(fact["requests"] for fact in facts),
        "nats_per_token": max(fact["nats_per_token"] for fact in facts),
        "tolerance": max(fact["tolerance"] for fact in facts),
        **({"given_up": given_up} if given_up else {}),
    }


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the witness found in an evaluation, from its samples."""
    found: Mapping[str, Any] = merged(row.get(ROW, {}) for row in rows)
    return dict(found)
