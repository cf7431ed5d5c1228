"""A worded problem with five results to choose from: a miniature of MathQA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniMathQA(ChoiceTask):
    """The wrong results are those of common slips."""

    counterpart = "mathqa"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("mathqa", self.count, self.seed)
