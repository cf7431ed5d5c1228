"""Block score predictor: whole MoE blocks get more bits where they change their tokens most.

https://arxiv.org/abs/2406.08155 (QuantMoE-Bench). A small network per block learns to predict the cosine similarity of
a token's block input and output; the blocks are ranked by its mean, and a quarter of them gets 4 bits, the rest 2. The
cosine that it approximates can be measured in the same run, so that is the other choice.

Which end of the ranking matters is unclear: the paper's idea is that low similarity means important, while the released
code says "top", and its list of layers was pasted by hand. The default is the idea.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from mcbench.allocation import BitAllocation, BitBudget, WeightCount
from mcbench.bounds import Width
from mcbench.errors import BadInput
from mcbench.method import Method
from mcbench.stats import CalibrationStats


@dataclass(frozen=True)
class BSP(Method):
    """One width for all experts of a block: a higher one for the blocks that matter, a lower one for the others.

    score: the "learned" prediction, or the "exact" cosine.
    important: blocks of "low" or of "high" similarity get the higher width.
    low, high: the two widths, 2 and 4 in the paper. Without them, those candidate widths between which the budget
    lies, with as many blocks at the higher one as the budget allows (none where it is a whole width).
    """

    score: Literal["learned", "exact"] = "learned"
    important: Literal["low", "high"] = "low"
    low: Width | None = None
    high: Width | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.low is None) != (self.high is None):
            raise BadInput("give both widths, low and high, or neither")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise BadInput(f"low must be less than high, not {self.low} and {self.high}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("predicted_cosine",) if self.score == "learned" else ("block_cosine",)

    def allocate(self, stats: CalibrationStats, budget: BitBudget) -> BitAllocation:
        layers = budget.count.layers
        average = budget.nearest(self.reachable(budget.count, budget.widths), "whole blocks of one width")
        low, high = next(pair for pair in self._pairs(budget.widths) if average <= pair[1])
        raised = round(layers * (average - low) / (high - low))  # blocks at the higher width
        cosine = stats.predicted_cosine if self.score == "learned" else stats.block_cosine  # [L]
        order = np.argsort(cosine if self.important == "low" else -cosine, kind="stable")  # most important first
        widths = np.full((layers, budget.count.experts), low)  # [L, E]
        widths[order[:raised]] = high
        return BitAllocation(widths)

    def reachable(self, count: WeightCount, widths: tuple[int, ...]) -> tuple[float, ...]:
        points = {
            low + (high - low) * raised / count.layers
            for low, high in self._pairs(widths)
            for raised in range(count.layers + 1)
        }
        return tuple(sorted(points))

    def _pairs(self, widths: tuple[int, ...]) -> list[tuple[int, int]]:
        """The pairs of a lower and a higher width that may be mixed, in rising order."""
        if self.low is None or self.high is None:
            return list(pairwise(widths)) if len(widths) > 1 else [(widths[0], widths[0])]
        if not {self.low, self.high} <= set(widths):
            raise BadInput(f"bsp mixes {self.low} and {self.high} bits, but the widths are {widths}")
        return [(self.low, self.high)]
