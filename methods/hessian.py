"""HAWQ-V2: the mean trace of an expert's Hessian times the squared quantisation error of its weights.

https://arxiv.org/abs/1911.03852 (Omega = mean trace x ||Q(W) - W||^2, bits by an integer programme). MC-MoE
compares with it and says neither which Hessian nor how it was estimated. Ours is that of the layer-wise squared error
||dW x||^2, 2 x x^T for each row of a matrix, whose trace has a closed form; HAWQ-V2's is that of the loss.

Averages and sums: x x^T is averaged over the tokens routed to the expert, its trace over the expert's weights; the
squared error is summed over the weights. With tokens="sum" the trace is summed over the tokens instead, as GPTQ's
2 X X^T without division, which brings the activation frequency in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcbench.allocation import BitAllocation, BitBudget, Scope, cheapest, seen_values
from mcbench.bounds import Floor
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class Hessian(Method):
    """Minimises mean Hessian trace x squared weight error.

    trace: "closed" form, or "hutchinson", HAWQ-V2's estimate with random probes of the same quadratic.
    tokens: "mean" or "sum" over the tokens that chose the expert.
    quantizer: behind the weight error, "final" (the one finally used) or "minmax".
    floor: experts of each layer that must have each width above the lowest, as in eq. 4; a count, or a share (float).
    scope: one total for each "layer", or one "global" total, as HAWQ-V2 has it.
    """

    trace: Literal["closed", "hutchinson"] = "closed"
    tokens: Literal["mean", "sum"] = "mean"
    quantizer: Literal["final", "minmax"] = "final"
    floor: Floor = 1
    scope: Scope = "layer"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self._trace, f"weight_error:{self.quantizer}", *(("token_count",) if self.tokens == "sum" else ()))

    @property
    def _trace(self) -> str:
        return "hessian_trace" if self.trace == "closed" else "hessian_trace:hutchinson"

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        trace = stats.table(self._trace)  # [L, E]
        if self.tokens == "sum":
            trace = trace * seen_values(stats.token_count)
        cost = trace[..., None] * stats.weight_error(self.quantizer, budget.widths)  # [L, E, W]
        return cheapest(cost, budget, scope=self.scope, at_least=dict.fromkeys(budget.widths[1:], self.floor))
