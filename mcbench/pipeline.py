"""One run, from a method string to a record: load, calibrate, allocate, compress, evaluate, record."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcbench import record as recorded
from mcbench.allocation import BitAllocation, BitBudget, require_widths
from mcbench.bounds import require_settings
from mcbench.catalogue import select_tasks
from mcbench.composition import METHODS, Composition, Part, compose, defaults
from mcbench.datasets import data_folder
from mcbench.errors import BadInput, require_all
from mcbench.fallbacks import gathered_experts
from mcbench.files import require_writable
from mcbench.inputs import require_calibration, require_device, require_dtype, require_model, require_place
from mcbench.locks import in_turn
from mcbench.method import decisions
from mcbench.progress import inner, muted, stage, track
from mcbench.record import FILE_NAME, Record, Result
from mcbench.sealed import Damaged, note, read_json, read_lines, unless_damaged, write_json
from mcbench.source import PLAIN

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mcbench.compression import CompressedModel, Sizes
    from mcbench.evaluation import LanguageModel
    from mcbench.fidelity import Reading
    from mcbench.layerwise import LayerwiseStore
    from mcbench.model import MoEModel
    from mcbench.policy import RoutingPolicy
    from mcbench.routing import PairCounts
    from mcbench.stats import CalibrationStats
    from mcbench.store import ExpertStore
    from mcbench.task import Scores, Task
    from mcbench.text import CalibrationData

UNCOMPRESSED = "uncompressed"  # in the name of the folder with what the model itself answers
POLICY_FOLDER = "routing"  # of a saved model, where its policy lies
SHOWN_NUMBERS = 2048  # a table of a policy with more stands in its own file only
PAIRS = "pair counts 2"  # what the file of a task's pairs says that it is
FOUR_BITS = 4  # of attention and shared experts, whatever the method, so that only the experts differ


def run(
    method: str | None = None,
    *,
    bits: float | None = None,
    expert_bits: float | None = None,
    widths: Sequence[int] = (1, 2, 3),
    model: str | None = None,
    tasks: str | None = None,
    calibration: str | Path | None = None,
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "auto",
    out: str | Path = "runs",
    save: str | Path | None = None,
    limit: int | None = None,
    allow_code_execution: bool = False,
    execute: bool = True,
    data_dir: str | Path | None = None,
    quiet: bool = True,
    command: Sequence[str] = (),
) -> Record:
    """Compresses a model, evaluates it beside the uncompressed one, and writes a record under `out`.

    `method` is a method string such as "pmq(beta=1)+hqq" or "pmq+odp"; with a routing policy the compressed model is
    evaluated under the router alone as well. `bits` is the average as the papers label it, `expert_bits` that over
    routed experts alone; give one of them unless the method can reach only one. `widths` are the candidate widths of an
    expert. `model` is a name, folder or hub id; `tasks` are tasks or suites, by commas. `save` is a folder for the
    packed model, its policy in the folder `routing` inside. `data_dir` is a folder of published evaluation sets, looked
    into before the Hugging Face cache and the hub. Without `execute`, programs are written and not run. Without method,
    model or tasks, `defaults.json` says which. What a run has finished stays under `out`, so that the same call goes on
    where it was interrupted.

    Raises UnknownName and BadInput for what cannot be done as asked, CheckFailed where the compression does not cover
    the model or the fast evaluation differs from the plain one.
    """
    for name, value in {"method": method, "tasks": tasks, "model": model, "out": out, "save": save}.items():
        if value is not None and not str(value).strip():
            raise BadInput(f"{name} is empty; leave it out or name one")
    require_settings(samples=samples, length=length, limit=limit)
    model = defaults()["model"] if model is None else model
    require_sources(model, dtype, calibration)
    composition = composed(defaults()["method"] if method is None else method, bits, expert_bits, widths, seed)
    if save is not None and not composition.compresses:
        raise BadInput(f"{composition.asked!r} compresses nothing, so there is nothing to save")
    chosen = select_tasks(defaults()["tasks"] if tasks is None else tasks)
    exam = Exam(chosen, Path(out), limit, allow_code_execution, execute)
    clock = Clock()
    require_writable(out)
    with muted(quiet), data_folder(data_dir):
        if save is not None:
            require_place(save)
        require_device(device)
        with clock.stage("load"):
            exam.require_data()
            bench = Bench.load(model, dtype, device, exam)
            budget = bench.budget(composition, bits, expert_bits, tuple(widths))
            data = bench.data(calibration, samples, length, seed) if composition.calibrates else None
        return bench.run(composition, budget, data, clock, seed=seed, save=save, command=command)[0]


def composed(
    method: str, bits: float | None, expert_bits: float | None, widths: Sequence[int], seed: int
) -> Composition:
    """The methods of a method string, with a budget where they need one; nothing heavy is imported for it.

    Raises UnknownName and BadInput for what no model could make good.
    """
    require_settings(bits=bits, expert_bits=expert_bits, seed=seed)
    composition = compose(method, seed=seed)
    require_budget(composition, bits, expert_bits, widths)
    return composition


def require_budget(
    composition: Composition, bits: float | None, expert_bits: float | None, widths: Sequence[int]
) -> None:
    """Raises BadInput unless there is one budget where weights are compressed, and none where they are not."""
    require_widths(widths)
    if not composition.compresses and (bits, expert_bits) != (None, None):
        raise BadInput(f"{composition.asked!r} compresses nothing, so it takes no budget; name another method")
    if bits is not None and expert_bits is not None:
        raise BadInput("give the budget as bits (the papers' label) or as expert_bits, not both")
    if composition.compresses and bits is None and expert_bits is None:
        raise BadInput(
            f"{composition.asked!r} needs a budget: --bits, the average as the papers label it (such as 2.05), or "
            f"--expert-bits, from {min(widths)} to {max(widths)}"
        )


def require_sources(model: str, dtype: str, calibration: str | Path | None) -> None:
    """Raises BadInput and UnknownName for a model or text that cannot be there, before anything is read."""
    require_dtype(dtype)
    require_model(model)
    if calibration is not None:
        require_calibration(calibration)


class Bench:
    """A model on which one run follows another, and what they share.

    The uncompressed model is evaluated once, calibration text is cut once, every expert is quantised once for each
    quantiser and set of widths, and what calibration measures is measured once; each run gives what it gives alone.
    Only a quantiser that works layer by layer starts anew for each allocation.
    """

    def __init__(self, moe: MoEModel, exam: Exam) -> None:
        self.moe, self.exam, self.digest = moe, exam, moe.digest()
        self._before: Answers | None = None
        self._text = ""  # what is read for the distance to the uncompressed model
        self._windows: tuple[Tensor, ...] | None = None
        self._reading: Reading | None = None
        self._texts: dict[tuple[str | None, int | None, int | None, int], CalibrationData] = {}
        self._stores: dict[tuple[str, str, tuple[int, ...]], ExpertStore] = {}
        self._measured: dict[tuple[object, ...], Any] = {}
        self._overlaps: dict[str, dict[str, float]] = {}  # calibration text -> protocol -> share

    @classmethod
    def load(cls, model: str, dtype: str, device: str, exam: Exam) -> Bench:
        """The bench with the model of that name, folder or hub id on it; BadInput where it cannot be loaded."""
        with stage("starting torch and transformers"):
            from mcbench.model import load_model
        with stage(f"reading {model}"):
            return cls(load_model(model, dtype=dtype, device=device, text=True), exam)

    def budget(
        self, composition: Composition, bits: float | None, expert_bits: float | None, widths: tuple[int, ...]
    ) -> BitBudget | None:
        """The budget as asked for, None where nothing is compressed.

        Raises BadInput where none was given and one is needed, or it cannot be met.
        """
        return _budget(composition, self.moe, bits, expert_bits, widths)

    def data(self, source: str | Path | None, samples: int | None, length: int | None, seed: int) -> CalibrationData:
        """The calibration tokens, cut once; BadInput for a text that is absent or too short."""
        from mcbench.text import SAMPLES, calibration_data

        key = (None if source is None else str(source), samples, length, seed)
        if key not in self._texts:
            self._texts[key] = calibration_data(
                self.moe, source, samples=SAMPLES if samples is None else samples, length=length, seed=seed
            )
        return self._texts[key]

    def baseline(self) -> Answers:
        """What the uncompressed model makes of the tasks, asked once."""
        if self._before is None:
            self._before = self.exam.take(self.moe, self.digest, UNCOMPRESSED)
        return self._before

    def run(
        self,
        composition: Composition,
        budget: BitBudget | None,
        data: CalibrationData | None,
        clock: Clock,
        *,
        seed: int = 0,
        save: str | Path | None = None,
        command: Sequence[str] = (),
    ) -> tuple[Record, Path]:
        """One run on the model, which is its old self when this is over; the record, and the file it was written to."""
        moe, plain = self.moe, _without_policy(composition)
        with clock.stage(f"evaluate {moe.source.precision if moe.source else PLAIN}"):
            before = self.baseline()
            self._read_original()
        with ExitStack() as stack:
            learnt, after, routing, policy = None, before, None, None
            if budget is not None:
                assert data is not None
                with clock.stage("calibrate"):
                    store, stats = self._calibrate(composition, data, budget)
                with clock.stage("allocate"):
                    allocation = composition.allocator.allocate(stats, budget)
                with clock.stage("compress"):
                    codes = self._layerwise(composition, data, allocation) if composition.layerwise else store
                    learnt, compressed = _compress(moe, budget, allocation, codes, stats, data, seed, plain, save)
                stack.enter_context(compressed)
                with clock.stage("evaluate"):
                    after = self.exam.take(moe, learnt.identity, self._plain_title(composition, budget, seed))
            learnt = learnt or _unchanged(moe)
            if composition.policy is not None:
                assert data is not None
                with clock.stage("calibrate routing"):
                    policy = fit_policy(composition.policy, moe, data, learnt.identity, self.exam.calibration)
                    if save is not None:
                        policy.save(Path(save) / POLICY_FOLDER)
                with clock.stage("evaluate pruned"):
                    pruned = self.exam.take(moe, learnt.identity, self.title(composition, budget, seed), policy)
                routing, after = _routing(policy, moe, learnt, pruned, after), pruned
            with clock.stage("fidelity"):
                distance = self._fidelity(learnt.identity, policy) if after is not before else None
            after = self._note_overlap(after, data) if data is not None else after
            noted = policy.learnt.notes if policy is not None else ()
            record = _record(composition, moe, learnt, before, after, clock, seed, command, routing, distance, noted)
        return record, record.save(after.folder / FILE_NAME)

    def _note_overlap(self, answers: Answers, data: CalibrationData) -> Answers:
        """The answers, with the share of the calibration text that a task asks where that is more than set phrases."""
        from mcbench.overlap import DETAIL, NOTED, runs_of, share_asked
        from mcbench.task import items_of

        if data.digest not in self._overlaps:
            with inner("calibration text in tasks"):
                texts = self.moe.tokenizer.batch_decode(data.input_ids.tolist(), skip_special_tokens=True)
                runs = runs_of(texts)
                found = {task.protocol: share_asked(runs, items_of(task)) for task in self.exam.tasks}
            self._overlaps[data.digest] = {name: share for name, share in found.items() if share >= NOTED}
        shares = self._overlaps[data.digest]
        scores = tuple(
            (task, dataclasses.replace(found, details={**found.details, DETAIL: shares[task.protocol]}))
            if task.protocol in shares
            else (task, found)
            for task, found in answers.scores
        )
        return dataclasses.replace(answers, scores=scores)

    def _read_original(self) -> None:
        """Lets the model, which is uncompressed now, read the text of the first task that has one."""
        from mcbench.fidelity import read, windows_of
        from mcbench.items import TextItem
        from mcbench.task import items_of

        if self._windows is not None:
            return
        self._windows = ()
        for task in self.exam.tasks:
            texts = [item.text for item in items_of(task) if isinstance(item, TextItem)]
            if texts and (windows := windows_of(self.moe, texts)):
                self._windows, self._text = windows, task.protocol
                self._reading = read(self.moe, windows)
                return

    def _fidelity(self, identity: str, policy: RoutingPolicy | None) -> recorded.Fidelity | None:
        """How far the model, as it is now, is from the uncompressed one; None where no task has a text."""
        from mcbench.fidelity import fidelity, read

        if self._reading is None or not self._windows:
            return None
        with policy.applied(self.moe, identity) if policy is not None else ExitStack():
            there = read(self.moe, self._windows)
        return fidelity(self._reading, there, self.moe.experts, self._text)

    def compress(
        self, composition: Composition, budget: BitBudget, data: CalibrationData, seed: int = 0
    ) -> tuple[Compressed, CompressedModel]:
        """The model compressed as a run would, not evaluated; the second value gives it its own weights back."""
        store, stats = self._calibrate(composition, data, budget)
        allocation = composition.allocator.allocate(stats, budget)
        codes = self._layerwise(composition, data, allocation) if composition.layerwise else store
        return _compress(self.moe, budget, allocation, codes, stats, data, seed, _without_policy(composition), None)

    def title(self, composition: Composition, budget: BitBudget | None, seed: int) -> str:
        """How the folder of a run is called; where the seed changes nothing, each run still has its own place."""
        if composition.policy is None:
            return self._plain_title(composition, budget, seed)
        return f"{composition} {budget.asked if budget else 16:g}{_seeded(seed)}"

    def _plain_title(self, composition: Composition, budget: BitBudget | None, seed: int) -> str:
        """The same for the weights alone, under the router's own choice."""
        return f"{_without_policy(composition)} {budget.asked:g}{_seeded(seed)}" if budget else UNCOMPRESSED

    def _calibrate(
        self, composition: Composition, data: CalibrationData, budget: BitBudget
    ) -> tuple[ExpertStore, CalibrationStats]:
        """Every expert at every width, and what the allocator wants to know; both are kept under the output folder."""
        from mcbench.calibration import calibrate
        from mcbench.store import ExpertStore

        quantizer, folder = composition.owner("quantize"), self.exam.calibration
        if composition.layerwise:  # what an allocation is decided by comes before there is one
            plain = dataclasses.replace(quantizer.method, **{quantizer.method.inputs_field: "original"})
            quantizer = dataclasses.replace(quantizer, method=plain)
        name = f"{quantizer} {source_digest(quantizer)}"
        key = (name, data.digest, budget.widths)
        if key not in self._stores:
            shared = next((s.activations for s in self._stores.values() if s.data is data), None)
            if shared is None:
                self._stores.clear()  # what another text gave is on disk
                self._measured.clear()
            self._stores[key] = ExpertStore(
                self.moe, data, quantizer.method, name, budget.widths,
                linear_widths=(FOUR_BITS,), folder=folder, activations=shared,
            )  # fmt: skip
        store, needs = self._stores[key], composition.allocator.needs
        kept = folder / f"stats-{hashlib.sha256(' '.join((store.key, *needs)).encode()).hexdigest()[:16]}"
        with in_turn(folder / f".{store.key[:16]}.lock"):  # another process of a sweep may want the same codes
            stats = calibrate(
                self.moe, data, needs, store=store, widths=budget.widths, folder=kept,
                activations=store.activations, measured=self._measured,
            )  # fmt: skip
            if not composition.layerwise:
                store.prepare()
        return store, stats

    def _layerwise(self, composition: Composition, data: CalibrationData, allocation: BitAllocation) -> LayerwiseStore:
        """Every layer at its allocated widths, on what the layers before it, already quantised, give it."""
        from mcbench.layerwise import LayerwiseStore

        quantizer = composition.owner("quantize")
        name = f"{quantizer} {source_digest(quantizer)}"
        codes = LayerwiseStore(self.moe, data, quantizer.method, name, allocation, folder=self.exam.calibration)
        with in_turn(self.exam.calibration / f".{codes.key[:16]}.lock"):
            codes.prepare()
        return codes


class Clock:
    """How long each stage of a run took, in seconds, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what happens inside, and says on the terminal that it is going on."""
        started = time.monotonic()
        with stage(name):
            yield
        self.seconds[name] = time.monotonic() - started


@dataclass(frozen=True)
class Answers:
    """What the model of that identity made of the tasks, and the folder that its samples and record are in."""

    identity: str
    scores: tuple[tuple[Task, Scores], ...]
    folder: Path
    fingerprint: str
    settings: dict[str, Any]
    isolation: str
    counts: PairCounts | None = None
    given_up: tuple[str, ...] = ()

    def fallbacks(self) -> tuple[str, ...]:
        """What the evaluation did otherwise than it usually does, in sentences."""
        return tuple(
            f"{name}: given up in the evaluation, as it failed or gave other answers than a plain forward"
            for name in self.given_up
        )


@dataclass(frozen=True)
class Exam:
    """The tasks that the uncompressed and the compressed model take under the same conditions.

    out: where samples and records go. shared: where what calibration gives is kept, by default `calibration` in `out`.
    """

    tasks: tuple[Task, ...]
    out: Path
    limit: int | None
    allow_code_execution: bool
    execute: bool = True
    shared: Path | None = None

    @property
    def calibration(self) -> Path:
        """The folder of quantised experts, statistics and policies."""
        return self.out / "calibration" if self.shared is None else self.shared

    def require_data(self) -> None:
        """Finds the items and examples of every task before hours of work; one BadInput names all that is absent."""

        def find(task: Task) -> None:
            with stage(task.name):
                task.require_data()

        require_all(functools.partial(find, task) for task in track(self.tasks, len(self.tasks), "data"))

    def require_room(self, window: int) -> None:
        """Finds what a model with so many tokens of context cannot be asked; one BadInput names all of it."""
        require_all(functools.partial(task.require_room, window) for task in self.tasks)

    def place(self, moe: MoEModel, title: str, fingerprint: str) -> Path:
        """The folder of the samples and the record of a model."""
        key = hashlib.sha256(f"{fingerprint} {self.limit}".encode()).hexdigest()[:10]
        return self.out / f"{_slug(Path(moe.name).name)}-{_slug(title)}-{key}"

    def take(self, moe: MoEModel, identity: str, title: str, policy: RoutingPolicy | None = None) -> Answers:
        """Evaluates the model, under a policy if one is given; samples that an interrupted run answered are kept."""
        with ExitStack() as stack:
            counter = None
            if policy is not None:
                counter = _Counter(stack.enter_context(policy.applied(moe, identity)))
            lm = language_model(moe, identity, policy, counts=counter.counts if counter is not None else None)
            self.require_room(lm.window)
            settings = lm.settings()  # as the fingerprint has them, whatever is given up on the way
            identity = lm.identity
            folder = self.place(moe, title, lm.fingerprint)
            stack.enter_context(in_turn(folder / ".lock"))  # a run at the same time may ask the same model
            scores = []
            for task in self.tasks:
                sink = folder / f"{task.protocol}.jsonl"
                of = {"protocol": task.protocol, "model": lm.fingerprint, "limit": self.limit}
                with counter.task(task.name, sink, of) if counter is not None else ExitStack():
                    scores.append(
                        (
                            task,
                            task.evaluate(
                                lm,
                                limit=self.limit,
                                sink=sink,
                                allow_code_execution=self.allow_code_execution,
                                execute=self.execute,
                            ),
                        )
                    )
            isolation = next((s.details["isolation"] for _, s in scores if "isolation" in s.details), "")
            return Answers(
                identity,
                tuple(scores),
                folder,
                lm.fingerprint,
                settings,
                isolation,
                counter.total if counter is not None else None,
                tuple(lm.given_up),
            )


def language_model(
    moe: MoEModel,
    identity: str,
    policy: RoutingPolicy | None = None,
    *,
    check: bool = True,
    counts: PairCounts | None = None,
) -> LanguageModel:
    """The model of that identity as the tasks see it, its fingerprint that of its record.

    `counts` of the policy are left as they are by what is computed for comparison alone.
    """
    with inner("starting the evaluation"):
        from mcbench.evaluation import LanguageModel

    ways: dict[str, Any] = {} if counts is None else {"aside": counts.aside}
    if policy is not None:
        identity = hashlib.sha256(f"{identity} {policy.key}".encode()).hexdigest()
        # what a policy skips is counted for every token computed
        ways |= {"prefix_sharing": policy.method.prefix_cacheable, "causal": policy.method.causal, "shortcuts": False}
    with inner("self-test"):
        return LanguageModel(moe.model, moe.tokenizer, identity=identity, check=check, **ways)


class _Counter:
    """Keeps the pairs of each task beside its samples, so that a run that goes on knows those of its beginning.

    They are whole or nothing: what a batch computes serves later ones too, so pairs of a part of the samples could not
    be told apart. A task under a policy that was interrupted is therefore asked from its beginning, and then its
    samples and pairs are those of an uninterrupted run.
    """

    def __init__(self, counts: PairCounts) -> None:
        from mcbench.routing import PairCounts

        self.counts, self.total = counts, PairCounts(counts.layers, counts.experts, counts.marks)

    @contextmanager
    def task(self, name: str, sink: Path, of: Mapping[str, Any]) -> Iterator[None]:
        """Counts what runs inside, or reads what was counted when the samples in `sink` were made.

        of: whose pairs they are. Samples whose pairs are not known are answered anew, which is said.
        """
        kept = sink.with_suffix(".pairs.json")
        tables = unless_damaged(lambda: self._kept(kept, of))
        if tables is None:
            self._begin_anew(name, sink, of)
        self.counts.clear()
        yield
        if tables is None:
            tables = self.counts.tables()
            if self.counts.tokens.any():  # a task that was skipped may be run another time
                write_json(kept, PAIRS, of, tables)
        self.total.include(tables)

    def _kept(self, path: Path, of: Mapping[str, Any]) -> dict[str, Any] | None:
        """The pairs in a file, None where there is none; Damaged where they are not whole or cannot be."""
        tables = read_json(path, PAIRS, of)
        if tables is None:
            return None
        if problem := self.counts.problem(tables):
            raise Damaged.of(path, PAIRS, problem)
        found: dict[str, Any] = tables
        return found

    def _begin_anew(self, name: str, sink: Path, of: Mapping[str, Any]) -> None:
        """Forgets samples whose pairs nobody counted to the end; those that are not ours are left to be refused."""
        from mcbench.task import SAMPLES, completions_of

        for path in (sink, completions_of(sink)):
            try:
                owner, rows = read_lines(path, SAMPLES, whole=False)
            except Damaged:  # which whoever reads it says
                continue
            if all(owner.get(name) == value for name, value in of.items()):
                if rows:
                    told = f"the pairs of the {len(rows)} samples in {str(path)!r} are not known"
                    note(f"{name}: {told}, so it is asked anew")
                path.unlink()


@dataclass(frozen=True)
class Compressed:
    """What became of the model: widths, sizes, what they were learnt from; `identity` names the weights."""

    allocation: BitAllocation
    sizes: Sizes
    identity: str
    expert_bytes: np.ndarray[Any, np.dtype[np.float64]]  # [L, E]
    budget: BitBudget | None = None
    calibration: recorded.Calibration | None = None
    fallbacks: tuple[str, ...] = ()


def _budget(
    composition: Composition, moe: MoEModel, bits: float | None, expert_bits: float | None, widths: tuple[int, ...]
) -> BitBudget | None:
    """The budget as asked for; None where nothing is compressed. BadInput where none was given and one is needed."""
    if composition.policy is not None and not moe.is_moe:
        raise BadInput(f"{moe.name!r} is a dense model, so {composition.policy.name!r} has no experts to prune")
    if not composition.compresses:
        return None
    if not moe.is_moe:
        raise BadInput(f"{moe.name!r} has no experts to compress; use the method 'none' for a dense model")
    count = moe.weight_count()
    if bits is not None:
        budget = BitBudget.from_label(bits, count, widths)
    else:
        assert expert_bits is not None
        budget = BitBudget.from_expert_bits(expert_bits, count, widths)
    averages = composition.allocator.reachable(count, widths)
    if averages is None:
        budget.total()
    else:
        budget.nearest(averages)
    return budget


def _compress(
    moe: MoEModel,
    budget: BitBudget,
    allocation: BitAllocation,
    store: ExpertStore | LayerwiseStore,
    stats: CalibrationStats,
    data: CalibrationData,
    seed: int,
    method: str,
    save: str | Path | None,
) -> tuple[Compressed, CompressedModel]:
    from mcbench.compression import compress

    compressed = compress(moe, allocation, store, method=method)
    try:
        if save is not None:
            compressed.save(save)
        sizes, identity = compressed.sizes, compressed.digest()
    except BaseException:
        compressed.restore()
        raise
    calibration = recorded.Calibration(
        source=data.source,
        digest=data.digest,
        samples=len(data.input_ids),
        length=data.input_ids.shape[1],
        tokens=data.tokens,
        seed=seed,
        statistics=stats.provenance.get("key", ""),
        unseen=len(stats.unseen),
        starved=len(stats.starved),
    )
    fallbacks = (
        *dict.fromkeys(allocation.notes),
        *compressed.fallbacks(store.fallbacks),
        *gathered_experts(stats.fallbacks, moe.layers, moe.experts),
    )
    return Compressed(
        allocation, sizes, identity, compressed.expert_bytes(), budget, calibration, fallbacks
    ), compressed


def _unchanged(moe: MoEModel) -> Compressed:
    """The model as it is, for the reference row."""
    import numpy as np

    from mcbench.compression import source_allocation, uncompressed_sizes

    allocation, sizes = source_allocation(moe), uncompressed_sizes(moe)
    expert_bytes = np.full(allocation.widths.shape, sizes.bytes["experts"] / max(1, allocation.widths.size))
    return Compressed(allocation, sizes, moe.digest(), expert_bytes)


def _printed(numbers: Any) -> Any:
    """Nested lists of numbers; those that JSON does not know as text."""
    if isinstance(numbers, list):
        return [_printed(inner) for inner in numbers]
    return numbers if math.isfinite(numbers) else str(numbers)


def _without_policy(composition: Composition) -> str:
    """The method string of what is done to the weights alone."""
    return "+".join(str(part) for part in composition.parts if part is not composition.policy)


def fit_policy(part: Part, moe: MoEModel, data: CalibrationData, identity: str, folder: Path) -> RoutingPolicy:
    """The policy, learnt on the model that will run under it; kept under `folder`."""
    from mcbench.policy import fit

    one = hashlib.sha256(f"{part} {identity} {data.digest}".encode()).hexdigest()
    with in_turn(folder / f".{one[:16]}.lock"):
        return fit(str(part), part.method, moe, data, identity=identity, source=source_digest(part), folder=folder)


def _routing(
    policy: RoutingPolicy, moe: MoEModel, learnt: Compressed, pruned: Answers, unpruned: Answers
) -> recorded.Routing:
    """What the policy did in the evaluation, and its scores beside those of the same weights under the router alone."""
    from mcbench.comparison import difference

    counts = pruned.counts
    assert counts is not None
    outcomes = []
    for (task, scores), (_, plain) in zip(pruned.scores, unpruned.scores, strict=True):
        delta = difference(scores, plain)
        outcomes.append(
            recorded.Unpruned(
                task.name, plain.value, delta.value if delta else None, delta.standard_error if delta else None
            )
        )
    phases = [
        recorded.Pairs(
            tokens=int(counts.tokens[phase]),
            chosen=tuple(counts.chosen[phase].sum(-1).tolist()),
            executed=tuple(counts.executed[phase].sum(-1).tolist()),
            protected=tuple(counts.protected[phase].tolist()),
        )
        for phase in (0, 1)
    ]
    modalities = {
        name: recorded.Pairs(
            tokens=int(counts.modal[at, 0, 0]),
            chosen=tuple(counts.modal[at, :, 1].tolist()),
            executed=tuple(counts.modal[at, :, 2].tolist()),
            protected=(),
        )
        for at, name in enumerate(("text", *counts.marks))
        if counts.marks
    }
    always = sum(learnt.sizes.bytes.get(name, 0) for name in ("attention", "shared", "router"))
    tokens = int(counts.tokens.sum())

    def active(pairs: np.ndarray[Any, np.dtype[np.int64]]) -> float | None:
        return always + float((pairs.sum(0) * learnt.expert_bytes).sum()) / tokens if tokens else None

    return recorded.Routing(
        policy=policy.name,
        key=policy.key,
        causal=policy.method.causal,
        prefix_cacheable=policy.method.prefix_cacheable,
        layers=tuple(range(moe.layers)) if policy.layers is None else policy.layers,
        facts=policy.learnt.facts,
        tables={
            name: _printed(table.tolist()) if table.numel() <= SHOWN_NUMBERS else f"{tuple(table.shape)}"
            for name, table in policy.learnt.tables.items()
        },
        provenance=policy.provenance,
        prefill=phases[0],
        decode=phases[1],
        active_bytes_per_token=active(counts.executed),
        router_bytes_per_token=active(counts.chosen),
        unpruned=tuple(outcomes),
        modalities=modalities,
    )


def _record(
    composition: Composition,
    moe: MoEModel,
    learnt: Compressed,
    before: Answers,
    after: Answers,
    clock: Clock,
    seed: int,
    command: Sequence[str],
    routing: recorded.Routing | None,
    distance: recorded.Fidelity | None,
    noted: Sequence[str] = (),
) -> Record:
    """noted: what a routing policy did otherwise than asked."""
    import torch

    from mcbench.text import tokenizer_digest

    count = moe.weight_count()
    budget, sizes = learnt.budget, learnt.sizes
    plain = {task.name: scores for task, scores in before.scores}
    results = tuple(
        Result.of(
            scores,
            plain[task.name] if after is not before else None,
            counterpart=task.counterpart,
            samples=f"{task.protocol}.jsonl",
        )
        for task, scores in after.scores
    )
    device = torch.cuda.get_device_name(moe.device) if moe.device.type == "cuda" else moe.device.type
    return Record(
        method=str(composition),
        asked=composition.asked,
        parts=tuple(
            recorded.Part(part.name, decisions(part.method), part.settings(), source_digest(part))
            for part in composition.parts
        ),
        model=recorded.Model(
            name=moe.name,
            digest=before.identity,
            architecture=type(moe.model).__name__,
            layers=moe.layers,
            experts=moe.experts,
            top_k=moe.top_k,
            count=count,
            source=moe.source,
            tokenizer=tokenizer_digest(moe.tokenizer) if moe.tokenizer is not None else "",
        ),
        bits=recorded.Bits(
            asked=budget.asked if budget else None,
            asked_as=budget.asked_as if budget else "",
            expert=sizes.expert,
            label=sizes.label,
            whole_model=sizes.whole_model,
            stored=sizes.stored,
            bytes=sizes.bytes,
        ),
        allocation=learnt.allocation,
        results=results,
        environment=recorded.Environment.here(
            device=device, dtype=str(moe.model.dtype).removeprefix("torch."), threads=torch.get_num_threads()
        ),
        seed=seed,
        calibration=learnt.calibration,
        fallbacks=tuple(
            dict.fromkeys(
                (
                    *(moe.source.notes if moe.source else ()),
                    *learnt.fallbacks,
                    *noted,
                    *before.fallbacks(),
                    *after.fallbacks(),
                )
            )
        ),
        baseline=before.fingerprint if after is not before else "",
        fingerprint=after.fingerprint,
        evaluation=after.settings,
        isolation=after.isolation,
        stages=clock.seconds,
        routing=routing,
        fidelity=distance,
        command=tuple(command),
    )


def source_digest(part: Part) -> str:
    """SHA-256 of the file that defines a method, empty where an installed package does."""
    source = METHODS.source(part.name)
    return hashlib.sha256(source.read_bytes()).hexdigest() if source else ""


def _seeded(seed: int) -> str:
    return f" seed {seed}" if seed else ""


def _slug(text: str) -> str:
    """A text as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9.#=]+", "-", text).strip("-")[:80]
