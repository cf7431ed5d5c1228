"""One fact about a person: a miniature of ARC-easy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniARCEasy(ChoiceTask):
    """The wrong answers belong to people who share a name with the one asked about."""

    counterpart = "arc-easy"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("arc-easy", self.count, self.seed)
