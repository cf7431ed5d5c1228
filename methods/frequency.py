"""More bits for experts that more tokens choose (https://arxiv.org/abs/2410.06270, section 3.2, figures 5 and 6).

The paper shows this factor alone as a curve and gives no formula. A programme without a measured error needs a law of
how loss falls with bits; ours is 4^-bits, the squared error of rounding to a step that each bit halves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcbench.allocation import BitAllocation, BitBudget, cheapest, share
from mcbench.bounds import Floor
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class Frequency(Method):
    """Minimises activation frequency x 4^-bits in each layer.

    floor: experts of each layer that must have each width above the lowest, as in eq. 4; a count, or a share (float).
    """

    floor: Floor = 1
    needs = ("token_count",)

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        cost = share(stats.token_count)[..., None] * 4.0 ** -np.array(budget.widths)  # [L, E, W]
        return cheapest(cost, budget, at_least=dict.fromkeys(budget.widths[1:], self.floor))
