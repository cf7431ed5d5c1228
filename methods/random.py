"""Widths drawn at random: what any statistic of the experts has to beat; show it for five seeds or more.

MC-MoE's `random` (https://arxiv.org/abs/2410.06270, figures 5 and 6) raises two of eight experts by a bit and lowers
two, unseeded. Here each layer draws, with equal probability, one of all the allocations that spend its total exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mcbench.allocation import BitAllocation, BitBudget
from mcbench.bounds import Seed
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class Random(Method):
    """A uniformly random allocation of each layer's total. seed: of the draw; `--seed` where not given."""

    seed_field: ClassVar[str] = "seed"

    seed: Seed | None = None

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        rng = np.random.default_rng(self.seed or 0)
        steps = [w - budget.widths[0] for w in budget.widths]
        above = budget.total() - budget.count.experts * budget.widths[0]
        ways = _log_ways(budget.count.experts, steps, above)
        chosen = np.empty((budget.count.layers, budget.count.experts), dtype=np.int64)  # [L, E]
        left = np.full(budget.count.layers, above)  # [L]
        for expert in range(budget.count.experts):
            then = ways[budget.count.experts - expert - 1]  # for the experts that come after this one
            log = np.stack([np.where(left >= s, then[np.maximum(left - s, 0)], -np.inf) for s in steps], axis=1)
            odds = np.exp(log - log.max(axis=1, keepdims=True)).cumsum(axis=1)  # [L, W]
            drawn = rng.random(budget.count.layers) * odds[:, -1]
            chosen[:, expert] = (drawn[:, None] >= odds).sum(axis=1)
            left = left - np.array(steps)[chosen[:, expert]]
        return BitAllocation(np.array(budget.widths)[chosen])


def _log_ways(experts: int, steps: list[int], above: int) -> NDArray[np.float64]:
    """[E + 1, above + 1] logarithm of the number of ways in which n experts spend b bits above the least."""
    ways = np.full((experts + 1, above + 1), -np.inf)
    ways[0, 0] = 0.0
    for n in range(experts):
        for step in steps:
            if step <= above:
                ways[n + 1, step:] = np.logaddexp(ways[n + 1, step:], ways[n, : above + 1 - step])
    return ways
