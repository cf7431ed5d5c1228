"""What a model costs to run: time and memory of prefill and decode, cell by cell, beside transformers' own experts.

A profile lies beside the record of the run whose model it measured and carries its fingerprint; a record never changes.
Speeds stand in one table only where device and machine agree.
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from mcbench.bounds import Between, shown
from mcbench.errors import BadInput
from mcbench.files import read_text, write_whole
from mcbench.record import FILE_NAME, Environment, Record, read_sealed, seal
from mcbench.report import aligned, note

SCHEMA = 1
PROFILE, UNFINISHED = "profile.json", "profile.partial.json"
DEFAULT_GRID = "1/8/16x512/1024/2048/4096+32,1x2048+512"
LARGEST_AXIS = Between(1, 2**20)
MOST_CELLS = 1000
HEADLINE = "1x2048+512"  # the cell of the paper, shown in the leaderboard where it was measured
PHASES: tuple[PhaseName, ...] = ("prefill", "decode")
DEQUANTISED = (
    "a compressed model computes with the weights that its codes decode to: its speed and its memory are those of the "
    "decoded weights, and only the file is smaller"
)

PhaseName = Literal["prefill", "decode"]
ArmName = Literal["eager", "best", "subject", "again"]


class Shape(NamedTuple):
    """A cell of the grid: sequences at once, tokens of each prompt, tokens written after it."""

    batch: int
    prompt: int
    output: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.prompt}+{self.output}"


def read_grid(text: str) -> tuple[Shape, ...]:
    """The cells that a text names, such as "1/8x512/1024+32,1x2048+512"; BadInput for one that names none."""
    shapes: list[Shape] = []
    for part in text.split(","):
        if not (found := re.fullmatch(r"\s*([\d/]+)x([\d/]+)\+([\d/]+)\s*", part)):
            raise BadInput(f"{shown(part)} is no cell; write BATCHxPROMPT+OUTPUT, such as 1x512+32 or 1/8x512/1024+32")
        axes = [[_size(n, part.strip()) for n in axis.split("/")] for axis in found.groups()]
        if math.prod(map(len, axes)) > MOST_CELLS:
            raise BadInput(f"the cells {shown(part)} are more than {MOST_CELLS:,}; ask for fewer")
        shapes += [Shape(b, p, o) for b in axes[0] for p in axes[1] for o in axes[2]]
    return tuple(dict.fromkeys(shapes))


def _size(digits: str, cell: str) -> int:
    if not digits:
        raise BadInput(f"the cell {shown(cell)} has an empty part; batch, prompt and output are 1 or more")
    size = int(digits[:20])  # more digits are out of bounds in any case
    LARGEST_AXIS.require(size, f"each of batch, prompt and output in the cell {shown(cell)}")
    return size


@dataclass(frozen=True)
class Phase:
    """Prefill or decode of one arm in one cell.

    tokens: read or written by all sequences of the cell in one repeat; seconds: of each repeat, warm-up left out.
    kv_bytes: of the cache when the phase ends. peak_bytes: the most memory that the phase held at once, weights
    included; reserved_bytes: what the device's allocator held; None where it cannot be measured. implementation: what
    computed the experts. reason: why there is no time; empty where there is one.
    """

    tokens: int
    implementation: str
    seconds: tuple[float, ...] = ()
    kv_bytes: int | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    reason: str = ""

    @property
    def median(self) -> float | None:
        """Seconds of the median repeat."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of all sequences over the median."""
        return self.tokens / self.median if self.median else None


@dataclass(frozen=True)
class Arm:
    """One way of computing a cell.

    eager: the uncompressed model through transformers' eager experts. best: the same through whichever experts
    implementation of transformers was the fastest in a trial, for each phase; `tried` says what each took. subject: the
    model that is profiled, as it is evaluated. again: the subject once more, which tells the noise.
    """

    name: ArmName
    prefill: Phase
    decode: Phase
    tried: Mapping[str, str] = field(default_factory=dict)

    def phase(self, name: PhaseName) -> Phase:
        """That phase of the arm."""
        return self.prefill if name == "prefill" else self.decode


@dataclass(frozen=True)
class Cell:
    """All arms at one batch size, prompt length and output length, measured in turns."""

    batch: int
    prompt: int
    output: int
    arms: tuple[Arm, ...]

    @property
    def shape(self) -> Shape:
        """Where in the grid the cell stands."""
        return Shape(self.batch, self.prompt, self.output)

    def phase(self, arm: ArmName, phase: PhaseName) -> Phase:
        """What an arm took for a phase."""
        return next(a for a in self.arms if a.name == arm).phase(phase)

    def ratio(self, phase: PhaseName, over: ArmName) -> float | None:
        """Tokens per second of the subject over those of another arm; above 1 the subject is faster."""
        ours, theirs = (self.phase(arm, phase).tokens_per_second for arm in ("subject", over))
        return ours / theirs if ours and theirs else None

    def noise(self, phase: PhaseName) -> float | None:
        """How far the subject is from itself: the slower median over the faster, less 1."""
        ratio = self.ratio(phase, "again")
        return max(ratio, 1 / ratio) - 1 if ratio else None


@dataclass(frozen=True)
class Memory:
    """Bytes that loading the model took: what is held when it is loaded, and the most that was held on the way."""

    held_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Profile:
    """The cost of running one model on one machine.

    method: the method string, written out; asked_bits: its budget. fingerprint: that of the model profiled, as in its
    record; baseline: what the arms `eager` and `best` compute with. memory_measure: where peaks come from; text: digest
    of the tokens. stored_bytes: of the weights file, by component (of a model that is not packed, of the file
    that would be, kept tensors in 16 bits where that loses nothing). weight_bytes: of the weights in memory, decoded.
    active_stored_bytes, active_weight_bytes: the part of either that a token of a prompt reads on average: routed
    experts that ran, attention, shared experts and router. grid: the cells asked for; cells: those measured so far.
    """

    method: str
    model: str
    architecture: str
    asked_bits: float | None
    fingerprint: str
    baseline: str
    environment: Environment
    attention: str
    memory_measure: str
    text: str
    warmup: int
    repeats: int
    load: Memory
    stored_bytes: Mapping[str, int]
    weight_bytes: int
    active_stored_bytes: float | None
    active_weight_bytes: float | None
    grid: tuple[str, ...]
    cells: tuple[Cell, ...] = ()
    command: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def complete(self) -> bool:
        """Whether every cell that was asked for is there."""
        return {str(cell.shape) for cell in self.cells} == set(self.grid)

    @property
    def setting(self) -> str:
        """Digest of what is measured and how: cells of equal settings may stand in one profile."""
        plain = replace(self, load=Memory(None, None), grid=(), cells=(), command=(), created="")
        return hashlib.sha256(plain.to_json().encode()).hexdigest()

    @property
    def machine(self) -> str:
        """Device, processor, threads, precision and versions: speeds compare only where all of this agrees."""
        here = self.environment
        device = here.device if here.device != "cpu" else f"{here.cpu}, {here.cores} cores"
        programs = ", ".join(f"{name} {here.versions.get(name, '?')}" for name in ("torch", "transformers"))
        return f"{device}, {here.threads} thread{'s' * (here.threads != 1)}, {here.dtype}, {programs}"

    def cell(self, shape: str) -> Cell | None:
        """The cell of that name, None where it was not measured."""
        return next((cell for cell in self.cells if str(cell.shape) == shape), None)

    def noise(self, phase: PhaseName) -> tuple[float, float] | None:
        """The noise of the median cell and of the worst, None where nothing could be timed."""
        found = [noise for cell in self.cells if (noise := cell.noise(phase)) is not None]
        return (statistics.median(found), max(found)) if found else None

    def to_json(self) -> str:
        """The profile as it stands in its file: schema, digest of the contents, contents."""
        return seal(self, SCHEMA)

    @classmethod
    def from_json(cls, text: str, where: str = "the profile") -> Profile:
        """What `to_json` wrote; BadInput where it is cut short, changed, of a newer schema or no profile."""
        return read_sealed(cls, text, where, SCHEMA, "profile")

    def save(self, path: Path) -> Path:
        """Writes the profile, complete or not at all."""
        write_whole(path, self.to_json().encode())
        return path

    @classmethod
    def load_file(cls, path: Path) -> Profile:
        """Reads a profile, or the one in a folder; BadInput as `from_json`, or where there is none."""
        path = path / PROFILE if path.is_dir() else path
        where = f"the profile {str(path)!r}"
        return cls.from_json(read_text(path, where), where)


def find_profiles(sources: Iterable[Path]) -> dict[str, Profile]:
    """The profiles beside the records in `sources`, by the fingerprint of the model they belong to.

    Raises BadInput where one cannot be read, or belongs to another model than the record beside it.
    """
    found: dict[str, Profile] = {}
    for source in sources:
        for path in sorted(source.rglob(PROFILE)) if source.is_dir() else [source.with_name(PROFILE)]:
            beside = path.with_name(FILE_NAME)
            if not path.is_file() or not beside.is_file():
                continue
            profile, record = Profile.load_file(path), Record.load(beside)
            if profile.fingerprint != record.fingerprint:
                raise BadInput(
                    f"the profile {str(path)!r} is of another model ({profile.fingerprint[:12]}) than the record "
                    f"beside it ({record.fingerprint[:12]}); make it again: `mcbench profile --record {path.parent}`"
                )
            known = found.get(profile.fingerprint)
            if known is None or known.created < profile.created:
                found[profile.fingerprint] = profile
    return found


# -- beside the scores of a leaderboard


@dataclass(frozen=True)
class SpeedTable:
    """Profiles made on one machine, in one cell that all of them measured."""

    machine: str
    shape: str
    rows: tuple[tuple[Record, Profile], ...]

    HEADS = (
        "method", "stored bits", "prefill tokens/s", "÷ eager", "÷ best", "A/A", "decode tokens/s", "÷ eager", "÷ best",
        "A/A", "peak MB prefill", "peak MB decode", "KV MB", "weights MB", "file MB",
    )  # fmt: skip

    def lines(self) -> list[list[str]]:
        """A row for each profile; what could not be measured is blank."""
        return [[record.method, f"{record.bits.stored:.3f}", *self._figures(profile)] for record, profile in self.rows]

    def _figures(self, profile: Profile) -> list[str]:
        cell = profile.cell(self.shape)
        assert cell is not None
        speeds = [figure for phase in PHASES for figure in _speed(cell, phase)]
        ours = [cell.phase("subject", phase) for phase in PHASES]
        held = [ours[0].peak_bytes, ours[1].peak_bytes, ours[1].kv_bytes, profile.weight_bytes]
        return [*speeds, *map(megabytes, [*held, sum(profile.stored_bytes.values())])]


def speed_tables(records: Sequence[Record], profiles: Mapping[str, Profile]) -> list[SpeedTable]:
    """The profiles of these records, those of one machine in one table; what shares no cell stands apart."""
    machines: dict[str, list[tuple[Record, Profile]]] = {}
    for record in records:
        if (profile := profiles.get(record.fingerprint)) is not None:
            machines.setdefault(profile.machine, []).append((record, profile))
    tables = []
    for machine, rows in machines.items():
        shapes: dict[str, list[tuple[Record, Profile]]] = {}
        common = [s for s in rows[0][1].grid if all(profile.cell(s) is not None for _, profile in rows)]
        for record, profile in rows:
            shape = (common or [HEADLINE if profile.cell(HEADLINE) else profile.grid[0]])[0]
            shapes.setdefault(HEADLINE if HEADLINE in common else shape, []).append((record, profile))
        tables += [SpeedTable(machine, shape, tuple(members)) for shape, members in shapes.items()]
    return tables


def speed_lines(tables: Sequence[tuple[int, SpeedTable]]) -> list[dict[str, object]]:
    """One line for each phase of each cell of each arm, for spreadsheets; the number is that of the score table."""
    return [
        {
            "table": at, "machine": table.machine, "method": record.method, "seed": record.seed,
            "stored_bits": record.bits.stored, "cell": str(cell.shape), "phase": name, "arm": arm.name,
            "implementation": phase.implementation, "median_seconds": phase.median,
            "least_seconds": min(phase.seconds, default=None), "greatest_seconds": max(phase.seconds, default=None),
            "repeats": len(phase.seconds), "tokens_per_second": phase.tokens_per_second,
            "peak_bytes": phase.peak_bytes, "kv_bytes": phase.kv_bytes, "weight_bytes": profile.weight_bytes,
            "stored_bytes": sum(profile.stored_bytes.values()), "reason": phase.reason, "record": record.digest,
        }
        for at, table in tables
        for record, profile in table.rows
        for cell in profile.cells
        for arm in cell.arms
        for name in PHASES
        for phase in [arm.phase(name)]
    ]  # fmt: skip


# -- on a terminal


def profile_table(profile: Profile) -> str:
    """The profile as plain text of at most 100 columns or so, for a terminal or a file."""
    asked = "" if profile.asked_bits is None else f" at {profile.asked_bits:g} bits"
    title = f"{profile.method}{asked} on {profile.model} ({profile.architecture})\n{profile.machine}"
    return "\n\n".join([title, *(_phase_table(profile, phase) for phase in PHASES), _notes(profile)])


def _phase_table(profile: Profile, name: PhaseName) -> str:
    heads = [name, "ms", "least", "most", "tokens/s", "÷ eager", "÷ best", "best is", "A/A", "peak MB", "KV MB"]
    rows, missing = [], []
    for cell in profile.cells:
        phase = cell.phase("subject", name)
        best = cell.phase("best", name)
        times = [phase.median, *((min(phase.seconds), max(phase.seconds)) if phase.seconds else (None, None))]
        speed, eager, ratio, noise = _speed(cell, name)
        rows.append(
            [
                str(cell.shape),
                *("" if t is None else f"{1000 * t:.1f}" for t in times),
                *(speed, eager, ratio, best.implementation if best.seconds else "", noise),
                *(megabytes(phase.peak_bytes), megabytes(phase.kv_bytes)),
            ]
        )
        for arm in cell.arms:
            if arm.name != "again" and (reason := arm.phase(name).reason):
                missing.append((reason, f"{arm.name} {cell.shape}"))
    reasons = {reason: ", ".join(where for why, where in missing if why == reason) for reason, _ in missing}
    left = [note("blank", f"{where}: {reason}") for reason, where in reasons.items()]
    return "\n".join([aligned(heads, rows, left=1), *left])


def _speed(cell: Cell, name: PhaseName) -> list[str]:
    """Tokens per second of the subject, its ratio to eager and to best, and the noise."""
    speed, noise = cell.phase("subject", name).tokens_per_second, cell.noise(name)
    ratios = [cell.ratio(name, "eager"), cell.ratio(name, "best")]
    marks = ["" if r is None else f"{r:.2f}{'~' * (noise is not None and within(r, noise))}" for r in ratios]
    return ["" if speed is None else f"{speed:.0f}", *marks, "" if noise is None else f"{100 * noise:.1f} %"]


def within(ratio: float, noise: float) -> bool:
    """Whether a ratio of speeds is no further from 1 than the same thing was from itself."""
    return max(ratio, 1 / ratio) - 1 <= noise


def _notes(profile: Profile) -> str:
    parts = ", ".join(f"{name} {megabytes(size)}" for name, size in profile.stored_bytes.items())
    held, file = megabytes(profile.weight_bytes), megabytes(sum(profile.stored_bytes.values()))
    active = [profile.active_stored_bytes, profile.active_weight_bytes]
    load, warm = profile.load, f"{profile.warmup} before them to warm up"
    lines = {
        "~": "no further from 1 than the same model was from itself (A/A)",
        "times": f"median of {profile.repeats} in turns, {warm}; least and most beside",
        "eager": f"transformers' eager experts, {profile.baseline}, same device, attention {profile.attention}",
        "best": "the same through the experts implementation that was fastest in a trial; nothing is compiled",
        "noise": "; ".join(
            f"{name}: A/A {100 * noise[0]:.1f} % in the median cell, {100 * noise[1]:.1f} % in the worst"
            for name in PHASES
            if (noise := profile.noise(name))
        ),
        "peak": profile.memory_measure,
        "loading": f"{megabytes(load.held_bytes)} MB held when loaded, {megabytes(load.peak_bytes)} MB at the peak"
        if load.held_bytes is not None
        else "",
        "weights": f"{held} MB in memory; file of {file} MB: {parts}",
        "active": f"{megabytes(active[1])} MB of weights read per token of a prompt; stored {megabytes(active[0])} MB"
        if active[0] is not None
        else "",
        "decoded": DEQUANTISED,
    }
    return "\n".join(note(name, text) for name, text in lines.items() if text)


def megabytes(size: float | None) -> str:
    """Bytes in millions, unknown as nothing."""
    return "" if size is None else f"{size / 1e6:.2f}" if size < 1e8 else f"{size / 1e6:.0f}"
