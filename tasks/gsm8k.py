"""Worded problems of primary school, reasoned out in writing: GSM8K (https://arxiv.org/abs/2110.14168)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcbench.errors import BadInput
from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class GSM8K(HarnessTask):
    """Greedy; the number after `####` must equal the answer (strict). The last number is judged as well (flexible).

    shots: how many solved problems of the training split stand before each question.
    examples: "fixed", the first ones, the same before every question, so that they are read once; "drawn", others
        for every question, drawn as lm-eval does by default. The two give different numbers and have different ids.
    """

    definition = "gsm8k/gsm8k.yaml"
    data = "gsm8k"
    split = "test"
    examples_split = "train"
    metric = "exact_match,strict-match"
    also = ("exact_match,flexible-extract",)

    shots: int = 5
    examples: str = "fixed"

    def __post_init__(self) -> None:
        if self.examples not in ("fixed", "drawn") or self.shots < 0:
            raise BadInput(f"examples are 'fixed' or 'drawn' and their number is not negative, not {self}")

    def example_count(self) -> int:
        """As many as `shots`."""
        return self.shots

    def changes(self) -> Mapping[str, Any]:
        """Fixed examples are those of lm-eval's own `first_n` sampler."""
        return {"fewshot_config": {"sampler": "first_n"}} if self.examples == "fixed" else {}
