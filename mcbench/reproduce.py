"""A table or figure of the papers by name: its grid is run, and what was published stands beside what was measured.

On a reference model each task is its miniature, so values do not carry over; whether the order of the rows does is told
pair by pair, from paired differences of the same items.
"""

from __future__ import annotations

import importlib.resources
import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mcbench.audit import audit
from mcbench.catalogue import TASKS, models
from mcbench.comparison import difference
from mcbench.composition import compose, defaults
from mcbench.errors import BadInput, UnknownName
from mcbench.leaderboard import pipe_table
from mcbench.published import SOURCES, Figure, figures
from mcbench.record import Record, Result
from mcbench.registry import suggest
from mcbench.report import bit_figure, number, with_error
from mcbench.sweep import Grid, Outcome, Plan, plan, sweep
from mcbench.task import Scores, load_samples

PUBLISHED_MODEL = "Mixtral-8x7B"
CLEAR_ERRORS = 2.0  # a difference within so many standard errors of nothing shows no order

Order = Literal["holds", "contradicted", "cannot tell"]


@dataclass(frozen=True)
class Study:
    """A grid and its layout. `refused` says why it cannot be run; without a `table` nothing was printed in numbers."""

    name: str
    title: str
    table: str = ""
    rows: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    experts: Sequence[str] = ()
    bits: Sequence[float] = ()
    stands: Mapping[str, str] = field(default_factory=dict)
    departures: Sequence[str] = ()
    refused: str = ""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The published figures of its table, of the paper's main model."""
        return tuple(f for f in figures() if f.table == self.table and f.model == PUBLISHED_MODEL)

    def lines(self) -> list[Line]:
        """Its rows in printed order."""
        if not self.table:
            return [Line(key, b, method, False, {}) for b in self.bits for key, method in self.rows.items()]
        found: dict[tuple[str, float], Line] = {}
        for figure in self.figures:
            key = figure.setting if figure.setting in self.rows else figure.method
            if key in self.rows:
                fresh = Line(key, float(figure.bits), self.rows[key], key in self.experts, {})
                line = found.setdefault((key, fresh.bits), fresh)
                line.published[figure.metric] = figure
        return list(found.values())


class Line(NamedTuple):
    """One row: a method string at a budget, and what was published of it by metric."""

    key: str
    bits: float
    method: str
    experts: bool
    published: dict[str, Figure]


class Measured(NamedTuple):
    """What a row gave: its record and the folder of its samples, or the reason why there is none."""

    record: Record | None
    folder: Path | None
    reason: str


@cache
def studies() -> Mapping[str, Study]:
    """Every study by name."""
    text = importlib.resources.files("mcbench.published").joinpath("studies.toml").read_text(encoding="utf-8")
    return {name: Study(name, **content) for name, content in tomllib.loads(text).items()}


def study(name: str) -> Study:
    """The study of that name; UnknownName where there is none, BadInput where it cannot be run."""
    if name not in studies():
        raise UnknownName(f"no study is called {name!r}; {suggest(name, studies())}")
    if studies()[name].refused:
        raise BadInput(f"{name} cannot be run: {studies()[name].refused}")
    return studies()[name]


def listing() -> str:
    """A line for each study."""
    width = max(map(len, studies()))
    return "\n".join(
        f"{name:{width}}  {s.title}{f' (refused: {s.refused})' if s.refused else ''}" for name, s in studies().items()
    )


def reproduce(
    chosen: Study, settings: Mapping[str, Any], *, out: str | Path, bits: Sequence[float] = (), **ways: Any
) -> str:
    """Runs what is not run yet of the study and returns it in Markdown, published beside measured.

    settings: fields of `Grid` such as model, limit and tasks; bits: only rows with these labels; ways: as of `sweep`.
    """
    lines = _lines(chosen, bits)
    measured: dict[tuple[str, float], Measured] = {}
    for some, grid in _grids(chosen, lines, settings):
        for line, outcome in zip(some, _in_order(grid, some, sweep(grid, out=out, **ways)), strict=True):
            measured[line.key, line.bits] = _measured(outcome)
    return report(chosen, lines, measured, settings, bool(bits))


def planned(chosen: Study, settings: Mapping[str, Any], *, out: str | Path, bits: Sequence[float] = ()) -> list[Plan]:
    """What `reproduce` would run, one plan for each set of rows that share their budgets."""
    return [plan(grid, out=out) for _, grid in _grids(chosen, _lines(chosen, bits), settings)]


def _lines(chosen: Study, bits: Sequence[float]) -> list[Line]:
    lines = chosen.lines()
    missing = [b for b in bits if b not in {line.bits for line in lines}]
    if missing:
        known = ", ".join(f"{b:g}" for b in sorted({line.bits for line in lines}))
        raise BadInput(f"{chosen.name} has no row at {missing[0]:g} bits (it has {known})")
    return [line for line in lines if not bits or line.bits in bits or _plain(line)]


def _plain(line: Line) -> bool:
    return not compose(line.method).compresses


def _grids(chosen: Study, lines: Sequence[Line], settings: Mapping[str, Any]) -> Iterator[tuple[list[Line], Grid]]:
    """Grids without a superfluous cell: methods that share their budgets, and what needs none with the first."""
    asked = {"tasks": ",".join(_tasks(chosen, str(settings.get("model", ""))).values()), **settings}
    budgets: dict[str, tuple[bool, tuple[float, ...]]] = {}
    for line in lines:
        have = () if _plain(line) else (*budgets.get(line.method, (False, ()))[1], line.bits)
        budgets[line.method] = (line.experts, have)
    for experts, values in dict.fromkeys(budgets.values()):
        methods = tuple(method for method, budget in budgets.items() if budget == (experts, values))
        where: dict[str, Any] = {"expert_bits": values} if experts else {"bits": values}
        yield [line for line in lines if line.method in methods], Grid(methods, **where, **asked)


def _in_order(grid: Grid, lines: Sequence[Line], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcome of each line; a grid has an order of its own."""
    found = {
        (cell.composition.asked, cell.bits if cell.expert_bits is None else cell.expert_bits): outcome
        for cell, outcome in zip(grid.cells(), outcomes, strict=True)
    }
    return [found[line.method, None if _plain(line) else line.bits] for line in lines]


def _measured(outcome: Outcome) -> Measured:
    if outcome.state != "done":
        return Measured(None, None, f"{outcome.state}: {outcome.reason}")
    return Measured(Record.load(outcome.record), Path(outcome.record).parent, "")


def _tasks(chosen: Study, model: str) -> dict[str, str]:
    """The task behind each published metric: the paper's on a model of its size, the miniature on a reference model."""
    if (model or defaults()["model"]) not in models():
        return dict(chosen.columns)
    small = {TASKS.get(name)().counterpart: name for name in reversed(defaults()["suites"]["mini"])}
    return {metric: chosen.stands.get(task) or small[task] for metric, task in chosen.columns.items()}


# -- what came out


def report(
    chosen: Study,
    lines: Sequence[Line],
    measured: Mapping[tuple[str, float], Measured],
    settings: Mapping[str, Any],
    some: bool = False,
) -> str:
    """The study in Markdown: published columns, then measured ones, then orders, departures and known errors."""
    names = _tasks(chosen, str(settings.get("model", "")))
    model = str(settings.get("model") or defaults()["model"])
    heads = ["row", "bits", "method string", *(f"published, {PUBLISHED_MODEL}: {m}" for m in names)]
    heads += ["label reached", *(f"measured, {Path(model).name}: {t}" for t in names.values())]
    body = []
    for line in lines:
        got = measured[line.key, line.bits]
        cells = [line.published[m].value if m in line.published else "" for m in names]
        ours = [
            "" if (r := _result(got, t)) is None else with_error(r, r.value, r.standard_error) for t in names.values()
        ]
        reached = bit_figure(got.record.bits.label) if got.record else ""
        body.append([line.key, f"{line.bits:g}", line.method, *cells, reached, *ours])
    blocks = [f"# {chosen.name}: {chosen.title}"]
    if chosen.table:
        blocks.append(f"Published: {chosen.table} of {SOURCES[chosen.figures[0].source]}, on {PUBLISHED_MODEL}.")
    if some or settings.get("limit") or settings.get("tasks"):
        blocks.append("**Partial**: not every row, task or item of the study was asked for.")
    blocks.append(pipe_table(heads, body))
    blocks += [
        f"- {line.key} at {line.bits:g}: {m.reason}" for line in lines if (m := measured[line.key, line.bits]).reason
    ]
    if chosen.table:
        blocks += ["## Does the order hold?", _orders(lines, measured, names)]
    if chosen.departures:
        blocks += ["## Where these rows depart from the paper's", "\n".join(f"- {text}" for text in chosen.departures)]
    if chosen.table and (found := audit(chosen.table).findings):
        listed = (f"- {c.row}, {c.what}: {c.stated:g} stated, {c.recomputed:.4g} recomputed ({c.how})" for c in found)
        blocks += ["## Known errors of the published figures", "\n".join(listed)]
    return "\n\n".join(blocks)


def _result(got: Measured, task: str) -> Result | None:
    if got.record is None:
        return None
    return next((r for r in got.record.results if r.task == task and r.value is not None), None)


def _orders(lines: Sequence[Line], measured: Mapping[tuple[str, float], Measured], names: Mapping[str, str]) -> str:
    """Every pair of rows that the paper puts in an order, by what our paired difference says of it."""
    rows, against = [], []
    for metric, task in names.items():
        counts: dict[Order, int] = {"holds": 0, "contradicted": 0, "cannot tell": 0}
        both = []
        for line in lines:
            got = measured[line.key, line.bits]
            if metric in line.published and (result := _result(got, task)) is not None:
                both.append((line, got, result))
        for (a, one, mine), (b, other, theirs) in itertools.combinations(both, 2):
            published = a.published[metric].number - b.published[metric].number
            if published:
                value, error = _paired(one, mine, other, theirs)
                said = order(published, value, error)
                counts[said] += 1
                if said == "contradicted":
                    shown = number(mine, value, sign=True)
                    against.append(
                        f"- {task}: {a.key} {a.bits:g} less {b.key} {b.bits:g}: "
                        f"published {published:+.3g}, measured {shown}"
                    )
        tau = kendall([x.published[metric].number for x, _, _ in both], [r.value or 0.0 for _, _, r in both])
        rows.append([task, *(str(n) for n in counts.values()), "" if tau is None else f"{tau:+.2f}"])
    text = (
        "Pairs of rows that differ in print; an order holds or is contradicted where the paired difference of the same "
        f"items\nlies beyond {CLEAR_ERRORS:g} of its standard errors. Nothing is corrected for the number of pairs."
    )
    return "\n\n".join(
        [
            text,
            pipe_table(["task", "holds", "contradicted", "cannot tell", "Kendall's tau-b"], rows),
            *(["\n".join(against)] if against else []),
        ]
    )


def order(published: float, measured: float, error: float | None) -> Order:
    """What a measured difference says of a published one."""
    if error is None or abs(measured) <= CLEAR_ERRORS * error:
        return "cannot tell"
    return "holds" if (published > 0) == (measured > 0) else "contradicted"


def _paired(one: Measured, mine: Result, other: Measured, theirs: Result) -> tuple[float, float | None]:
    found = difference(_scores(one, mine), _scores(other, theirs))
    assert found is not None
    return found.value, found.standard_error


def _scores(got: Measured, result: Result) -> Scores:
    assert got.folder is not None
    _, rows = load_samples(got.folder / result.samples)
    scores = Scores(result.task, result.protocol, result.metric, result.higher_is_better, result.value, result.n)
    return replace(scores, samples=rows)


def kendall(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rows of numbers; None where one of them has no two values that differ."""
    score, ranked = 0, [0, 0]
    for i, j in itertools.combinations(range(len(one)), 2):
        a, b = one[i] - one[j], other[i] - other[j]
        score += (a > 0) * (b > 0) + (a < 0) * (b < 0) - (a > 0) * (b < 0) - (a < 0) * (b > 0)
        ranked = [ranked[0] + (a != 0), ranked[1] + (b != 0)]
    return score / math.sqrt(ranked[0] * ranked[1]) if all(ranked) else None
