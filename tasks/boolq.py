"""Yes or no after a passage: BoolQ (https://arxiv.org/abs/1905.10044), without examples."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class BoolQ(HarnessTask):
    """The likelier of no and yes counts (acc)."""

    definition = "super_glue/boolq/default.yaml"
    data = "boolq"
    split = "validation"
    passage_column = "passage"
    metric = "acc"
