"""How sure one can be of a difference between two runs: intervals and tests, as pure functions of numbers.

Two runs that answered the same items differ by a ratio of two sums over clusters of items: the summed difference over
the number of items, or for perplexity the summed difference in nats over the number of tokens. Items of one cluster
may depend on each other (questions about one passage, windows of one text); clusters may not. Where there are too few
texts to tell from, the windows stand in a row, and each may depend on its neighbours.

`benchmarks/coverage.py` simulates how often the intervals and bounds hold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

REPEATS = 10_000  # of a bootstrap
CONFIDENCE, ERRORS = 0.95, 1.96  # what a standard error stands for: so many of them make an interval of so much
DEPENDENCE = 0.65  # of neighbours in a row, up to which its variance is not underestimated
LOPSIDED = 4.0  # times the correction for skewness
REACH = 100  # neighbours further apart than this do not depend on each other: DEPENDENCE ** 100 is nothing
STEPS, STEPS_EACH = 2**14, 64  # what the differences of a randomisation test are rounded to: steps in all, at least
LEAST = 1e-10  # the smallest p-value of a randomisation test
FEWEST_CLUSTERS = 5  # with fewer, spread between clusters says too little to draw from
CHUNK = 2_000_000  # numbers drawn at a time
EXACT_STEPS, EXACT_START = 14, 1.15  # of a bisection whose every step counts all outcomes; how wide it begins

Numbers = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """The values of a difference that the samples do not speak against."""

    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one difference: sum(parts) / sum(sizes) over clusters.

    flips: how many answers were lost and gained, where every cluster is one answer, right or wrong.
    bounded: whether a part can be no larger than its size, as differences of shares are and those of losses are not.
    row: whether the clusters are windows that stand in a row and depend on their neighbours.
    """

    parts: Numbers  # [clusters]
    sizes: Numbers  # [clusters]
    flips: tuple[int, int] | None = None
    bounded: bool = True
    row: bool = False

    @property
    def clusters(self) -> int:
        """How many numbers that do not depend on each other the spread is known from."""
        return terms_of_row(len(self.parts)) if self.row else len(self.parts)

    @property
    def difference(self) -> float:
        """The estimate."""
        return math.fsum(self.parts) / math.fsum(self.sizes)

    @property
    def standard_error(self) -> float | None:
        """That of the difference, robust to whatever hangs together inside a cluster; None for fewer than two.

        The ratio is linearised: what is left of each cluster, part - difference x size, varies from cluster to cluster.
        With clusters of one item each it is that of a mean. For windows in a row see `error_in_row`.
        """
        count = len(self.parts)
        left = self._left() / math.fsum(self.sizes)
        if self.row:
            return error_in_row(left)
        return math.sqrt(count / (count - 1) * math.fsum(left * left)) if count > 1 else None

    def interval(self, confidence: float) -> Interval | None:
        """Its confidence interval; None where there are too few clusters for one."""
        if self.row:
            return self._in_row((1 - confidence) / 2)
        if self.flips is not None:
            return score_interval(*self.flips, len(self.parts), confidence)
        if self.bounded and not self.parts.any():  # equal answers everywhere have no spread to draw from
            return score_interval(0, 0, len(self.parts), confidence)
        found = ratio_interval(self.parts, self.sizes, confidence)
        if found is None or not self.bounded:
            return found
        counted = score_interval(*self._changed(), len(self.parts), confidence)
        return self._widened(found, counted)

    def bounds(self, error: float) -> Interval | None:
        """Two bounds, each wrong with a chance of at most `error`; None where there are too few clusters for them.

        Wider than the interval at 1 - 2 x error, which errs as often as it says on average only, and more often on one
        side than on the other where few answers changed or the differences are lopsided.
        """
        if self.flips is not None:
            return exact_bounds(*self.flips, len(self.parts), error)
        if self.bounded and not self.parts.any():
            return exact_bounds(0, 0, len(self.parts), error)
        if len(self.parts) < FEWEST_CLUSTERS:
            return None
        found = self._lopsided(error)
        if self.row:
            return found
        drawn = ratio_interval(self.parts, self.sizes, 1 - 2 * error)
        found = _hull(found, drawn) if drawn else found
        if not self.bounded:
            return found
        return self._widened(found, exact_bounds(*self._changed(), len(self.parts), error))

    def _left(self) -> Numbers:
        """[clusters] what each part has more than its share of the difference."""
        return np.asarray(self.parts - self.difference * self.sizes, dtype=float)

    def _in_row(self, tail: float) -> Interval | None:
        """The interval that leaves out so much on either side, for windows in a row."""
        if len(self.parts) < FEWEST_CLUSTERS:
            return None
        reach = student_quantile(1 - tail, self.clusters) * deviation_in_row(self._left() / math.fsum(self.sizes))
        return Interval(self.difference - reach, self.difference + reach)

    def _lopsided(self, error: float) -> Interval:
        """Student's interval, its ends moved outwards by the skewness of the clusters.

        Hall's correction (1992, Journal of the Royal Statistical Society B 54) times LOPSIDED, for few clusters show
        less skewness than there is.
        """
        left, count = self._left() / math.fsum(self.sizes), len(self.parts)
        alone = math.sqrt(count * float((left * left).sum()) / (count - 1))
        if not alone:
            return Interval(self.difference, self.difference)
        deviation = deviation_in_row(left) if self.row else alone
        beyond = student_quantile(1 - error, self.clusters if self.row else count - 1)
        skewness = float((left**3).mean()) / float((left * left).mean()) ** 1.5 * max(1.0, deviation / alone)
        moved = LOPSIDED * skewness * (2 * beyond**2 + 1) / (6 * math.sqrt(count))
        return Interval(
            self.difference - deviation * (beyond + max(0.0, -moved)),
            self.difference + deviation * (beyond + max(0.0, moved)),
        )

    def _changed(self) -> tuple[int, int]:
        """How many clusters lost and gained."""
        return int((self.parts < 0).sum()), int((self.parts > 0).sum())

    def _widened(self, found: Interval, counted: Interval) -> Interval:
        """The interval, no shorter than one of how many clusters lost and gained, at their usual size.

        Where few clusters changed, a bootstrap can draw no more of them than were seen: with one of 95 it let three to
        four times as many true losses pass as it should (simulated in the tests).
        """
        changed = self.parts != 0
        usual = float(np.abs(self.parts[changed]).mean() / self.sizes.mean())
        return _hull(found, Interval(counted.low * usual, counted.high * usual))

    def p_value(self) -> float:
        """How often a difference this large comes about where there is none."""
        if self.flips is not None:
            return mcnemar(*self.flips)
        if self.row:
            deviation = deviation_in_row(self._left() / math.fsum(self.sizes))
            if not deviation:
                return LEAST if self.difference else 1.0
            return min(1.0, max(LEAST, 2 * student_tail(abs(self.difference) / deviation, self.clusters)))
        return sign_flip_test(self.parts)


def _hull(one: Interval, other: Interval) -> Interval:
    return Interval(min(one.low, other.low), max(one.high, other.high))


def score_interval(lost: int, gained: int, n: int, confidence: float) -> Interval:
    """The score interval of (gained - lost) / n over n pairs of right or wrong (Tango 1998, Statistics in Medicine 17).

    It keeps a width where no item flipped, z^2 / (n + z^2) on either side, which neither the normal approximation nor
    a bootstrap does: both would call 20 equal answers proof that nothing ever changes.
    """
    z = normal_quantile((1 + confidence) / 2)
    middle = (gained - lost) / n

    def score(delta: float) -> float:
        """How many standard errors the data lie above a true difference of `delta`; falls as `delta` grows."""
        variance = n * max(0.0, 2 * _likely_lost(lost, gained, n, delta) + delta * (1 - delta))
        above = gained - lost - n * delta
        return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above)

    return Interval(_crossing(score, z, -1.0, middle), _crossing(score, -z, middle, 1.0))


@functools.lru_cache(maxsize=4096)
def exact_bounds(lost: int, gained: int, n: int, error: float) -> Interval:
    """Bounds of (gained - lost) / n over n pairs of right or wrong, each wrong with a chance of at most `error`.

    A true difference lies outside where one as far from it as what was seen has a chance below `error`, counted over
    all outcomes at the likeliest shares lost and gained that have this difference. Where nothing was gained (or lost)
    these are the bounds of Clopper and Pearson, which hold always; otherwise they held in all settings of
    `benchmarks/coverage.py`, where every outcome is counted.
    """
    seen, middle = gained - lost, (gained - lost) / n

    def chance(delta: float, side: int) -> float:
        """That of what was seen or more (side -1), or or less (side 1)."""
        law = _law_of_flips(lost, gained, n, delta)
        return float((law[seen + n :] if side < 0 else law[: seen + n + 1]).sum())

    guess = score_interval(lost, gained, n, 1 - 2 * error)
    ends = []
    for side, end, near in ((-1, -1.0, guess.low), (1, 1.0, guess.high)):
        inside, outside = middle, middle + (near - middle) * EXACT_START
        while abs(outside) < 1 and chance(outside, side) > error:
            inside, outside = outside, middle + (outside - middle) * EXACT_START
        if abs(outside) >= 1:
            outside = end
        for _ in range(EXACT_STEPS):
            between = (inside + outside) / 2
            inside, outside = (between, outside) if chance(between, side) > error else (inside, between)
        ends.append(outside)
    return Interval(*ends)


def _law_of_flips(lost: int, gained: int, n: int, delta: float) -> Numbers:
    """[2n + 1] how likely each number gained less lost is, from -n to n, at the likeliest shares with that mean."""
    losing = min(max(_likely_lost(lost, gained, n, delta), -delta, 0.0), (1 - delta) / 2)
    gaining = losing + delta
    turn = 2 * np.pi * np.fft.rfftfreq(2 * n + 1)
    one = (1 - losing - gaining) + losing * np.exp(1j * turn) + gaining * np.exp(-1j * turn)
    law = np.fft.irfft(one**n, 2 * n + 1)
    return np.asarray(np.concatenate([law[n + 1 :], law[: n + 1]]).clip(min=0.0), dtype=float)


def _likely_lost(lost: int, gained: int, n: int, delta: float) -> float:
    """The most likely share lost, where the share gained is larger by `delta`."""
    b = -gained - lost + (2 * n - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    return (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)


def _crossing(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function crosses a level between two points, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return (low + high) / 2


def ratio_interval(
    parts: Sequence[float] | Numbers, sizes: Sequence[float] | Numbers, confidence: float, *, seed: int = 0
) -> Interval | None:
    """A bootstrap interval of sum(parts) / sum(sizes) over [clusters], each drawn whole; None for fewer than five.

    Percentiles of the draws, taken so much further out as Student's t with clusters - 1 degrees of freedom lies beyond
    the normal: without that, an interval from few clusters is too short (Hesterberg 2015, The American Statistician
    69).
    """
    columns = np.stack([np.asarray(parts, dtype=float), np.asarray(sizes, dtype=float)], axis=1)  # [clusters, 2]
    clusters = len(columns)
    if clusters < FEWEST_CLUSTERS:
        return None
    sums = np.concatenate(list(_resampled(columns, seed)))  # [repeats, 2]
    ratios = sums[:, 0] / sums[:, 1]
    beyond = math.sqrt(clusters / (clusters - 1)) * student_quantile((1 + confidence) / 2, clusters - 1)
    tail = NormalDist().cdf(-beyond)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _resampled(columns: Numbers, seed: int) -> Iterator[Numbers]:
    """[some repeats, S] sums over clusters drawn with replacement, REPEATS in all."""
    clusters, generator = len(columns), np.random.default_rng(seed)
    at_once = max(1, CHUNK // clusters)
    for first in range(0, REPEATS, at_once):
        repeats = min(at_once, REPEATS - first)
        yield generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=repeats) @ columns


def in_a_row(texts: Sequence[object]) -> bool:
    """Whether windows, each with the name of its text, are of so few texts that neighbours have to tell the spread."""
    return len(set(texts)) < FEWEST_CLUSTERS


def shared_out(sizes: Numbers, texts: Sequence[object]) -> Numbers:
    """[windows] what stands with some windows of a text, such as its words with the first, in equal parts with all."""
    place = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    places = np.array([place[text] for text in texts])
    return np.asarray((np.bincount(places, sizes) / np.bincount(places))[places], dtype=float)


def terms_of_row(n: int) -> int:
    """How many terms the variance of n values in a row is estimated from, 0.63 sqrt(n): 4 for 40, 8 for 160.

    More of them make a shorter interval and reach to waves so short that dependence of neighbours no longer shows.
    """
    return max(1, round(0.63 * math.sqrt(n)))


def deviation_in_row(left: Numbers) -> float:
    """The standard deviation of the sum of n values in a row of mean zero, each of which may depend on its neighbours.

    A long-run variance from the first cosine waves over the row (Mueller 2007, Journal of Econometrics 141; Sun 2013,
    The Econometrics Journal 16): the sums of the values times each wave are normal and do not depend on each other, so
    that the quotient follows Student's t with as many degrees of freedom as there are terms. Multiplied so that it is
    right on average for an autoregression of DEPENDENCE, and on the safe side for less.
    """
    waves, safe = _waves(len(left))
    return math.sqrt(safe * len(left) * float(((waves @ left) ** 2).mean()))


def error_in_row(left: Numbers) -> float | None:
    """What is given as the standard error of a sum over a row: half its 95 % interval, divided by 1.96.

    With so few terms two standard deviations are less than 95 %; this one may be read like any other standard error.
    """
    if len(left) < FEWEST_CLUSTERS:
        return None
    beyond = student_quantile((1 + CONFIDENCE) / 2, terms_of_row(len(left)))
    return beyond / ERRORS * deviation_in_row(left)


@functools.lru_cache(maxsize=64)
def _waves(n: int) -> tuple[Numbers, float]:
    """[terms, n] cosine waves of half a turn, one turn and so on over a row, each of length 1, and what makes it safe.

    That is by how much they miss the variance of the sum of an autoregression of DEPENDENCE.
    """
    turns = np.arange(1, terms_of_row(n) + 1)[:, None] * (np.arange(n) + 0.5) / n
    waves = math.sqrt(2 / n) * np.cos(np.pi * turns)
    along = np.ones((1, n)) / math.sqrt(n)
    return np.asarray(waves, dtype=float), float(_power(along)[0] / _power(waves).mean())


def _power(waves: Numbers) -> Numbers:
    """[waves] the variance of each weighted sum of an autoregression of DEPENDENCE, whose values have variance 1."""
    power = (waves * waves).sum(axis=1)
    for apart in range(1, min(REACH, waves.shape[1])):
        power = power + 2 * DEPENDENCE**apart * (waves[:, apart:] * waves[:, :-apart]).sum(axis=1)
    return np.asarray(power, dtype=float)


def by_cluster(values: Numbers, names: Sequence[object]) -> Numbers:
    """[clusters, ...] sums of the [n, ...] values under each name, in the order in which names first appear."""
    place = {name: at for at, name in enumerate(dict.fromkeys(names))}
    sums = np.zeros((len(place), *values.shape[1:]))
    np.add.at(sums, [place[name] for name in names], values)
    return sums


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact two-sided p: how often as many one-sided flips come about where either side is as likely."""
    flips, fewer = lost + gained, min(lost, gained)
    return min(1.0, 2 * sum(math.comb(flips, k) for k in range(fewer + 1)) / (1 << flips))


def sign_flip_test(differences: Sequence[float] | Numbers) -> float:
    """How often the sum over [clusters] is as far from zero when the sign of each is drawn: a randomisation test.

    Counted over all signs, not drawn: the differences are rounded to steps, STEPS or more of them in all, and their
    distributions convolved. Where every difference is -1, 0 or 1 nothing is rounded, and it is McNemar's test. No less
    than what the convolution can tell from nothing, LEAST.
    """
    values = np.asarray(differences, dtype=float)
    values = values[values != 0]
    if not len(values):
        return 1.0
    most = max(STEPS, STEPS_EACH * len(values))
    steps, total = np.abs(values), float(np.abs(values).sum())
    if total > most or (steps != np.rint(steps)).any():
        steps = steps * (most / total)
    steps = np.rint(steps).astype(np.int64)
    observed = abs(int((np.sign(values).astype(np.int64) * steps).sum()))
    # shares[n]: how likely the positive ones make up n steps
    shares: list[Numbers] = [np.bincount([0, step], weights=[0.5, 0.5]).astype(float) for step in steps if step]
    while len(shares) > 1:
        shares = [_convolved(shares[at : at + 2]) for at in range(0, len(shares), 2)]
    sums = 2 * np.arange(len(shares[0])) - int(steps.sum())
    return min(1.0, max(LEAST, float(shares[0][np.abs(sums) >= observed].sum())))


def _convolved(shares: Sequence[Numbers]) -> Numbers:
    """The distribution of a sum of one or two independent whole numbers."""
    length = sum(map(len, shares)) - len(shares) + 1
    size = 1 << (length - 1).bit_length()
    product = np.prod([np.fft.rfft(share, size) for share in shares], axis=0)
    return np.asarray(np.fft.irfft(product, size)[:length]).clip(min=0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the p-values as they count when so many were looked at together, in the same order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """The interval of the plain mean of independent values from their own, by the square-and-add rule.

    Zou and Donner 2008 (Statistics in Medicine 27): distances to the lower ends add up as variances do, and so do those
    to the upper ends, which keeps intervals as lopsided as they are. Where flips are rare it is wider than it need be.
    """
    n = len(values)
    middle = math.fsum(values) / n
    below = math.sqrt(math.fsum((v - i.low) ** 2 for v, i in zip(values, intervals, strict=True))) / n
    above = math.sqrt(math.fsum((i.high - v) ** 2 for v, i in zip(values, intervals, strict=True))) / n
    return Interval(middle - below, middle + above)


def normal_quantile(p: float) -> float:
    """The standard normal value that a share p of all lies below."""
    return NormalDist().inv_cdf(p)


def student_quantile(p: float, freedom: int) -> float:
    """The value that a share p, above a half, of Student's t with `freedom` degrees lies below."""
    high = 1.0
    while student_tail(high, freedom) > 1 - p:
        high *= 2
    return _crossing(lambda value: student_tail(value, freedom), 1 - p, 0.0, high)


def student_tail(value: float, freedom: int) -> float:
    """How likely Student's t with so many degrees of freedom is above a value that is not negative.

    (Abramowitz and Stegun 26.7.3 and 26.7.4: finite sums for whole degrees of freedom.)
    """
    angle = math.atan(value / math.sqrt(freedom))
    step, total = (1.0 if freedom % 2 == 0 else math.cos(angle)), 0.0
    for power in range(freedom % 2 + 2, freedom + 1, 2):
        total += step
        step *= math.cos(angle) ** 2 * (power - 1) / power
    inside = math.sin(angle) * total
    if freedom % 2:
        inside = 2 / math.pi * (angle + inside)
    return max(0.0, (1 - inside) / 2)
