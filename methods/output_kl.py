"""Output-KL: bits where quantising the expert changes what the model says, one budget for the whole model.

Our own. It is eq. 3 of MC-MoE (https://arxiv.org/abs/2410.06270) read as written, the change of the model's output and
not of the block's, measured as KL divergence and with the quantiser that makes the final weights; frequency and routing
weight are in it already, so they are no factors, and neither floors nor equal budgets per layer are imposed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcbench.allocation import BitAllocation, BitBudget, Scope, cheapest, seen_values
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class OutputKL(Method):
    """Minimises the sum over experts of the model's KL divergence with only that expert quantised.

    quantizer: behind the divergence, "final" (the one finally used) or "minmax".
    scope: one "global" total, or one for each "layer".
    """

    quantizer: Literal["final", "minmax"] = "final"
    scope: Scope = "global"

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"output_divergence:kl:{self.quantizer}",)

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        # an expert that the text never reaches shows no divergence: it counts like the least affected of its layer
        cost = seen_values(stats.output_divergence("kl", self.quantizer, budget.widths))  # [L, E, W]
        return cheapest(cost, budget, scope=self.scope)
