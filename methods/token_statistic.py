"""Tokens run fewer experts by a statistic of their hidden state: kurtosis, variance or mean (MC-MoE, table 11).

https://arxiv.org/abs/2410.06270 gives the three as alternatives to ODP and says neither which side is unimportant nor
how the threshold is found. Here `direction` says the first; the threshold is a quantile per layer, or solved for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from mcbench.policy import ThresholdPolicy
from mcbench.routing import Choices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenStatistic(ThresholdPolicy):
    """Tokens whose statistic is on the unimportant side keep their first expert only.

    statistic: of what enters the MoE block, over its width; kurtosis is the fourth standardised moment.
    direction: the side that loses experts. skip: share of all pairs to skip, solved for; quantile or a fixed threshold
    (of the statistic; of its negative where high loses) otherwise. layers: those pruned. fitted: folder to use.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.06270"
    statistic: Literal["kurtosis", "variance", "mean"] = "kurtosis"
    direction: Literal["low", "high"] = "low"

    @property
    def sees(self) -> tuple[str, ...]:
        return ("hidden",)

    def score(self, choices: Choices) -> Tensor:
        assert choices.hidden is not None
        x = choices.hidden.double()
        mean = x.mean(-1)  # [T]
        if self.statistic == "mean":
            value = mean
        else:
            centred = x - mean[:, None]
            variance = centred.square().mean(-1)
            value = variance if self.statistic == "variance" else centred.pow(4).mean(-1) / variance.square()
        return (value if self.direction == "low" else -value)[:, None].expand_as(choices.weight)
