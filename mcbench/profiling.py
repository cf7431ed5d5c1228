"""Measures what a model costs to run: time and memory of prefill and decode, in turns with transformers' own experts.

In every cell of the grid the arms take turns in one process, forwards and backwards, on the same real text with a cache
that grows. Where the model is compressed, its decoded weights and the uncompressed ones are exchanged in place between
turns, so that the device holds one model. Memory is watched while warming up, never while time is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcbench.allocation import BitAllocation, BitBudget
from mcbench.bounds import require_settings
from mcbench.catalogue import models
from mcbench.checkpoint import WEIGHTS, first_sentence, is_compressed, read_explained, untied
from mcbench.composition import Composition, compose, defaults
from mcbench.compression import uncompressed_sizes
from mcbench.errors import BadInput, UnknownName
from mcbench.evaluation import fingerprint_of
from mcbench.experts import IMPLEMENTATION, PROJECTIONS
from mcbench.files import require_writable
from mcbench.inputs import require_device
from mcbench.locks import in_turn
from mcbench.method import declared
from mcbench.model import MoEModel, load_model
from mcbench.pipeline import Bench, Exam, fit_policy, language_model, require_budget, require_sources
from mcbench.progress import muted, stage, track
from mcbench.record import Environment, Record
from mcbench.speed import (
    DEFAULT_GRID,
    PHASES,
    PROFILE,
    UNFINISHED,
    Arm,
    ArmName,
    Cell,
    Memory,
    Phase,
    PhaseName,
    Profile,
    Shape,
    read_grid,
)
from mcbench.text import CalibrationData, calibration_data

if TYPE_CHECKING:
    from mcbench.policy import RoutingPolicy

EAGER = "eager"
# batched_mm copies the weights of an expert for each of its tokens: made for decode, ruinous on a prompt
CANDIDATES: Mapping[PhaseName, tuple[str, ...]] = {
    "prefill": (EAGER, "grouped_mm"),
    "decode": (EAGER, "grouped_mm", "batched_mm"),
}
WAKING_TOKENS = 8  # a short pass before each measured one, after weights may have been exchanged
COUNTED_TOKENS = 512  # of the text, over which the experts that run are counted
Tick = Callable[[], float]


def profile(
    method: str | None = None,
    *,
    bits: float | None = None,
    expert_bits: float | None = None,
    widths: Sequence[int] = (1, 2, 3),
    model: str | None = None,
    record: str | Path | None = None,
    grid: str = DEFAULT_GRID,
    warmup: int = 1,
    repeats: int = 5,
    calibration: str | Path | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    out: str | Path = "runs",
    quiet: bool = True,
    command: Sequence[str] = (),
) -> Profile:
    """Profiles a model and writes `profile.json` into the folder where its run puts its record, or beside `record`.

    The model is made as `run` makes it: `method`, `bits`, `model` and the calibration arguments mean the same; without
    a method it is taken as it is, which may be a packed folder. `record` is a run whose model is made again instead,
    and must come out the same; what is not registered here (a method of a file, a model that does not come with the
    package, a calibration text) is given beside it, for nothing is read because a record names it. `grid` as in
    `read_grid`; each cell is timed `repeats` times after `warmup` passes. Cells that were finished are kept, so that
    the same call goes on where it was interrupted.

    Raises BadInput and UnknownName for what cannot be done as asked. A cell that does not fit is a cell with a reason.
    """
    shapes = read_grid(grid)
    require_settings(samples=samples, length=length, repeats=repeats, warmup=warmup)
    for name, value in {"method": method, "model": model, "record": record, "out": out}.items():
        if value is not None and not str(value).strip():
            raise BadInput(f"{name} is empty; leave it out or name one")
    known, recorded = None, False
    if record is not None:
        asked: dict[str, object] = {"bits": bits, "expert_bits": expert_bits, "seed": seed}
        asked |= {"samples": samples, "length": length}
        if given := [name for name, value in asked.items() if value is not None]:
            raise BadInput(f"the record says what {given[0].replace('_', '-')} was; give it or the record, not both")
        known = Record.load(record)
        seed = known.seed
        model = _known_model(known) if model is None else model
        recorded = method is None
        method = known.method if method is None else method
        bits = known.bits.asked if known.bits.asked_as == "label" else None
        expert_bits = known.bits.asked if known.bits.asked_as == "expert" else None
        if (learnt := known.calibration) is not None:
            if calibration is None and learnt.source != "reference":
                raise BadInput(
                    f"the record was calibrated on {learnt.source!r}, and no file is read because a record names it: "
                    "give it with --calibration"
                )
            samples, length = learnt.samples, learnt.length
    name = defaults()["model"] if model is None else model
    require_sources(name, dtype, calibration)
    require_settings(bits=bits, expert_bits=expert_bits, seed=seed)
    composition = _composed("none" if method is None else method, seed or 0, recorded)
    require_budget(composition, bits, expert_bits, widths)
    require_writable(out)
    with muted(quiet):
        require_device(device)
        with stage("load"):
            moe, loading, measure = _load(name, dtype, device)
            bench = Bench(moe, Exam((), Path(out), None, False))
            if known is not None and bench.digest != known.model.digest:
                raise BadInput(
                    f"{name!r} is not the model of the record {str(record)!r}: the digest of its weights is "
                    f"{bench.digest[:12]}, that in the record {known.model.digest[:12]}; name the folder of that "
                    "model with --model, and its precision with --dtype"
                )
            budget = bench.budget(composition, bits, expert_bits, tuple(widths))
            data = bench.data(calibration, samples, length, seed or 0) if composition.calibrates else None
        subject = _Subject.of(moe, name)
        if budget is not None:
            assert data is not None
            with stage("compress"):
                subject = _compressed(bench, composition, budget, data, seed or 0)
        with ExitStack() as stack:
            stack.callback(subject.use, compressed=False)
            subject.use(compressed=True)
            if (part := composition.policy) is not None:
                assert data is not None
                policy = fit_policy(part, moe, data, subject.identity, bench.exam.calibration)
                subject = replace(subject, policy=policy)
            with subject.routed():
                lm = language_model(moe, subject.identity, subject.policy, check=False)
                fingerprint = lm.fingerprint  # taken here, as it names the way of computing that is in place
            if known is not None:
                made = fingerprint_of(lm.identity, moe.tokenizer, {**known.evaluation, "dtype": lm.settings()["dtype"]})
                if known.fingerprint != made:
                    raise BadInput(
                        f"the model made from the record {str(record)!r} is another ({made[:12]}) than it was "
                        f"({known.fingerprint[:12]}): use the widths, device, dtype and versions of that run"
                    )
                fingerprint = made  # a profile lies beside its record, however answers are computed today
            folder = bench.exam.place(moe, bench.title(composition, budget, seed or 0), fingerprint)
            if record is not None:
                folder = Path(record) if Path(record).is_dir() else Path(record).parent
            longest = max((s.prompt + s.output for s in shapes if s.prompt + s.output <= lm.window), default=0)
            longest = max(longest, *(s.prompt for s in shapes if s.prompt <= lm.window), 2)
            batch = max(shape.batch for shape in shapes)
            text = calibration_data(moe, calibration, samples=batch, length=longest, seed=seed or 0)
            stored, weights = subject.active(text.input_ids[:1, :COUNTED_TOKENS])
            accelerator = torch.cuda.get_device_name(moe.device) if moe.device.type == "cuda" else moe.device.type
            profiled = Profile(
                method=str(composition),
                model=moe.name,
                architecture=type(moe.model).__name__,
                asked_bits=budget.asked if budget else None,
                fingerprint=fingerprint,
                baseline="uncompressed weights" if subject.swapped else "the same weights",
                environment=Environment.here(
                    device=accelerator,
                    dtype=str(moe.model.dtype).removeprefix("torch."),
                    threads=torch.get_num_threads(),
                ),
                attention=str(getattr(moe.model.config, "_attn_implementation", "")),
                memory_measure=measure,
                text=text.digest,
                warmup=warmup,
                repeats=repeats,
                load=loading,
                stored_bytes=subject.stored,
                weight_bytes=weight_bytes(moe),
                active_stored_bytes=stored,
                active_weight_bytes=weights,
                grid=tuple(map(str, shapes)),
                command=tuple(command),
            )
            stack.enter_context(in_turn(folder / ".lock"))
            return _measure(profiled, folder, shapes, Stopwatch(subject, text.input_ids, lm.window))


def _known_model(record: Record) -> str:
    """The name of a record's model, where it comes with the package; BadInput where it would lead elsewhere."""
    if record.model.name in models():
        return record.model.name
    raise BadInput(
        f"the record is about the model {record.model.name!r}, and none is loaded because a record names it: "
        "give it with --model, and its weights are held against those of the record"
    )


def _composed(method: str, seed: int, recorded: bool) -> Composition:
    """The method as it was typed, or, out of a record, made of registered names and no folders."""
    if not recorded:
        return compose(method, seed=seed)
    try:
        composition = compose(method, seed=seed, registered=True)
    except UnknownName as error:
        raise UnknownName(f"{error}; a record names no file: give the method's with --method") from None
    if any(declared(part.method, "fitted_field") for part in composition.parts):
        raise BadInput(f"{method!r} names a folder, and none is read because a record names it: give --method")
    return composition


def _measure(profiled: Profile, folder: Path, shapes: Sequence[Shape], watch: Stopwatch) -> Profile:
    """The profile with every cell, written once it is whole; each finished cell is kept beside it until then."""
    unfinished = folder / UNFINISHED
    if unfinished.is_file():
        earlier = Profile.load_file(unfinished)
        if earlier.setting == profiled.setting:
            profiled = replace(profiled, cells=tuple(c for c in earlier.cells if c.shape in shapes))
    for shape in track([s for s in shapes if profiled.cell(str(s)) is None], len(shapes), "profile"):
        cell = watch.cell(shape, profiled.warmup, profiled.repeats)
        cells = sorted((*profiled.cells, cell), key=lambda c: shapes.index(c.shape))
        profiled = replace(profiled, cells=tuple(cells))
        profiled.save(unfinished)
    profiled.save(folder / PROFILE)
    unfinished.unlink(missing_ok=True)
    return profiled


@dataclass(frozen=True)
class _Subject:
    """The model that is profiled, and how to put its weights and the uncompressed ones in place.

    identity: digest of the weights. stored: bytes of the file by component; expert_bytes: [L, E] of each expert in it.
    swapped: the parameters that differ, by name, uncompressed and compressed, held in host memory.
    """

    moe: MoEModel
    identity: str
    stored: Mapping[str, int]
    expert_bytes: np.ndarray[Any, np.dtype[np.float64]]
    swapped: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    policy: RoutingPolicy | None = None

    @classmethod
    def of(cls, moe: MoEModel, name: str) -> _Subject:
        """The model as it was loaded, packed or not."""
        if Path(name).is_dir() and is_compressed(name):
            return cls(moe, moe.digest(), *packed_bytes(Path(name), moe))
        sizes = uncompressed_sizes(moe)
        each = sizes.bytes["experts"] / max(1, moe.layers * moe.experts)
        return cls(moe, moe.digest(), sizes.bytes, np.full((moe.layers, moe.experts), each))

    @torch.no_grad()
    def use(self, *, compressed: bool) -> None:
        """Puts the compressed or the uncompressed weights into the model."""
        for name, parameter in self.moe.model.named_parameters() if self.swapped else ():
            if name in self.swapped:
                parameter.copy_(self.swapped[name][compressed])

    def routed(self) -> AbstractContextManager[object]:
        """Its policy in place while the context is open; nothing where it has none."""
        return nullcontext() if self.policy is None else self.policy.applied(self.moe, self.identity)

    def active(self, ids: Tensor) -> tuple[float | None, float | None]:
        """Bytes of weights that a token of a prompt reads on average, as stored and in memory; None if dense."""
        moe = self.moe
        if not moe.is_moe:
            return None, None
        with ExitStack() as stack:
            if self.policy is not None:
                counts = stack.enter_context(self.policy.applied(moe, self.identity))
            else:
                counts = stack.enter_context(moe.route(lambda choices: choices.keep(choices.chosen)))
            moe.logits(ids)
        pairs = counts.executed.sum(0) / max(1, int(counts.tokens.sum()))  # [L, E]
        parts = ("attention", "shared", "router")
        linears = {**moe.attention_linears(), **moe.shared_linears()}
        held = sum(linear.weight.nbytes for linear in linears.values())
        held += sum(parameter.nbytes for parameter in moe.router_parameters().values())
        expert = sum(moe.weight(0, projection)[0].nbytes for projection in PROJECTIONS)
        stored = sum(self.stored.get(part, 0) for part in parts) + float((pairs * self.expert_bytes).sum())
        return stored, held + float(pairs.sum()) * expert


def _compressed(
    bench: Bench, composition: Composition, budget: BitBudget, data: CalibrationData, seed: int
) -> _Subject:
    """The model compressed as a run would, its own weights in place again when this is over."""
    moe = bench.moe
    learnt, compressed = bench.compress(composition, budget, data, seed)
    with compressed:
        decoded = {name: p.detach().cpu().clone() for name, p in moe.model.named_parameters()}
    swapped = {}
    for name, parameter in moe.model.named_parameters():
        original, other = parameter.detach().cpu(), decoded.pop(name)
        if not torch.equal(original, other):
            swapped[name] = (original.clone(), other)
    return _Subject(moe, learnt.identity, learnt.sizes.bytes, learnt.expert_bytes, swapped)


class _Pass(NamedTuple):
    """One prefill and one decode: seconds, and what the cache and the memory held at the end of each."""

    seconds: tuple[float, float]
    kv_bytes: tuple[int, int]
    peaks: tuple[tuple[int | None, int | None], tuple[int | None, int | None]]


class _Failed(NamedTuple):
    """Why a pass did not come to its end."""

    reason: str


class Stopwatch:
    """Times one cell after another on a model; `tick` is the clock, in seconds.

    ids: [sequences, tokens] of text; window: the longest sequence that the model can hold.
    """

    def __init__(self, subject: _Subject, ids: Tensor, window: int, tick: Tick = time.perf_counter) -> None:
        self.subject, self.window, self.tick = subject, window, tick
        self.model: Any = subject.moe.model
        last_only = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self._asked = {"use_cache": True, **({"logits_to_keep": 1} if last_only else {})}
        self.ids = ids.to(subject.moe.device)
        self.meter = Meter(subject.moe)
        self._growth = 0.0  # bytes per token that a pass has taken at most

    def cell(self, shape: Shape, warmup: int, repeats: int) -> Cell:
        """The cell with all arms, measured in turns; a phase that does not fit says why."""
        if shape.prompt > self.window:
            reason = f"{shape.prompt} tokens are longer than the window of {self.window}"
            return _empty(shape, reason)
        need, free = self._growth * shape.batch * (shape.prompt + shape.output), self.meter.free()
        if free is not None and need > free:  # a processor runs out of memory by ending the process
            return _empty(shape, f"needs about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
        fits = shape.prompt + shape.output <= self.window
        end = "" if fits else f"{shape.prompt} + {shape.output} tokens are longer than the window of {self.window}"
        run = shape if fits else shape._replace(output=0)
        first: dict[ArmName, _Pass | _Failed] = {}
        best, tried = self._trial(run, first)
        ways: dict[ArmName, tuple[str, str]] = {
            "eager": (EAGER, EAGER), "best": best, "subject": (IMPLEMENTATION,) * 2, "again": (IMPLEMENTATION,) * 2,
        }  # fmt: skip
        for arm in ("best", "subject", "again"):
            first[arm] = self._try(run, arm, ways[arm])
        failed = {arm for arm, found in first.items() if isinstance(found, _Failed)}
        able = [arm for arm in ways if arm not in failed]
        times: dict[ArmName, list[tuple[float, float]]] = {arm: [] for arm in ways}
        for turn in range(warmup - 1 + repeats):
            for arm in able if turn % 2 == 0 else able[::-1]:
                found = self._try(run, arm, ways[arm], watched=False)
                if isinstance(found, _Failed):
                    first[arm] = found
                elif turn >= warmup - 1:
                    times[arm].append(found.seconds)
        arms = [
            _arm(arm, shape, ways[arm], first[arm], times[arm], end, tried if arm == "best" else {}) for arm in ways
        ]
        return Cell(*shape, tuple(arms))

    def _trial(self, shape: Shape, first: dict[ArmName, _Pass | _Failed]) -> tuple[tuple[str, str], dict[str, str]]:
        """The fastest of transformers' experts implementations for each phase, and what each took once warm."""
        tried: dict[str, str] = {}
        seconds: dict[str, dict[str, float]] = {phase: {} for phase in PHASES}
        for decode in CANDIDATES["decode"]:
            prefill = decode if decode in CANDIDATES["prefill"] else CANDIDATES["prefill"][-1]
            found: _Pass | _Failed | None = None
            for watched in (True, False):  # the first warms up
                found = self._try(shape, "eager" if decode == EAGER else "best", (prefill, decode), watched=watched)
                if decode == EAGER and watched:
                    first["eager"] = found
                if isinstance(found, _Failed):
                    break
            for at, (phase, name) in enumerate((("prefill", prefill), ("decode", decode))):
                if name != decode or (phase == "decode" and not shape.output):
                    continue
                if isinstance(found, _Failed):
                    tried[f"{phase} {name}"] = found.reason
                elif found is not None:
                    seconds[phase][name] = found.seconds[at]
                    tried[f"{phase} {name}"] = f"{1000 * found.seconds[at]:.1f} ms"
        chosen = [min(times, key=lambda n: times[n]) if times else EAGER for times in seconds.values()]
        return (chosen[0], chosen[1]), tried

    def _try(self, shape: Shape, arm: ArmName, ways: tuple[str, str], *, watched: bool = True) -> _Pass | _Failed:
        finished: list[PhaseName] = []
        try:
            with self._set(arm):
                return self._pass(shape, ways, finished, watched)
        except (RuntimeError, MemoryError, ImportError, NotImplementedError) as error:
            if out_of_memory(error):
                reason = f"out of memory in {'decode' if finished else 'prefill'}"
            elif arm == "best":  # an implementation that this device or layout does not have
                reason = f"{'/'.join(dict.fromkeys(ways))} does not run here: {first_sentence(error)}"
            else:
                raise
        gc.collect()
        if self.subject.moe.device.type == "cuda":
            torch.cuda.empty_cache()
        return _Failed(reason)

    @contextmanager
    def _set(self, arm: ArmName) -> Iterator[None]:
        """The weights and the policy of an arm, in place while the context is open."""
        subject, ours = self.subject, arm in ("subject", "again")
        subject.use(compressed=ours)
        try:
            with subject.routed() if ours else nullcontext():
                yield
        finally:
            if subject.moe.is_moe:
                self.model.set_experts_implementation(IMPLEMENTATION)

    @torch.no_grad()
    def _pass(self, shape: Shape, ways: tuple[str, str], finished: list[PhaseName], watched: bool) -> _Pass:
        """Reads the prompts, then writes the text that follows, one token of each sequence a step."""
        ids = self.ids[: shape.batch, : shape.prompt + shape.output]
        if ids.shape != (shape.batch, shape.prompt + shape.output):
            raise BadInput(f"the text is too short for {shape}: it has {tuple(self.ids.shape)} tokens")
        self._forward(ids[:1, :WAKING_TOKENS], ways[0], None)
        if watched:
            self.meter.open()
        start = self._now()
        cache = self._forward(ids[:, : shape.prompt], ways[0], None)
        middle = self._now()
        kv, peaks = cache_bytes(cache), self.meter.peak() if watched else (None, None)
        finished.append("prefill")
        if watched:
            self.meter.again()
        begin = self._now()
        for at in range(shape.prompt, shape.prompt + shape.output):
            cache = self._forward(ids[:, at : at + 1], ways[1], cache)
        end = self._now()
        later = self.meter.peak() if watched else (None, None)
        most = max(peaks[0] or 0, later[0] or 0) - self.meter.weights
        self._growth = max(self._growth, most / ids.numel())
        return _Pass((middle - start, end - begin), (kv, cache_bytes(cache)), (peaks, later))

    def _forward(self, ids: Tensor, implementation: str, cache: Any) -> Any:
        if self.subject.moe.is_moe and self.model.config._experts_implementation != implementation:
            self.model.set_experts_implementation(implementation)
        past = {} if cache is None else {"past_key_values": cache}
        return self.model(input_ids=ids, **self._asked, **past).past_key_values

    def _now(self) -> float:
        if self.subject.moe.device.type != "cpu":
            torch.accelerator.synchronize(self.subject.moe.device)
        return self.tick()


def _arm(
    name: ArmName,
    shape: Shape,
    ways: tuple[str, str],
    first: _Pass | _Failed,
    times: Sequence[tuple[float, float]],
    end: str,
    tried: Mapping[str, str],
) -> Arm:
    """What was measured of an arm; `end` says why there could be no decode."""
    tokens = (shape.batch * shape.prompt, shape.batch * shape.output)
    if isinstance(first, _Failed):
        return replace(_missing(name, shape, first.reason, end or first.reason), tried=tried)
    phases = [
        Phase(
            tokens=tokens[at],
            implementation=ways[at],
            seconds=tuple(seconds[at] for seconds in times),
            kv_bytes=first.kv_bytes[at],
            peak_bytes=first.peaks[at][0],
            reserved_bytes=first.peaks[at][1],
        )
        for at in (0, 1)
    ]
    decode = Phase(tokens[1], ways[1], reason=end) if end else phases[1]
    return Arm(name, phases[0], decode, tried)


def _empty(shape: Shape, reason: str) -> Cell:
    """A cell in which nothing could be measured."""
    arms: tuple[ArmName, ...] = ("eager", "best", "subject", "again")
    return Cell(*shape, tuple(_missing(arm, shape, reason, reason) for arm in arms))


def _missing(name: ArmName, shape: Shape, prefill: str, decode: str) -> Arm:
    tokens = (shape.batch * shape.prompt, shape.batch * shape.output)
    return Arm(name, Phase(tokens[0], "", reason=prefill), Phase(tokens[1], "", reason=decode))


# -- bytes


def weight_bytes(moe: MoEModel) -> int:
    """Bytes of parameters and persistent buffers in memory; what is tied counts once."""
    return sum(tensor.nbytes for tensor in untied(moe.model).values())


def cache_bytes(cache: Any) -> int:
    """Bytes of every tensor in a cache of transformers: keys, values, and the states of what is no attention."""
    if cache is None:
        return 0
    seen: dict[int, int] = {}
    pending: list[Any] = [vars(layer) for layer in cache.layers] if hasattr(cache, "layers") else [vars(cache)]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor) and value.numel() > 1:  # single numbers are its bookkeeping
            seen[id(value)] = value.nbytes
        elif isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
    return sum(seen.values())


def packed_bytes(folder: Path, moe: MoEModel) -> tuple[dict[str, int], np.ndarray[Any, np.dtype[np.float64]]]:
    """Of a packed folder: bytes of its weights file by component, and [L, E] those of each routed expert."""
    explained = read_explained(folder)
    widths = BitAllocation.from_json(explained["allocation"]).widths
    with (folder / WEIGHTS).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(size))
    sizes = {n: e["data_offsets"][1] - e["data_offsets"][0] for n, e in table.items() if n != "__metadata__"}
    total = dict.fromkeys(("experts", "attention", "shared", "router", "other"), 0)
    linears = dict.fromkeys(moe.attention_linears(), "attention") | dict.fromkeys(moe.shared_linears(), "shared")
    routers, each = moe.router_parameters(), np.zeros(widths.shape)
    stacks = {f"{moe.experts_name(n)}.{p}": n for n in range(moe.layers) for p in PROJECTIONS}
    for name, count in sizes.items():
        prefix, _, width = name.rpartition(".")[0].rpartition(".")
        if prefix in stacks and width.isdigit():
            chosen = np.flatnonzero(widths[stacks[prefix]] == int(width))
            each[stacks[prefix], chosen] += count / len(chosen)
            total["experts"] += count
        elif (linear := (prefix if width.isdigit() else name).removesuffix(".weight")) in linears:
            total[linears[linear]] += count
        else:
            total["router" if name in routers else "other"] += count
    return {**total, "header": 8 + size}, each


# -- memory


class Meter:
    """The most memory that is held between `open` and `peak`, and again between `again` and `peak`.

    On CUDA the allocator's own count, allocated and reserved. On a CPU the peak of the resident set, which Linux resets
    on demand, less what was resident when the meter was opened, plus the weights.
    """

    def __init__(self, moe: MoEModel) -> None:
        self.device, self.weights = moe.device, weight_bytes(moe)
        self.how = _measure_of(self.device)
        self._before = 0

    def open(self) -> None:
        """Starts anew from what is held now."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.how:
            _return_free_memory()
            self._before = resident()
        self.again()

    def again(self) -> None:
        """Forgets the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.how:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> tuple[int | None, int | None]:
        """Bytes at the peak, and those that the allocator reserved; None for what cannot be known here."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        return (self.weights + max(0, resident("VmHWM") - self._before), None) if self.how else (None, None)

    def free(self) -> int | None:
        """Bytes that a processor's programs may still take; None where a device says so itself, or nobody does."""
        if self.device.type != "cpu" or not self.how:
            return None
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process in memory, or with "VmHWM" the most since that was reset; Linux only."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {what}")


def _return_free_memory() -> None:
    """Gives memory that the process has freed back to the system, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _measure_of(device: torch.device) -> str:
    """How peaks are measured on a device; empty where they cannot be."""
    if device.type == "cuda":
        return "the most that torch's allocator had allocated on the device"
    if device.type != "cpu":
        return ""
    try:
        resident("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return ""
    return "weights, plus how far the resident set of the process (VmHWM, reset) rose above where the pass began"


def _load(name: str, dtype: str, device: str) -> tuple[MoEModel, Memory, str]:
    """The model, what loading it took, and how memory is measured on its device."""
    if device.partition(":")[0] == "cpu":
        load_model(defaults()["model"])  # what the libraries themselves take is no part of the model
    gc.collect()
    _return_free_memory()  # or the model would be put where an earlier one was, as if it took nothing
    on_cpu = _measure_of(torch.device("cpu"))
    before = resident() if on_cpu else 0
    if on_cpu:
        Path("/proc/self/clear_refs").write_text("5")
    moe = load_model(name, dtype=dtype, device=device)
    how = _measure_of(moe.device)
    if moe.device.type == "cuda":
        held = Memory(torch.cuda.memory_allocated(moe.device), torch.cuda.max_memory_allocated(moe.device))
        return moe, held, how
    if not how:
        return moe, Memory(None, None), "not measured: this system does not tell"
    gc.collect()
    return moe, Memory(max(0, resident() - before), max(0, resident("VmHWM") - before)), how


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in ("out of memory", "not enough memory", "can't allocate memory"))
