"""A difference is taken sample by sample, and only between runs of the same test."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from mcbench.comparison import difference
from mcbench.errors import BadInput
from mcbench.task import Scores


def scores(right: list[bool], protocol: str = "quiz@1") -> Scores:
    rows: list[dict[str, Any]] = [{"id": str(i), "correct": r} for i, r in enumerate(right)]
    return Scores("quiz", protocol, "acc", True, sum(right) / len(right), len(right), samples=rows)


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


def test_different_tests_have_no_difference() -> None:
    with pytest.raises(BadInput, match="quiz@1 and quiz@2 are not the same test"):
        difference(scores([True]), scores([True], "quiz@2"))


def test_different_samples_have_no_difference() -> None:
    with pytest.raises(BadInput, match="did not answer the same samples"):
        difference(scores([True]), scores([True, False]))


def test_a_skipped_run_has_no_difference() -> None:
    assert difference(dataclasses.replace(scores([True]), value=None), scores([True])) is None
