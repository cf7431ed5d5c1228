"""Worded problems with five answers: MathQA (https://arxiv.org/abs/1905.13319), without examples."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class MathQA(HarnessTask):
    """The likeliest answer as it stands counts (acc); the likeliest per character is kept as well (acc_norm)."""

    definition = "mathqa/mathqa.yaml"
    data = "mathqa"
    split = "test"
    metric = "acc"
    also = ("acc_norm",)
