"""How a course of events goes on: a miniature of HellaSwag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniHellaSwag(ChoiceTask):
    """The wrong endings are steps at the wrong time or of another day; scored per character, as HellaSwag is."""

    counterpart = "hellaswag"
    metric = "acc_norm"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("hellaswag", self.count, self.seed)
