"""Exam questions of 57 subjects after five examples of the subject: MMLU (https://arxiv.org/abs/2009.03300)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mcbench.bounds import Between
from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class MMLU5Shot(HarnessTask):
    """The likeliest letter counts (acc), over all questions of all subjects, so that a subject weighs as its size.

    shots: the first so many questions of the subject's development split stand before each question.
    """

    definition = "mmlu/default/mmlu_{group}.yaml"
    data = "mmlu"
    split = "test"
    examples_split = "dev"
    group_column = "subject"
    metric = "acc"

    shots: Annotated[int, Between(0, 100)] = 5

    def example_count(self) -> int:
        """As many as `shots`."""
        return self.shots
