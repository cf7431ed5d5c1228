"""What the router of a MoE layer thinks of every expert, before the chosen ones are renormalised.

Routers differ in how a logit becomes a score (softmax over all experts, sigmoid, square root of softplus) and in what
they then make of the chosen scores (kept, divided by their sum, scaled). None of it is declared in one place, so it is
read off: the rule that explains the weights actually applied is the rule. Where none does, the router is refused.

Letters in shapes: T tokens, E experts, K chosen experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mcbench.errors import BadInput

SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda logits: F.softplus(logits).sqrt(),
}


@dataclass(frozen=True)
class RouterRule:
    """How the weights of the chosen experts come from the router's logits.

    score: the function from logits to scores. normalizes: the chosen scores are divided by their sum (a softmax over
    the chosen logits is the same thing). scale: the constant they are then multiplied with. jitter: that of the sparse
    mixer of Phi-MoE (arXiv 2409.12136), whose weight is a softmax over the experts near the best one; None elsewhere.
    """

    score: str
    normalizes: bool
    scale: float
    jitter: float | None = None

    def probability(self, logits: Tensor, index: Tensor) -> Tensor:
        """[T, K] the scores of the chosen experts among all E, in fp32, before renormalisation.

        A correction bias that only helps to choose is not in it. Index E, which runs nothing, has probability 0.
        """
        scores = SCORES[self.score](logits.float())
        nothing = index >= scores.shape[-1]
        return scores.gather(-1, index.masked_fill(nothing, 0)).masked_fill(nothing, 0.0)

    def weight(self, logits: Tensor, index: Tensor) -> Tensor:
        """[T, K] the weights that this rule gives to the chosen experts."""
        if self.jitter is not None:
            return _sparse_mixer(logits.float(), index, self.jitter)
        chosen = self.probability(logits, index)
        if self.normalizes:
            chosen = chosen / chosen.sum(dim=-1, keepdim=True).clamp(min=1e-20)
        return chosen * self.scale

    def misfit(self, logits: Tensor, index: Tensor, weight: Tensor) -> float:
        """How far the applied weights [T, K] are from this rule, as a share of the largest weight of the token."""
        rule = self.weight(logits, index)
        return float(((weight.float() - rule).abs() / rule.abs().amax(dim=-1, keepdim=True)).max())

    def explains(self, logits: Tensor, index: Tensor, weight: Tensor) -> bool:
        """Whether the applied weights [T, K] follow this rule, within the rounding of their dtype."""
        tolerance = max(1e-4, 4 * torch.finfo(weight.dtype).eps, 4 * torch.finfo(logits.dtype).eps)
        return self.misfit(logits, index, weight) <= tolerance


def read_rule(name: str, logits: Tensor, index: Tensor, weight: Tensor, jitter: float | None = None) -> RouterRule:
    """The rule behind the weights that a router gave to a few tokens: logits [T, E], index [T, K], weight [T, K].

    Raises BadInput where no rule known here explains them. A single chosen expert of weight 1 fits every renormalised
    score; softmax is then assumed.
    """
    rules = []
    for score in SCORES:
        for normalizes in (False, True):
            unscaled = RouterRule(score, normalizes, 1.0).weight(logits, index)
            scale = float(weight.float().sum() / unscaled.sum())
            rules.append(RouterRule(score, normalizes, 1.0 if abs(scale - 1) < 1e-3 else scale))
    if jitter is not None:
        rules.append(RouterRule("softmax", False, 1.0, jitter))
    misfits = [rule.misfit(logits, index, weight) for rule in rules]
    best = next(rule for rule, misfit in zip(rules, misfits, strict=True) if misfit <= 2 * min(misfits) + 1e-6)
    if best.explains(logits, index, weight):
        return best
    raise BadInput(f"the weights that the router {name} applies follow from its logits by no rule known here")


def _sparse_mixer(logits: Tensor, index: Tensor, jitter: float) -> Tensor:
    """[T, K] each chosen expert's share of a softmax over those not yet chosen and within 2 * jitter of the best."""
    left, weights = logits, []
    for chosen in index.split(1, dim=-1):
        best = left.amax(dim=-1, keepdim=True)
        far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * jitter
        weights.append(left.masked_fill(far, -torch.inf).softmax(dim=-1).gather(-1, chosen))
        left = left.scatter(-1, chosen, -torch.inf)
    return torch.cat(weights, dim=-1)
