"""A grid of runs, methods x budgets x seeds, that costs little more than one of them.

The model is loaded and evaluated uncompressed once, every expert is quantised once for each quantiser, and every cell
of the grid is composed from that, except where a quantiser works layer by layer: its codes serve one allocation only.
Each cell gives the record that `mcbench run` gives. What is finished stays under the output folder, so a sweep that was
killed goes on; a cell that fails is noted with its reason, and the rest go on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mcbench.allocation import require_widths
from mcbench.bounds import require_settings, shown
from mcbench.catalogue import select_tasks
from mcbench.composition import Composition, compose, defaults, method_strings, split
from mcbench.datasets import data_folder
from mcbench.errors import BadInput, CheckFailed, UnknownName
from mcbench.files import LONGEST, require_file, require_writable
from mcbench.inputs import require_device
from mcbench.locks import in_turn
from mcbench.pipeline import Bench, Clock, Exam, language_model, require_sources, source_digest
from mcbench.progress import muted, track
from mcbench.record import Record
from mcbench.registry import looks_like_path, suggest
from mcbench.report import aligned, bit_figure
from mcbench.sealed import content_digest, note, read_json, write_json
from mcbench.task import ALLOW

if TYPE_CHECKING:
    from mcbench.task import Task

JOURNAL = "sweep.json"
KIND = "sweep 2"  # what its journal says that it is
POINTS = 9  # of a range without a number, as the papers have from 1.57 to 2.54
MOST_CELLS = 100_000
TRIED_ITEMS = 8  # of each task in all, for the estimate of a plan

State = Literal["to do", "done", "failed", "out of reach"]


@dataclass(frozen=True)
class Grid:
    """What a sweep runs: every method at every budget with every seed, on the same model and tasks.

    bits, expert_bits: budgets as in `mcbench.run`; give one of them unless no method needs any. samples and length 0
    stand for the usual ones, limit 0 for every item; without data_dir, sets are looked for as MCBENCH_DATA says.
    """

    methods: tuple[str, ...]
    bits: tuple[float, ...] = ()
    expert_bits: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    tasks: str = ""
    model: str = ""
    widths: tuple[int, ...] = (1, 2, 3)
    calibration: str = ""
    samples: int = 0
    length: int = 0
    device: str = "cpu"
    dtype: str = "auto"
    limit: int = 0
    data_dir: str = ""

    def __post_init__(self) -> None:
        if not self.methods:
            raise BadInput("a sweep needs at least one method")
        if self.bits and self.expert_bits:
            raise BadInput("give the budgets as bits (the papers' label) or as expert_bits, not both")
        for name in ("bits", "expert_bits", "seeds", "widths"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise BadInput(f"{name} names a value twice: {', '.join(f'{v:g}' for v in values)}")
        require_widths(self.widths)
        if not self.seeds:
            raise BadInput("a sweep needs at least one seed")
        for name, values in {"seed": self.seeds, "bits": self.bits, "expert_bits": self.expert_bits}.items():
            for value in values:
                require_settings(**{name: value})
        require_settings(limit=self.limit or None, samples=self.samples or None, length=self.length or None)
        if len(self.methods) * max(1, len(self.bits) + len(self.expert_bits)) * len(self.seeds) > MOST_CELLS:
            raise BadInput(f"the grid has more than {MOST_CELLS:,} cells")

    def cells(self) -> Iterator[Cell]:
        """Every cell, those that share most of the work one after another: by seed, then quantiser, then method."""
        for number, seed in enumerate(self.seeds):
            made = [compose(method, seed=seed) for method in self.methods]
            plain = [c for c in made if not c.compresses]
            yield from (Cell(c, None, None, seed) for c in plain if c.calibrates or not number)  # none knows no seed
            for composition in sorted((c for c in made if c.compresses), key=lambda c: str(c.owner("quantize"))):
                if not self.bits and not self.expert_bits:
                    raise BadInput(f"{composition.asked!r} needs budgets: give bits or expert_bits")
                for bits in self.bits:
                    yield Cell(composition, bits, None, seed)
                for bits in self.expert_bits:
                    yield Cell(composition, None, bits, seed)


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    composition: Composition
    bits: float | None
    expert_bits: float | None
    seed: int

    def __str__(self) -> str:
        asked = f" at {self.bits:g} bits" if self.bits is not None else ""
        asked = f" at {self.expert_bits:g} expert bits" if self.expert_bits is not None else asked
        return f"{self.composition}{asked}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: `record` is where its record lies, `reason` why there is none."""

    cell: str
    state: State
    record: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a sweep would do: the state of every cell, and estimates for those to do.

    evaluation_seconds: of one cell, from a few items of every task on this machine; None where there is nothing to do.
    evaluations: how often the tasks are asked in all, the uncompressed model and weights without their policy included.
    store_bytes: what the quantised experts will take on disk, scales not counted.
    layerwise: how many of the cells to do quantise for themselves, layer by layer.
    """

    outcomes: tuple[Outcome, ...]
    evaluation_seconds: float | None
    store_bytes: int
    layerwise: int = 0
    evaluations: int = 0


@dataclass(frozen=True)
class Survey:
    """Every cell of a grid before any is run, in its order: what its record depends on, and whether it can be run."""

    keys: tuple[str, ...]
    planned: tuple[Outcome, ...]


class Worker(Protocol):
    """Runs cells of one grid, which it knows by their place; the model is loaded."""

    def survey(self) -> Survey:
        """Looks at every cell and runs none."""

    def run(self, places: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        """Runs these cells and yields each with its outcome, once, as it is finished; the record is in `exam.out`."""


class Engine(Protocol):
    """Where the cells of a grid are run."""

    def start(self, grid: Grid, exam: Exam) -> AbstractContextManager[Worker]:
        """Who runs the cells, ready inside the block; BadInput where that cannot be."""


class Local:
    """One cell after another in this process."""

    @contextmanager
    def start(self, grid: Grid, exam: Exam) -> Iterator[Workplace]:
        """The model is loaded when the block begins."""
        require_device(grid.device)
        yield Workplace(grid, exam)


class Workplace:
    """A grid and the model it is about, loaded in this process: the plain `Worker`."""

    def __init__(self, grid: Grid, exam: Exam) -> None:
        self.grid, self.cells, self.bench = grid, list(grid.cells()), _bench(grid, exam)

    def survey(self) -> Survey:
        """What no cell has to be run for."""
        return Survey(
            tuple(self.key(place) for place in range(len(self.cells))),
            tuple(_planned(self.bench, self.grid, cell) for cell in self.cells),
        )

    def key(self, place: int) -> str:
        """Everything that the cell's record depends on, as one digest."""
        return _key(self.bench, self.grid, self.cells[place])

    def run(self, places: Sequence[int]) -> Iterator[tuple[int, Outcome]]:
        """One after another."""
        for place in places:
            yield place, _run(self.bench, self.grid, self.cells[place])


def sweep(
    grid: Grid,
    *,
    out: str | Path = "runs",
    allow_code_execution: bool = False,
    quiet: bool = True,
    engine: Engine | None = None,
) -> tuple[Outcome, ...]:
    """Runs every cell of the grid that is not done yet and returns what became of each, in the order of the grid.

    Without an engine they run one after another in this process. Raises UnknownName and BadInput for what is wrong with
    the grid as a whole, before anything is computed. A budget that a method cannot reach is noted as out of reach;
    whatever else goes wrong in a cell is noted as failed.
    """
    _require_sources(grid)
    cells = list(grid.cells())
    exam = _exam(grid, out, allow_code_execution)
    require_writable(exam.out)
    with muted(quiet), _data(grid), (engine or Local()).start(grid, exam) as worker:
        survey = worker.survey()
        _require_some_in_reach(survey, cells)
        journal = Journal(exam.out / JOURNAL)
        outcomes: dict[str, Outcome] = {}
        to_do: dict[str, int] = {}  # methods may be the same under two names
        for place, (key, planned) in enumerate(zip(survey.keys, survey.planned, strict=True)):
            finished = journal.finished(key, exam.tasks, allow_code_execution=allow_code_execution)
            if finished is not None:
                outcomes[key] = finished
            elif planned.state == "to do":
                to_do.setdefault(key, place)
            else:
                journal.note(key, planned)
                outcomes[key] = planned
        for place, outcome in track(worker.run(tuple(to_do.values())), len(to_do), "sweep"):
            journal.note(survey.keys[place], outcome)
            outcomes[survey.keys[place]] = outcome
    return tuple(outcomes[key] for key in survey.keys)


def plan(grid: Grid, *, out: str | Path = "runs", allow_code_execution: bool = False, quiet: bool = True) -> Plan:
    """What `sweep` would do, without doing it: the model is loaded and asked a few items, nothing is written."""
    _require_sources(grid)
    exam, _ = _exam(grid, out, allow_code_execution), list(grid.cells())  # refuses what no model could make good
    with muted(quiet), _data(grid):
        require_device(grid.device)
        place = Workplace(grid, exam)
        cells, bench, survey = place.cells, place.bench, place.survey()
        _require_some_in_reach(survey, cells)
        journal = Journal(Path(out) / JOURNAL)
        tasks = bench.exam.tasks
        outcomes = tuple(
            journal.finished(key, tasks, allow_code_execution=allow_code_execution) or own
            for key, own in zip(survey.keys, survey.planned, strict=True)
        )
        to_do = [cell for cell, outcome in zip(cells, outcomes, strict=True) if outcome.state == "to do"]
        seconds = _evaluation_seconds(bench) if to_do else None
    count = bench.moe.weight_count()
    compressing = [cell for cell in to_do if cell.composition.compresses]
    alone = [cell for cell in compressing if cell.composition.layerwise]
    stores = {(c.composition.owner("quantize").name, c.seed) for c in compressing if not c.composition.layerwise}
    budgets = [bench.budget(c.composition, c.bits, c.expert_bits, grid.widths) for c in alone]
    widths = len(stores) * sum(grid.widths) + math.fsum(budget.expert_bits for budget in budgets if budget is not None)
    size = round(widths * count.routed) // 8 + (len(stores) + len(alone)) * count.attention // 2
    asked = sum(cell.composition.compresses + (cell.composition.policy is not None) for cell in to_do)
    return Plan(outcomes, seconds, size, len(alone), asked + bool(to_do))


def read_grid(path: str | Path, **changes: Any) -> Grid:
    """The grid in a TOML file, whose keys are the fields of `Grid`; `changes` come before what the file says.

    Lists may be written as lists or as at the shell ("1.57:2.54"). Raises BadInput for a file that cannot be read or a
    value of the wrong type, UnknownName for a key that is none.
    """
    path = Path(path)
    try:
        require_file(path, "the grid", LONGEST)
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"the grid {str(path)!r} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"the grid {str(path)!r} is not TOML: {error}") from None
    grid = make_grid(
        {key.replace("-", "_"): value for key, value in found.items()} | changes, f"the grid {str(path)!r}"
    )
    for name in (key for key in ("methods", "tasks") if key in found and key not in changes):
        lists = grid.methods if name == "methods" else (grid.tasks,)
        names = [each.partition("(")[0] for one in lists for piece in split(one, ",") for each in split(piece, "+")]
        if any(looks_like_path(each.strip()) for each in names):
            told = f"names a Python file, and none is run because a file names it: give --{name}"
            raise BadInput(f"the grid {str(path)!r} {told}")
    return grid


def make_grid(settings: Mapping[str, Any], where: str = "the grid") -> Grid:
    """A grid from plain values or from text as it is typed at the shell; BadInput and UnknownName as `read_grid`."""
    fields = {f.name: f for f in dataclasses.fields(Grid)}
    for key in settings:
        if key not in fields:
            raise UnknownName(f"{where} has no setting {key!r}; {suggest(key, fields)}")
    if "methods" not in settings:
        raise BadInput(f"{where} names no methods")
    readers: dict[str, Callable[[Any, str], Any]] = {
        "methods": _methods,
        "bits": numbers,
        "expert_bits": numbers,
        "seeds": _whole,
        "widths": lambda value, where: tuple(sorted(_whole(value, where))),
    }
    values = {}
    for key, value in settings.items():
        default = fields[key].default
        if key in readers:
            values[key] = readers[key](value, f"{where}: {key}")
        elif type(value) is not type(default):
            raise BadInput(f"{where}: {key} must be {type(default).__name__}, not {shown(value)}")
        else:
            values[key] = value
    return Grid(**values)


def numbers(value: Any, where: str = "bits") -> tuple[float, ...]:
    """Numbers from a list, from text by commas, or from a range low:high or low:high:points, evenly spaced."""
    pieces = value if isinstance(value, list | tuple) else str(value).split(",")
    found: list[float] = []
    for piece in pieces:
        ends = str(piece).split(":")
        try:
            if isinstance(piece, bool) or len(ends) > 3:
                raise ValueError
            low, high = float(ends[0]), float(ends[min(1, len(ends) - 1)])
            points = int(ends[2]) if len(ends) == 3 else POINTS if len(ends) == 2 else 1
        except ValueError:
            wanted = "numbers by commas or a range such as 1.57:2.54"
            raise BadInput(f"{where} must be {wanted}, not {shown(piece)}") from None
        if not 0 < low <= high < 100 or not 1 <= points <= 1000 or (len(ends) > 1 and (points < 2 or low == high)):
            raise BadInput(f"{where}: {shown(piece)} is no range of widths; write one such as 1.57:2.54:9")
        found += [round(low + (high - low) * at / max(1, points - 1), 6) for at in range(points)]
    return tuple(dict.fromkeys(found))


def report(outcomes: Sequence[Outcome], planned: Plan | None = None) -> str:
    """What became of every cell, or would, as plain text."""
    rows = [[outcome.cell, outcome.state, _detail(outcome)] for outcome in outcomes]
    width = max(len(row[2]) for row in rows)
    text = aligned(["cell", "state", "detail".ljust(width)], [[*row[:2], row[2].ljust(width)] for row in rows], left=2)
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.state] = counts.get(outcome.state, 0) + 1
    lines = [
        "\n".join(line.rstrip() for line in text.splitlines()),
        "",
        ", ".join(f"{n} {s}" for s, n in counts.items()),
    ]
    if planned is not None and planned.evaluation_seconds is not None:
        each, all_of_them = planned.evaluation_seconds, planned.evaluation_seconds * planned.evaluations
        lines.append(f"evaluation: about {each:.0f} s a model, {all_of_them / 60:.0f} min in all; calibration besides")
        lines.append(f"codes of the experts: {planned.store_bytes / 1e6:.1f} MB and their scales")
        if planned.layerwise:
            cell = "1 cell quantises" if planned.layerwise == 1 else f"{planned.layerwise} cells quantise"
            lines.append(f"layer by layer: {cell} anew, for the inputs of a layer depend on all widths below it")
    return "\n".join(lines)


# -- one cell


def _require_sources(grid: Grid) -> None:
    require_sources(grid.model or defaults()["model"], grid.dtype, grid.calibration or None)


def _exam(grid: Grid, out: str | Path, allow_code_execution: bool) -> Exam:
    if not str(out).strip():
        raise BadInput("the output folder is empty; leave it out or name one")
    return Exam(select_tasks(grid.tasks or defaults()["tasks"]), Path(out), grid.limit or None, allow_code_execution)


def _data(grid: Grid) -> AbstractContextManager[None]:
    """Where the grid's sets are looked for; without a folder of its own, where they are anyway."""
    return data_folder(grid.data_dir) if grid.data_dir else nullcontext()


def _bench(grid: Grid, exam: Exam) -> Bench:
    return Bench.load(grid.model or defaults()["model"], grid.dtype, grid.device, exam)


def _require_some_in_reach(survey: Survey, cells: Sequence[Cell]) -> None:
    """Raises BadInput where not one cell can be run, for then the grid itself is wrong."""
    if all(outcome.state == "out of reach" for outcome in survey.planned):
        raise BadInput(f"no cell of the grid can be run; the first, {cells[0]}: {survey.planned[0].reason}")


def _run(bench: Bench, grid: Grid, cell: Cell) -> Outcome:
    started = time.monotonic()
    asked = command(grid, cell, allow_code_execution=bench.exam.allow_code_execution)
    try:
        budget = bench.budget(cell.composition, cell.bits, cell.expert_bits, grid.widths)
        data = None
        if cell.composition.calibrates:
            data = bench.data(grid.calibration or None, grid.samples or None, grid.length or None, cell.seed)
        _, path = bench.run(cell.composition, budget, data, Clock(), seed=cell.seed, command=asked)
    except (BadInput, UnknownName, CheckFailed) as error:
        return Outcome(str(cell), "failed", reason=str(error), seconds=time.monotonic() - started)
    except Exception as error:  # whatever a method, a task or the machine makes of it
        reason = f"{type(error).__name__}: {error}"
        return Outcome(str(cell), "failed", reason=reason, seconds=time.monotonic() - started)
    return Outcome(str(cell), "done", record=str(path), seconds=time.monotonic() - started)


def command(grid: Grid, cell: Cell, *, allow_code_execution: bool = False) -> tuple[str, ...]:
    """The command line that makes the cell's record alone."""
    widths = ",".join(map(str, grid.widths)) if grid.widths != Grid.widths else ""
    budget = {"bits": cell.bits, "expert-bits": cell.expert_bits} if cell.composition.compresses else {}
    flags = {
        "method": cell.composition.asked,
        **{name: f"{value:.12g}" for name, value in budget.items() if value is not None},
        "widths": widths,
        "model": grid.model,
        "tasks": grid.tasks,
        "calibration": grid.calibration,
        "samples": grid.samples,
        "length": grid.length,
        "seed": cell.seed,
        "device": "" if grid.device == Grid.device else grid.device,
        "dtype": "" if grid.dtype == Grid.dtype else grid.dtype,
        "limit": grid.limit,
        "data-dir": grid.data_dir,
    }
    words = (word for name, value in flags.items() if value for word in (f"--{name}", str(value)))
    return ("mcbench", "run", *words, *([ALLOW] if allow_code_execution else []))


def _planned(bench: Bench, grid: Grid, cell: Cell) -> Outcome:
    """Whether the cell's budget can be reached at all."""
    try:
        bench.budget(cell.composition, cell.bits, cell.expert_bits, grid.widths)
    except BadInput as error:
        return Outcome(str(cell), "out of reach", reason=str(error))
    return Outcome(str(cell), "to do")


def _key(bench: Bench, grid: Grid, cell: Cell) -> str:
    """Everything that the cell's record depends on, as one digest."""
    content = {
        "model": bench.digest,
        "method": [str(cell.composition), [source_digest(part) for part in cell.composition.parts]],
        "budget": [cell.bits, cell.expert_bits, grid.widths, cell.seed],
        "calibration": [_file_digest(grid.calibration), grid.samples, grid.length],
        "evaluation": [[task.protocol for task in bench.exam.tasks], grid.limit, grid.device, grid.dtype],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_digest(path: str) -> str:
    if not path:
        return ""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"the calibration text {path!r} cannot be read: {error.strerror}") from None


class Journal:
    """The cells that are finished, by the digest of what they depend on, in a file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, Outcome] = {}
        self._answers: dict[str, str] = {}  # what the record of a cell that is done says
        try:
            kept = read_json(path, KIND) or {}
            self.cells = {key: Outcome(**cell["outcome"]) for key, cell in kept.items()}
            self._answers = {key: str(cell["answers"]) for key, cell in kept.items()}
            if not all(isinstance(text, str) for o in self.cells.values() for text in (o.cell, o.record, o.reason)):
                raise TypeError
        except (BadInput, TypeError, KeyError, AttributeError) as error:
            told = str(error) if isinstance(error, BadInput) else f"the sweep in {str(path)!r} is damaged"
            raise BadInput(f"{told}; delete it, the samples of the runs are kept") from None

    def finished(self, key: str, tasks: Sequence[Task], *, allow_code_execution: bool = False) -> Outcome | None:
        """The outcome of a cell whose record is there and whole; None where it has to be run, again or at all.

        The record of a model lies in one place, so a later run that asked other tasks has replaced it. A task that was
        skipped for lack of isolation is not done where programs may run without.
        """
        outcome = self.cells.get(key)
        if outcome is None or outcome.state != "done":
            return None
        path = self.path.parent / outcome.record
        if not path.resolve().is_relative_to(self.path.parent.resolve()):
            return None
        try:
            record = Record.load(path)
        except BadInput:
            return None
        if [result.protocol for result in record.results] != [task.protocol for task in tasks]:
            return None
        if _answers(record) != self._answers.get(key):
            note(f"the record {str(path)!r} is not the one that {outcome.cell} gave, so the cell is run again")
            return None
        if allow_code_execution and any(ALLOW in result.skipped for result in record.results):
            return None
        return dataclasses.replace(outcome, record=str(path))

    def note(self, key: str, outcome: Outcome) -> None:
        """Keeps the outcome, on disk before this returns."""
        where = str(Path(outcome.record).relative_to(self.path.parent)) if outcome.record else ""
        with in_turn(self.path.with_name(f".{self.path.name}.lock")):
            noted = Journal(self.path)  # what another sweep noted meanwhile stays
            self.cells, self._answers = noted.cells, noted._answers
            self.cells[key] = dataclasses.replace(outcome, record=where)
            self._answers[key] = _answers(Record.load(outcome.record)) if outcome.record else ""
            kept = {
                key: {"outcome": dataclasses.asdict(cell), "answers": self._answers[key]}
                for key, cell in self.cells.items()
            }
            write_json(self.path, KIND, {}, kept)


def _answers(record: Record) -> str:
    """A digest of what a record says, its times and the machine left out: what a run gives once more."""
    told = [(r.protocol, r.value, r.n, r.partial) for r in record.results]
    return content_digest(
        [record.method, record.seed, record.bits.asked, record.model.digest, record.fingerprint, repr(told)]
    )


# -- estimates


def _evaluation_seconds(bench: Bench) -> float:
    """How long one model takes for all tasks, from a few items of each; rather too long than too short.

    Few items fill no batch and share little of what comes before them.
    """
    exam = bench.exam
    lm = language_model(bench.moe, bench.digest)
    exam.require_room(lm.window)
    total = 0.0
    for task in track(exam.tasks, len(exam.tasks), "trying a few items"):
        allowed = exam.allow_code_execution
        task.evaluate(lm, limit=exam.limit, few=1, allow_code_execution=allowed)  # what is made once is not timed
        scores = task.evaluate(lm, limit=exam.limit, few=TRIED_ITEMS, allow_code_execution=allowed)
        if not scores.skipped:
            total += scores.seconds * task.samples_expected(lm, exam.limit) / len(scores.samples)
    return total


def _methods(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = ",".join(value)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where} must be method strings by commas, not {value!r}")
    return method_strings(value)


def _whole(value: Any, where: str) -> tuple[int, ...]:
    pieces = value if isinstance(value, list | tuple) else str(value).split(",")
    try:
        if any(isinstance(piece, bool | float) for piece in pieces):
            raise ValueError
        return tuple(dict.fromkeys(int(piece) for piece in pieces))
    except ValueError:
        raise BadInput(f"{where} must be whole numbers by commas, not {shown(value)}") from None


def _detail(outcome: Outcome) -> str:
    if outcome.state == "done":
        record = Record.load(outcome.record)
        return f"label {bit_figure(record.bits.label)}, stored {bit_figure(record.bits.stored)}, {outcome.record}"
    return textwrap.shorten(outcome.reason, 200, placeholder=" ...")
