"""Which of two tools serves a goal: a miniature of PIQA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniPIQA(ChoiceTask):
    """The wrong tool serves for the same action on another material."""

    counterpart = "piqa"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("piqa", self.count, self.seed)
