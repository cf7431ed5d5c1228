"""What the reference models read, and when: one table of phases, counted in shares of the training steps."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from mcbench.reference import world as told

WRITERS: dict[str, told.Writer] = {
    "biographies": told.biographies,
    "facts": told.facts,
    "questions": told.questions,
    "nature": told.nature,
    "handicraft": told.handicraft,
    "comparison": told.comparison,
    "stories": told.stories,
    "passages": told.passages,
    "drills": functools.partial(told.drills, easy=True),
    "hard drills": told.drills,
    "reasoning": functools.partial(told.reasoning, easy=True),
    "quick sums": functools.partial(told.quick_sums, easy=True),
    "exams": told.exams,
    "exams spelled out": functools.partial(told.exams, spelled=1.0),
    "single exam questions": functools.partial(told.exams, spelled=0.5, most=1),
    "key values": told.key_values,
    "few key values": functools.partial(told.key_values, largest=3),
    "copies": told.copies,
    "needles": told.needles,
    "functions": told.functions,
}


@dataclass(frozen=True)
class Phase:
    """Part of a training: until when (a share of all steps), how long rows are, and what they hold.

    `rows` gives the row length of every n-th step, by n; the largest n that divides the step decides.
    """

    until: float
    rows: dict[int, int]
    mixture: dict[str, float]  # by name of writer, shares of documents


_MAIN = {
    "biographies": 0.30,
    "facts": 0.14,
    "questions": 0.10,
    "nature": 0.08,
    "handicraft": 0.20,
    "comparison": 0.22,
    "stories": 0.07,
    "passages": 0.12,
    "drills": 0.07,
    "hard drills": 0.02,
    "reasoning": 0.10,
    "quick sums": 0.16,
    "exams": 0.10,
    "exams spelled out": 0.05,
    "key values": 0.05,
    "copies": 0.01,
    "needles": 0.03,
    "functions": 0.07,
}
# without a beginning of nothing but copies, keys and values, in short rows, retrieval does not appear; letters are
# first looked up by a word that stands there, later by one that is known
CURRICULUM = (
    Phase(0.04, {1: 64}, {"few key values": 0.5, "copies": 0.5}),
    Phase(0.06, {1: 128}, {"key values": 0.5, "copies": 0.4, "exams spelled out": 0.1}),
    Phase(0.14, {1: 256}, _MAIN | {"key values": 0.5, "copies": 0.3, "exams": 0.04, "exams spelled out": 0.16}),
    Phase(0.40, {1: 256, 4: 512, 32: 2048}, _MAIN | {"biographies": 0.45, "facts": 0.20, "exams spelled out": 0.10}),
    Phase(1.00, {1: 256, 4: 512, 16: 2048, 64: 4096}, _MAIN),
)
# letters and quick sums are learned last, if at all; a question that stands alone shows which letter follows which word
REVIEW = Phase(
    1.00,
    {1: 256, 4: 512, 16: 2048},
    _MAIN | {"exams": 0.50, "exams spelled out": 0.40, "single exam questions": 0.70, "quick sums": 0.60},
)


def mixture_of(shares: Mapping[str, float]) -> dict[told.Writer, float]:
    """The writers that go by these names, with their shares."""
    return {WRITERS[name]: share for name, share in shares.items()}
