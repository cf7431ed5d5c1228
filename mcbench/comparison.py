"""Two runs of one task compared sample by sample: the difference, and how much of it chance could explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mcbench.errors import BadInput
from mcbench.task import BOOTSTRAP_REPEATS, Row, Scores, kept, unit_of
from mcbench.uncertainty import Evidence, by_cluster, error_in_row, in_a_row, shared_out


@dataclass(frozen=True)
class Difference:
    """What one run has more than another in the task's own metric, over the same n samples.

    `standard_error` is that of the paired difference, clustered where samples share a passage or windows a text; it is
    None where there are too few of them to tell, and 1.96 of them make a 95 % interval. `lost` and `gained` count the
    samples that were right in the other run only, and in this one only; None for perplexity.
    """

    value: float
    n: int
    standard_error: float | None
    lost: int | None = None
    gained: int | None = None


def difference(scores: Scores, other: Scores) -> Difference | None:
    """`scores` minus `other`, paired by sample; None where either was skipped.

    Shares are compared by the mean of the differences per sample, perplexities by a bootstrap that draws the same
    texts of both, or where there are few texts by how the difference varies along their windows. Raises BadInput for
    two runs of different protocols or different samples.
    """
    if scores.value is None or other.value is None:
        return None
    if scores.protocol != other.protocol:
        raise BadInput(f"{scores.protocol} and {other.protocol} are not the same test, so they have no difference")
    ours, theirs = _paired(scores.samples, other.samples, scores.protocol, scores.metric)
    if "loss" in ours[0]:
        return _of_perplexities(ours, theirs, unit_of(scores.metric))
    deltas = _deltas(ours, theirs)
    lost, gained = int((deltas < 0).sum()), int((deltas > 0).sum())
    return Difference(float(deltas.mean()), len(deltas), _of_shares(ours, theirs).standard_error, lost, gained)


def evidence(ours: Sequence[Row], theirs: Sequence[Row], protocol: str, metric: str) -> Evidence:
    """What the samples of two runs say about `ours` minus `theirs`, clustered where they hang together.

    Shares differ in the share of right answers, clustered by the passage that items name. Perplexities differ in nats
    per token, word or byte as the metric says, the logarithm of their ratio: clustered by text, or where there are few
    texts (one long one, say) as windows in a row. Raises BadInput where the two did not answer the same
    samples.
    """
    ours, theirs = _paired(ours, theirs, protocol, metric)
    if "loss" in ours[0]:
        deltas = np.array([float(a["loss"]) - float(b["loss"]) for a, b in zip(ours, theirs, strict=True)])
        sizes = _sizes(ours, unit_of(metric))
        texts = [row["id"] for row in ours]
        if in_a_row(texts):
            return Evidence(deltas, sizes, bounded=False, row=True)
        return Evidence(by_cluster(deltas, texts), by_cluster(sizes, texts), bounded=False)
    return _of_shares(ours, theirs)


def same_answers(ours: Sequence[Row], theirs: Sequence[Row]) -> float | None:
    """The share of samples answered in the same way, right or wrong; None where a sample is no answer."""
    key = next((key for key in ("answer", "completions") if key in ours[0] and key in theirs[0]), None)
    return None if key is None else sum(a[key] == b[key] for a, b in zip(ours, theirs, strict=True)) / len(ours)


def choice_divergence(ours: Sequence[Row], theirs: Sequence[Row]) -> float | None:
    """Kullback-Leibler divergence of our distribution over an item's choices from theirs, mean over items, in nats.

    The distributions are the choices' likelihoods made to sum to one. None where there are no choices.
    """
    if "loglikelihoods" not in ours[0] or "loglikelihoods" not in theirs[0]:
        return None
    return math.fsum(
        _divergence(_log_shares(b["loglikelihoods"]), _log_shares(a["loglikelihoods"]))
        for a, b in zip(ours, theirs, strict=True)
    ) / len(ours)


def _divergence(true: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """KL(true || other) of log-probabilities."""
    return float((np.exp(true) * (true - other)).sum())


def _log_shares(loglikelihoods: Sequence[float]) -> npt.NDArray[np.float64]:
    values = np.asarray(loglikelihoods, dtype=float)
    return np.asarray(values - np.logaddexp.reduce(values), dtype=float)


def _paired(
    ours: Sequence[Row], theirs: Sequence[Row], protocol: str, metric: str
) -> tuple[Sequence[Row], Sequence[Row]]:
    """The samples of two runs, one beside the other; BadInput where they are not the same.

    A record numbers the samples that it holds. Beside one of those the other's samples count by their places, for the
    protocol covers the items and their order.
    """
    if ours and theirs and _numbered(ours) != _numbered(theirs):
        ours, theirs = (rows if _numbered(rows) else kept(rows, metric) for rows in (ours, theirs))
    if [row["id"] for row in ours] != [row["id"] for row in theirs]:
        told = (
            f"they have {len(ours)} and {len(theirs)}" if len(ours) != len(theirs) else f"not all {len(ours)} are alike"
        )
        raise BadInput(
            f"the two runs of {protocol} did not answer the same samples: {told}; run both with the same --limit, or "
            "leave the task out of --tasks"
        )
    return ours, theirs


def _numbered(rows: Sequence[Row]) -> bool:
    """Whether the samples come from a record; those of a file have names."""
    return isinstance(rows[0]["id"], int)


def _deltas(ours: Sequence[Row], theirs: Sequence[Row]) -> npt.NDArray[np.float64]:
    """[samples] what each answer of ours scores more than theirs."""
    return np.array([float(a["correct"]) - float(b["correct"]) for a, b in zip(ours, theirs, strict=True)])


def _of_shares(ours: Sequence[Row], theirs: Sequence[Row]) -> Evidence:
    """The difference of shares, items about one passage taken together."""
    deltas = _deltas(ours, theirs)
    names = [a.get("passage") or b.get("passage") or at for at, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    if len(set(names)) == len(names) and set(deltas.tolist()) <= {-1.0, 0.0, 1.0}:
        return Evidence(deltas, np.ones(len(deltas)), (int((deltas < 0).sum()), int((deltas > 0).sum())))
    return Evidence(by_cluster(deltas, names), by_cluster(np.ones(len(deltas)), names))


def _sizes(rows: Sequence[Row], unit: str) -> npt.NDArray[np.float64]:
    """[windows] of how much text each window is.

    The words and bytes of a text stand with its first window; all of its windows share them here.
    """
    sizes = np.array([float(row[unit]) for row in rows])
    if unit == "tokens":
        return sizes
    return shared_out(sizes, [row["id"] for row in rows])


def _of_perplexities(ours: Sequence[Row], theirs: Sequence[Row], unit: str) -> Difference:
    loss, other = (np.array([float(row["loss"]) for row in rows]) for rows in (ours, theirs))  # [windows]
    sizes = _sizes(ours, unit)
    ends = [math.exp(part.sum() / sizes.sum()) for part in (loss, other)]
    value, windows, texts = ends[0] - ends[1], len(sizes), [row["id"] for row in ours]
    if windows < 2:
        return Difference(value, windows, None)
    if in_a_row(texts):
        left = [
            end * (part - math.log(end) * sizes) / sizes.sum() for end, part in zip(ends, (loss, other), strict=True)
        ]
        return Difference(value, windows, error_in_row(left[0] - left[1]))
    columns = by_cluster(np.stack([loss, other, sizes], axis=1), texts)
    generator, clusters = np.random.default_rng(0), len(columns)
    drawn = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=BOOTSTRAP_REPEATS)
    sums = drawn @ columns  # [repeats, 3]
    spread = np.exp(sums[:, 0] / sums[:, 2]) - np.exp(sums[:, 1] / sums[:, 2])
    return Difference(value, windows, float(spread.std(ddof=1)))
