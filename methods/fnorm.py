"""Bits where quantising the expert changes the block's output most: eps of eq. 3 alone in the programme of eq. 4.

https://arxiv.org/abs/2410.06270, section 3.2 and figures 5 and 6 ("F-norm").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcbench.allocation import BitAllocation, BitBudget, cheapest
from mcbench.bounds import Floor
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class FNorm(Method):
    """Minimises the sum of the experts' quantisation errors in each layer.

    quantizer: behind the error, "minmax" (round-to-nearest, as MC-MoE released) or "final", the one finally used.
    floor: experts of each layer that must have each width above the lowest, as in eq. 4; a count, or a share (float).
    """

    quantizer: Literal["minmax", "final"] = "minmax"
    floor: Floor = 1

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"quantization_error:{self.quantizer}",)

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        cost = stats.quantization_error(self.quantizer, budget.widths)  # [L, E, W]
        return cheapest(cost, budget, at_least=dict.fromkeys(budget.widths[1:], self.floor))
