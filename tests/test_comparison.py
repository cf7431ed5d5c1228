"""A difference is taken sample by sample, and only between runs of the same test."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from statsmodels.regression.linear_model import OLS

from mcbench.comparison import difference
from mcbench.errors import BadInput
from mcbench.task import Scores


def scores(right: list[bool], protocol: str = "quiz@1") -> Scores:
    rows: list[dict[str, Any]] = [{"id": str(i), "correct": r} for i, r in enumerate(right)]
    return Scores("quiz", protocol, "acc", True, sum(right) / len(right), len(right), samples=rows)


def clustered(ours: list[bool], theirs: list[bool], passages: list[str]) -> tuple[Scores, Scores]:
    """Two runs whose items belong to passages."""
    runs = (scores(ours), scores(theirs))
    for run in runs:
        for row, name in zip(run.samples, passages, strict=True):
            row["passage"] = name
    return runs


def losses(values: list[float]) -> Scores:
    rows: list[dict[str, Any]] = [{"id": "text", "loss": v, "tokens": 10} for v in values]
    value = math.exp(sum(values) / (10 * len(values)))
    return Scores("text", "text@1", "perplexity", False, value, len(values), samples=rows)


def test_a_run_does_not_differ_from_itself() -> None:
    same = difference(scores([True, False, True]), scores([True, False, True]))
    assert same is not None and (same.value, same.standard_error, same.lost, same.gained) == (0, 0, 0, 0)


def test_flips_in_both_directions_cancel_in_the_mean_but_not_in_the_error() -> None:
    found = difference(scores([True, False, True, True]), scores([False, True, True, True]))
    assert found is not None and (found.value, found.lost, found.gained) == (0, 1, 1)
    assert found.standard_error == pytest.approx(math.sqrt(2 / 3 / 4))


def test_pairing_makes_a_small_perplexity_difference_visible() -> None:
    base = [20.0, 35.0, 28.0, 22.0, 31.0, 26.0, 33.0, 24.0]
    found = difference(losses([v + 0.5 for v in base]), losses(base))
    assert found is not None and found.standard_error is not None
    assert found.value == pytest.approx(math.exp(sum(base) / 80) * (math.exp(0.05) - 1))
    assert found.value > 2 * found.standard_error


def test_the_error_is_that_of_statsmodels_clustered_by_passage() -> None:
    rng = np.random.default_rng(0)
    passages = [f"passage {at}" for at in rng.integers(0, 12, 60)]
    hard = {name: rng.random() for name in passages}  # items of a passage go wrong together
    ours, theirs = ([bool(rng.random() < hard[name]) for name in passages] for _ in range(2))
    found = difference(*clustered(ours, theirs, passages))
    deltas = np.array(ours, dtype=float) - np.array(theirs, dtype=float)
    fitted = OLS(deltas, np.ones(60)).fit(
        cov_type="cluster", cov_kwds={"groups": np.unique(passages, return_inverse=True)[1]}
    )
    assert found is not None and found.value == pytest.approx(fitted.params[0])
    assert found.standard_error == pytest.approx(fitted.bse[0])
    assert (found.n, found.lost, found.gained) == (60, (deltas < 0).sum(), (deltas > 0).sum())
    plain = difference(scores(ours), scores(theirs))
    assert plain is not None and plain.standard_error == pytest.approx(deltas.std(ddof=1) / math.sqrt(60))


def test_asking_every_item_twice_makes_nothing_surer() -> None:
    ours, theirs = [True, False, True, True, False, True], [True, True, False, True, True, True]
    once = difference(scores(ours), scores(theirs))
    twice = difference(*clustered(ours * 2, theirs * 2, [f"passage {at}" for at in range(6)] * 2))
    assert once is not None and twice is not None
    assert twice.standard_error == pytest.approx(once.standard_error)
    one = difference(*clustered(ours, theirs, ["the only passage"] * 6))
    assert one is not None and one.standard_error is None


def test_windows_of_one_text_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(25, 4, 8)
    ours, theirs = base + rng.normal(0.5, 0.3, 8), base

    def run(values: Any, times: int) -> Scores:
        found = losses([float(v) for v in values for _ in range(times)])
        for at, row in enumerate(found.samples):
            row["id"] = f"text {at // times}"
        return found

    once, thrice = (difference(run(ours, times), run(theirs, times)) for times in (1, 3))
    assert once is not None and thrice is not None and thrice.n == 24
    assert thrice.standard_error == pytest.approx(once.standard_error)


def test_different_tests_have_no_difference() -> None:
    with pytest.raises(BadInput, match="quiz@1 and quiz@2 are not the same test"):
        difference(scores([True]), scores([True], "quiz@2"))


def test_different_samples_have_no_difference() -> None:
    with pytest.raises(BadInput, match="did not answer the same samples"):
        difference(scores([True]), scores([True, False]))


def test_a_skipped_run_has_no_difference() -> None:
    assert difference(dataclasses.replace(scores([True]), value=None), scores([True])) is None
