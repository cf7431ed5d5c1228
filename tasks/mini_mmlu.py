"""A letter after five examples of the subject: a miniature of five-shot MMLU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniMMLU(ChoiceTask):
    """The four options stand in the question; the model answers with a letter."""

    counterpart = "mmlu"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[ChoiceItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("mmlu", self.count, self.seed)
