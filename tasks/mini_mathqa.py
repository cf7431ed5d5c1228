"""A worded problem with five results to choose from: a miniature of MathQA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniMathQA(ChoiceTask):
    """The wrong results are those of common slips."""

    counterpart = "mathqa"

    count: int = 300
    seed: int = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("mathqa", self.count, self.seed)
