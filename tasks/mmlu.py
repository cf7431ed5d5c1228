"""Exam questions of 57 subjects: MMLU (https://arxiv.org/abs/2009.03300), without examples."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class MMLU(HarnessTask):
    """The likeliest letter counts (acc), over all questions of all subjects, so that a subject weighs as its size."""

    definition = "mmlu/default/mmlu_{group}.yaml"
    data = "mmlu"
    split = "test"
    metric = "acc"
    group_column = "subject"
