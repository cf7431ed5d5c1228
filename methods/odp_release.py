"""odp-release: what the released code of ODP computes (https://github.com/Aaronhuang-778/MC-MoE).

It sums the attention map over keys, where every row sums to one, so that the importance of token j of L is its l1 norm
divided by L - j: position and norm alone. In effect the last tokens of a prompt are protected. Here for comparison with
`odp`, which takes the sum that the paper means. The release knows Mixtral only and takes medians and layers from
literal lists; here both are calibrated and chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mcbench.policy import ProtectingPolicy
from mcbench.routing import Choices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ODPRelease(ProtectingPolicy):
    """Drops by the ratio of routing weights; tokens late in the sequence, and of great norm, keep every expert.

    skip, quantile, threshold: which ratios are too small; the median by default. layers: those pruned. fitted: folder
    of thresholds to use. protect, drop_all: shares of each sequence's tokens that keep all, or lose all, their experts.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.06270"

    @property
    def sees(self) -> tuple[str, ...]:
        return ("hidden",) if self.ranks_tokens else ()

    def importance(self, choices: Choices) -> Tensor:
        assert choices.hidden is not None
        return choices.hidden.float().abs().sum(-1) / (choices.length - choices.place).clamp(min=1)  # [T]
