"""Means over tasks: which tasks count, what remains without the one that matters most, and the means of named suites.

A mean counts only tasks that have room: where the uncompressed model guesses, nothing can be lost, and where it answers
everything, nothing can be gained. Whether a task has room is decided from the uncompressed model's score alone, so that
it is the same for all that is compared with it. The mean of a named suite is defined over all of its tasks, as papers
print it; which metric each contributes stands in `defaults.json`, and is said wherever the mean is shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mcbench.composition import defaults
from mcbench.datasets import deviates
from mcbench.record import Result
from mcbench.task import Estimate

ROOM_ERRORS = 2  # standard errors from guessing and from 100 % within which a task has no room


class Left(NamedTuple):
    """What is left of a mean difference without one task."""

    task: str
    value: float
    standard_error: float


@dataclass(frozen=True)
class Headline:
    """The mean paired difference to the uncompressed model over the tasks that have room; shares.

    left_out: the other tasks, with the reason. without: the same without the task that contributes most.
    """

    tasks: tuple[str, ...]
    value: float
    standard_error: float
    left_out: Mapping[str, str]
    without: Left | None


def no_room(score: float | None, n: int, chance: float | None) -> str:
    """Why a task has no room where the uncompressed model has this score, a share of n items; empty where it has.

    Its standard error is taken as that of n answers right or wrong. An unknown score says nothing against a task.
    """
    if score is None or n < 1:
        return ""
    spread = ROOM_ERRORS * math.sqrt(max(0.0, score * (1 - score)) / max(1, n - 1))
    told = f"{100 * score:.1f} % in 16 bits, within two standard errors of"
    if score <= (chance or 0.0) + spread:
        return f"{told} guessing ({100 * chance:.1f} %)" if chance else f"{told} nothing"
    return f"{told} 100 %" if score + spread >= 1 else ""


def room_in(result: Result) -> str:
    """Why the task of a result that was compared with the uncompressed model has no room; empty where it has."""
    return no_room(result.baseline, result.n, result.chance) if result.higher_is_better else ""


def headline(results: Sequence[Result], left_out: Mapping[str, str] | None = None) -> Headline | None:
    """That of one run; None where fewer than two tasks of shares have room and a difference with an error.

    left_out: tasks without room and why, where that was decided for a whole table.
    """
    shares = [r for r in results if r.higher_is_better and r.value is not None and r.difference is not None]
    if left_out is None:
        left_out = {r.task: why for r in shares if (why := room_in(r))}
    known = [(r.task, r.difference, r.difference_error) for r in shares if r.task not in left_out]
    counted = {t: (d, e) for t, d, e in known if d is not None and e is not None}
    if len(counted) < 2 or len(counted) < len(known):
        return None
    value, error = _independent(counted.values())
    most = max(counted, key=lambda task: math.copysign(1.0, value) * counted[task][0])
    rest = _independent([pair for task, pair in counted.items() if task != most])
    own = {r.task: left_out[r.task] for r in shares if r.task in left_out}
    return Headline(tuple(counted), value, error, own, Left(most, *rest))


def _independent(pairs: Collection[tuple[float, float]]) -> tuple[float, float]:
    """The mean of values that do not depend on each other, with its standard error."""
    n = len(pairs)
    return math.fsum(value for value, _ in pairs) / n, math.sqrt(math.fsum(error * error for _, error in pairs)) / n


class SuiteScore(NamedTuple):
    """The plain mean over the tasks of a suite, a share; its error takes the tasks as independent of each other."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class SuiteMean:
    """A suite whose tasks may be averaged: the metric that each of them contributes, by task."""

    suite: str
    metrics: Mapping[str, str]

    @property
    def wording(self) -> str:
        """The name with the metric of every task: "zeroshot8 mean (acc_norm: piqa; acc: boolq)"."""
        kinds = dict.fromkeys(sorted(self.metrics.values(), reverse=True))
        parts = [f"{kind}: {', '.join(task for task, m in self.metrics.items() if m == kind)}" for kind in kinds]
        return f"{self.suite} mean ({'; '.join(parts)})"

    def asked(self, results: Sequence[Result]) -> bool:
        """Whether every task of the suite is among the results, answered or not."""
        return set(self.metrics) <= {result.task for result in results}

    def incomplete(self, results: Sequence[Result]) -> list[str]:
        """The tasks of the suite that stand in the way of a mean: absent, skipped, asked in part or on
        a sample of its set, or without the metric."""
        known = {result.task: result for result in results}
        return [task for task, metric in self.metrics.items() if _estimate(known.get(task), metric) is None]

    def without_room(self, results: Sequence[Result]) -> dict[str, str]:
        """The tasks that count in this mean, as they do in papers, though they have no room, with the reason."""
        return {r.task: why for r in results if r.task in self.metrics and (why := room_in(r))}

    def why_blank(self, results: Sequence[Result]) -> str:
        """What keeps the mean blank, task by task; empty where nothing does."""
        known = {result.task: result for result in results}
        missing = self.incomplete(results)
        samples = {task: sample for task in missing if (sample := _sample(known.get(task)))}
        rest = ", ".join(task for task in missing if task not in samples)
        return " and ".join([*([f"{rest} did not run in full"] if rest else []), *samples.values()])

    def score(self, results: Sequence[Result]) -> SuiteScore | None:
        """The mean over the suite; None unless every task of it was asked and is complete."""
        known = {result.task: result for result in results}
        found = [_estimate(known.get(task), metric) for task, metric in self.metrics.items()]
        parts = [(e.value, e.standard_error) for e in found if e is not None]
        errors = [error for _, error in parts if error is not None]
        if len(errors) < len(found):
            return None
        middle = math.fsum(value for value, _ in parts) / len(parts)
        return SuiteScore(middle, math.sqrt(math.fsum(error * error for error in errors)) / len(errors))


def suite_means() -> tuple[SuiteMean, ...]:
    """The suites that have a mean, in the order of `defaults.json`."""
    return tuple(SuiteMean(suite, dict(metrics)) for suite, metrics in defaults()["means"].items())


def _estimate(result: Result | None, metric: str) -> Estimate | None:
    """One metric of a complete result; None where it is not whole, or has no such metric or no error."""
    if result is None or result.value is None or result.partial or result.skipped or _sample(result):
        return None
    if result.metric == metric:
        return Estimate(result.value, result.n, result.standard_error, result.k)
    return result.also.get(metric)


def _sample(result: Result | None) -> str:
    """That a result was asked on fewer rows than its published sets have, or on others; empty where it was not."""
    if result is None:
        return ""
    for split, source in result.details.get("data", {}).items():
        if source.get("official") and source["rows"] < source["official"]:
            return f"{result.task} has {source['rows']} of the {source['official']} rows of its {split} split"
        if deviates(source.get("content", "")):
            return f"{result.task} has a {split} split that is {source['content']}"
    return ""
