"""Which of two things is meant: a miniature of WinoGrande."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniWinoGrande(ChoiceTask):
    """It follows from their weight, size or price."""

    counterpart = "winogrande"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("winogrande", self.count, self.seed)
