"""Perplexity of held-out text of every kind that the reference world writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import TextItem
from mcbench.kinds import PerplexityTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniPerplexity(PerplexityTask):
    """Each text is scored from its start, every token once, in windows of `window` tokens at most."""

    counterpart = "wikitext2"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[TextItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("perplexity", self.count, self.seed)
