"""Every expert at the same width: what a mixed allocation has to beat.

MC-MoE's released `uniform` also takes attention and the router down to that width; here they stay at 4 and 16 bits as
with every other method, so that only the experts differ (https://arxiv.org/abs/2410.06270, baseline of table 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcbench.allocation import BitAllocation, BitBudget, WeightCount
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class Uniform(Method):
    """One width for all experts, so only whole averages can be made."""

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        width = budget.nearest(self.reachable(budget.count, budget.widths), "one width for all experts")
        return BitAllocation(np.full((budget.count.layers, budget.count.experts), round(width)))

    def reachable(self, count: WeightCount, widths: tuple[int, ...]) -> tuple[float, ...]:
        return tuple(float(w) for w in widths)
