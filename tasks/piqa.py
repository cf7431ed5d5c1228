"""Which of two ways reaches a goal of everyday life: PIQA (https://arxiv.org/abs/1911.11641), without examples."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class PIQA(HarnessTask):
    """The likelier solution as it stands counts (acc); the likelier per character is kept as well (acc_norm)."""

    definition = "piqa/piqa.yaml"
    data = "piqa"
    split = "validation"
    metric = "acc"
    also = ("acc_norm",)
