"""PMQ: spend bits where an expert is used, trusted and hard to quantise (MC-MoE, section 3.2, eq. 4).

https://arxiv.org/abs/2410.06270. Where the paper and its released code differ, the default is the code, because only
that reproduces the published allocations:

- The paper says gamma = 2; the released solver accepts it and applies 1. With 1 every one of the published allocations
  comes out (192 layers of 192 at the six budgets we have), with 2 only 138 (72 %).
- Eq. 3 measures the change of the model's output, the code that of the block's, each expert's in turn: `error`.
- The code's error is that of plain min-max rounding, whatever quantises the model afterwards: `quantizer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcbench.allocation import BitAllocation, BitBudget, Scope, cheapest, seen_values, share
from mcbench.bounds import Exponent, Floor
from mcbench.method import Method
from mcbench.stats import Array, CalibrationStats


@dataclass(frozen=True)
class PMQ(Method):
    """Minimises frequency^alpha x routing weight^beta x error^gamma. Never-seen experts count like the least-seen one.

    alpha, beta, gamma: exponents of the three factors; the first two are shares of their layer.
    error: change of the MoE "block"'s output, the same as the release sums it over batches ("batch-sum"), or of the
    model's output as eq. 3 has it: "kl" or "fnorm" of the logits.
    quantizer: behind the error, "minmax" (round-to-nearest, as released) or "final", the one finally used.
    renormalize: routing weights after the chosen ones were made to sum to one; the release takes them before.
    floor: experts of each layer that must have each width above the lowest: 1 as in eq. 4; a share if a float.
    scope: one total for each "layer", or one "global" total; block errors are then shares of their layer as well,
    because they grow with depth and are not comparable between layers.
    """

    alpha: Exponent = 1.0
    beta: Exponent = 1.5
    gamma: Exponent = 1.0
    error: Literal["block", "batch-sum", "kl", "fnorm"] = "block"
    quantizer: Literal["minmax", "final"] = "minmax"
    renormalize: bool = False
    floor: Floor = 1
    scope: Scope = "layer"

    @property
    def needs(self) -> tuple[str, ...]:
        error = {
            "block": f"quantization_error:{self.quantizer}",
            "batch-sum": f"quantization_error:{self.quantizer}:batch-sum",
        }.get(self.error, f"output_divergence:{self.error}:{self.quantizer}")
        return "token_count", "renormalized_weight" if self.renormalize else "routing_weight", error

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        weight = stats.renormalized_weight if self.renormalize else stats.routing_weight  # [L, E]
        significance = share(stats.token_count) ** self.alpha * share(weight) ** self.beta  # [L, E]
        cost = significance[..., None] * self._error(stats, budget.widths) ** self.gamma  # [L, E, W]
        return cheapest(cost, budget, scope=self.scope, at_least=dict.fromkeys(budget.widths[1:], self.floor))

    def _error(self, stats: CalibrationStats, widths: tuple[int, ...]) -> Array:
        if self.error == "kl" or self.error == "fnorm":
            return seen_values(stats.output_divergence(self.error, self.quantizer, widths))
        aggregation: Literal["frobenius", "batch-sum"] = "frobenius" if self.error == "block" else "batch-sum"
        error = stats.quantization_error(self.quantizer, widths, aggregation=aggregation)
        return error if self.scope == "layer" else error / error.sum(axis=(1, 2), keepdims=True)
