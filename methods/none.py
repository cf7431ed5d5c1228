"""The model as it is, nothing compressed: the reference row of every table. Dense models are allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mcbench.allocation import BitAllocation, BitBudget, WeightCount
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class Uncompressed(Method):
    """Keeps every weight at 16 bits, whatever the budget."""

    compresses: ClassVar[bool] = False

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        widths = np.full((budget.count.layers, budget.count.experts), 16)  # [L, E]
        return BitAllocation(widths, attention=16, shared=16, router=16)

    def reachable(self, count: WeightCount, widths: tuple[int, ...]) -> tuple[float, ...]:
        return (16.0,)
