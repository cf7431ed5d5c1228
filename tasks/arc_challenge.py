"""Hard science questions of a school exam: ARC-Challenge (https://arxiv.org/abs/1803.05457), without examples."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class ARCChallenge(HarnessTask):
    """The likeliest answer per character counts (acc_norm); the likeliest as it stands is kept as well (acc)."""

    definition = "arc/arc_challenge.yaml"
    data = "arc-challenge"
    split = "test"
    metric = "acc_norm"
    also = ("acc",)
