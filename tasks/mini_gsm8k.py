"""A worded problem reasoned out in writing: a miniature of GSM8K."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mcbench.bounds import Count, Seed
from mcbench.items import GenerationItem
from mcbench.kinds import GenerationTask
from mcbench.reference import items


@dataclass(frozen=True)
class MiniGSM8K(GenerationTask):
    """Greedy; the number after `####` must equal the answer (lm-eval's strict match)."""

    counterpart = "gsm8k"

    count: Count = 300
    seed: Seed = 0

    def items(self) -> Sequence[GenerationItem]:
        """The first `count` held-out items drawn with `seed`."""
        return items("gsm8k", self.count, self.seed)

    def extract(self, text: str) -> str:
        """The number after `####`, without separators of thousands; empty where there is none."""
        found = re.search(r"#### ?(-?[0-9][0-9.,]*)", text)
        return found[1].rstrip(".,").replace(",", "") if found else ""
