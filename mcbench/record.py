"""A record holds everything there is to know about one run: the only thing that tables are made from.

It is JSON with a schema number and a digest of its own contents. The samples of each task are JSON lines beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from mcbench.allocation import BitAllocation, WeightCount
from mcbench.errors import BadInput
from mcbench.files import printable, read_json, read_text, write_whole
from mcbench.source import Source
from mcbench.task import Estimate, Row, Scores, outcomes_of, rows_of

SCHEMA = 4
FILE_NAME = "record.json"
MOST_ITEMS = 10**12  # of a task
PACKAGES = ("mcbench", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pulp", "highspy", "hqq")

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One method of the method string: its hyper-parameters, the decisions it took, and which source file it was."""

    name: str
    decisions: tuple[str, ...]
    parameters: Mapping[str, Any]
    source_digest: str = ""


@dataclass(frozen=True)
class Model:
    """The model before compression. `layers`, `experts` and `top_k` count the MoE part; a dense model has 0 of each.

    digest: of weights and configuration. tokenizer: of what the tokenizer makes of texts; empty where it is not known.
    source: the files that it was read from; None where it was read from none, and in older records.
    """

    name: str
    digest: str
    architecture: str
    layers: int
    experts: int
    top_k: int
    count: WeightCount
    tokenizer: str = ""
    source: Source | None = None


@dataclass(frozen=True)
class Bits:
    """Bits per weight: what was asked for, and four honest ways to count what came out.

    expert: plain average over the routed experts. label: the papers' average over routed experts, shared experts and
    attention. whole_model: over every weight; these three count codes only. stored: all bytes of the weights file,
    scales and header included, times 8, over the parameters. `bytes` itemises that file.
    """

    asked: float | None
    asked_as: Literal["label", "expert", ""]
    expert: float
    label: float
    whole_model: float
    stored: float
    bytes: Mapping[str, int]


@dataclass(frozen=True)
class Calibration:
    """What the method learnt from. `statistics` is the digest of everything that calibration collected."""

    source: str
    digest: str
    samples: int
    length: int
    tokens: int
    seed: int
    statistics: str
    unseen: int = 0
    starved: int = 0


@dataclass(frozen=True)
class Pairs:
    """(token, expert) pairs of the tasks' real tokens in one phase, layer by layer.

    chosen: what the router chose; executed: what ran; protected: tokens that a rule kept whole.
    """

    tokens: int
    chosen: tuple[int, ...]
    executed: tuple[int, ...]
    protected: tuple[int, ...]

    @property
    def share(self) -> float | None:
        """The share of the chosen pairs that ran, over all layers; None where there were none."""
        return sum(self.executed) / sum(self.chosen) if sum(self.chosen) else None


@dataclass(frozen=True)
class Unpruned:
    """A task's value under the router alone, same weights, and the paired difference of the policy to it."""

    task: str
    value: float | None
    difference: float | None
    difference_error: float | None


@dataclass(frozen=True)
class Routing:
    """What a routing policy did while the tasks ran.

    policy: as in the method string; key: digest of all that it learnt. causal: a token's experts depend on nothing
    after it; where False, scores of whole sequences see what generation would not have. layers: those it prunes.
    facts, tables: what it learnt (tables too large to print are named by shape). provenance: on which data.
    prefill, decode: the pairs of each phase; a decode pass adds one token to sequences that have a past.
    uncounted: tasks whose pairs are known in part only, because samples of an interrupted run were kept.
    active_bytes_per_token: bytes of the weights that a token reads on average: routed experts that ran, attention,
    shared experts and router; router_bytes_per_token: the same if all that the router chose had run. modalities: the
    pairs of text and of each other modality that the model marks by a token of its own, both phases together; empty for
    a model of text alone.
    """

    policy: str
    key: str
    causal: bool
    prefix_cacheable: bool
    layers: tuple[int, ...]
    facts: Mapping[str, Any]
    tables: Mapping[str, Any]
    provenance: Mapping[str, Any]
    prefill: Pairs
    decode: Pairs
    active_bytes_per_token: float | None
    router_bytes_per_token: float | None
    unpruned: tuple[Unpruned, ...] = ()
    uncounted: tuple[str, ...] = ()
    modalities: Mapping[str, Pairs] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """The share of the chosen pairs that ran, over all MoE layers and both phases; None where there were none."""
        chosen = sum(self.prefill.chosen) + sum(self.decode.chosen)
        return (sum(self.prefill.executed) + sum(self.decode.executed)) / chosen if chosen else None


@dataclass(frozen=True)
class Result:
    """One task. `value` is None where it was skipped, which `skipped` explains; shares lie between 0 and 1.

    `baseline` is the value of the uncompressed model on the same items; `difference` is `value` minus that, with the
    standard error of the paired difference; `lost` and `gained` count the items right in one of the two only.
    `samples` names the file of samples beside the record. `outcomes` has a number for each item, in the order of the
    items: whether it was right (the estimate where it was tried several times), or the nats that a window costs;
    `weights` the tokens of each window, or the words or bytes that the metric is per; `clusters` numbers the text or
    passage that an item comes from, where items share some. With them a record can be paired with another when its
    samples are not at hand.
    """

    task: str
    counterpart: str
    protocol: str
    metric: str
    higher_is_better: bool
    value: float | None
    n: int
    k: int | None
    standard_error: float | None
    chance: float | None
    baseline: float | None
    difference: float | None
    difference_error: float | None
    lost: int | None
    gained: int | None
    partial: bool
    skipped: str
    truncated: int
    seconds: float
    samples: str = ""
    also: Mapping[str, Estimate] = field(default_factory=dict)
    groups: Mapping[str, Estimate] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    outcomes: tuple[float, ...] = ()
    weights: tuple[int, ...] = ()
    clusters: tuple[int, ...] = ()

    @property
    def implausible(self) -> str:
        """What no measurement gives, in words; empty where there is nothing of the kind."""
        counts = {"n": self.n, "k": self.k, "truncated": self.truncated, "lost": self.lost, "gained": self.gained}
        values = {"value": self.value, "baseline": self.baseline, "chance": self.chance}
        spreads = {"standard_error": self.standard_error, "difference_error": self.difference_error}
        highest = 1.0 if self.higher_is_better else math.inf
        wrong = [name for name, count in counts.items() if count is not None and not 0 <= count <= MOST_ITEMS]
        wrong += [name for name, x in values.items() if x is not None and not (0 <= x <= highest or math.isnan(x))]
        wrong += [name for name, x in spreads.items() if x is not None and x < 0]
        if self.higher_is_better and self.difference is not None and abs(self.difference) > 1:
            wrong.append("difference")
        return ", ".join(f"{name} is {getattr(self, name):g}" for name in wrong)

    def rows(self) -> list[Row]:
        """The samples as far as the record holds them, numbered; none where it was written without."""
        return rows_of(self.outcomes, self.weights, self.clusters, self.metric)

    @classmethod
    def of(cls, scores: Scores, baseline: Scores | None = None, *, counterpart: str = "", samples: str = "") -> Result:
        """The outcome of a task, compared with that of the uncompressed model; BadInput where they do not compare."""
        from mcbench.comparison import difference

        delta = difference(scores, baseline) if baseline is not None else None
        names = {f.name for f in dataclasses.fields(cls)} - {"samples"}
        outcomes, weights, clusters = outcomes_of(scores.samples, scores.metric)
        return cls(
            outcomes=outcomes,
            weights=weights,
            clusters=clusters,
            **{name: getattr(scores, name) for name in names if hasattr(scores, name)},
            counterpart=counterpart,
            samples=samples,
            baseline=baseline.value if baseline is not None else None,
            difference=delta.value if delta else None,
            difference_error=delta.standard_error if delta else None,
            lost=delta.lost if delta else None,
            gained=delta.gained if delta else None,
        )


@dataclass(frozen=True)
class Fidelity:
    """How far the model is from the uncompressed one on the same tokens, whatever a task makes of it.

    text: protocol of the task whose text was read; the first `windows` of it, `tokens` in all. divergence:
    Kullback-Leibler divergence of the next-token distribution from the uncompressed one, nats per token, with its
    standard error over windows. top_1, top_5: share of tokens whose likeliest token is the same, and mean share of the
    five likeliest that both have. Layer by layer: expert_overlap, the mean share of the experts that the uncompressed
    router chose which this one chooses too; load_entropy, of the shares of tokens over experts divided by the largest
    possible; load_gini, their inequality; each of the latter beside that of the uncompressed model.
    """

    text: str
    windows: int
    tokens: int
    divergence: float
    divergence_error: float | None
    top_1: float
    top_5: float
    expert_overlap: tuple[float, ...]
    load_entropy: tuple[float, ...]
    load_gini: tuple[float, ...]
    original_load_entropy: tuple[float, ...]
    original_load_gini: tuple[float, ...]


@dataclass(frozen=True)
class Environment:
    """The software and the machine behind the numbers."""

    versions: Mapping[str, str]
    system: str
    cpu: str
    cores: int
    memory_bytes: int
    device: str
    dtype: str
    threads: int = 0

    @classmethod
    def here(cls, *, device: str, dtype: str, threads: int = 0) -> Environment:
        """This machine; `device` is the accelerator's name, or "cpu"."""
        return cls(
            versions={"python": platform.python_version(), **_versions()},
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            cpu=_cpu_name(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
            memory_bytes=_memory_bytes(),
            device=device,
            dtype=dtype,
            threads=threads,
        )


@dataclass(frozen=True)
class Record:
    """One run, from the method string to the scores.

    method: the method string with every default part and changed hyper-parameter written out; asked: as typed.
    fallbacks: every place where something other than the asked was done, and why.
    baseline: the fingerprint of the uncompressed model that the results are compared with; empty without one.
    fingerprint: that of the model evaluated: weights, tokenizer, precision and way of computing. Neither decides what
    may be compared, which `mcbench.comparable` does. evaluation: precision, context and way of computing in words.
    isolation: how generated programs were confined; empty where none ran. stages: seconds by stage of the run.
    routing: what a routing policy did; None where the router alone decides. fidelity: the distance to the uncompressed
    model over tokens; None for that model itself, and where no task reads text.
    """

    method: str
    asked: str
    parts: tuple[Part, ...]
    model: Model
    bits: Bits
    allocation: BitAllocation
    results: tuple[Result, ...]
    environment: Environment
    seed: int = 0
    calibration: Calibration | None = None
    fallbacks: tuple[str, ...] = ()
    baseline: str = ""
    fingerprint: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    isolation: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)
    routing: Routing | None = None
    fidelity: Fidelity | None = None
    command: tuple[str, ...] = ()
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def partial(self) -> bool:
        """Whether some task saw only part of its items (`--limit`)."""
        return any(result.partial for result in self.results)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the contents."""
        return _digest(_plain(self))

    def to_json(self) -> str:
        """The record as it stands in its file; numbers that are not finite are written as text."""
        return seal(self, SCHEMA)

    @classmethod
    def from_json(cls, text: str, where: str = "the record") -> Record:
        """The record that `to_json` wrote, older schemas included.

        Raises BadInput for text that is cut short or not a record, a newer schema, or contents that were changed.
        """
        content = _content(text, where)
        try:
            record: Record = _read(cls, content, "")
        except _Misfit as error:
            raise BadInput(f"{where} is not a record of schema {SCHEMA}: {error}") from None
        for result in record.results:
            if reason := result.implausible:
                raise BadInput(f"{where} cannot be right: {reason} in {result.task!r}")
        return record

    def save(self, path: str | Path) -> Path:
        """Writes the record to a file, complete or not at all; BadInput where that cannot be."""
        path = Path(path)
        write_whole(path, self.to_json().encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Reads a record, or the one in a run's folder; BadInput as `from_json`, or where there is none."""
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        where = f"the record {str(path)!r}"
        return cls.from_json(read_text(path, where), where)


# -- a record as plain JSON values, and back


def seal(value: Any, schema: int) -> str:
    """The JSON file of a frozen dataclass: schema, digest of the contents, contents."""
    content = _plain(value)
    whole = {"schema": schema, "digest": _digest(content), **content}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_sealed(kind: type[T], text: str, where: str, schema: int, what: str) -> T:
    """What `seal` wrote, of a class that has had one schema; `what` names the class in a message.

    Raises BadInput for text that is cut short or something else, another schema, or contents that were changed.
    """
    content = _unchanged(text, where, schema, what)[0]
    try:
        found: T = _read(kind, content, "")
    except _Misfit as error:
        raise BadInput(f"{where} is not a {what} of schema {schema}: {error}") from None
    return found


class _Misfit(Exception):
    """Where the contents of a record do not fit its fields."""


# what brings the contents of a schema to the next one
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda content: content,  # before there were routing policies
    2: lambda content: content,  # before records held the outcome of every item, and fidelity
    3: lambda content: content,  # before records named the tokenizer, and every fallback
}
# fields that later schemas added: left out where they are empty, so that older records keep their digest
_ADDED: dict[str, tuple[str, ...]] = {
    "Record": ("routing", "fidelity"),
    "Model": ("tokenizer", "source"),
    "Result": ("outcomes", "weights", "clusters"),
    "Routing": ("modalities",),
}


def _content(text: str, where: str) -> dict[str, Any]:
    """The contents of a record's file, checked against their digest and brought to the schema of today."""
    whole, schema = _unchanged(text, where, SCHEMA, "record")
    while schema < SCHEMA:
        if schema not in _MIGRATIONS:
            raise BadInput(f"{where} is of schema {schema}, which never was")
        whole, schema = _MIGRATIONS[schema](whole), schema + 1
    return dict(whole)


def _unchanged(text: str, where: str, newest: int, what: str) -> tuple[dict[str, Any], int]:
    """The contents of a file that `seal` wrote, proven by their digest, and their schema."""
    try:
        whole: Any = read_json(text)
    except ValueError as error:
        raise BadInput(f"{where} is damaged or cut short ({error}); make it again") from None
    if not isinstance(whole, dict) or type(whole.get("schema")) is not int or "digest" not in whole:
        raise BadInput(f"{where} is not a {what}: it has no schema number and digest")
    schema, digest = whole.pop("schema"), whole.pop("digest")
    if schema > newest:
        raise BadInput(f"{where} is of schema {schema}, this mcbench knows up to {newest}: upgrade it")
    if _digest(whole) != digest:
        raise BadInput(f"{where} was changed after it was written: its contents do not match its digest")
    return whole, schema


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The JSON form of a field; floats that JSON does not know become "inf", "-inf" and "nan"."""
    kind = type(value)
    if kind is str:
        return printable(value)
    if kind is int or kind is bool or value is None or (kind is float and (value - value) == 0):
        return value
    if isinstance(value, BitAllocation):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        added = _ADDED.get(type(value).__name__, ())
        names = [f.name for f in dataclasses.fields(value)]
        plain = {n: _plain(getattr(value, n)) for n in names if n not in added or getattr(value, n)}
        if isinstance(value, Result) and value.outcomes and set(value.outcomes) <= {0.0, 1.0}:
            plain["outcomes"] = "".join(str(int(outcome)) for outcome in value.outcomes)
        return plain
    if isinstance(value, Estimate):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {printable(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and (value - value) != 0:
        return str(float(value))
    if hasattr(value, "item"):  # a numpy scalar that slipped in
        return _plain(value.item())
    return value


def _read(kind: Any, value: Any, at: str) -> Any:
    """The value of annotation `kind` behind its JSON form; _Misfit where it is another."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else _read(inner[0], value, at)
    if origin is Literal:
        return _expect(value in typing.get_args(kind), value, at)
    if origin is tuple:
        _expect(isinstance(value, list), value, at)
        inner_kind = typing.get_args(kind)[0]
        if inner_kind in (float, int) and all(type(inner) is inner_kind for inner in value):
            return tuple(value)
        return tuple(_read(inner_kind, inner, f"{at}[{i}]") for i, inner in enumerate(value))
    if origin is Mapping:
        _expect(isinstance(value, dict), value, at)
        return {key: _read(typing.get_args(kind)[1], inner, f"{at}.{key}") for key, inner in value.items()}
    if kind is BitAllocation:
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            return BitAllocation.from_json(value)
        return _expect(False, value, at)
    if dataclasses.is_dataclass(kind) or kind is Estimate:
        return _read_fields(kind, value, at)
    if kind is float:
        return float(_expect(value in ("inf", "-inf", "nan") or _is(value, (float, int)), value, at))
    return _expect(_is(value, kind), value, at)


def _read_fields(kind: Any, value: Any, at: str) -> Any:
    _expect(isinstance(value, dict), value, at)
    absent = [name for name in _ADDED.get(kind.__name__, ()) if name not in value]
    if kind is Result and isinstance(text := value.get("outcomes"), str):
        _expect(set(text) <= {"0", "1"}, text, f"{at}.outcomes")
        value = {**value, "outcomes": list(map(float, text))}
    hints = _hints(kind)
    for name in (*(n for n in hints if n not in value and n not in absent), *(n for n in value if n not in hints)):
        raise _Misfit(f"{'.'.join(filter(None, (at, name)))} is {'unknown' if name in value else 'missing'}")
    known = {name: hint for name, hint in hints.items() if name not in absent}
    return kind(**{name: _read(hint, value[name], f"{at}.{name}".lstrip(".")) for name, hint in known.items()})


@functools.cache
def _hints(kind: Any) -> Mapping[str, Any]:
    """The annotations of a class's fields."""
    return typing.get_type_hints(kind)


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """isinstance, but True is no number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _expect(holds: bool, value: T, at: str) -> T:
    if not holds:
        raise _Misfit(f"{at or 'it'} cannot be {str(value)[:60]!r}")
    return value


# -- the machine


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
