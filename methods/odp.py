"""ODP: skip weak experts, but never those of the tokens that others attend to most (MC-MoE, section 3.3).

https://arxiv.org/abs/2410.06270. The paper's eq. 6 is taken as its figures and text mean it: importance of token j is
its l1 norm times the attention that it *receives*, averaged over heads and over the queries at or after it. The release
sums over the wrong axis, so that its attention factor is constant: see `odp-release`.

- The published 15 % of skipped experts is not the median rule in all 32 layers, which skips 25 %: it fits the median in
  the 20 layers of least "prune loss", a list that the release holds as literals. Here `layers` says which, all by
  default, and `skip` asks for a share instead.
- Not causal: what a token receives comes from later ones, and its rank from the whole sequence. Teacher-forced scores
  therefore see what generation has not got; in decoding the weights decide alone (the paper leaves it open, the release
  does the same). Contexts are not shared between answers.
- The normaliser is the number of queries from the token on, itself included; as printed it is 0 for the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mcbench.policy import ProtectingPolicy
from mcbench.routing import Choices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ODP(ProtectingPolicy):
    """Drops by the ratio of routing weights as NAEE does; the tokens that receive most attention keep every expert.

    skip, quantile, threshold: which ratios are too small; the median by default. layers: those pruned. fitted: folder
    of thresholds to use. protect, drop_all: shares of each sequence's tokens that keep all, or lose all, their experts;
    whole tokens, rounded down as released.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.06270"

    @property
    def sees(self) -> tuple[str, ...]:
        return ("hidden", "attention") if self.ranks_tokens else ()

    def importance(self, choices: Choices) -> Tensor:
        assert choices.hidden is not None
        assert choices.attention is not None
        return choices.hidden.float().abs().sum(-1) * choices.attention  # [T]
