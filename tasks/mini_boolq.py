"""A yes-or-no question about a passage: a miniature of BoolQ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniBoolQ(ChoiceTask):
    """The passage names two places; the wrong answer is the other one."""

    counterpart = "boolq"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("boolq", self.count, self.seed)
