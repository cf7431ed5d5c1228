"""A table or figure of the papers by name: its grid is run, and what was published stands beside what was measured.

On a reference model each task is its miniature, so values do not carry over; whether the order of the rows does is told
pair by pair, from paired differences of the same items.
"""

from __future__ import annotations

import importlib.resources
import itertools
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mcbench.audit import KINDS, audit
from mcbench.catalogue import TASKS, models
from mcbench.comparison import difference
from mcbench.composition import compose, defaults
from mcbench.costs import Cost, cell_by_cell, costs
from mcbench.errors import BadInput, UnknownName
from mcbench.inputs import require_device
from mcbench.leaderboard import pipe_table
from mcbench.pipeline import require_sources
from mcbench.progress import muted
from mcbench.published import SOURCES, Figure, figures
from mcbench.record import Record, Result
from mcbench.registry import suggest
from mcbench.report import bit_figure, number, with_error
from mcbench.speed import Profile, read_grid
from mcbench.sweep import Grid, Outcome, Plan, plan, sweep
from mcbench.task import Scores, load_samples

PUBLISHED_MODEL = "Mixtral-8x7B"
CLEAR_ERRORS = 2.0  # a difference within so many standard errors of nothing shows no order

Order = Literal["holds", "contradicted", "cannot tell"]


@dataclass(frozen=True)
class Study:
    """A grid and its layout. `refused` says why it cannot be run; without a `table` nothing was printed in numbers.

    mean, skipped: the published metric that is the mean of the columns, and the one that is the share of pairs skipped.
    same: rows and metrics that are printed under another name. settings: parameters with which a row asks its tasks,
    where rows differ in them. cells: what is profiled of each row, as in `read_grid`; without columns the study is of
    time alone. orders: where nothing is printed, pairs of rows of which the paper's text puts the second before the
    first. statistics: what is measured of every expert, by the name to show, errors at `width` bits; such a study has
    no rows.
    """

    name: str
    title: str
    table: str = ""
    rows: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    experts: Sequence[str] = ()
    bits: Sequence[float] = ()
    mean: str = ""
    skipped: str = ""
    same: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    cells: str = ""
    orders: Sequence[Sequence[str]] = ()
    statistics: Mapping[str, str] = field(default_factory=dict)
    width: int = 0
    stands: Mapping[str, str] = field(default_factory=dict)
    departures: Sequence[str] = ()
    refused: str = ""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The published figures of its table, of the paper's main model."""
        own = (f for f in figures() if f.table == self.table and f.model == PUBLISHED_MODEL)
        return tuple(replace(f, metric=self.same.get(f.metric, f.metric)) for f in own)

    def lines(self) -> list[Line]:
        """Its rows in printed order."""
        found = {(key, b): Line(key, b, method, False, {}) for b in self.bits for key, method in self.rows.items()}
        for figure in self.figures:
            names = [self.same.get(name, name) for name in (figure.setting, figure.method)]
            key = names[0] if names[0] in self.rows else names[1]
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
    """What a row gave: its record, the folder of its samples and what it costs to run, or why something is missing."""

    record: Record | None
    folder: Path | None
    reason: str
    profile: Profile | None = None


class Reproduced(NamedTuple):
    """A study in Markdown, and how many of its cells failed."""

    text: str
    failed: int = 0


class Column(NamedTuple):
    """A published metric and what was measured of it.

    tasks: those whose score it is, or the mean of their scores; else `reads` gives a number that no sample is behind.
    """

    metric: str
    head: str
    tasks: tuple[str, ...] = ()
    reads: Callable[[Measured], float | None] = lambda _: None
    digits: int = 1
    ordered: bool = True


@cache
def studies() -> Mapping[str, Study]:
    """Every study by name."""
    text = importlib.resources.files("mcbench.published").joinpath("studies.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    return {name: Study(name, **{**found.get(own.pop("like", ""), {}), **own}) for name, own in found.items()}


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
    chosen: Study,
    settings: Mapping[str, Any],
    *,
    out: str | Path,
    bits: Sequence[float] = (),
    grid: str = "",
    **ways: Any,
) -> Reproduced:
    """Runs what is not run yet of the study and returns it in Markdown, published beside measured.

    settings: fields of `Grid` such as model, limit and tasks; bits: only rows with these labels; grid: other cells to
    time than the study's; ways: as of `sweep`. Times are taken anew at each call. Raises BadInput where a study without
    tasks is given tasks or a limit, or one that times nothing a grid.
    """
    quiet = bool(ways.get("quiet", True))
    require_sources(
        settings.get("model") or defaults()["model"], settings.get("dtype", "auto"), settings.get("calibration")
    )
    require_device(settings.get("device", "cpu"))
    if grid:
        if not chosen.cells:
            raise BadInput(f"{chosen.name} times nothing, so leave --grid out")
        read_grid(grid)
        chosen = replace(chosen, cells=grid)
    if not chosen.columns:
        _no_tasks(chosen, settings)
    if chosen.statistics:
        return Reproduced(_of_experts(chosen, settings, Path(out), bits, quiet))
    lines = _lines(chosen, bits)
    if not chosen.columns:
        (line,) = lines
        from mcbench.profiling import profile

        timed = profile(line.method, bits=line.bits, grid=chosen.cells, out=out, quiet=quiet, **settings)
        blocks = [*_opening(chosen), *([_partial("cell")] if grid else []), cell_by_cell(chosen.figures, timed)]
        return Reproduced("\n\n".join([*blocks, *_closing(chosen)]))
    measured: dict[tuple[str, float], Measured] = {}
    failed = 0
    for some, runs in _grids(chosen, lines, settings):
        outcomes = sweep(runs, out=out, **ways)
        failed += sum(outcome.state == "failed" for outcome in outcomes)
        for line, outcome in zip(some, _in_order(runs, some, outcomes), strict=True):
            measured[line.key, line.bits] = _measured(outcome)
    if chosen.cells:
        names = ("model", "calibration", "device", "dtype")
        ways = {name: settings[name] for name in names if name in settings} | {"quiet": quiet}
        measured = {row: _profiled(got, chosen.cells, out, ways) for row, got in measured.items()}
    return Reproduced(report(chosen, lines, measured, settings, bool(bits or grid)), failed)


def planned(chosen: Study, settings: Mapping[str, Any], *, out: str | Path, bits: Sequence[float] = ()) -> list[Plan]:
    """What `reproduce` would run, one plan for each set of rows that share their budgets; profiles are not planned."""
    if not chosen.columns:
        raise BadInput(f"{chosen.name} has no runs to plan: it measures {_subject(chosen)} once, when it is asked to")
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
    """Grids without a superfluous cell: one for the methods that share their budgets, one for those that need none."""
    if chosen.settings and settings.get("tasks"):
        raise BadInput(f"the rows of {chosen.name} differ in how they ask their task, so leave --tasks out")
    budgets: dict[tuple[str, str], tuple[bool, tuple[float, ...]]] = {}
    for line in lines:
        row = (_asked(chosen, line, settings), line.method)
        have = () if _plain(line) else (*budgets.get(row, (False, ()))[1], line.bits)
        budgets[row] = (line.experts, have)
    for tasks, experts, values in dict.fromkeys((tasks, *budget) for (tasks, _), budget in budgets.items()):
        rows = [row for row, budget in budgets.items() if (row[0], *budget) == (tasks, experts, values)]
        where: dict[str, Any] = {"expert_bits": values} if experts else {"bits": values}
        some = [line for line in lines if (_asked(chosen, line, settings), line.method) in rows]
        yield some, Grid(tuple(method for _, method in rows), **where, **{**settings, "tasks": tasks})


def _asked(chosen: Study, line: Line, settings: Mapping[str, Any]) -> str:
    """The tasks of a row, with the parameters that it asks them with."""
    if given := settings.get("tasks"):
        return str(given)
    ways = f"({chosen.settings[line.key]})" if line.key in chosen.settings else ""
    return ",".join(f"{task}{ways}" for task in _tasks(chosen, str(settings.get("model", ""))).values())


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


def _no_tasks(chosen: Study, settings: Mapping[str, Any]) -> None:
    for name in ("tasks", "limit"):
        if settings.get(name):
            raise BadInput(f"{chosen.name} is a study of {_subject(chosen)}: it has no tasks, so leave --{name} out")


def _subject(chosen: Study) -> str:
    """What a study without tasks is of."""
    return "experts" if chosen.statistics else "time"


def _of_experts(chosen: Study, settings: Mapping[str, Any], out: Path, bits: Sequence[float], quiet: bool) -> str:
    """The study of the experts of one model, in Markdown, its picture beside the runs."""
    from mcbench.significance import expert_tables, measure, picture

    if bits:
        raise BadInput(f"{chosen.name} has no rows, so leave --bits out")
    with muted(quiet):
        found = measure(chosen.statistics, chosen.width, **settings)
    drawn = picture(found, out / f"{chosen.name}-{found.model}.svg")
    return "\n\n".join([*_opening(chosen), expert_tables(found), drawn, *_closing(chosen)])


def _profiled(got: Measured, cells: str, out: str | Path, ways: Mapping[str, Any]) -> Measured:
    """The row with what its model costs to run, or with the reason why that cannot be said."""
    if got.folder is None:
        return got
    try:
        from mcbench.profiling import profile

        return got._replace(profile=profile(record=got.folder, grid=cells, out=out, **ways))
    except BadInput as error:
        return got._replace(reason=f"not profiled: {error}")


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
    columns = _columns(chosen, str(settings.get("model", "")))
    model = str(settings.get("model") or defaults()["model"])
    printed = [c.metric for c in columns if any(c.metric in line.published for line in lines)]
    heads = ["row", "bits", "method string", *(f"published, {PUBLISHED_MODEL}: {m}" for m in printed)]
    heads += ["label reached", *(f"measured, {Path(model).name}: {c.head}" for c in columns)]
    body = []
    for line in lines:
        got = measured[line.key, line.bits]
        cells = [line.published[m].value if m in line.published else "" for m in printed]
        reached = bit_figure(got.record.bits.label) if got.record else ""
        ours = [_shown(column, got) for column in columns]
        body.append([line.key, f"{line.bits:g}", line.method, *cells, reached, *ours])
    blocks = _opening(chosen)
    if some or settings.get("limit") or settings.get("tasks"):
        blocks.append(_partial("row, cell, task or item"))
    blocks.append(pipe_table(heads, body))
    reasons = [(line, reason) for line in lines for reason in _reasons(chosen, measured[line.key, line.bits])]
    blocks += [f"- {line.key} at {line.bits:g}: {reason}" for line, reason in reasons]
    if chosen.table and any(column.ordered for column in columns):
        blocks += ["## Does the order hold?", _orders(lines, measured, columns)]
    elif chosen.orders:
        blocks += ["## Does the order hold?", _stated(chosen, lines, measured, columns)]
    return "\n\n".join([*blocks, *_closing(chosen)])


def _partial(what: str) -> str:
    return f"**Partial**: not every {what} of the study was asked for."


def _opening(chosen: Study) -> list[str]:
    source = f"{chosen.table} of {SOURCES[chosen.figures[0].source]}" if chosen.table else ""
    published = [f"Published: {source}, on {PUBLISHED_MODEL}."] if source else []
    return [f"# {chosen.name}: {chosen.title}", *published]


def _closing(chosen: Study) -> list[str]:
    blocks = []
    if chosen.departures:
        blocks += ["## Where this departs from the paper", "\n".join(f"- {text}" for text in chosen.departures)]
    others = tuple({figure.model for figure in figures()} - {PUBLISHED_MODEL, ""})
    found = audit(chosen.table).findings if chosen.table else ()
    for kind, (title, meaning) in KINDS.items():
        checks = [f.checks[0] for f in found if f.kind == kind and not f.checks[0].row.startswith(others)]
        if checks:
            listed = (f"- {c.row}, {c.what}: {c.stated:g} stated, {c.recomputed:.4g} by {c.how}" for c in checks)
            blocks += [f"## {title} in the published figures", meaning, "\n".join(listed)]
    return blocks


def _columns(chosen: Study, model: str) -> list[Column]:
    """The tasks, their mean, the share that is skipped and the costs, as far as the study has them."""
    tasks = _tasks(chosen, model)
    alike = not chosen.settings  # what was measured of other questions is no higher or lower than this
    columns = [Column(metric, task, (task,), ordered=alike) for metric, task in tasks.items()]
    if chosen.mean:
        columns.append(Column(chosen.mean, "mean", tuple(tasks.values())))
    if chosen.skipped:
        columns.append(Column(chosen.skipped, "pairs skipped %", reads=_skipped, ordered=alike))
    if chosen.cells:
        columns += [
            Column(c.metric, c.head, reads=partial(_cost, c), digits=c.digits, ordered=c.exact) for c in costs()
        ]
    return columns


def _cost(cost: Cost, got: Measured) -> float | None:
    return cost.of(got.profile) if got.profile is not None else None


def _skipped(got: Measured) -> float | None:
    """Per cent of the pairs chosen by the router that did not run; None where they are known in part only."""
    routing = got.record.routing if got.record else None
    if routing is None or routing.share is None or routing.uncounted:
        return None
    return 100 * (1 - routing.share)


def _reasons(chosen: Study, got: Measured) -> list[str]:
    """Why something of a row is blank."""
    routing = got.record.routing if got.record else None
    parts = ", ".join(routing.uncounted) if routing and chosen.skipped else ""
    shares = (
        [f"samples of an interrupted run were kept, so that the pairs of {parts} are known in part"] if parts else []
    )
    cells = got.profile.cells if got.profile else ()
    untimed = {f"{c.shape}: {r}" for c in cells for a in c.arms for p in (a.prefill, a.decode) if (r := p.reason)}
    return [*([got.reason] if got.reason else []), *shares, *sorted(untimed)]


def _value(column: Column, got: Measured) -> float | None:
    results = [_result(got, task) for task in column.tasks]
    if not results:
        return column.reads(got)
    values = [r.value for r in results if r is not None and r.value is not None]
    return math.fsum(values) / len(values) if len(values) == len(results) else None  # no mean over a part of the tasks


def _shown(column: Column, got: Measured) -> str:
    value = _value(column, got)
    if value is None:
        return ""
    if not column.tasks:
        return f"{value:.{column.digits}f}"
    results = [r for task in column.tasks if (r := _result(got, task)) is not None]
    return with_error(results[0], value, _mean_error([r.standard_error for r in results]))


def _mean_error(errors: Sequence[float | None]) -> float | None:
    """Of a mean of independent values; None where one of their errors is unknown."""
    known = [error for error in errors if error is not None]
    return math.sqrt(math.fsum(e**2 for e in known)) / len(known) if known and len(known) == len(errors) else None


def _result(got: Measured, task: str) -> Result | None:
    if got.record is None:
        return None
    return next((r for r in got.record.results if r.task == task and r.value is not None), None)


def _orders(lines: Sequence[Line], measured: Mapping[tuple[str, float], Measured], columns: Sequence[Column]) -> str:
    """Every pair of rows that the paper puts in an order, by what our paired difference says of it."""
    rows, against = [], []
    for column in columns:
        counts: dict[Order, int] = {"holds": 0, "contradicted": 0, "cannot tell": 0}
        both: list[tuple[Line, Measured, float, float]] = []
        for line in lines:
            got = measured[line.key, line.bits]
            if column.ordered and column.metric in line.published and (ours := _value(column, got)) is not None:
                both.append((line, got, line.published[column.metric].number, ours))
        for (a, one, high, _), (b, other, low, _) in itertools.combinations(both, 2):
            published = high - low
            if published:
                value, error = _paired(column, one, other)
                said = order(published, value, error)
                counts[said] += 1
                if said == "contradicted":
                    mine = _result(one, column.tasks[0]) if column.tasks else None
                    shown = f"{value:+.{column.digits}f}" if mine is None else number(mine, value, sign=True)
                    against.append(
                        f"- {column.head}: {a.key} {a.bits:g} less {b.key} {b.bits:g}: "
                        f"published {published:+.3g}, measured {shown}"
                    )
        if both:
            tau = kendall([high for _, _, high, _ in both], [ours for _, _, _, ours in both])
            counted = (str(n) for n in counts.values())
            rows.append([column.head, *counted, "" if tau is None else f"{tau:+.2f}"])
    text = (
        "Pairs of rows that differ in print; an order holds or is contradicted where the paired difference of the same "
        f"items\nlies beyond {CLEAR_ERRORS:g} of its standard errors; what is counted has none. "
        "Nothing is corrected for the number\nof pairs."
    )
    return "\n\n".join(
        [
            text,
            pipe_table(["measured", "holds", "contradicted", "cannot tell", "Kendall's tau-b"], rows),
            *(["\n".join(against)] if against else []),
        ]
    )


def _stated(
    chosen: Study, lines: Sequence[Line], measured: Mapping[tuple[str, float], Measured], columns: Sequence[Column]
) -> str:
    """Every pair of rows that the paper's text puts in an order, budget by budget, by our paired difference."""
    rows = []
    for (worse, better), column in itertools.product(chosen.orders, [c for c in columns if c.tasks]):
        counts: dict[Order, int] = {"holds": 0, "contradicted": 0, "cannot tell": 0}
        for bits in (line.bits for line in lines if line.key == worse):
            one, other = measured[worse, bits], measured[better, bits]
            if _value(column, one) is None or _value(column, other) is None:
                continue
            known = _result(one, column.tasks[0])
            assert known is not None
            counts[order(-1 if known.higher_is_better else 1, *_paired(column, one, other))] += 1
        rows.append([f"{better} before {worse}", column.head, *(f"{n}" for n in counts.values())])
    text = (
        "The paper prints no figures; its text puts these rows in an order. It holds or is contradicted at a budget\n"
        f"where the paired difference of the same items lies beyond {CLEAR_ERRORS:g} of its standard errors. Nothing\n"
        "is corrected for the number of pairs."
    )
    heads = ["the text puts", "measured", "holds", "contradicted", "cannot tell"]
    return "\n\n".join([text, pipe_table(heads, rows)])


def order(published: float, measured: float, error: float | None) -> Order:
    """What a measured difference says of a published one."""
    if error is None or abs(measured) <= CLEAR_ERRORS * error:
        return "cannot tell"
    return "holds" if (published > 0) == (measured > 0) else "contradicted"


def _paired(column: Column, one: Measured, other: Measured) -> tuple[float, float | None]:
    """How much more one row has than another, and the error of that."""
    if not column.tasks:
        return (_value(column, one) or 0.0) - (_value(column, other) or 0.0), 0.0
    found = []
    for task in column.tasks:
        mine, theirs = _result(one, task), _result(other, task)
        assert mine is not None and theirs is not None
        delta = difference(_scores(one, mine), _scores(other, theirs))
        assert delta is not None
        found.append(delta)
    value = math.fsum(d.value for d in found) / len(found)
    return value, _mean_error([d.standard_error for d in found])


def _scores(got: Measured, result: Result) -> Scores:
    """The result with its samples: those beside the record, or what the record itself holds of them."""
    assert got.folder is not None
    file = got.folder / Path(result.samples).name  # a record names files beside it, and no others
    rows = load_samples(file)[1] if result.samples and file.is_file() else result.rows()
    if not rows:
        raise BadInput(f"the samples {str(file)!r} are gone, and the record beside them holds none; run the row again")
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
