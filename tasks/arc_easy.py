"""Easy science questions of a school exam: ARC-Easy (https://arxiv.org/abs/1803.05457), without examples."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class ARCEasy(HarnessTask):
    """The likeliest answer as it stands counts (acc); the likeliest per character is kept as well (acc_norm)."""

    definition = "arc/arc_easy.yaml"
    data = "arc-easy"
    split = "test"
    metric = "acc"
    also = ("acc_norm",)
