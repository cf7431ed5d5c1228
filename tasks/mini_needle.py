"""A number told once in a long text: a miniature of the needle in a haystack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import GenerationItem
from mcbench.kinds import GenerationTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniNeedle(GenerationTask):
    """Texts of 128, 256, 512 and 1024 tokens, the needle at any depth; greedy, exact match."""

    counterpart = "niah"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[GenerationItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("needle", self.count, self.seed)
