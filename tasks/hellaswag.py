"""How a course of events goes on: HellaSwag (https://arxiv.org/abs/1905.07830), without examples."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class HellaSwag(HarnessTask):
    """The likeliest ending per character counts (acc_norm); the likeliest as it stands is kept as well (acc)."""

    definition = "hellaswag/hellaswag.yaml"
    data = "hellaswag"
    split = "validation"
    metric = "acc_norm"
    also = ("acc",)
