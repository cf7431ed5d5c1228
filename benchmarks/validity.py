"""Does the benchmark see what compression does? The reference models in 16 bits, at uniform and at random widths.

    python benchmarks/validity.py judge leaderboards/records --out leaderboards/notes.md

It looks at the uncompressed model, at 4, 3, 2 and 1 bits for every expert and at five random allocations of 2.0 bits
per expert, whose records `budgets.py` makes with those of the leaderboard, and writes tables and a verdict in Markdown.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mcbench.catalogue import select_tasks
from mcbench.errors import BadInput, UnknownName
from mcbench.files import write_whole
from mcbench.leaderboard import CLEAR_ERRORS, Table, find_records, is_clear, pipe_table, tabulate_records
from mcbench.record import Record, Result
from mcbench.registry import names_in
from mcbench.report import is_share, metric_name, number, with_error

MODELS = "reference,reference-fine"
TASKS = "mini"
VARIANTS = ("mini-needle-multikey",)  # shown, but of a family that another task counts for
RANDOM_BITS = 2.0

# the limits of the verdict; shares and points between 0 and 1
ABOVE_CHANCE, BELOW, FAMILIES_WANTED = 0.20, 0.99, 10
KEPT_AT_A_LITTLE = 0.9  # "loses a little": at least this much of what 16 bits has above chance is left
KEPT_AT_COLLAPSE = 0.25  # "collapses": at most this much of it is left
EXACT = 1e-9  # 0.7 - 0.5 is a little less than 0.2


@dataclass(frozen=True)
class Configuration:
    """One point of the study; what is not named here is the default, calibration text and seed included."""

    name: str
    method: str
    expert_bits: float | None = None

    def of(self, record: Record) -> bool:
        """Whether the record is one of this configuration."""
        kind = "" if self.expert_bits is None else "expert"
        asked = (record.asked, record.bits.asked, record.bits.asked_as, record.seed)
        return asked == (self.method, self.expert_bits, kind, 0)


NONE = Configuration("none", "none")
UNIFORM = {width: Configuration(f"uniform-{width}", "uniform", width) for width in (4, 3, 2, 1)}
RANDOM = tuple(Configuration(f"random-{seed}", f"random(seed={seed})", RANDOM_BITS) for seed in range(5))
CONFIGURATIONS = (NONE, *UNIFORM.values(), *RANDOM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judges; returns 0 when done, 2 on wrong input."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.step(options))
    except (BadInput, UnknownName) as error:
        print(f"validity: {error}", file=sys.stderr)  # noqa: T201 - a script
        return 2


def judge(options: argparse.Namespace) -> int:
    """Writes the verdict, or prints it where no file is named."""
    text = judgement(options.records, names_in(options.models, "list of models"))
    if options.out is None:
        print(text, end="")  # noqa: T201
    else:
        write_whole(options.out, text.encode())
    return 0


def judgement(sources: Sequence[Path], models: Sequence[str]) -> str:
    """Tables and verdict for each model, in Markdown."""
    tables, _ = tabulate_records(find_records(sources))
    sections = [section for model in models for section in _section(evidence(tables, model))]
    return "\n\n".join([INTRODUCTION, *sections]) + "\n"


INTRODUCTION = f"""## Validity

Does the benchmark see what compression does? Made from the records below by `benchmarks/validity.py judge`; do not
edit. The first row of each table is the uncompressed model, every score with its standard error. The rows of uniform
widths are paired differences to it with theirs; an asterisk marks what lies beyond {CLEAR_ERRORS} standard errors.
Random allocations have the mean of their differences ± their standard deviation, then the mean standard error of one
score, then the ratio of the two: all answer the same items while the standard error allows for the choice of items, so
the ratio errs low; five allocations give it to about a third. The mean weighs all families alike, those without
room in 16 bits among them, which means elsewhere leave out: room is one of the criteria here. A variant of another
task's family, {", ".join(f"`{name}`" for name in VARIANTS)}, is shown and not counted.

How frequency, routing weight and error differ between experts is drawn in [figures](figures/README.md); what the models
say about the methods is told in [findings](findings.md)."""


# -- what the records say


@dataclass(frozen=True)
class Evidence:
    """The validity records of one model, all of them comparable with each other."""

    model: str
    records: Mapping[Configuration, Record]

    def result(self, configuration: Configuration, task: str) -> Result | None:
        """The score of a task that was not skipped."""
        record = self.records.get(configuration)
        results = record.results if record is not None else ()
        return next((r for r in results if r.task == task and r.value is not None), None)

    def families(self, configuration: Configuration) -> dict[str, Result | None]:
        """The result of every family that counts."""
        return {task: self.result(configuration, task) for task in counted()}

    def missing(self, *configurations: Configuration) -> list[str]:
        """Which of these configurations have no record."""
        return [c.name for c in configurations if c not in self.records]


def evidence(tables: Sequence[Table], model: str) -> Evidence:
    """The validity records of a model; BadInput where they fall into several tables and so do not compare."""
    found = []
    for table in tables:
        if table.records[0].model.name == model:
            newest = sorted(table.records, key=lambda record: record.created)
            found.append(Evidence(model, {c: record for record in newest for c in CONFIGURATIONS if c.of(record)}))
    compressed = [each for each in found if set(each.records) - {NONE}]
    if len(compressed) > 1:
        kinds = " | ".join(", ".join(c.name for c in each.records) for each in compressed)
        raise BadInput(f"the validity records of {model!r} do not compare with each other: {kinds}; keep one kind")
    return next(iter([*compressed, *found]), Evidence(model, {}))


def suite() -> list[str]:
    """Every task of the study, in the order of the suite."""
    return [task.name for task in select_tasks(TASKS)]


def counted() -> list[str]:
    """The scored families, each once."""
    return [task.name for task in select_tasks(TASKS) if task.higher_is_better and task.name not in VARIANTS]


def perplexity() -> str:
    """The task whose score is a loss."""
    return next(task.name for task in select_tasks(TASKS) if not task.higher_is_better)


class Mean(NamedTuple):
    """A plain mean over families with its standard error."""

    value: float
    error: float

    @property
    def clear(self) -> bool:
        return abs(self.value) > CLEAR_ERRORS * self.error


def mean_score(found: Mapping[str, Result | None]) -> Mean | None:
    """The mean score over families; None where one of them has none."""
    return _mean([(r.value, r.standard_error) if r else (None, None) for r in found.values()])


def mean_difference(found: Mapping[str, Result | None]) -> Mean | None:
    """The mean paired difference over families, which share no item; None where one of them has none."""
    return _mean([(r.difference, r.difference_error) if r else (None, None) for r in found.values()])


def _mean(pairs: Sequence[tuple[float | None, float | None]]) -> Mean | None:
    values = [value for value, _ in pairs if value is not None]
    errors = [error for _, error in pairs if error is not None]
    if len(values) < len(pairs) or len(errors) < len(pairs):
        return None
    return Mean(math.fsum(values) / len(pairs), math.sqrt(math.fsum(e * e for e in errors)) / len(pairs))


def above_chance(result: Result, value: float | None) -> float:
    """How far a score lies above guessing, or above nothing where guessing has no meaning."""
    assert value is not None
    return value - (result.chance or 0.0)


def kept(found: Mapping[str, Result | None]) -> float | None:
    """The share left of what 16 bits has above chance, over all families together; None where one was not compared."""
    known = [r for r in found.values() if r is not None and r.baseline is not None]
    whole = math.fsum(above_chance(r, r.baseline) for r in known)
    if len(known) < len(found) or whole <= 0:
        return None
    return math.fsum(above_chance(r, r.value) for r in known) / whole


class Spread(NamedTuple):
    """How far the scores of random allocations lie apart, and what one evaluation is uncertain by."""

    deviation: float
    error: float

    @property
    def exceeds(self) -> bool:
        return self.deviation > self.error

    def __str__(self) -> str:
        return f"{self.deviation / self.error:.1f}" if self.error else ""


def spread(each: Evidence, task: str) -> Spread | None:
    """That of one task; None where a random allocation has no score with an error."""
    found = [each.result(configuration, task) for configuration in RANDOM]
    return _spread([(r.value, r.standard_error) if r else (None, None) for r in found])


def mean_spread(each: Evidence) -> Spread | None:
    """That of the mean over families."""
    means = [mean_score(each.families(configuration)) for configuration in RANDOM]
    return _spread([(mean.value, mean.error) if mean else (None, None) for mean in means])


def _spread(pairs: Sequence[tuple[float | None, float | None]]) -> Spread | None:
    values = [value for value, _ in pairs if value is not None]
    errors = [error for _, error in pairs if error is not None]
    if len(values) < len(pairs) or len(errors) < len(pairs):
        return None
    return Spread(statistics.stdev(values), statistics.mean(errors))


# -- the verdict, line by line as the question was put


class Verdict(NamedTuple):
    """One line: whether it is met, None where that cannot be told, and the figures behind it."""

    met: bool | None
    text: str

    def __str__(self) -> str:
        word = {True: "Met", False: "**Not met**", None: "**Not judged**"}[self.met]
        return f"- {word}: {self.text}"


def verdicts(each: Evidence) -> list[Verdict]:
    """Every line of the verdict on one model."""
    return [
        Verdict(None, f"{criterion} There is no record of {', '.join(absent)}.")
        if (absent := each.missing(*needed))
        else Verdict((found := judge_line(each)).met, f"{criterion} {found.text}")
        for criterion, needed, judge_line in _criteria()
    ]


def _criteria() -> list[tuple[str, tuple[Configuration, ...], Callable[[Evidence], Verdict]]]:
    """Every line in words, which records it takes, and who judges it."""
    return [
        ("in 16 bits at least 20 points above chance and below 99 %.", (NONE,), in_16_bits),
        ("what is lost in 16 bits is lost to difficulty, not to noise in the labels.", (NONE,), by_difficulty),
        ("uniform 3 bits loses a little.", (UNIFORM[3],), three_bits),
        ("uniform 2 bits loses visibly.", (UNIFORM[2],), two_bits),
        ("uniform 1 bit collapses.", (UNIFORM[1],), one_bit),
        (f"random allocations of {RANDOM_BITS:.1f} bits spread more than evaluation noise.", RANDOM, at_random),
    ]


def in_16_bits(each: Evidence) -> Verdict:
    """Is there room below and above the score of the uncompressed model?"""
    found = each.families(NONE)
    outside = [f"{task} ({reason})" for task, result in found.items() if (reason := _no_room(result))]
    good = len(found) - len(outside)
    text = f"{good} of {len(found)} families do, {FAMILIES_WANTED} are wanted"
    text += f"{_too_few(FAMILIES_WANTED - good)}."
    return Verdict(good >= FAMILIES_WANTED, f"{text} {_listed('Outside', outside)}".strip())


def _no_room(result: Result | None) -> str:
    """Why a score leaves no room to lose or to be seen losing, and by how much; empty where it does."""
    if result is None or result.value is None:
        return "not scored"
    above = above_chance(result, result.value)
    if above < ABOVE_CHANCE - EXACT:
        return f"{_points(result.value)} %, {_points(above)} above chance, {_points(ABOVE_CHANCE - above)} too little"
    if result.value >= BELOW - EXACT:
        return f"{_points(result.value)} %, {_points(result.value - BELOW)} over the limit"
    return ""


def by_difficulty(each: Evidence) -> Verdict:
    """A record cannot tell wrong labels from hard items, but it knows which groups of items are hard."""
    ranges = [
        f"{task} {_group(groups[0])} to {_group(groups[-1])}"
        for task, result in each.families(NONE).items()
        if result and len(groups := sorted(result.groups.items(), key=lambda pair: pair[1].value)) > 1
    ]
    proof = "Records cannot tell; in `tests/test_reference_items.py` an oracle answers every item of every family right"
    return Verdict(None, f"{proof}. {_listed('Hardest and easiest groups of items', ranges)}".strip())


def _group(named: tuple[str, tuple[float, int, float | None, int | None]]) -> str:
    name, (value, n, *_) = named
    return f"{_points(value)} % ({name}, n = {n})"


def three_bits(each: Evidence) -> Verdict:
    """Something is lost beyond noise, and little of the whole."""
    found = each.families(UNIFORM[3])
    left, difference = kept(found), mean_difference(found)
    loses = _loses(each.result(UNIFORM[3], perplexity())) or (difference and difference.clear and difference.value < 0)
    met = None if left is None else bool(loses) and left >= KEPT_AT_A_LITTLE - EXACT
    wanted = f"Wanted: perplexity or the mean worse beyond two standard errors, and {100 * KEPT_AT_A_LITTLE:g} % left"
    wanted += f", {_points(KEPT_AT_A_LITTLE - left)} too little" * (
        left is not None and left < KEPT_AT_A_LITTLE - EXACT
    )
    return Verdict(met, f"{_losses(each, UNIFORM[3])} {wanted}.")


def two_bits(each: Evidence) -> Verdict:
    """Perplexity and half of the families are worse beyond two standard errors."""
    found = each.families(UNIFORM[2])
    worse, half = sum(map(_loses, found.values())), math.ceil(len(found) / 2)
    met = _loses(each.result(UNIFORM[2], perplexity())) and worse >= half
    wanted = f"Wanted: perplexity and {half} families worse beyond two standard errors{_too_few(half - worse)}."
    return Verdict(met, f"{_losses(each, UNIFORM[2])} {wanted}")


def one_bit(each: Evidence) -> Verdict:
    """Little is left above chance."""
    found = each.families(UNIFORM[1])
    left = kept(found)
    met = None if left is None else left <= KEPT_AT_COLLAPSE + EXACT
    wanted = f"Wanted: at most {100 * KEPT_AT_COLLAPSE:g} % left"
    wanted += f", {_points(left - KEPT_AT_COLLAPSE)} too much" * (left is not None and left > KEPT_AT_COLLAPSE + EXACT)
    return Verdict(met, f"{_losses(each, UNIFORM[1])} {wanted}.")


def at_random(each: Evidence) -> Verdict:
    """Random allocations differ by more than one evaluation is uncertain."""
    found = {task: spread(each, task) for task in counted()}
    wider = [task for task, s in found.items() if s and s.exceeds]
    half = math.ceil(len(found) / 2)
    rest = [f"{task} ({str(s or '') or 'no ratio'})" for task, s in found.items() if task not in wider]
    overall = {"perplexity": spread(each, perplexity()), "the mean of the families": mean_spread(each)}
    met = all(s is not None and s.exceeds for s in overall.values()) and len(wider) >= half
    ratios = ", ".join(f"{name} {str(s or '') or 'unknown'}" for name, s in overall.items())
    text = f"Standard deviation over standard error: {ratios}; above 1 on {len(wider)} of {len(found)} families."
    wanted = f"Wanted: above 1 on perplexity, the mean and {half} families{_too_few(half - len(wider))}."
    return Verdict(met, " ".join(filter(None, (text, _listed("Not on", rest), wanted))))


def _loses(result: Result | None) -> bool:
    """Whether a score is worse than in 16 bits beyond two standard errors."""
    if result is None or result.difference is None:
        return False
    return is_clear(result) and (result.difference < 0) == is_share(result)


def _losses(each: Evidence, configuration: Configuration) -> str:
    """What a uniform width costs, in sentences."""
    found = each.families(configuration)
    rest = [f"{task} ({_difference(r) or 'not scored'})" for task, r in found.items() if not _loses(r)]
    left, mean = kept(found), mean_difference(found)
    share = "an unknown share" if left is None else f"{100 * left:.1f} %"
    shown = f"{_mean_cell(mean, sign=True)} points" if mean else "unknown"
    return (
        f"Perplexity {_difference(each.result(configuration, perplexity())) or 'not scored'}, mean of the families "
        f"{shown}, {share} of what 16 bits has above chance left; worse beyond two standard errors on "
        f"{len(found) - len(rest)} of {len(found)} families. {_listed('Not on', rest)}"
    ).strip()


# -- how it looks


def _section(each: Evidence) -> Iterator[str]:
    yield f"### {each.model}"
    if absent := each.missing(*CONFIGURATIONS):
        yield f"**There is no record of {', '.join(absent)}**; what needs one is not judged."
    if each.records:
        yield pipe_table(_heads(each), _rows(each))
    yield "\n".join(map(str, verdicts(each)))


def _heads(each: Evidence) -> list[str]:
    return ["experts", *(_head(each, task) for task in suite()), f"mean of {len(counted())} families %"]


def _head(each: Evidence, task: str) -> str:
    """The task with what its figures are, where any record says."""
    found = [result for c in CONFIGURATIONS if (result := each.result(c, task)) is not None]
    if not found:
        return f"{task} (not scored)"
    chance = f", chance {number(found[0], found[0].chance)}" if found[0].chance is not None else ""
    return f"{task} ({metric_name(found[0])}, n = {found[0].n}{chance})"


def _rows(each: Evidence) -> Iterator[list[str]]:
    plain = (each.result(NONE, task) for task in suite())
    scores = (with_error(r, r.value, r.standard_error) if r else "" for r in plain)
    yield ["16 bits", *scores, _mean_cell(mean_score(each.families(NONE)))]
    for width, configuration in UNIFORM.items():
        cells = (_difference(each.result(configuration, task)) for task in suite())
        mean = mean_difference(each.families(configuration))
        yield [f"uniform {width}", *cells, _mean_cell(mean, sign=True, mark=True)]
    yield from _random_rows(each)


def _random_rows(each: Evidence) -> Iterator[list[str]]:
    spreads = [spread(each, task) for task in suite()]
    examples = [each.result(RANDOM[0], task) for task in suite()]
    pairs = list(zip(suite(), examples, spreads, strict=True))
    overall = mean_spread(each)
    means = [mean_difference(each.families(c)) for c in RANDOM]
    mean = statistics.mean(m.value for m in means if m) if all(means) and overall else None
    yield [
        f"random {RANDOM_BITS:.1f}, mean ± s.d. of {len(RANDOM)}",
        *(with_error(r, _mean_change(each, task), s.deviation, sign=True) if r and s else "" for task, r, s in pairs),
        _mean_cell(Mean(mean, overall.deviation), sign=True) if mean is not None and overall else "",
    ]
    yield [
        "random, mean s.e. of a score",
        *(number(r, s.error) if r and s else "" for _, r, s in pairs),
        _points(overall.error) if overall else "",
    ]
    yield ["random, s.d. / s.e.", *(str(s or "") for s in spreads), str(overall or "")]


def _mean_change(each: Evidence, task: str) -> float | None:
    found = [each.result(configuration, task) for configuration in RANDOM]
    changes = [r.difference for r in found if r is not None and r.difference is not None]
    return statistics.mean(changes) if len(changes) == len(RANDOM) else None


def _difference(result: Result | None) -> str:
    if result is None:
        return ""
    shown = with_error(result, result.difference, result.difference_error, sign=True)
    return f"{shown}{'*' * is_clear(result)}"


def _mean_cell(mean: Mean | None, *, sign: bool = False, mark: bool = False) -> str:
    if mean is None:
        return ""
    return f"{_points(mean.value, sign=sign)} ± {_points(mean.error)}{'*' * (mark and mean.clear)}"


def _points(share: float, *, sign: bool = False) -> str:
    return f"{100 * share:{'+' if sign else ''}.1f}"


def _too_few(lacking: int) -> str:
    return f", {lacking} too few" if lacking > 0 else ""


def _listed(head: str, members: Sequence[str]) -> str:
    return f"{head}: {', '.join(members)}." if members else ""


# -- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    steps = parser.add_subparsers(metavar="step", required=True)
    judges = steps.add_parser("judge", help="write the verdict", allow_abbrev=False)
    judges.add_argument("records", nargs="+", type=Path, help="records or folders of them")
    judges.add_argument("--models", default=MODELS, help=f"names by commas (default {MODELS})")
    judges.add_argument("--out", type=Path, help="the Markdown file; printed where not given")
    judges.set_defaults(step=judge)
    return parser


if __name__ == "__main__":
    sys.exit(main())
