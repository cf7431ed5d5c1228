"""The mean of a named suite of tasks, computed from results alone and only where every task of it is complete.

Which metric each task contributes stands in `defaults.json`, in one place, and is said wherever the mean is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mcbench.composition import defaults
from mcbench.datasets import deviates
from mcbench.record import Result
from mcbench.task import Estimate


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
