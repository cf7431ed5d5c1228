"""Log-likelihoods of tokens, from logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mcbench.errors import BadInput

SCORED_AT_ONCE = 2**18  # logits, so that several passes over them stay in the processor's cache
SCORED_AT_ONCE_ELSEWHERE = 2**26  # on other devices, whose steps cost more than their passes; a quarter of a GB


def token_loglikelihoods(
    logits: Tensor, row: Sequence[int], column: Sequence[int], target: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood of each target token and whether it is the most likely, both [N].

    `logits` [rows, columns, vocabulary] in any precision; the softmax is computed in fp32, once for every place that
    targets look at.
    """
    columns, vocabulary = logits.shape[1:]
    places, source = np.unique(np.asarray(row) * columns + np.asarray(column), return_inverse=True)  # [places], [N]
    flat = logits.reshape(-1, vocabulary)
    wanted = torch.as_tensor(np.asarray(target), device=logits.device)
    order = np.argsort(source, kind="stable")  # targets by place
    ends = np.searchsorted(source[order], np.arange(0, len(places), step := places_at_once(logits.device, vocabulary)))
    value = torch.empty(len(source), dtype=torch.float64)
    best = torch.empty(len(source), dtype=torch.bool)
    for start, (low, high) in zip(range(0, len(places), step), itertools.pairwise([*ends, len(source)]), strict=True):
        here = places[start : start + step]
        whole = here[-1] - here[0] + 1 == len(here)  # neighbours need no copy
        scored = flat[here[0] : here[-1] + 1] if whole else flat[torch.as_tensor(here, device=logits.device)]
        scored = scored.float()
        greatest = greatest_logit(scored)
        mine = order[low:high]
        at = torch.as_tensor(source[mine] - start, device=logits.device)
        token = wanted[torch.as_tensor(mine, device=logits.device)]
        own = scored[at, token]
        value[mine] = scored.log_softmax(-1)[at, token].double().cpu()
        likely = (own == greatest[at]).nonzero()[:, 0]  # of equally likely tokens the first counts
        found = torch.zeros(len(mine), dtype=torch.bool, device=logits.device)
        found[likely] = scored[at[likely]].argmax(-1) == token[likely]
        best[mine] = found.cpu()
    return value.numpy(), best.numpy()


def places_at_once(device: torch.device, vocabulary: int) -> int:
    """How many places are scored in one step."""
    return max(1, (SCORED_AT_ONCE if device.type == "cpu" else SCORED_AT_ONCE_ELSEWHERE) // vocabulary)


def greatest_logit(logits: Tensor) -> Tensor:
    """The greatest logit of each row; BadInput where it is no finite number, as it is where any is NaN or infinite."""
    greatest = logits.amax(-1)
    if not bool(greatest.isfinite().all()):
        raise BadInput(
            "the model's logits are not finite numbers (NaN or infinite): its weights are damaged or its precision "
            "is too low"
        )
    return greatest
