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
    block_length,
    holm,
    mcnemar,
    mean_interval,
    moving_blocks,
    ratio_interval,
    score_interval,
    sign_flip_test,
    student_quantile,
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


@pytest.mark.parametrize("freedom", [4, 7, 30, 300])
@pytest.mark.parametrize("p", [0.9, 0.975, 0.995])
def test_students_quantile_is_that_of_scipy(p: float, freedom: int) -> None:
    assert student_quantile(p, freedom) == pytest.approx(float(stats.t.ppf(p, freedom)), rel=3e-3)


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


def test_blocks_cover_windows_that_depend_on_their_neighbours_where_single_windows_do_not(few_repeats: None) -> None:
    generator, n, runs = np.random.default_rng(2), 216, 150
    blocks = single = 0
    for _ in range(runs):
        row = np.zeros(n + 50)
        for at, shock in enumerate(generator.normal(size=n + 50)):
            row[at] = 0.4 * row[at - 1] + shock
        row, length = row[50:], block_length(n)
        sums, sizes = moving_blocks(row, length), moving_blocks(np.ones(n), length)
        blocks += _holds(ratio_interval(sums, sizes, 0.95, drawn=math.ceil(n / length)), 0)
        single += _holds(ratio_interval(row, np.ones(n), 0.95), 0)
    assert blocks / runs > 0.9
    assert single / runs < blocks / runs - 0.08


def test_the_standard_error_over_blocks_is_the_spread_of_the_mean() -> None:
    generator, n, runs = np.random.default_rng(3), 216, 300
    length, means, errors = block_length(n), [], []
    for _ in range(runs):
        row = np.zeros(n + 50)
        for at, shock in enumerate(generator.normal(size=n + 50)):
            row[at] = 0.3 * row[at - 1] + shock
        sums, sizes = moving_blocks(row[50:], length), moving_blocks(np.ones(n), length)
        found = Evidence(sums, sizes, bounded=False, drawn=math.ceil(n / length))
        means.append(found.difference)
        errors.append(found.standard_error or 0.0)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_moving_blocks_are_sums_of_neighbours_around_the_end() -> None:
    assert moving_blocks([1, 2, 3, 4], 2).tolist() == [3, 5, 7, 5]


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
