"""What follows from facts stated apart: a miniature of ARC-challenge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniARCChallenge(ChoiceTask):
    """The wrong answers follow for species much like the one asked about; scored per character, as ARC-challenge is."""

    counterpart = "arc-challenge"
    metric = "acc_norm"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("arc-challenge", self.count, self.seed)
