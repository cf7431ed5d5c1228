"""Records in, tables out: what may be compared stands in one table, what may not stands apart, and nothing is typed.

What two runs must share to stand in one table is told in `mcbench.comparable`. The uncompressed model fits wherever
the rest agrees.

What has to be said beside the figures stands in `notes.md` in the folder of the tables, and goes above them.
"""

from __future__ import annotations

import csv
import functools
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcbench import escape
from mcbench.comparable import Subject, calibration_of, condition, newest, uncompressed, unlike
from mcbench.errors import BadInput, CheckFailed
from mcbench.files import write_whole
from mcbench.page import Cell, Head, Line, Sheet, Significance, page, read_significance
from mcbench.progress import inner
from mcbench.record import FILE_NAME, Record, Result
from mcbench.report import asked_share, bit_figure, is_share, metric_name, suite_figure, with_error
from mcbench.speed import DEQUANTISED, Profile, SpeedTable, find_profiles, speed_lines, speed_tables
from mcbench.suites import Headline, SuiteMean, headline, no_room, suite_means

MARKDOWN, CSV, LATEX, HTML = "README.md", "leaderboard.csv", "leaderboard.tex", "leaderboard.html"
SPEED_CSV = "speed.csv"  # only where there are profiles
NOTES = "notes.md"
ASKED = "§"  # after a score
FALLBACK = "†"  # after the method of a run that did something otherwise than asked
SHOWN_FALLBACKS = 12  # remarks under a table; the page and the records have each
PAGE = 40  # rows of a table that a printed page holds
CLEAR_ERRORS = 2  # standard errors beyond which a paired difference is marked
# two machines and two ways of computing may differ that much in the score of the same uncompressed model
SAME_BASELINE = 1e-3  # relative, of a perplexity
SAME_SHARE = 0.01  # of the items, or one item: an answer may turn where two are as good as equal
BITS = ("asked", "experts", "label", "whole model", "stored")
DIFFERENCES = (
    "### Differences to the uncompressed model",
    "",
    "Paired, item by item, in the unit of the column, each with its standard error; an asterisk marks what lies beyond",
    "two of them. The mean is over the tasks of shares that have room and that every row has, in percentage points;",
    "behind it stands what remains of it without the task that contributes most.",
)


@dataclass(frozen=True)
class Column:
    """One task asked in one way."""

    task: str
    protocol: str
    metric: str
    n: tuple[int, ...]
    share: bool = False


@dataclass(frozen=True)
class Table:
    """Records that may be compared, the uncompressed model first, then by falling stored bits.

    profiles: what the models cost to run, by the fingerprint of their record.
    """

    records: tuple[Record, ...]
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every task of any record, in the order in which the records name them."""
        found: dict[str, list[Result]] = {}
        for record in self.records:
            for result in record.results:
                found.setdefault(result.protocol, []).append(result)
        return tuple(
            Column(
                members[0].task,
                protocol,
                metric_name(members[0]),
                tuple(sorted({r.n for r in members if r.n})),
                is_share(members[0]),
            )
            for protocol, members in found.items()
        )

    @property
    def calibration(self) -> str:
        """The digest of the calibration tokens that the records share; empty where none was calibrated."""
        return next((record.calibration.digest for record in self.records if record.calibration), "")

    def cell(self, record: Record, column: Column) -> Result | None:
        """What a record says about a column; None where it does not, or was skipped."""
        found = next((result for result in record.results if result.protocol == column.protocol), None)
        return found if found is not None and found.value is not None else None

    @functools.cached_property
    def no_room(self) -> Mapping[str, str]:
        """Why tasks count in no mean, by protocol: decided once for all rows, from the uncompressed model alone."""
        found = {}
        for column in self.columns:
            scores = [
                (result.value if uncompressed(record) else result.baseline, result)
                for record in sorted(self.records, key=lambda record: not uncompressed(record))
                if (result := self.cell(record, column)) is not None and is_share(result)
            ]
            known = [(score, result) for score, result in scores if score is not None]
            if known and (why := no_room(known[0][0], known[0][1].n, known[0][1].chance)):
                found[column.protocol] = why
        return found

    @functools.cached_property
    def _compared(self) -> frozenset[str]:
        """The protocols that every row with differences answered."""
        each = [{r.protocol for r in record.results if r.difference is not None} for record in self.records]
        known = [protocols for protocols in each if protocols]
        return frozenset(set.intersection(*known)) if known else frozenset()

    def headline(self, record: Record) -> Headline | None:
        """The mean difference of a row over the tasks that every row with differences answered."""
        results = [result for result in record.results if result.protocol in self._compared]
        return headline(results, {r.task: self.no_room[r.protocol] for r in results if r.protocol in self.no_room})

    def means(self) -> Mapping[str, Sequence[Column]]:
        """The columns that may be averaged: two or more of one metric, all of them shares of answers, with room."""
        shares: dict[str, list[Column]] = {}
        for column in self.columns:
            cells = [self.cell(record, column) for record in self.records]
            if column.protocol not in self.no_room and any(cell is not None and is_share(cell) for cell in cells):
                shares.setdefault(column.metric, []).append(column)
        return {metric: columns for metric, columns in shares.items() if len(columns) > 1}

    def suites(self) -> Sequence[SuiteMean]:
        """The named suites whose mean some record has."""
        return [mean for mean in suite_means() if any(mean.score(record.results) for record in self.records)]

    def mean(self, record: Record, columns: Sequence[Column]) -> tuple[float, float] | None:
        """The plain mean over columns and its standard error; None where the record lacks one of them."""
        cells = [self.cell(record, column) for column in columns]
        known = [(c.value, c.standard_error) for c in cells if c is not None]
        values = [value for value, _ in known if value is not None]
        errors = [error for _, error in known if error is not None]
        if len(values) < len(columns) or len(errors) < len(columns):
            return None
        return math.fsum(values) / len(values), math.sqrt(math.fsum(e * e for e in errors)) / len(errors)


def leaderboard(sources: Iterable[Path], out: Path, *, check: bool = False) -> list[str]:
    """Writes the tables of all records in `sources` to the folder `out`, or with `check` compares them with it.

    Returns what there is to say about it, line by line. Raises BadInput where no whole record is found or one cannot
    be read, CheckFailed where a file in `out` is not, byte for byte, what the records give, or is there and they
    give none.
    """
    sources = list(sources)
    tables, notes = tabulate_records(find_records(sources), find_profiles(sources))
    files = render(tables, notes, _beside(out), read_significance(out))
    if check:
        _compare(files, out)
        return [f"{out}: {len(files)} files are what the records give"]
    for name, text in files.items():
        write_whole(out / name, text.encode())
    gone = _superfluous(files, out)
    for path in gone:
        path.unlink()
    return [*notes, *(f"wrote {out / name}" for name in files), *(f"removed {path}" for path in gone)]


def find_records(sources: Iterable[Path]) -> list[Record]:
    """The records named, and those in the folders named, at any depth; the same one is never counted twice.

    Raises BadInput for a source that does not exist or a record that cannot be read.
    """
    found: dict[str, Record] = {}
    for source in sources:
        if not source.exists():
            raise BadInput(f"there is no record or folder {str(source)!r}; `mcbench run` writes records under runs")
        paths = sorted(source.rglob(FILE_NAME)) if source.is_dir() else [source]
        with inner("records", len(paths)) as advance:
            for path in paths:
                record = Record.load(path)
                found[record.digest] = record
                advance()
    return list(found.values())


def tabulate_records(
    records: Sequence[Record], profiles: Mapping[str, Profile] | None = None
) -> tuple[list[Table], list[str]]:
    """The tables that the records make, and what was left out of them and why.

    Raises BadInput where nothing is left, or where the same uncompressed model scored differently in two records.
    """
    whole = [record for record in records if record.results and not record.partial]
    kept = newest(whole, _run)
    notes = [
        note
        for count, note in (
            (sum(record.partial for record in records), "partial (--limit)"),
            (sum(not record.results for record in records), "without a task"),
            (len(whole) - len(kept), "older than another of the same method, bits and seed"),
        )
        if count
        for note in [f"left out: {count} record{'s' * (count > 1)} {note}"]
    ]
    if not kept:
        raise BadInput("; ".join(["there is no complete record to make a table of", *notes]))
    tables = [Table(tuple(members), profiles or {}) for members in _grouped(sorted(kept, key=_rank))]
    for table in tables:
        require_one_baseline(table)
    return tables, notes


def render(
    tables: Sequence[Table], notes: Sequence[str] = (), beside: str = "", significance: Sequence[Significance] = ()
) -> dict[str, str]:
    """The contents of every file of the leaderboard, by name: the same records give the same bytes.

    `beside` is Markdown that stands above the tables; `significance` is drawn in the page for the models it is of.
    """
    html = page([sheet(table) for table in tables], notes, significance)
    files = {MARKDOWN: _markdown(tables, notes, beside), CSV: _csv(tables), LATEX: _latex(tables), HTML: html}
    speeds = [(at, speed) for at, table in enumerate(tables, 1) for speed in _speeds(table)]
    return files | ({SPEED_CSV: _written(speed_lines(speeds))} if speeds else {})


def is_clear(result: Result) -> bool:
    """Whether the paired difference to the uncompressed model lies beyond two of its standard errors."""
    if result.difference is None or result.difference_error is None:
        return False
    return abs(result.difference) > CLEAR_ERRORS * result.difference_error


def pipe_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the rest to the right."""
    from tabulate import tabulate

    cells = [list(map(escape.markdown, row)) for row in rows]
    align = ["left"] + ["right"] * (len(heads) - 1)
    heads = list(map(escape.markdown, heads))
    return str(tabulate(cells, heads, tablefmt="pipe", disable_numparse=True, colalign=align))


# -- what may stand together


def _run(record: Record) -> tuple[object, ...]:
    """What makes two records runs of the same thing, of which the newer counts."""
    parts = tuple((part.name, part.source_digest) for part in record.parts)
    tests = tuple(sorted(result.protocol for result in record.results))
    asked = (record.method, parts, record.bits.asked, record.bits.asked_as, record.allocation, record.seed)
    return (*asked, calibration_of(record), tests)


def _rank(record: Record) -> tuple[object, ...]:
    return (
        record.model.name,
        not uncompressed(record),
        -record.bits.stored,
        record.method,
        record.seed,
        record.digest,
    )


def _grouped(records: Sequence[Record]) -> list[list[Record]]:
    """Records in rank order, each in the first group that it fits; what fits more than one is in all of them."""
    groups: list[list[Record]] = []
    examples: list[dict[object, Record]] = []  # of each group, one record of each kind in it
    # what restricts a table most opens it; the uncompressed model would share any of them
    for record in sorted(records, key=lambda r: (uncompressed(r), not calibration_of(r), not r.model.tokenizer)):
        homes = [at for at, found in enumerate(examples) if not any(unlike(record, one) for one in found.values())]
        if not homes:
            homes = [len(groups)]
            groups.append([])
            examples.append({})
        for home in homes[:1] if calibration_of(record) and record.model.tokenizer else homes:
            groups[home].append(record)
            examples[home].setdefault(condition(record), record)
    return sorted((sorted(group, key=_rank) for group in groups), key=lambda group: _rank(group[0]))


def require_one_baseline(table: Table) -> None:
    """Raises BadInput where the same uncompressed model scored differently in two records of a table."""
    for column in table.columns:
        cells = [(record, table.cell(record, column)) for record in table.records]
        known = [
            (record, value)
            for record, cell in cells
            if cell is not None and (value := cell.value if uncompressed(record) else cell.baseline) is not None
        ]
        for record, value in known[1:]:
            first, expected = known[0]
            turned = max(SAME_SHARE, 1 / max(column.n, default=100)) if column.share else 0.0
            if not math.isclose(value, expected, rel_tol=SAME_BASELINE, abs_tol=turned * (1 + 1e-9)):
                raise BadInput(
                    f"two baselines differ in {column.task}: {expected:g} in the record of {first.method!r} "
                    f"({first.digest[:12]}), {value:g} in that of {record.method!r} ({record.digest[:12]}); "
                    "run one of them again"
                )


def _beside(out: Path) -> str:
    """What stands in the notes of a folder of tables; nothing where it has none."""
    path = out / NOTES
    try:
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadInput(f"the notes {str(path)!r} cannot be read: {reason}") from None


def _compare(files: Mapping[str, str], out: Path) -> None:
    stale = [out / name for name, text in files.items() if not _holds(out / name, text)] + _superfluous(files, out)
    if stale:
        raise CheckFailed(
            f"{', '.join(map(str, stale))}: not what the records give; "
            "run `mcbench leaderboard` with the same records and without --check"
        )


def _superfluous(files: Mapping[str, str], out: Path) -> list[Path]:
    """What earlier records gave and these do not."""
    return [out / SPEED_CSV] if SPEED_CSV not in files and (out / SPEED_CSV).is_file() else []


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


# -- how a table looks


def _heads(table: Table) -> list[str]:
    means = [f"mean of {len(columns)} ({metric})" for metric, columns in table.means().items()]
    return ["method", *BITS, *_task_heads(table), *means, *(f"{mean.wording} %" for mean in table.suites())]


def _task_heads(table: Table) -> list[str]:
    return [f"{c.task} ({c.metric}{_count(c)})" for c in table.columns]


def _count(column: Column) -> str:
    """On how many items, after a comma; nothing where that is unknown."""
    return f"{', n = ' if column.n else ''}{'-'.join(map(str, _ends(column.n)))}"


def _ends(values: Sequence[int]) -> Sequence[int]:
    return values if len(values) < 2 else (values[0], values[-1])


def _rows(table: Table) -> list[list[str]]:
    return [
        [
            _method(table, record),
            *_bits(record),
            *(_scored(cell) if (cell := table.cell(record, column)) else "" for column in table.columns),
            *(_mean(table, record, columns) for columns in table.means().values()),
            *(suite_figure(mean.score(record.results)) for mean in table.suites()),
        ]
        for record in table.records
    ]


def _differences(table: Table) -> list[list[str]]:
    """A row for each record that was compared with the uncompressed model."""
    return [
        [
            _method(table, record),
            *_bits(record),
            *(_difference(cell) if (cell := table.cell(record, column)) else "" for column in table.columns),
            *(cell.shown for cell in _headline(table, record)),
        ]
        for record in table.records
        if any(result.difference is not None for result in record.results)
    ]


def _headline(table: Table, record: Record) -> tuple[Cell, Cell]:
    """The mean difference of a row in points, and what remains of it without the task that contributes most."""
    found = table.headline(record)
    if found is None or found.without is None:
        return Cell(), Cell()
    task, *rest = found.without
    shown = [
        f"{100 * value:+.1f} ± {100 * error:.1f}{'*' * (abs(value) > CLEAR_ERRORS * error)}"
        for value, error in ((found.value, found.standard_error), rest)
    ]
    return (
        Cell(shown[0], 100 * found.value, 100 * found.standard_error),
        Cell(f"{shown[1]} without {task}", 100 * rest[0], 100 * rest[1]),
    )


def _headline_heads(table: Table) -> list[str]:
    numbers = {len(found.tasks) for record in table.records if (found := table.headline(record)) is not None}
    return [f"mean of {'-'.join(map(str, sorted(numbers)))} tasks, points" if numbers else "mean", "what remains"]


def _difference(cell: Result) -> str:
    shown = with_error(cell, cell.difference, cell.difference_error, sign=True)
    return f"{shown}{'*' * is_clear(cell)}"


def _method(table: Table, record: Record) -> str:
    """The method string, with the seed where the same method stands there with another one."""
    seeds = {other.seed for other in table.records if other.method == record.method}
    name = f"{record.method}, seed {record.seed}" if len(seeds) > 1 else record.method
    return f"{name} {FALLBACK}" if record.fallbacks else name


def _bits(record: Record) -> list[str]:
    bits = record.bits
    asked = "" if bits.asked is None else f"{bits.asked:g}{' (experts)' * (bits.asked_as == 'expert')}"
    return [asked, *map(bit_figure, (bits.expert, bits.label, bits.whole_model, bits.stored))]


def _mean(table: Table, record: Record, columns: Sequence[Column]) -> str:
    found = table.mean(record, columns)
    example = table.cell(record, columns[0])
    return with_error(example, *found) if found and example is not None else ""


def _title(table: Table) -> str:
    model = table.records[0].model
    return f"{model.name} ({model.architecture})"


def _facts(table: Table) -> list[str]:
    """What all rows share."""
    model, compressed = table.records[0].model, [r for r in table.records if not uncompressed(r)]
    facts = [f"weights {model.digest[:12]}{''.join(f', {fact}' for fact in _subject(table))}"]
    if compressed:
        kept = compressed[0].allocation
        facts.append(f"bits of attention {kept.attention}, shared experts {kept.shared}, router {kept.router}")
    calibrated = next((r.calibration for r in table.records if r.calibration), None)
    if calibrated:
        facts.append(f"calibrated on {calibrated.source}, {calibrated.tokens} tokens, {calibrated.digest[:12]}")
    names = {column.protocol: column.task for column in table.columns}
    facts += [f"{names[protocol]} counts in no mean: {why}" for protocol, why in table.no_room.items()]
    for mean in table.suites():
        if bare := [names[protocol] for protocol in table.no_room if names[protocol] in mean.metrics]:
            facts.append(
                f"the {mean.suite} mean is over all of its tasks, as papers print it, {', '.join(bare)} among them"
            )
    if any(asked_share(result) is not None for record in table.records for result in record.results):
        facts.append(f"{ASKED} the method was calibrated on text that this task asks")
    return [*facts, *_fallbacks(table)]


def _fallbacks(table: Table) -> list[str]:
    """What the marked rows did otherwise than asked, each remark with the number of rows that it is about."""
    told = Counter(text for record in table.records for text in dict.fromkeys(record.fallbacks))
    rows = len(table.records)
    lines = [f"{FALLBACK} {text} ({count} of {rows} rows)" for text, count in told.most_common(SHOWN_FALLBACKS)]
    if len(told) > SHOWN_FALLBACKS:
        lines.append(f"{FALLBACK} and {len(told) - SHOWN_FALLBACKS} more remarks, in the records")
    if told:
        lines.append(f"{FALLBACK} records made before mcbench told this of single matrices have no mark for it")
    return lines


def _subject(table: Table) -> list[str]:
    """The precision, context and tokenizer of every row, as far as the records know them."""
    subjects = [Subject.of(record) for record in table.records]
    window = next((subject.window for subject in subjects if subject.window is not None), None)
    tokenizer = next((subject.tokenizer for subject in subjects if subject.tokenizer), "")
    dtype = next((subject.dtype for subject in subjects if subject.dtype), "")
    return [
        *([f"computed in {dtype}"] if dtype else []),
        *([f"context of {window} tokens"] if window is not None else []),
        *([f"tokenizer {tokenizer[:12]}"] if tokenizer else []),
    ]


def _markdown(tables: Sequence[Table], notes: Sequence[str], beside: str) -> str:
    lines = [
        "# Leaderboard",
        "",
        "Made from records by `mcbench leaderboard`; do not edit. Scores are in the unit of the column, each with its",
        "standard error; what was not measured is blank. Bits: asked for (a label unless marked), average over routed",
        "experts, the papers' label, average over the whole model, and stored bytes x 8 / parameters.",
    ]
    lines += [line for note in notes for line in ("", note[0].upper() + note[1:] + ".")]
    lines += ["", beside] if beside else []
    for table in tables:
        title = escape.markdown(_title(table))
        facts = "".join(f"- {escape.markdown(fact)}\n" for fact in _facts(table))
        protocols = ", ".join(escape.markdown_code(column.protocol) for column in table.columns)
        lines += ["", f"## {title}", "", f"{facts}- {protocols}", "", pipe_table(_heads(table), _rows(table))]
        if differences := _differences(table):
            heads = ["method", *BITS, *_task_heads(table), *_headline_heads(table)]
            lines += ["", *DIFFERENCES, "", pipe_table(heads, differences)]
        for speed in _speeds(table):
            lines += ["", *_speed_title(speed), "", pipe_table(speed.HEADS, speed.lines())]
    return "\n".join(lines) + "\n"


def _speeds(table: Table) -> list[SpeedTable]:
    return speed_tables(table.records, table.profiles)


def _speed_title(speed: SpeedTable) -> list[str]:
    return [
        f"### Speed and memory on {escape.markdown(speed.machine)}",
        "",
        f"Cell {speed.shape} (batch x prompt + output): median tokens per second of all sequences, over transformers'",
        "eager experts and over its fastest experts implementation, uncompressed, in the same run. A/A is the same",
        f"model against itself; a ratio no further from 1 has a tilde. {DEQUANTISED[0].upper()}{DEQUANTISED[1:]}.",
    ]


def sheet(table: Table) -> Sheet:
    """A table as the page wants it: every figure beside the number it was written from."""
    columns, means = table.columns, table.means()
    tasks = [Head(c.task, c.metric + _count(c), True, _higher(table, c), c.protocol) for c in columns]
    averages = [Head(f"mean {metric} of {len(members)}", plotted=True) for metric, members in means.items()]
    lines = []
    for record in table.records:
        cells = [table.cell(record, column) for column in columns]
        lines.append(
            Line(
                record,
                _method(table, record),
                (
                    *_bit_cells(record),
                    *(_score(cell) for cell in cells),
                    *(_mean_cell(table, record, members) for members in means.values()),
                ),
                (*(_change(cell) for cell in cells), *_headline(table, record)),
                uncompressed(record),
            )
        )
    heads = (*map(Head, BITS), *tasks, *averages)
    facts = (*_facts(table), ", ".join(column.protocol for column in columns))
    changes = (*tasks, *map(Head, _headline_heads(table)))
    return Sheet(_title(table), facts, heads, tuple(lines), BITS.index("stored"), changes)


def _higher(table: Table, column: Column) -> bool:
    return any(cell.higher_is_better for record in table.records if (cell := table.cell(record, column)) is not None)


def _bit_cells(record: Record) -> list[Cell]:
    bits = record.bits
    figures = (bits.asked, bits.expert, bits.label, bits.whole_model, bits.stored)
    return [Cell(shown, value) for shown, value in zip(_bits(record), figures, strict=True)]


def _score(result: Result | None) -> Cell:
    if result is None:
        return Cell()
    return _scaled(result, _scored(result), result.value, result.standard_error)


def _scored(cell: Result) -> str:
    """The score with its error, marked where the method was calibrated on what the task asks."""
    return f"{with_error(cell, cell.value, cell.standard_error)}{ASKED * (asked_share(cell) is not None)}"


def _change(result: Result | None) -> Cell:
    if result is None:
        return Cell()
    return _scaled(result, _difference(result), result.difference, result.difference_error)


def _mean_cell(table: Table, record: Record, columns: Sequence[Column]) -> Cell:
    found, example = table.mean(record, columns), table.cell(record, columns[0])
    if found is None or example is None:
        return Cell()
    return _scaled(example, _mean(table, record, columns), *found)


def _scaled(result: Result, shown: str, value: float | None, error: float | None) -> Cell:
    """A figure with its numbers in the unit in which it is shown: shares in per cent."""
    scale = 100 if is_share(result) else 1
    return Cell(shown, None if value is None else scale * value, None if error is None else scale * error)


def _latex(tables: Sequence[Table]) -> str:
    lines = ["% made from records by `mcbench leaderboard`; needs \\usepackage{booktabs,longtable}"]
    for table in tables:
        about = escape.latex_comment(f"{_title(table)}: {'; '.join(_facts(table))}")
        lines += ["", about, _tabular(_heads(table), _rows(table))]
        for speed in _speeds(table):
            about = escape.latex_comment(f"{speed.shape} on {speed.machine}")
            lines += ["", about, _tabular(speed.HEADS, speed.lines())]
    return "\n".join(lines) + "\n"


def _tabular(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX table; one that no page holds goes on over several, with its heads on each."""
    from tabulate import DataRow, Line, TableFormat, tabulate

    long, align = len(rows) > PAGE, ["left"] + ["right"] * (len(heads) - 1)
    kind = "longtable" if long else "tabular"
    booktabs = TableFormat(
        lineabove=Line(f"\\begin{{{kind}}}{{l{'r' * (len(heads) - 1)}}}\n\\toprule", "", "", ""),
        linebelowheader=Line("\\midrule\n\\endhead" if long else "\\midrule", "", "", ""),
        linebetweenrows=None,
        linebelow=Line(f"\\bottomrule\n\\end{{{kind}}}", "", "", ""),
        headerrow=DataRow("", "&", "\\\\"),
        datarow=DataRow("", "&", "\\\\"),
        padding=1,
        with_header_hide=None,
    )
    cells, names = [list(map(escape.latex, row)) for row in rows], list(map(escape.latex, heads))
    return str(tabulate(cells, names, tablefmt=booktabs, disable_numparse=True, colalign=align))


def _csv(tables: Sequence[Table]) -> str:
    """One line for each score: what spreadsheets and data frames read best."""
    return _written([_csv_line(at, table, record, cell) for at, table, record, cell in _cells(tables)])


def _written(lines: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: escape.csv_cell(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _cells(tables: Sequence[Table]) -> Iterator[tuple[int, Table, Record, Result]]:
    for at, table in enumerate(tables, 1):
        for record in table.records:
            for column in table.columns:
                if (cell := table.cell(record, column)) is not None:
                    yield at, table, record, cell


def _csv_line(at: int, table: Table, record: Record, cell: Result) -> dict[str, object]:
    return {
        "table": at,
        "model": record.model.name,
        "weights": record.model.digest,
        "calibration": table.calibration,
        "method": record.method,
        "seed": record.seed,
        "asked": record.bits.asked,
        "asked_as": record.bits.asked_as,
        "expert_bits": record.bits.expert,
        "label_bits": record.bits.label,
        "whole_model_bits": record.bits.whole_model,
        "stored_bits": record.bits.stored,
        "attention_bits": record.allocation.attention,
        "shared_bits": record.allocation.shared,
        "router_bits": record.allocation.router,
        "weight_bytes": sum(record.bits.bytes.values()),
        "task": cell.task,
        "protocol": cell.protocol,
        "metric": cell.metric,
        "value": cell.value,
        "n": cell.n,
        "k": cell.k,
        "standard_error": cell.standard_error,
        "chance": cell.chance,
        "baseline": cell.baseline,
        "difference": cell.difference,
        "difference_standard_error": cell.difference_error,
        "record": record.digest,
    }
