"""random-skip: pairs are dropped by lot. What any rule that looks at the token has to beat at the same share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mcbench.bounds import Seed, Share
from mcbench.policy import ThresholdPolicy
from mcbench.routing import Choices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RandomSkip(ThresholdPolicy):
    """Drops pairs other than a token's first by lot, until the share `skip` of all pairs is dropped.

    The lot is a hash of seed, layer, rank, position, token and chosen experts, so that it depends on no batch and can
    be drawn again; where many texts begin with the same words, their lots are the same there.
    skip: share of all pairs to skip, solved for. layers: those pruned. fitted: folder of thresholds to use.
    quantile, threshold: of the lots, uniform from 0 to 1, where skip is None. seed: `--seed` where not given.
    """

    seed_field: ClassVar[str] = "seed"

    skip: Share | None = 0.15
    seed: Seed | None = None

    def score(self, choices: Choices) -> Tensor:
        import torch

        rank = torch.arange(choices.weight.shape[1], device=choices.weight.device)[None]  # [1, K]
        mixed = torch.full_like(rank, (self.seed or 0) & _MASK)
        first, second = choices.index[:, :1], choices.index[:, 1:2]
        place = (choices.layer + 1, rank + 1, choices.position[:, None] + 1)
        for part in (*place, choices.token[:, None] + 1, first * choices.experts + second.sum(1, keepdim=True)):
            mixed = _scramble((mixed * 31 + part) & _MASK)
        return mixed.double() / 2**32  # [T, K]


_MASK = 0xFFFFFFFF


def _scramble(x: Tensor) -> Tensor:
    """A 32-bit mixing function in which every bit of the result depends on every bit of x (that of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & _MASK  # int64 wraps around; its low 32 bits are right
    return x ^ (x >> 16)
