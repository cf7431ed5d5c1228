"""GSM8K with the same solved problems before every question (https://arxiv.org/abs/2110.14168), which is read faster.

A departure from lm-eval, which draws other examples for every question (`gsm8k`): scores of the two do not compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from mcbench.bounds import Between
from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class GSM8KFixed(HarnessTask):
    """As `gsm8k`, after the first examples of the training split, which are computed once for all questions.

    shots: how many examples.
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

    def changes(self) -> Mapping[str, Any]:
        """The sampler of lm-eval that takes the first examples."""
        return {"fewshot_config": {"sampler": "first_n"}}
