"""Two runs of one task compared sample by sample: the difference, and how much of it chance could explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mcbench.errors import BadInput
from mcbench.task import BOOTSTRAP_REPEATS, Row, Scores


@dataclass(frozen=True)
class Difference:
    """What one run has more than another in the task's own metric, over the same n samples.

    `standard_error` is that of the paired difference; it is None where n is too small to tell. `lost` and `gained`
    count the samples that were right in the other run only, and in this one only; None for perplexity.
    """

    value: float
    n: int
    standard_error: float | None
    lost: int | None = None
    gained: int | None = None


def difference(scores: Scores, other: Scores) -> Difference | None:
    """`scores` minus `other`, paired by sample; None where either was skipped.

    Shares are compared by the mean of the differences per sample, perplexities by a bootstrap that draws the same
    windows of both. Raises BadInput for two runs of different protocols or different samples.
    """
    if scores.value is None or other.value is None:
        return None
    if scores.protocol != other.protocol:
        raise BadInput(f"{scores.protocol} and {other.protocol} are not the same test, so they have no difference")
    ours, theirs = scores.samples, other.samples
    if [row["id"] for row in ours] != [row["id"] for row in theirs]:
        raise BadInput(f"the two runs of {scores.protocol} did not answer the same samples")
    if "loss" in ours[0]:
        return _of_perplexities(ours, theirs, "words" if scores.metric == "word_perplexity" else "tokens")
    return _of_shares([float(row["correct"]) for row in ours], [float(row["correct"]) for row in theirs])


def _of_shares(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    deltas = np.asarray(ours) - np.asarray(theirs)
    n = len(deltas)
    error = float(deltas.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return Difference(float(deltas.mean()), n, error, int((deltas < 0).sum()), int((deltas > 0).sum()))


def _of_perplexities(ours: Sequence[Row], theirs: Sequence[Row], unit: str) -> Difference:
    loss, other, tokens = (
        np.array([float(row[key]) for row in rows])  # [windows]
        for rows, key in ((ours, "loss"), (theirs, "loss"), (ours, unit))
    )
    value = math.exp(loss.sum() / tokens.sum()) - math.exp(other.sum() / tokens.sum())
    n = len(tokens)
    if n < 2:
        return Difference(value, n, None)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_REPEATS)  # [repeats, windows]
    count = drawn @ tokens
    spread = np.exp((drawn @ loss) / count) - np.exp((drawn @ other) / count)
    return Difference(value, n, float(spread.std(ddof=1)))
