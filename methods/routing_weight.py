"""More bits for experts that the router trusts more (https://arxiv.org/abs/2410.06270, section 3.2, figures 5 and 6).

Like `frequency`, with the routing weight in its place: the router's probability summed over the tokens that chose the
expert, so frequency is in it. 4^-bits stands for the error, as there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mcbench.allocation import BitAllocation, BitBudget, cheapest, share
from mcbench.bounds import Floor
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class RoutingWeight(Method):
    """Minimises routing weight x 4^-bits in each layer.

    renormalize: take the weights after the chosen ones were made to sum to one, not the router's own probabilities.
    floor: experts of each layer that must have each width above the lowest, as in eq. 4; a count, or a share (float).
    """

    renormalize: bool = False
    floor: Floor = 1

    @property
    def needs(self) -> tuple[str, ...]:
        return ("renormalized_weight",) if self.renormalize else ("routing_weight",)

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        weight = stats.renormalized_weight if self.renormalize else stats.routing_weight  # [L, E]
        cost = share(weight)[..., None] * 4.0 ** -np.array(budget.widths)  # [L, E, W]
        return cheapest(cost, budget, at_least=dict.fromkeys(budget.widths[1:], self.floor))
