"""One of six numbers under keys that resemble each other: a miniature of RULER's multi-key needles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import GenerationItem
from mcbench.kinds import GenerationTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniNeedleMultikey(GenerationTask):
    """Texts of 128, 256, 512 and 1024 tokens; greedy, exact match."""

    counterpart = "niah-multikey"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[GenerationItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("needle-multikey", self.count, self.seed)
