"""Worded problems of primary school, reasoned out in writing: GSM8K (https://arxiv.org/abs/2110.14168)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mcbench.bounds import Between
from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class GSM8K(HarnessTask):
    """Greedy; the number after `####` must equal the answer (strict). The last number is judged as well (flexible).

    Before each question stand other examples, drawn as lm-eval draws them with its own seed, so that every prompt is
    lm-eval's. `gsm8k-fixed` shows the same examples before every question, which is read faster.

    shots: how many solved problems of the training split stand before each question.
    """

    definition = "gsm8k/gsm8k.yaml"
    data = "gsm8k"
    split = "test"
    examples_split = "train"
    metric = "exact_match,strict-match"
    also = ("exact_match,flexible-extract",)

    shots: Annotated[int, Between(0, 100)] = 5

    def example_count(self) -> int:
        """As many as `shots`."""
        return self.shots
