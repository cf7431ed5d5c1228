"""Which of two things a sentence means: WinoGrande XL (https://arxiv.org/abs/1907.10641), without examples."""

from __future__ import annotations

from dataclasses import dataclass

from mcbench.harness import HarnessTask


@dataclass(frozen=True)
class WinoGrande(HarnessTask):
    """Each option is put into the sentence, and the one that makes its end likelier counts (acc)."""

    definition = "winogrande/default.yaml"
    data = "winogrande"
    split = "validation"
    metric = "acc"
