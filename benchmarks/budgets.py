"""Every allocation at the papers' nine budgets on both reference models: the leaderboard's records and what they say.

    python benchmarks/budgets.py run --out leaderboards/records
    python benchmarks/budgets.py tell leaderboards/records --out leaderboards/findings/budgets.md

`run` is one sweep for each model, in a process and on a thread of its own, with the uniform widths and random
allocations that `validity.py` judges besides; two quiet cores take about an hour. Samples stay under --runs, so that an
interrupted run goes on. The needles are left to the latter, for they take three times as long as all other tasks.
`tell` reads records and nothing else. Two allocations are compared item by item at the same label asked for; random is
the mean of its five draws.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

from mcbench.catalogue import select_tasks
from mcbench.comparable import unlike
from mcbench.comparison import evidence
from mcbench.errors import BadInput, UnknownName
from mcbench.files import write_whole
from mcbench.leaderboard import pipe_table
from mcbench.record import FILE_NAME, Record, Result
from mcbench.registry import names_in
from mcbench.report import bit_figure
from mcbench.suites import no_room
from mcbench.sweep import Grid, Outcome, numbers, sweep
from mcbench.uncertainty import holm

MODELS = "reference,reference-fine"
TASKS = "mini"
LONG = ("mini-needle", "mini-needle-multikey")  # take three times as long as all others together: not at every budget
BUDGETS = "1.57:2.54"
RANDOM = tuple(f"random(seed={seed})" for seed in range(5))
METHODS = ("uniform", "bsp", "hessian", "frequency", "routing-weight", "fnorm", "pmq", "output-kl")
SUBJECTS = ("pmq", "output-kl")  # whose differences to all others are told
LEVEL = 0.05  # of Holm's correction over all that stands in one table
ALL_RANDOM = "random, mean of 5"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or tells; returns 0 when done, 1 where a cell failed, 2 on wrong input."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.step(options))
    except (BadInput, UnknownName) as error:
        print(f"budgets: {error}", file=sys.stderr)  # noqa: T201 - a script
        return 2


# -- making the records


def run(options: argparse.Namespace) -> int:
    """Sweeps every model and copies the records, each into a folder named after method and budget."""
    models, failed = names_in(options.models, "list of models"), 0
    with ProcessPoolExecutor(len(models), mp_context=get_context("spawn"), initializer=_one_thread) as processes:
        jobs = {model: processes.submit(swept, model, options.tasks, options.runs) for model in models}
        for model, job in jobs.items():
            outcomes = job.result()
            for outcome in outcomes:
                if outcome.state == "done":
                    record = Record.load(outcome.record)
                    record.save(options.out / Path(model).name / place(record) / FILE_NAME)
                elif outcome.state == "failed":
                    failed += 1
                    print(f"{model}: {outcome.cell} failed: {outcome.reason}", file=sys.stderr)  # noqa: T201
            counts = {state: sum(o.state == state for o in outcomes) for state in ("done", "failed", "out of reach")}
            print(f"{model}: " + ", ".join(f"{n} {state}" for state, n in counts.items()), flush=True)  # noqa: T201
    return 1 if failed else 0


def swept(model: str, tasks: str, runs: Path) -> list[Outcome]:
    """What became of every cell of the grids of one model."""
    out = runs / Path(model).name
    return [outcome for grid in grids(model, tasks) for outcome in sweep(grid, out=out)]


def grids(model: str, tasks: str) -> list[Grid]:
    """Every allocation at nine labels, then one width for all experts and random widths of 2 bits on average."""
    short = ",".join(task.name for task in select_tasks(tasks) if task.name not in LONG)
    return [
        Grid((*METHODS, *RANDOM), bits=numbers(BUDGETS), model=model, tasks=short),
        Grid(("none", "uniform"), expert_bits=(1.0, 2.0, 3.0), model=model, tasks=tasks),
        Grid(("uniform",), expert_bits=(4.0,), widths=(4,), model=model, tasks=tasks),
        Grid(RANDOM, expert_bits=(2.0,), model=model, tasks=tasks),
    ]


def place(record: Record) -> str:
    """The folder of a record: its method and the budget as they were asked for."""
    bits = record.bits
    budget = "" if bits.asked is None else f"-{bits.asked:g}" + ("-experts" if bits.asked_as == "expert" else "")
    return re.sub(r"[^A-Za-z0-9.=]+", "-", record.asked).strip("-") + budget


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


# -- what they say


@dataclass(frozen=True)
class Board:
    """The records of one model: where each lies, by method as asked for and by label asked for."""

    model: str
    paths: Mapping[tuple[str, float], Path]
    records: Mapping[Path, Record]
    uncompressed: Path

    @property
    def budgets(self) -> list[float]:
        return sorted({bits for _, bits in self.paths})

    @property
    def methods(self) -> list[str]:
        """Those that do not draw, in the order of the study."""
        return [m for m in METHODS if any(method == m for method, _ in self.paths)]

    @property
    def no_room(self) -> dict[str, str]:
        """The families that count in no mean, and why: by the score of the uncompressed model."""
        plain = self.records[self.uncompressed]
        results = {task: _result(plain, task) for task in families()}
        return {task: why for task, r in results.items() if (why := no_room(r.value, r.n, r.chance))}

    @property
    def families(self) -> list[str]:
        """The families that count in a mean."""
        return [task for task in families() if task not in self.no_room]

    def record(self, method: str, bits: float) -> Record | None:
        path = self.paths.get((method, bits))
        return None if path is None else self.records[path]


def boards(sources: Sequence[Path], models: Sequence[str]) -> list[Board]:
    """The records of each model at labels asked for; BadInput where a model has none, or no uncompressed one."""
    found: dict[Path, Record] = {}
    for source in sources:
        if not source.exists():
            raise BadInput(f"there is no folder {str(source)!r} of records; `budgets.py run` makes one")
        found |= {path: Record.load(path) for path in sorted(source.rglob(FILE_NAME))}
    made = []
    for model in models:
        own = {path: record for path, record in found.items() if record.model.name == model}
        plain = next((path for path, record in own.items() if record.asked == "none"), None)
        paths = {
            (record.asked, record.bits.asked): path
            for path, record in own.items()
            if record.bits.asked is not None and record.bits.asked_as == "label" and record.seed == 0
        }
        if plain is None or not paths:
            raise BadInput(f"there is no record of {model!r} uncompressed and at labels asked for")
        made.append(Board(model, paths, own, plain))
    return made


def tell(options: argparse.Namespace) -> int:
    """Writes the tables of all models, or prints them where no file is named."""
    sections = [
        line for board in boards(options.records, names_in(options.models, "list of models")) for line in section(board)
    ]
    text = "\n\n".join([INTRODUCTION, *sections]) + "\n"
    if options.out is None:
        print(text, end="")  # noqa: T201
    else:
        write_whole(options.out, text.encode())
    return 0


INTRODUCTION = f"""# Nine budgets, the figures

Made by `python benchmarks/budgets.py tell` from the records of the leaderboard; do not edit. What they mean:
[findings](../findings.md). One calibration text and seed 0 throughout; the mean is over the families of tasks that have
room in 16 bits, each weighing the same. Random is the mean of five draws, ± their standard deviation. A difference is
paired item by item at the same label asked for, ± its standard error over items; an asterisk marks p < {LEVEL} after
Holm's correction for everything in the table. The difference to random is the mean of five such, with the least and the
greatest of them; it has a mark where all five are beyond chance on one side."""


def section(board: Board) -> Iterator[str]:
    """Everything about one model."""
    plain = board.records[board.uncompressed]
    left_out = "".join(f" {task} counts in no mean: {why}." for task, why in board.no_room.items())
    yield f"## {board.model}"
    yield (
        f"Weights {plain.model.digest[:12]}; in 16 bits perplexity {_perplexity(plain):.3f}, mean of "
        f"{len(board.families)} families {100 * _mean(plain, board.families):.1f} %.{left_out}"
    )
    heads = ["allocation", *(bit_figure(bits) for bits in board.budgets)]
    told: Mapping[str, tuple[int, Callable[[Record], float]]] = {
        "Perplexity": (3, _perplexity),
        "Mean of the families, %": (1, lambda record: 100 * _mean(record, board.families)),
        "Stored bits: bytes of the weights file x 8 / parameters": (3, lambda record: record.bits.stored),
    }
    for title, (digits, of) in told.items():
        rows = [[m, *(_number(board.record(m, bits), of, digits) for bits in board.budgets)] for m in board.methods]
        rows.append([ALL_RANDOM, *(_numbers(_draws(board, bits), of, digits) for bits in board.budgets)])
        yield f"### {title}"
        yield pipe_table(heads, rows)
    for subject in SUBJECTS:
        if subject in board.methods:
            yield from against(board, subject)


class Change(NamedTuple):
    """What the subject has more than another: of perplexity relative to it, of scores in shares; p as it is alone."""

    difference: float
    error: float
    p: float


class Pair(NamedTuple):
    """One allocation against another at a label: perplexity, the mean of the families, and each family.

    rest: the mean without the family that contributes most to it, `most`.
    """

    perplexity: Change
    mean: Change
    rest: Change
    most: str
    tasks: Mapping[str, Change]


Told = Callable[[Pair], Change]


def against(board: Board, subject: str) -> Iterator[str]:
    """The differences of one allocation to every other at every budget."""
    others = [m for m in (*board.methods, *RANDOM) if m != subject]
    pairs = {
        (other, bits): pair
        for other in others
        for bits in board.budgets
        if (pair := paired(board, subject, other, bits)) is not None
    }
    yield f"### {subject} against the others"
    heads = [f"{subject} less", *(bit_figure(bits) for bits in board.budgets)]
    keys = list(pairs)
    told: Mapping[str, Told] = {
        "Perplexity, relative, in % (less is better):": lambda pair: pair.perplexity,
        "Mean of the families, points (more is better):": lambda pair: pair.mean,
        "The same without the family that contributes most to it:": lambda pair: pair.rest,
    }
    for title, of in told.items():
        sure = dict(zip(keys, (p < LEVEL for p in holm([of(pairs[key]).p for key in keys])), strict=True))
        rows = [
            [
                other,
                *(_shown(of(pairs[other, b]), sure[other, b]) if (other, b) in pairs else "" for b in board.budgets),
            ]
            for other in others
            if other not in RANDOM
        ]
        rows.append([ALL_RANDOM, *(_against_random(pairs, sure, b, of) for b in board.budgets)])
        yield title
        yield pipe_table(heads, rows)
    yield (
        "Task by task: at how many of the budgets it is better / worse beyond chance, of so many (the same correction, "
        "over this table)."
    )
    yield pipe_table(["task", *others[: -len(RANDOM)]], list(_by_task(pairs, others[: -len(RANDOM)])))


def paired(board: Board, subject: str, other: str, bits: float) -> Pair | None:
    """The subject against another, item by item; None where either has no record at this label."""
    mine, theirs = board.record(subject, bits), board.record(other, bits)
    if mine is None or theirs is None:
        return None
    if reasons := unlike(theirs, mine):
        raise BadInput(f"{subject} and {other} at {bits:g} do not compare: {'; '.join(reasons)}")
    tasks = {task: change(_result(mine, task), _result(theirs, task)) for task in families()}
    counted = {task: tasks[task] for task in board.families}
    mean = _mean_change(counted.values())
    most = max(counted, key=lambda task: math.copysign(1.0, mean.difference) * counted[task].difference)
    rest = _mean_change([one for task, one in counted.items() if task != most])
    losses = change(_result(mine, perplexity()), _result(theirs, perplexity()))
    return Pair(losses, mean, rest, most, tasks)


def _mean_change(changes: Collection[Change]) -> Change:
    value = math.fsum(c.difference for c in changes) / len(changes)
    error = math.sqrt(math.fsum(c.error**2 for c in changes)) / len(changes)  # families share no item
    return Change(value, error, _normal(value, error))


def change(mine: Result, theirs: Result) -> Change:
    """The paired difference of one task: McNemar's exact test of right and wrong, else that of a normal error."""
    found = evidence(mine.rows(), theirs.rows(), mine.protocol, mine.metric)
    value, error = found.difference, found.standard_error or 0.0
    p = found.p_value() if found.flips is not None else _normal(value, error)
    if mine.higher_is_better:
        return Change(value, error, p)
    return Change(math.expm1(value), math.exp(value) * error, p)


def _normal(value: float, error: float) -> float:
    return 2 * NormalDist().cdf(-abs(value) / error) if error else 1.0


def _against_random(
    pairs: Mapping[tuple[str, float], Pair], sure: Mapping[tuple[str, float], bool], bits: float, of: Told
) -> str:
    found = [(100 * of(pairs[r, bits]).difference, sure[r, bits]) for r in RANDOM if (r, bits) in pairs]
    if not found:
        return ""
    values = [value for value, _ in found]
    clear = all(mark for _, mark in found) and (min(values) > 0 or max(values) < 0)
    return f"{statistics.mean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f}){'*' * clear}"


def _by_task(pairs: Mapping[tuple[str, float], Pair], others: Sequence[str]) -> Iterator[list[str]]:
    found = [
        (other, task, pair.perplexity if task == perplexity() else pair.tasks[task])
        for (other, _), pair in pairs.items()
        if other in others
        for task in (perplexity(), *families())
    ]
    counts: dict[tuple[str, str], list[int]] = {}
    for (other, task, one), p in zip(found, holm([one.p for *_, one in found]), strict=True):
        count = counts.setdefault((task, other), [0, 0, 0])
        count[2] += 1
        if p < LEVEL:
            count[0 if (one.difference > 0) == (task != perplexity()) else 1] += 1
    for task in (perplexity(), *families()):
        row = [counts.get((task, other)) for other in others]
        yield [task, *("" if c is None else f"{c[0]} / {c[1]} of {c[2]}" for c in row)]


# -- numbers


@cache
def families() -> tuple[str, ...]:
    """The scored families that every budget was asked."""
    return tuple(task.name for task in select_tasks(TASKS) if task.higher_is_better and task.name not in LONG)


@cache
def perplexity() -> str:
    """The task whose score is a loss."""
    return next(task.name for task in select_tasks(TASKS) if not task.higher_is_better)


def _perplexity(record: Record) -> float:
    return _score(record, perplexity())


def _mean(record: Record, tasks: Sequence[str]) -> float:
    return math.fsum(_score(record, task) for task in tasks) / len(tasks)


def _score(record: Record, task: str) -> float:
    value = _result(record, task).value
    assert value is not None
    return value


def _result(record: Record, task: str) -> Result:
    found = next((result for result in record.results if result.task == task and result.value is not None), None)
    if found is None:
        raise BadInput(f"the record of {record.method!r} at {record.bits.asked} has no score of {task}")
    return found


def _draws(board: Board, bits: float) -> list[Record]:
    return [record for name in RANDOM if (record := board.record(name, bits)) is not None]


def _number(record: Record | None, of: Callable[[Record], float], digits: int) -> str:
    return "" if record is None else f"{of(record):.{digits}f}"


def _numbers(records: Sequence[Record], of: Callable[[Record], float], digits: int) -> str:
    if len(records) < 2:
        return ""
    values = [of(record) for record in records]
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _shown(found: Change, sure: bool) -> str:
    return f"{100 * found.difference:+.1f} ± {100 * found.error:.1f}{'*' * sure}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    steps = parser.add_subparsers(metavar="step", required=True)
    runs = steps.add_parser("run", help="make the records", allow_abbrev=False)
    runs.add_argument("--models", default=MODELS, help=f"names or folders by commas (default {MODELS})")
    runs.add_argument("--tasks", default=TASKS, help=f"tasks or suites by commas (default {TASKS})")
    runs.add_argument("--runs", type=Path, default=Path("runs/budgets"), help="where samples and codes are kept")
    runs.add_argument("--out", type=Path, required=True, help="where the records go, one folder for each model")
    runs.set_defaults(step=run)
    tells = steps.add_parser("tell", help="write what they say", allow_abbrev=False)
    tells.add_argument("records", nargs="+", type=Path, help="folders of records")
    tells.add_argument("--models", default=MODELS, help=f"names by commas (default {MODELS})")
    tells.add_argument("--out", type=Path, help="the Markdown file; printed where not given")
    tells.set_defaults(step=tell)
    return parser


if __name__ == "__main__":
    sys.exit(main())
