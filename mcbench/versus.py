"""Two or more runs compared sample by sample: how far apart they are, how sure that is, and what suffers most.

Every run is compared with the first one. Runs that may not stand in one table of the leaderboard are refused here by
the same rules; those of one table are paired item by item from the samples that lie beside their records.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from mcbench.comparable import redrawn, uncompressed, unlike
from mcbench.comparison import choice_divergence, evidence, same_answers
from mcbench.composition import defaults
from mcbench.errors import BadInput, UnknownName
from mcbench.leaderboard import Table, require_one_baseline
from mcbench.progress import track
from mcbench.record import FILE_NAME, Fidelity, Record, Result
from mcbench.registry import names_in, suggest
from mcbench.report import aligned, bit_figure, is_share, metric_name, note
from mcbench.suites import no_room
from mcbench.task import Row, load_samples, unit_of
from mcbench.uncertainty import Evidence, Interval, holm, mean_interval, sign_flip_test

MOST_LAYERS = 8  # whose share of experts is printed; every layer's stands in the record
SEED = re.compile(r"(?:, ?)?\bseed=(-?\d+)")  # a hyper-parameter in a method string
SAME_VALUE = 1e-9  # relative: a score and what its samples give; both are sums of the same numbers


@dataclass(frozen=True)
class Run:
    """A record and the folder that its samples lie in; `name` is how it was asked for."""

    name: str
    record: Record
    folder: Path

    def __str__(self) -> str:
        bits = self.record.bits
        asked = f", asked {bits.asked:g}" if bits.asked is not None else ""
        return f"{self.name}: {self.record.method}, label {bit_figure(bits.label)}{asked}, seed {self.record.seed}"


@dataclass(frozen=True)
class Contrast:
    """One task, one run against the first.

    difference: of shares, `value` minus `reference`; of perplexities, `value` over `reference`, minus 1.
    clusters: how many numbers that do not depend on each other the spread is known from. interval: of the difference;
    None with fewer than five clusters or windows. p: without, p_holm: with correction for all the
    tasks and runs that were looked at together. lost, gained: answers right in the first run only, in this one only.
    same_answers: share answered alike, right or wrong. choice_divergence: nats per item, from the first run. no_room:
    why it counts in no mean; empty where it does.
    """

    task: str
    kinds: tuple[str, ...]
    metric: str
    higher_is_better: bool
    n: int
    clusters: int
    reference: float
    value: float
    difference: float
    interval: Interval | None
    lost: int | None
    gained: int | None
    p: float
    p_holm: float
    same_answers: float | None
    choice_divergence: float | None
    partial: bool
    evidence: Evidence = field(repr=False)
    no_room: str = ""


@dataclass(frozen=True)
class Mean:
    """The plain mean over tasks of shares that have room, each weighing the same; `difference` as in `Contrast`.

    without: the same without the task that contributes most, `most`; None for fewer than two tasks.
    """

    tasks: tuple[str, ...]
    difference: float
    interval: Interval | None
    p: float
    most: str = ""
    without: Mean | None = None


@dataclass(frozen=True)
class Versus:
    """A run against the first: task by task, over all tasks of shares, and by kind of task, the worst kind first."""

    run: Run
    contrasts: tuple[Contrast, ...]
    overall: Mean | None
    kinds: Mapping[str, Mean]


@dataclass(frozen=True)
class Spread:
    """How far runs of one method and budget lie apart that differ in their seed alone.

    values: one mean difference to the first run for each seed; deviation: their standard deviation.
    """

    method: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    deviation: float


@dataclass(frozen=True)
class Unanswered:
    """A task that the first run answered and this one did not, with the reason."""

    run: str
    task: str
    reason: str

    def __str__(self) -> str:
        return f"{self.task} in {self.run}: {self.reason}"


@dataclass(frozen=True)
class Comparison:
    """Every run against the first; `tests` counts the p-values that Holm's correction covers.

    unanswered: what is not compared, though it was meant to be; tasks that were chosen by name are all there.
    """

    reference: Run
    others: tuple[Versus, ...]
    confidence: float
    tests: int
    spreads: tuple[Spread, ...] = ()
    unanswered: tuple[Unanswered, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain JSON values."""
        return {
            "reference": _described(self.reference),
            "confidence": self.confidence,
            "tests": self.tests,
            "runs": [
                {
                    **_described(other.run),
                    "overall": _plain(other.overall),
                    "kinds": {kind: _plain(mean) for kind, mean in other.kinds.items()},
                    "tasks": [_plain(contrast) for contrast in other.contrasts],
                    "fidelity": _plain(other.run.record.fidelity),
                }
                for other in self.others
            ],
            "seeds": [_plain(spread) for spread in self.spreads],
            "unanswered": [_plain(task) for task in self.unanswered],
        }


def compare(paths: Sequence[str | Path], *, tasks: str = "", confidence: float = 0.95) -> Comparison:
    """Compares the runs behind `paths`, records or their folders, with the first of them.

    `tasks` names the tasks to look at, by commas; without it, all that the runs have in common. `confidence` is that of
    each interval by itself. Raises BadInput for runs that do not compare, with the reason, and for records or samples
    that are damaged, edited or absent; UnknownName for a task that no run has.
    """
    if len(paths) < 2:
        raise BadInput("a comparison needs two records or more")
    if not 0.5 < confidence < 1:
        raise BadInput(f"a confidence lies between 0.5 and 1, such as 0.95, not {confidence:g}")
    runs = [load_run(path) for path in paths]
    _require_comparable(runs)
    names = _tasks(runs, tasks)
    samples = {(at, name): _samples(run, name) for at, run in enumerate(runs) for name in names}
    asked = [(at, name) for at in range(1, len(runs)) for name in names]
    contrasts = [_contrast(runs, samples, at, name, confidence) for at, name in track(asked, len(asked), "comparing")]
    pairs = [contrasts[at * len(names) : (at + 1) * len(names)] for at in range(len(runs) - 1)]
    adjusted = iter(holm([contrast.p for contrasts in pairs for contrast in contrasts]))
    others = tuple(
        _versus(run, [dataclasses.replace(contrast, p_holm=next(adjusted)) for contrast in contrasts], confidence)
        for run, contrasts in zip(runs[1:], pairs, strict=True)
    )
    return Comparison(runs[0], others, confidence, sum(map(len, pairs)), _spreads(others), _unanswered(runs, tasks))


def load_run(path: str | Path) -> Run:
    """The run whose record is at `path`, or the only one in that folder; BadInput where there is none, or several."""
    if not str(path).strip():
        raise BadInput("a record has an empty name")
    path = Path(path)
    if not path.exists():
        raise BadInput(f"there is no record or folder {str(path)!r}; `mcbench run` writes records under runs")
    if path.is_dir():
        return _run_in(path)
    return Run(str(path), Record.load(path), path.parent)


def _run_in(folder: Path) -> Run:
    """The only run in a folder, at any depth."""
    inside = sorted(folder.rglob(FILE_NAME))
    if not inside:
        raise BadInput(f"the folder {str(folder)!r} holds no {FILE_NAME}: no run was finished there")
    if len(inside) > 1 and folder != inside[0].parent:
        raise BadInput(
            f"the folder {str(folder)!r} holds {len(inside)} runs: name one of them, such as {str(inside[0].parent)!r}"
        )
    return Run(str(folder), Record.load(inside[0]), inside[0].parent)


def combined(contrasts: Sequence[Contrast], confidence: float) -> Mean | None:
    """The mean difference over those of the tasks that are shares and have room; None where none is."""
    shares = counted(contrasts)
    if not shares:
        return None
    whole = _mean(shares, confidence)
    if len(shares) < 2:
        return whole
    most = max(shares, key=lambda contrast: math.copysign(1.0, whole.difference) * contrast.difference)
    rest = _mean([contrast for contrast in shares if contrast is not most], confidence)
    return dataclasses.replace(whole, most=most.task, without=rest)


def counted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The tasks that a mean counts: those of shares that have room."""
    return [contrast for contrast in contrasts if contrast.higher_is_better and not contrast.no_room]


def _mean(shares: Sequence[Contrast], confidence: float) -> Mean:
    values = [contrast.difference for contrast in shares]
    weighted = np.concatenate([c.evidence.parts / (c.evidence.sizes.sum() * len(shares)) for c in shares])
    return Mean(
        tuple(contrast.task for contrast in shares),
        math.fsum(values) / len(values),
        interval_of_mean(shares, confidence),
        sign_flip_test(weighted),
    )


def interval_of_mean(contrasts: Sequence[Contrast], confidence: float) -> Interval | None:
    """The interval of the mean difference over tasks of shares; None where one of them has none."""
    return _of_mean(contrasts, [c.evidence.interval(confidence) for c in contrasts])


def bounds_of_mean(contrasts: Sequence[Contrast], error: float) -> Interval | None:
    """The same from bounds, each wrong with a chance of at most `error`."""
    return _of_mean(contrasts, [c.evidence.bounds(error) for c in contrasts])


def _of_mean(contrasts: Sequence[Contrast], intervals: Sequence[Interval | None]) -> Interval | None:
    known = [found for found in intervals if found is not None]
    if len(known) < len(contrasts):
        return None
    return mean_interval([c.evidence.difference for c in contrasts], known)


def table(comparison: Comparison) -> str:
    """The comparison as plain text of at most 100 columns."""
    first, *_ = comparison.others
    blocks = [f"A  {comparison.reference}"]
    for at, other in enumerate(comparison.others, 1):
        letter = _letter(at)
        blocks += [f"{letter}  {other.run}", _differences(comparison, other, letter)]
        blocks += [block for block in (_kinds(other), _agreement(other)) if block]
    if fidelity := _fidelity(comparison):
        blocks.append(fidelity)
    if comparison.spreads:
        blocks.append(_seeds(comparison.spreads))
    blocks.append("\n".join(_remarks(comparison, first)))
    return "\n\n".join(blocks)


# -- what may be compared


def _require_comparable(runs: Sequence[Run]) -> None:
    for run in runs:
        if not run.record.results:
            raise BadInput(f"the record of {run.name!r} has no task to compare")
    for at, run in enumerate(runs):
        for other in runs[:at]:
            if reasons := unlike(other.record, run.record, seeds=True):
                raise BadInput(f"{other.name!r} and {run.name!r} do not compare: {'; '.join(reasons)}")
    require_one_baseline(Table(tuple(run.record for run in runs)))


def _tasks(runs: Sequence[Run], asked: str) -> list[str]:
    """The tasks to compare, in the order of the first run."""
    answered = [{r.task for r in run.record.results if r.value is not None} for run in runs]
    common = [result.task for result in runs[0].record.results if all(result.task in names for names in answered)]
    if not asked:
        if not common:
            raise BadInput("the runs have no answered task in common")
        return common
    wanted = list(dict.fromkeys(names_in(asked, "task list")))
    suites: Mapping[str, Sequence[str]] = defaults()["suites"]
    for name in wanted:
        if name not in common and name not in suites:
            lacking = next((run for run, names in zip(runs, answered, strict=True) if name not in names), runs[0])
            raise UnknownName(f"no task {name!r} was answered in {lacking.name!r}; {suggest(name, common)}")
    chosen = _chosen(asked)
    if not chosen & set(common):
        raise BadInput(f"the runs have no task of {asked!r} in common; they share {', '.join(common)}")
    return [name for name in common if name in chosen]


def _chosen(asked: str) -> set[str]:
    """The tasks behind a list of tasks and suites."""
    suites: Mapping[str, Sequence[str]] = defaults()["suites"]
    return {inner for name in names_in(asked, "task list") for inner in suites.get(name, [name])}


def _unanswered(runs: Sequence[Run], asked: str) -> tuple[Unanswered, ...]:
    """What the first run answered and another did not, of the suites that were asked for or of everything."""
    first = [r.task for r in runs[0].record.results if r.value is not None and (not asked or r.task in _chosen(asked))]
    found = []
    for run in runs[1:]:
        results = {result.task: result for result in run.record.results}
        for task in first:
            if task not in results:
                found.append(Unanswered(run.name, task, "not in its record"))
            elif results[task].value is None:
                found.append(Unanswered(run.name, task, results[task].skipped or "skipped"))
    return tuple(found)


def _result(run: Run, task: str) -> Result:
    return next(result for result in run.record.results if result.task == task)


def _samples(run: Run, task: str) -> list[Row]:
    """The samples of one task of a run, held against what its record says about them."""
    result = _result(run, task)
    path = run.folder / result.samples
    if Path(result.samples).name != result.samples:  # a record names files beside it, and no others
        raise BadInput(f"the record {run.name!r} names its samples {result.samples!r}, which is no file beside it")
    if not result.samples or not path.is_file():
        if not result.outcomes:
            raise BadInput(
                f"the samples of {task!r} are neither in the record of {run.name!r} nor beside it, so nothing can be "
                "paired; name the folder that the run wrote"
            )
        return _checked(result.rows(), result, f"the outcomes of {task!r} in the record {run.name!r}")
    owner, rows = load_samples(path)
    for key, expected in (("protocol", result.protocol), ("model", run.record.fingerprint)):
        if owner.get(key) != expected:
            raise BadInput(f"the samples {str(path)!r} belong to another {key} than the record beside them")
    return _checked(rows, result, f"the samples {str(path)!r}")


def _checked(rows: list[Row], result: Result, where: str) -> list[Row]:
    """The samples, where they give what the result says; BadInput where not."""
    try:
        value = _value(rows, unit_of(result.metric))
    except (LookupError, TypeError, ValueError, ArithmeticError):
        raise BadInput(f"{where} are damaged; run it again") from None
    if len(rows) != result.n or result.value is None or not math.isclose(value, result.value, rel_tol=SAME_VALUE):
        raise BadInput(
            f"{where} give {value:g} over {len(rows)}, the record {result.value:g} over {result.n}: "
            "one of them was changed"
        )
    return rows


def _value(rows: Sequence[Row], unit: str) -> float:
    if "loss" in rows[0]:
        return math.exp(math.fsum(row["loss"] for row in rows) / math.fsum(row[unit] for row in rows))
    return math.fsum(float(row["correct"]) for row in rows) / len(rows)


# -- numbers


def _contrast(
    runs: Sequence[Run], samples: Mapping[tuple[int, str], list[Row]], at: int, task: str, confidence: float
) -> Contrast:
    before, after = _result(runs[0], task), _result(runs[at], task)
    theirs, ours = samples[0, task], samples[at, task]
    assert before.value is not None and after.value is not None
    try:
        found = evidence(ours, theirs, after.protocol, after.metric)
    except BadInput as reason:
        raise BadInput(f"{runs[at].name!r} and {runs[0].name!r} do not compare in {task}: {reason}") from None
    flips = [float(a["correct"]) - float(b["correct"]) for a, b in zip(ours, theirs, strict=True) if "correct" in a]
    return Contrast(
        task=task,
        kinds=kinds(after),
        metric=metric_name(after),
        higher_is_better=is_share(after),
        n=after.n,
        clusters=found.clusters,
        reference=before.value,
        value=after.value,
        difference=shown_difference(found.difference, is_share(after)),
        interval=_shown_interval(found.interval(confidence), is_share(after)),
        lost=sum(flip < 0 for flip in flips) if flips else None,
        gained=sum(flip > 0 for flip in flips) if flips else None,
        p=(p := found.p_value()),
        p_holm=p,
        same_answers=same_answers(ours, theirs),
        choice_divergence=choice_divergence(ours, theirs),
        partial=after.partial,
        evidence=found,
        no_room=_no_room(runs, task),
    )


def _no_room(runs: Sequence[Run], task: str) -> str:
    """Why a task has no room, by the score of the uncompressed model as any of the runs knows it."""
    for run in runs:
        result = _result(run, task)
        score = result.value if uncompressed(run.record) else result.baseline
        if is_share(result) and score is not None:
            return no_room(score, result.n, result.chance)
    return ""


def shown_difference(difference: float, share: bool) -> float:
    """What is shown of a difference: shares as they are, nats per token as the relative change of the perplexity."""
    return difference if share else math.expm1(difference)


def _shown_interval(interval: Interval | None, share: bool) -> Interval | None:
    return interval and Interval(*(shown_difference(end, share) for end in interval))


def kinds(result: Result) -> tuple[str, ...]:
    """What sort of task it is, by its name or the benchmark that it stands for; the sorts are those of `defaults.json`.

    A sort that lists miniatures is about how items are asked, in which a miniature need not be like its benchmark, so
    it goes by the task's own name.
    """
    sorts: Mapping[str, Sequence[str]] = defaults()["kinds"]
    miniatures = set(defaults()["suites"]["mini"])
    return tuple(
        kind
        for kind, members in sorts.items()
        for names in [{result.task} if miniatures & set(members) else {result.task, result.counterpart}]
        if any(name == member or name.startswith(f"{member}-") for name in names for member in members)
    )


def _versus(run: Run, contrasts: Sequence[Contrast], confidence: float) -> Versus:
    by_kind = {kind: [c for c in contrasts if kind in c.kinds] for kind in defaults()["kinds"]}
    means = {kind: mean for kind, members in by_kind.items() if (mean := combined(members, confidence)) is not None}
    worst_first = dict(sorted(means.items(), key=lambda pair: pair[1].difference))
    return Versus(run, tuple(contrasts), combined(contrasts, confidence), worst_first)


def _spreads(others: Sequence[Versus]) -> tuple[Spread, ...]:
    """What the seed makes of a method, for every method and budget that comes with several."""
    families: dict[tuple[object, ...], list[Versus]] = {}
    for other in others:
        record = other.run.record
        method = SEED.sub("", record.method).replace("(, ", "(").replace("()", "")
        families.setdefault((method, record.bits.asked, record.bits.asked_as), []).append(other)
    found = []
    for (name, *_), members in families.items():
        # a hyper-parameter counts before the seed of the run, which it takes where none is given
        each = [(*map(int, SEED.findall(m.run.record.method)), m.run.record.seed) for m in members]
        seeds = next((column for column in zip(*each, strict=False) if len(set(column)) == len(column)), ())
        values = tuple(member.overall.difference for member in members if member.overall is not None)
        if len(seeds) > 1 and len(values) == len(seeds):
            found.append(Spread(str(name), seeds, values, float(np.std(values, ddof=1))))
    return tuple(found)


# -- how it looks


def _differences(comparison: Comparison, other: Versus, letter: str) -> str:
    percent = f"{100 * comparison.confidence:g} %"
    heads = ["task", "metric", "n", "A", letter, f"{letter} - A", f"{percent} interval"]
    rows = [
        [
            c.task,
            c.metric,
            str(c.n),
            _value_shown(c, c.reference),
            _value_shown(c, c.value),
            _per_cent(c.difference, not c.higher_is_better),
            _between(c.interval, not c.higher_is_better),
            "" if c.lost is None else str(c.lost),
            "" if c.gained is None else str(c.gained),
            _p(c.p_holm),
        ]
        for c in other.contrasts
    ]
    if other.overall is not None and len(other.overall.tasks) > 1:
        mean = other.overall
        shown = [(f"mean of {len(mean.tasks)} tasks", mean)]
        if mean.without is not None:
            shown.append((f"without {mean.most}", mean.without))
        for name, one in shown:
            rows.append([name, "share %", "", "", "", _per_cent(one.difference), _between(one.interval), "", "", ""])
    return aligned([*heads, "lost", "gained", "p"], rows, left=2)


def _kinds(other: Versus) -> str:
    rows = [
        [kind, _per_cent(mean.difference), _between(mean.interval), str(len(mean.tasks))]
        for kind, mean in other.kinds.items()
    ]
    return aligned(["kind of task, worst first", "mean", "interval", "tasks"], rows, left=1) if rows else ""


def _agreement(other: Versus) -> str:
    rows = [
        [c.task, f"{100 * c.same_answers:.1f}", "" if c.choice_divergence is None else f"{c.choice_divergence:.4f}"]
        for c in other.contrasts
        if c.same_answers is not None
    ]
    return aligned(["agreement", "same answer %", "divergence"], rows, left=1) if rows else ""


def _fidelity(comparison: Comparison) -> str:
    """How far each run is from the uncompressed model, over tokens and in its routing, as its record says."""
    rows = []
    for letter, found in _fidelities(comparison)[0].items():
        rows.append(
            [
                letter,
                f"{found.divergence:.4f}"
                + ("" if found.divergence_error is None else f" ± {found.divergence_error:.4f}"),
                f"{100 * found.top_1:.1f}",
                f"{100 * found.top_5:.1f}",
                " ".join(f"{100 * share:.0f}" for share in found.expert_overlap[:MOST_LAYERS]),
                f"{_middle(found.load_entropy):.3f} of {_middle(found.original_load_entropy):.3f}",
                f"{_middle(found.load_gini):.3f} of {_middle(found.original_load_gini):.3f}",
            ]
        )
    heads = ["from uncompressed", "KL, nats", "top-1 %", "top-5 %", "same experts %", "entropy", "Gini"]
    return aligned(heads, rows, left=1) if rows else ""


def _fidelities(comparison: Comparison) -> tuple[dict[str, Fidelity], list[str]]:
    """By letter the distances over one text, that of the first run which has one, and the runs that read another."""
    runs = [comparison.reference, *(other.run for other in comparison.others)]
    found = {_letter(at): run.record.fidelity for at, run in enumerate(runs) if run.record.fidelity is not None}
    read = {letter: (one.text, one.windows, one.tokens) for letter, one in found.items()}
    text = next(iter(read.values()), None)
    alike = {letter: one for letter, one in found.items() if read[letter] == text}
    return alike, [letter for letter in found if letter not in alike]


def _letter(at: int) -> str:
    """What the run at that place is called in the tables."""
    return ascii_uppercase[at] if at < len(ascii_uppercase) else f"run {at + 1}"


def _middle(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _seeds(spreads: Sequence[Spread]) -> str:
    rows = [
        [
            spread.method,
            ", ".join(map(str, spread.seeds)),
            _per_cent(math.fsum(spread.values) / len(spread.values)),
            f"{100 * spread.deviation:.1f}",
        ]
        for spread in spreads
    ]
    return aligned(["over seeds", "seeds", "mean", "standard deviation"], rows, left=1)


def _remarks(comparison: Comparison, first: Versus) -> list[str]:
    lines = [
        note("difference", "in points for shares; for perplexity, the relative change in per cent"),
        note("interval", "of each difference by itself"),
        note("p", f"McNemar's exact test or sign flips by cluster; Holm's correction for all {comparison.tests}"),
    ]
    if any(run.record.fidelity for run in (comparison.reference, *(other.run for other in comparison.others))):
        lines.append(
            note(
                "distance",
                "from the uncompressed model: KL, likeliest tokens, experts by layer, load of experts (mean)",
            )
        )
    if others := _fidelities(comparison)[1]:
        lines.append(
            note("left out", f"{', '.join(others)}: another text was read for the distance from the uncompressed model")
        )
    if any(c.same_answers is not None for c in first.contrasts):
        lines.append(note("agreement", "share answered as A does, right or wrong; divergence over choices in nats"))
    if (mean := first.overall) is not None and mean.without is not None:
        lines.append(note("without", "the mean without the task that contributes most to it"))
    for c in first.contrasts:
        if c.no_room:
            lines.append(note("no room", f"{c.task}, not in any mean: {c.no_room}"))
        if c.evidence.row:
            told = f"windows of one text may depend on each other; their spread is told from {c.clusters} terms"
            lines.append(note("one text", f"{c.task}: {told}"))
        elif c.clusters < c.n:
            lines.append(note("clusters", f"{c.task}: {c.n} samples count as {c.clusters}, for some hang together"))
        if c.interval is None:
            lines.append(note("no interval", f"{c.task}: too few independent samples"))
    lines += [note("unanswered", str(task)) for task in comparison.unanswered]
    records = [comparison.reference.record, *(other.run.record for other in comparison.others)]
    if any(redrawn(one, other) for one in records for other in records):
        lines.append(note("seeds", "these runs were calibrated on different draws from the same text"))
    if any(c.partial for other in comparison.others for c in other.contrasts):
        lines.append(note("partial", "--limit left items out of these runs"))
    return lines


def _value_shown(contrast: Contrast, value: float) -> str:
    return f"{100 * value:.1f}" if contrast.higher_is_better else f"{value:.3f}"


def _per_cent(value: float, relative: bool = False) -> str:
    return f"{100 * value:+.1f}{' %' if relative else ''}"


def _between(interval: Interval | None, relative: bool = False) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}{' %' if relative else ''}"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _described(run: Run) -> dict[str, Any]:
    record = run.record
    return {
        "name": run.name,
        "method": record.method,
        "seed": record.seed,
        "label_bits": record.bits.label,
        "stored_bits": record.bits.stored,
        "record": record.digest,
    }


def _plain(value: Any) -> Any:
    """JSON values of a dataclass, without the evidence behind it."""
    if value is None:
        return None
    plain = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "evidence"}
    inner = {k: _plain(v) if isinstance(v, Mean) else v for k, v in plain.items()}
    return json.loads(json.dumps({k: v._asdict() if isinstance(v, Interval) else v for k, v in inner.items()}))
