"""Intervals cover as often as they say, and tests agree with scipy, statsmodels or brute force."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from mcbench import uncertainty
from mcbench.uncertainty import (
    LEAST,
    Evidence,
    Interval,
    error_in_row,
    exact_bounds,
    holm,
    mcnemar,
    mean_interval,
    ratio_interval,
    score_interval,
    sign_flip_test,
    student_quantile,
    student_tail,
)


@pytest.fixture
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncertainty, "REPEATS", 1000)  # enough for coverage, which is averaged over many


def outcomes(n: int, lost: float, gained: float) -> Iterator[tuple[int, int, float]]:
    """Every number of answers lost and gained that is likely at all, with its probability."""
    law = stats.multinomial(n, [lost, gained, 1 - lost - gained])
    for b in range(n + 1):
        for c in range(n + 1 - b):
            if (p := float(law.pmf([b, c, n - b - c]))) > 1e-7:
                yield b, c, p


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 9), (12, 30), (40, 41)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    assert mcnemar(lost, gained) == pytest.approx(statsmodels_mcnemar([[0, lost], [gained, 0]], exact=True).pvalue)


def test_holm_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(0).uniform(size=12) ** 3
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 300])
@pytest.mark.parametrize("p", [0.9, 0.975, 0.9999])
def test_students_quantile_is_that_of_scipy(p: float, freedom: int) -> None:
    assert student_quantile(p, freedom) == pytest.approx(float(stats.t.ppf(p, freedom)), rel=1e-9)
    assert student_tail(3.5, freedom) == pytest.approx(float(stats.t.sf(3.5, freedom)), rel=1e-9)


@pytest.mark.parametrize(("lost", "gained", "n"), [(3, 9, 50), (1, 0, 20), (0, 4, 30), (20, 22, 100)])
def test_the_ends_of_the_score_interval_are_rejected_by_exactly_the_level(lost: int, gained: int, n: int) -> None:
    for delta in score_interval(lost, gained, n, 0.9):

        def unlikely(q: float, delta: float = delta) -> float:  # of losing a share q and gaining q + delta
            shares, counts = np.array([q, q + delta, 1 - 2 * q - delta]), np.array([lost, gained, n - lost - gained])
            return -float((counts * np.log(np.maximum(shares, 1e-300))).sum())

        low, high = max(0.0, -delta), (1 - delta) / 2
        q = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        score = (gained - lost - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))
        assert abs(score) == pytest.approx(stats.norm.ppf(0.95), rel=1e-3)


def test_equal_answers_everywhere_leave_the_closed_form_of_the_score_interval() -> None:
    z = stats.norm.ppf(0.975)
    assert score_interval(0, 0, 20, 0.95) == pytest.approx((-(z**2) / (20 + z**2), z**2 / (20 + z**2)))


@pytest.mark.parametrize(("n", "lost", "gained"), [(30, 0.1, 0.1), (60, 0.05, 0.02), (40, 0.3, 0.1)])
def test_the_score_interval_covers_at_its_rate(n: int, lost: float, gained: float) -> None:
    truth = gained - lost
    covered = sum(p for b, c, p in outcomes(n, lost, gained) if _holds(score_interval(b, c, n, 0.95), truth))
    assert 0.93 < covered < 0.98  # exact, over every outcome; whole numbers of flips cannot hit 95 % precisely


def test_a_bootstrap_of_rare_flips_covers_far_less_which_is_why_it_is_not_used_for_them() -> None:
    n, lost = 50, 0.03
    score = bootstrap = 0.0
    for b, c, p in outcomes(n, lost, 0.0):
        deltas = np.repeat([-1.0, 1.0, 0.0], [b, c, n - b - c])
        score += p * _holds(Evidence(deltas, np.ones(n), (b, c)).interval(0.95), -lost)
        bootstrap += p * _holds(ratio_interval(deltas, np.ones(n), 0.95), -lost)
    assert bootstrap < 0.8  # where nothing flipped by chance, its width is nothing
    assert score > 0.95


@pytest.mark.parametrize(("lost", "gained"), [(14, 4), (1, 0), (3, 3), (60, 11), (400, 310)])
def test_sign_flips_are_mcnemar_where_every_cluster_is_one_answer(lost: int, gained: int) -> None:
    deltas = [-1.0] * lost + [1.0] * gained + [0.0] * 60
    assert sign_flip_test(deltas) == pytest.approx(mcnemar(lost, gained), rel=1e-6)


@pytest.mark.parametrize("mean", [0.0, 0.4, 1.5])
def test_sign_flips_are_those_of_scipy(mean: float) -> None:
    values = np.random.default_rng(3).normal(mean, 1, 12)
    brute = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(values) == pytest.approx(float(brute.pvalue), abs=1e-3)
    assert sign_flip_test(-values) == sign_flip_test(values * 1e-9) == sign_flip_test(values)


def test_sign_flips_of_nothing_say_nothing() -> None:
    assert sign_flip_test([]) == sign_flip_test([0.0, 0.0]) == sign_flip_test([2.5]) == 1


def test_a_difference_far_from_zero_has_a_p_value_that_a_correction_for_many_leaves_small() -> None:
    values = np.random.default_rng(0).normal(0.35, 1, 300)
    deviations = values.sum() / math.sqrt((values**2).sum())
    assert deviations > 5  # more than ten thousand draws can tell from nothing
    normal = 2 * NormalDist().cdf(-deviations)
    assert 0.4 * normal < sign_flip_test(values) < normal  # signs have lighter tails
    assert sign_flip_test(np.abs(values)) == LEAST


def test_rounding_moves_a_p_value_little_however_many_differences_there_are() -> None:
    generator = np.random.default_rng(1)
    for n in (50, 500, 3000):
        values = generator.standard_t(4, n) + 2.5 * math.sqrt(2) / math.sqrt(n)
        deviations = values.sum() / math.sqrt((values**2).sum())
        assert sign_flip_test(values) == pytest.approx(2 * NormalDist().cdf(-abs(deviations)), rel=0.15)


def test_a_randomisation_test_rejects_no_more_often_than_it_says() -> None:
    generator = np.random.default_rng(0)
    p = [sign_flip_test(generator.standard_t(3, 15)) for _ in range(800)]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 800)


def test_the_bootstrap_is_that_of_scipy_but_for_the_small_sample_correction() -> None:
    values = np.random.default_rng(1).exponential(size=400)
    ours = ratio_interval(values, np.ones(400), 0.95)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0), n_resamples=9999)
    assert ours == pytest.approx(theirs.confidence_interval, rel=0.01)


def test_an_interval_over_clusters_covers_at_its_rate_where_one_over_samples_does_not(few_repeats: None) -> None:
    generator, clusters, size, runs = np.random.default_rng(0), 12, 6, 400
    clustered = single = 0
    for _ in range(runs):
        values = generator.normal(size=(clusters, 1)) + generator.normal(size=(clusters, size))  # of mean 0
        clustered += _holds(ratio_interval(values.sum(1), [size] * clusters, 0.95), 0)
        single += _holds(ratio_interval(values.ravel(), [1] * clusters * size, 0.95), 0)
    assert 0.92 < clustered / runs < 0.98
    assert single / runs < 0.8


def test_a_perplexity_interval_over_texts_of_uneven_length_covers_at_its_rate(few_repeats: None) -> None:
    generator, runs, covered = np.random.default_rng(1), 400, 0
    for _ in range(runs):
        tokens = generator.integers(50, 400, size=40)
        losses = tokens * generator.normal(0.05, 0.1, size=40)  # 0.05 nats a token more than the other run
        covered += _holds(ratio_interval(losses, tokens.astype(float), 0.9), 0.05)
    assert 0.86 < covered / runs < 0.94


@pytest.mark.parametrize("windows", [40, 160])
@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.6])
def test_windows_in_a_row_are_covered_within_two_points_where_blocks_of_them_are_not(rho: float, windows: int) -> None:
    rows = _rows(rho, windows)
    found = [Evidence(row, np.ones(windows), bounded=False, row=True) for row in rows]
    covered = np.mean([_holds(one.interval(0.95), 0) for one in found])
    beyond = np.mean([abs(one.difference) > 1.96 * (one.standard_error or 0) for one in found])
    assert 0.93 < covered < 0.975
    assert beyond == pytest.approx(1 - covered, abs=1e-3)  # what is given as a standard error may be read as one
    rejected = np.mean([one.p_value() <= 0.05 for one in found])
    assert rejected == pytest.approx(1 - covered, abs=1e-9)
    if rho > 0:
        assert np.mean([_holds(_in_blocks(row), 0) for row in rows[:300]]) < 0.93  # too short by far


def _rows(rho: float, windows: int, runs: int = 1200) -> np.ndarray:
    """[runs, windows] autoregressions of mean 0."""
    shocks, before = np.random.default_rng(2).normal(size=(runs, windows + 60)), 60
    for at in range(1, windows + before):
        shocks[:, at] += rho * shocks[:, at - 1]
    return shocks[:, before:]


def _in_blocks(row: np.ndarray) -> Interval | None:
    """The circular block bootstrap with blocks of n^(1/3) neighbours."""
    length = round(math.cbrt(len(row)))
    sums = sum(np.roll(row, -offset) for offset in range(length))
    drawn = np.random.default_rng(0).choice(sums, size=(1000, math.ceil(len(row) / length))).sum(axis=1)
    low, high = np.quantile(drawn / (math.ceil(len(row) / length) * length), [0.025, 0.975])
    return Interval(float(low), float(high))


def test_the_error_of_a_row_is_the_spread_of_its_sum() -> None:
    rows = _rows(0.65, 160)
    errors = [1.96 / student_quantile(0.975, 8) * (error_in_row(row - row.mean()) or 0) for row in rows]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(rows.sum(axis=1)), rel=0.04)
    assert error_in_row(np.array([1.0, -1.0, 1.0, -1.0])) is None  # four are too few to tell


@pytest.mark.parametrize(("lost", "n"), [(0, 30), (1, 22), (7, 150)])
def test_bounds_where_nothing_was_gained_are_those_of_clopper_and_pearson(lost: int, n: int) -> None:
    found = exact_bounds(lost, 0, n, 0.05)
    assert -found.low == pytest.approx(float(stats.beta.ppf(0.95, lost + 1, n - lost)), abs=2e-5)


@pytest.mark.parametrize(("n", "lost", "gained"), [(50, 0.1, 0.0), (100, 0.03, 0.0), (60, 0.08, 0.03), (40, 0.3, 0.1)])
def test_bounds_err_no_more_often_than_they_say_where_the_score_interval_does(
    n: int, lost: float, gained: float
) -> None:
    truth, wrong, score = gained - lost, [0.0, 0.0], [0.0, 0.0]
    for b, c, p in outcomes(n, lost, gained):
        for total, found in ((wrong, exact_bounds(b, c, n, 0.05)), (score, score_interval(b, c, n, 0.90))):
            total[0] += p * (found.low > truth + 1e-9)
            total[1] += p * (found.high < truth - 1e-9)
    assert max(wrong) <= 0.05
    assert max(score) > 0.05 or gained


def test_too_few_clusters_have_no_interval() -> None:
    assert ratio_interval([1, 2, 3, 4], [1, 1, 1, 1], 0.95) is None


def test_the_interval_of_a_mean_is_the_textbook_one_where_the_parts_are_normal() -> None:
    errors = np.array([0.1, 0.2, 0.4])
    parts = [Interval(0.5 - 1.96 * e, 0.5 + 1.96 * e) for e in errors]
    half = 1.96 * math.sqrt((errors**2).sum()) / 3
    assert mean_interval([0.5, 0.5, 0.5], parts) == pytest.approx((0.5 - half, 0.5 + half))


def test_the_interval_of_a_mean_covers_at_its_rate_with_rare_flips() -> None:
    generator, runs, covered = np.random.default_rng(4), 1500, 0
    sizes, lost, gained = (40, 100, 25), (0.03, 0.1, 0.2), (0.01, 0.1, 0.05)
    truth = float(np.mean(np.array(gained) - np.array(lost)))
    for _ in range(runs):
        flips = [generator.multinomial(n, [x, y, 1 - x - y]) for n, x, y in zip(sizes, lost, gained, strict=True)]
        values = [(c - b) / n for n, (b, c, _) in zip(sizes, flips, strict=True)]
        intervals = [score_interval(int(b), int(c), n, 0.95) for n, (b, c, _) in zip(sizes, flips, strict=True)]
        covered += _holds(mean_interval(values, intervals), truth)
    assert 0.94 < covered / runs < 0.985  # rather too wide than too short where flips are rare


def _holds(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval.low <= truth <= interval.high
