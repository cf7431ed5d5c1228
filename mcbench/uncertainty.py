"""How sure one can be of a difference between two runs: intervals and tests, as pure functions of numbers.

Two runs that answered the same items differ by a ratio of two sums over clusters of items: the summed difference over
the number of items, or for perplexity the summed difference in nats over the number of tokens. Items of one cluster
may depend on each other (questions about one passage, windows of one text); clusters may not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

REPEATS = 10_000  # of a bootstrap
STEPS, STEPS_EACH = 2**14, 64  # what the differences of a randomisation test are rounded to: steps in all, at least
LEAST = 1e-10  # the smallest p-value of a randomisation test
FEWEST_CLUSTERS = 5  # with fewer, spread between clusters says too little to draw from
CHUNK = 2_000_000  # numbers drawn at a time

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
    drawn: how many clusters make up one draw, where they are overlapping blocks of neighbours; `apart` are then the
    sums of blocks that do not overlap.
    """

    parts: Numbers  # [clusters]
    sizes: Numbers  # [clusters]
    flips: tuple[int, int] | None = None
    bounded: bool = True
    drawn: int | None = None
    apart: Numbers | None = None

    @property
    def clusters(self) -> int:
        """How many draws there were that do not depend on each other."""
        return len(self.parts) if self.drawn is None else self.drawn

    @property
    def difference(self) -> float:
        """The estimate."""
        return math.fsum(self.parts) / math.fsum(self.sizes)

    @property
    def standard_error(self) -> float | None:
        """That of the difference, robust to whatever hangs together inside a cluster; None for fewer than two.

        The ratio is linearised: what is left of each cluster, part - difference x size, varies from cluster to cluster.
        With clusters of one item each it is that of a mean. Blocks that overlap count as often as they are drawn.
        """
        count = len(self.parts)
        if self.clusters < 2:
            return None
        left = self.parts - self.difference * self.sizes
        return math.sqrt(count / (self.clusters - 1) * math.fsum(left * left)) / math.fsum(self.sizes)

    def interval(self, confidence: float) -> Interval | None:
        """Its confidence interval; None where there are too few clusters for one."""
        if self.flips is not None:
            return score_interval(*self.flips, len(self.parts), confidence)
        if self.bounded and not self.parts.any():  # equal answers everywhere have no spread to draw from
            return score_interval(0, 0, self.clusters, confidence)
        found = ratio_interval(self.parts, self.sizes, confidence, drawn=self.drawn)
        if found is None or not self.bounded or self.drawn is not None:
            return found
        return self._widened(found, confidence)

    def _widened(self, found: Interval, confidence: float) -> Interval:
        """The interval, no shorter than the score interval of how many clusters lost and gained, at their usual size.

        Where few clusters changed, a bootstrap can draw no more of them than were seen: with one of 95 it let three to
        four times as many true losses pass as it should (simulated in the tests).
        """
        changed = self.parts != 0
        usual = float(np.abs(self.parts[changed]).mean() / self.sizes.mean())
        lost, gained = int((self.parts < 0).sum()), int((self.parts > 0).sum())
        counted = score_interval(lost, gained, len(self.parts), confidence)
        return Interval(min(found.low, counted.low * usual), max(found.high, counted.high * usual))

    def p_value(self) -> float:
        """How often a difference this large comes about where there is none."""
        if self.flips is not None:
            return mcnemar(*self.flips)
        return sign_flip_test(self.parts if self.apart is None else self.apart)


def score_interval(lost: int, gained: int, n: int, confidence: float) -> Interval:
    """The score interval of (gained - lost) / n over n pairs of right or wrong (Tango 1998, Statistics in Medicine 17).

    It keeps a width where no item flipped, z^2 / (n + z^2) on either side, which neither the normal approximation nor
    a bootstrap does: both would call 20 equal answers proof that nothing ever changes.
    """
    z = normal_quantile((1 + confidence) / 2)
    middle = (gained - lost) / n

    def score(delta: float) -> float:
        """How many standard errors the data lie above a true difference of `delta`; falls as `delta` grows."""
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        rarer = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)  # the most likely share lost, given delta
        variance = n * max(0.0, 2 * rarer + delta * (1 - delta))
        above = gained - lost - n * delta
        return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above)

    return Interval(_crossing(score, z, -1.0, middle), _crossing(score, -z, middle, 1.0))


def _crossing(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function crosses a level between two points, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return (low + high) / 2


def ratio_interval(
    parts: Sequence[float] | Numbers,
    sizes: Sequence[float] | Numbers,
    confidence: float,
    *,
    drawn: int | None = None,
    seed: int = 0,
) -> Interval | None:
    """A bootstrap interval of sum(parts) / sum(sizes) over [clusters], each drawn whole; None for fewer than five.

    Percentiles of the draws, taken so much further out as Student's t with clusters - 1 degrees of freedom lies beyond
    the normal: without that, an interval from few clusters is too short (Hesterberg 2015, The American Statistician
    69). `drawn` is how many clusters make up one draw, where that is not their number (moving blocks).
    """
    columns = np.stack([np.asarray(parts, dtype=float), np.asarray(sizes, dtype=float)], axis=1)  # [clusters, 2]
    clusters = len(columns) if drawn is None else drawn
    if clusters < FEWEST_CLUSTERS:
        return None
    sums = np.concatenate(list(_resampled(columns, clusters, seed)))  # [repeats, 2]
    ratios = sums[:, 0] / sums[:, 1]
    beyond = math.sqrt(clusters / (clusters - 1)) * student_quantile((1 + confidence) / 2, clusters - 1)
    tail = NormalDist().cdf(-beyond)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _resampled(columns: Numbers, drawn: int, seed: int) -> Iterator[Numbers]:
    """[some repeats, S] sums over clusters drawn with replacement, REPEATS in all."""
    clusters, generator = len(columns), np.random.default_rng(seed)
    at_once = max(1, CHUNK // clusters)
    for first in range(0, REPEATS, at_once):
        repeats = min(at_once, REPEATS - first)
        yield generator.multinomial(drawn, np.full(clusters, 1 / clusters), size=repeats) @ columns


def moving_blocks(values: Sequence[float] | Numbers, length: int) -> Numbers:
    """[n, ...] sums over `length` neighbours from every place on, the end joined to the beginning.

    Drawing n / length of them is the circular block bootstrap for n values in a row that depend on their neighbours.
    """
    row = np.asarray(values, dtype=float)
    return np.asarray(sum(np.roll(row, -offset, axis=0) for offset in range(length)), dtype=float)


class Drawn(NamedTuple):
    """What a bootstrap over windows draws: [clusters, S] sums, and how many of them make up one draw."""

    columns: Numbers
    drawn: int


def windows_drawn(columns: Numbers, texts: Sequence[object]) -> Drawn:
    """[windows, S] numbers by text, as windows of a text hang together; with few texts in blocks of neighbours.

    `texts` names the text of each window, in the order in which the windows were read.
    """
    if len(set(texts)) >= FEWEST_CLUSTERS:
        found = by_cluster(columns, texts)
        return Drawn(found, len(found))
    length = block_length(len(columns))
    return Drawn(moving_blocks(columns, length), math.ceil(len(columns) / length))


def by_cluster(values: Numbers, names: Sequence[object]) -> Numbers:
    """[clusters, ...] sums of the [n, ...] values under each name, in the order in which names first appear."""
    place = {name: at for at, name in enumerate(dict.fromkeys(names))}
    sums = np.zeros((len(place), *values.shape[1:]))
    np.add.at(sums, [place[name] for name in names], values)
    return sums


def block_length(n: int) -> int:
    """The usual length of a block among n values in a row, n^(1/3)."""
    return max(1, round(math.cbrt(n)))


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
    """That of Student's t with `freedom` degrees, 4 or more: the Cornish-Fisher series to the fourth order.

    (Abramowitz and Stegun 26.7.5.) Within 0.1 % from 4 degrees on at two-sided 95 %, and 1 % at 99.8 %.
    """
    z = normal_quantile(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))
