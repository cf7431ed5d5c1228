"""A function completed from its description and run against its tests: a miniature of HumanEval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import CodeItem
from mcbench.kinds import CodeTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniHumanEval(CodeTask):
    """Greedy pass@1 unless `samples` asks for more; the programs run confined."""

    counterpart = "humaneval"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[CodeItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("humaneval", self.count, self.seed)
