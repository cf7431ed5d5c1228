"""What an evaluation task is: items, one way of asking them, one number with its error and every sample behind it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from mcbench.bounds import require_bounds, require_settings
from mcbench.datasets import current_folder, loaded
from mcbench.errors import BadInput
from mcbench.items import Item
from mcbench.progress import inner, track
from mcbench.sealed import Damaged, Lines, note, read_lines
from mcbench.witness import ROW as WITNESS
from mcbench.witness import Answered, merged, sound, summary

if TYPE_CHECKING:
    from mcbench.evaluation import LanguageModel, LogLikelihood

PROTOCOL_VERSION = 1  # part of every protocol id: raise it when a change below moves a number
SAMPLES_SCHEMA = 2
BOOTSTRAP_REPEATS = 2000
SAMPLES = "samples"
COMPLETIONS = ".completions.jsonl"
ROUNDING = 1e-4  # nats by which the sum of rounded logarithms may lie above 0
PAIRED = (("loglikelihoods", "greedy"), ("loglikelihoods", "tokens"), ("completions", "statuses"))  # lists in a sample
ALLOW = "--allow-code-execution"  # stands in the reason of what was skipped for lack of isolation

T = TypeVar("T")
Row = dict[str, Any]  # one sample, as it stands in the sample file


class Estimate(NamedTuple):
    """A mean with what it stands on; `k` counts the correct ones where each sample is right or wrong."""

    value: float
    n: int
    standard_error: float | None  # None where n is too small to tell
    k: int | None = None


@dataclass(frozen=True)
class Scores:
    """The outcome of one task on one model. `value` is None where the task was skipped, which `skipped` explains.

    Shares (accuracy, exact match, pass@k) lie between 0 and 1. `also` holds other metrics of the same samples,
    `chance` what guessing would give, `groups` the metric by group of items, `truncated` how many samples lost tokens
    to the model's window, `details` how the number came about. A `partial` result comes from `--limit`.
    """

    task: str
    protocol: str
    metric: str
    higher_is_better: bool
    value: float | None
    n: int
    k: int | None = None
    standard_error: float | None = None
    chance: float | None = None
    also: Mapping[str, Estimate] = field(default_factory=dict)
    groups: Mapping[str, Estimate] = field(default_factory=dict)
    samples: Sequence[Row] = field(default=(), repr=False)
    seconds: float = 0.0
    partial: bool = False
    truncated: int = 0
    skipped: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Base of everything in `tasks/`: subclass one of the kinds in `mcbench.kinds` or `mcbench.harness` once per file.

    Fields are the task's parameters. `counterpart` names the benchmark a miniature stands for, or is empty. Raise
    `version` when the way of asking changes: it is part of the protocol id.
    """

    counterpart: ClassVar[str] = ""
    metric: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    version: ClassVar[int] = 1
    _one_sample_an_item: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raises BadInput for a parameter out of its bounds (`mcbench.bounds`); a subclass calls it from its own."""
        require_bounds(self, self.name)

    def items(self) -> Sequence[Item]:
        """Every item, always the same for the same parameters."""
        raise NotImplementedError

    def sets(self) -> Sequence[tuple[str, str]]:
        """The published sets that the items are made from, each with its split; the record names their sources."""
        return ()

    def chance(self) -> float | None:
        """What guessing gives in this metric; None where that has no meaning."""
        return None

    @property
    def name(self) -> str:
        """The registered name: that of the file the task is written in."""
        file = getattr(sys.modules[type(self).__module__], "__file__", None) or type(self).__name__
        return Path(file).stem.replace("_", "-")

    @property
    def data_digest(self) -> str:
        """SHA-256 of every item."""
        return _items_and_digest(self)[1]

    @property
    def protocol(self) -> str:
        """`name@hash`: two numbers are comparable where it is equal, for it covers all that moves a number."""
        parts = {
            "engine": PROTOCOL_VERSION,
            "task": [self.name, self.version, self.metric],
            "parameters": dataclasses.asdict(self),
            "data": self.data_digest,
        }
        setting = self._setting()
        if setting:
            parts["setting"] = setting
        text = json.dumps(parts, sort_keys=True, default=str)
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def evaluate(
        self,
        lm: LanguageModel,
        *,
        limit: int | None = None,
        few: int | None = None,
        sink: Path | None = None,
        allow_code_execution: bool = False,
        execute: bool = True,
    ) -> Scores:
        """Asks the items and scores the answers.

        `limit` leaves the first so many items: of each subject or set, where the task is a group of tasks to lm-eval;
        windows of text, where whole windows are cut. `few` leaves at most so many of those in all, from all over, for
        a first look at how long the task takes; it takes no `sink`.
        Without `execute`, programs are generated into a file beside `sink` and not run (see `mcbench.scoring`).
        With `sink` every sample is appended to that JSON-lines file as it is produced; if the file is there already,
        the run goes on from it and ends as an uninterrupted one would. Raises BadInput where the file belongs to
        another model, protocol or limit.
        """
        started = time.monotonic()
        require_settings(limit=limit)
        items, partial = self._first(items_of(self), limit)
        if few is not None:
            assert sink is None, "what is asked for a look is not kept"
            items = self._some(items, few)
        skipped = self._unable(allow_code_execution) if execute else self._prepare(lm, items, limit, sink)
        if skipped:
            return self._scores([], started, partial, skipped)
        file = SampleFile(sink, {"protocol": self.protocol, "model": lm.fingerprint, "limit": limit}) if sink else None
        went_on = sink is not None and sink.exists()
        rows = file.read() if file else {}
        self._require_own(rows, items, sink)
        with _naming(self.name):
            expected = self._samples_expected(lm, items)
        if max(rows, default=0) >= expected:
            raise BadInput(f"{str(sink)!r} holds a sample {max(rows)}, and {self.name} has {expected}: move it away")
        written = self._written(lm, items, limit, sink)
        outdated = self._outdated(rows, written, items)
        if outdated:
            note(
                f"{self.name}: {len(outdated)} verdicts are on other programs or of an earlier way; they are made anew"
            )
            written = {**written, **outdated}
            rows = {at: row for at, row in rows.items() if at not in outdated}
            if file:
                file.begin()
                file.append(rows)
        if went_on and len(rows) < expected:
            note(f"{self.name}: {len(rows)} of {expected} samples are in {str(sink)!r} and kept; the others follow")
        known = [*rows.values(), *written.values()]
        if given_up := summary(known).get("given_up"):  # as the run that answered them did
            lm.give_up(given_up)
        answers = itertools.chain(
            self._score({at: row for at, row in written.items() if at not in rows}, items),
            self._answer(lm, items, frozenset(rows).union(written)),
        )
        with _naming(self.name):
            for at, row in track(self._keep(lm, answers, rows, file), expected - len(rows), self.name):
                rows[at] = row
        with inner(f"{self.name}: scores"):
            return self._scores([rows[at] for at in sorted(rows)], started, partial)

    @staticmethod
    def _keep(
        lm: LanguageModel, answers: Iterable[dict[int, Row]], rows: dict[int, Row], file: SampleFile | None
    ) -> Iterator[tuple[int, Row]]:
        """The samples that are not known yet, kept first; all begin anew where the model answers all of them again."""
        restarts = restarts_of(lm)
        for batch in answers:
            if restarts_of(lm) != restarts:
                restarts = restarts_of(lm)
                rows.clear()
                if file:
                    file.begin()
            yield from keep_new(batch, rows, file)

    def require_data(self) -> None:
        """Raises BadInput where the items, or what is shown before them, cannot be had; it names all of that."""
        assert self.data_digest

    def require_room(self, window: int) -> None:
        """Raises BadInput where no item can be asked of a model with a window of so many tokens.

        A context that is too long alone is no reason: it loses its beginning, which every sample counts.
        """

    def _first(self, items: Sequence[Item], limit: int | None) -> tuple[Sequence[Any], bool]:
        """What is asked under `limit`, and whether that is less than all."""
        kept = self.items_within(limit)
        return kept, len(kept) < len(items)

    def items_within(self, limit: int | None) -> Sequence[Item]:
        """The items that `limit` leaves, all where it is None."""
        items = items_of(self)
        return first_of_each(items, limit) if limit and self._group_of_tasks() else items[:limit]

    def _some(self, items: Sequence[Any], few: int) -> Sequence[Any]:
        """At most so many of what is asked, from all over it."""
        return spread(items, few)

    def samples_expected(self, lm: LanguageModel, limit: int | None) -> int:
        """How many samples the task gives under a limit."""
        return self._samples_expected(lm, self._first(items_of(self), limit)[0])

    def _group_of_tasks(self) -> bool:
        """Whether lm-eval has a task for each group of items, so that a limit is one for each."""
        return False

    def _prepare(self, lm: LanguageModel, items: Sequence[Any], limit: int | None, sink: Path | None) -> str:
        """Asks without scoring, for tasks that separate the two; says what is left to do, if anything is."""
        return ""

    def _written(
        self, lm: LanguageModel, items: Sequence[Any], limit: int | None, sink: Path | None
    ) -> Mapping[int, Row]:
        """What `_prepare` left in a file."""
        return {}

    def _outdated(self, rows: Mapping[int, Row], written: Mapping[int, Row], items: Sequence[Any]) -> Mapping[int, Row]:
        """Samples whose verdict is not on what was written, with what was, by position."""
        return {}

    def _score(self, written: Mapping[int, Row], items: Sequence[Any]) -> Iterator[dict[int, Row]]:
        """Samples of what `_written` found, batch by batch."""
        yield from ()

    def _require_own(self, rows: Mapping[int, Row], items: Sequence[Item], path: Path | None) -> None:
        """Refuses samples that are not answers to these items, or whose verdict does not follow from them."""
        known = {item.id: item for item in items}
        for at, row in rows.items():
            item = known.get(row["id"])
            if self._one_sample_an_item:
                item = items[at] if at < len(items) and items[at].id == row["id"] else None
            if item is None:
                raise BadInput(f"{str(path)!r} holds a sample {at} that is none of {self.name!r}: move it away")
            same_place = (item.group, item.passage) == (row["group"], row.get("passage", ""))
            if problem := self._unlike(row, item) if same_place else "it is said to be of another group or passage":
                raise BadInput(f"{str(path)!r} holds a sample {at} that cannot be: {problem}; move it away")

    def _unlike(self, row: Row, item: Item) -> str:
        """What in a sample cannot be an answer to the item, in words; empty where all can."""
        for name in (self.metric, *self._other_metrics()) if "loss" not in row else ():
            value = row.get(name, 0)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                return f"{name} is {value!r}, which is no share"
        if "correct" in row and row.get(self.metric, row["correct"]) != row["correct"]:
            return f"correct is {row['correct']!r}, and {self.metric} {row[self.metric]!r}"
        return ""

    def _unable(self, allow_code_execution: bool) -> str:
        """Why the task cannot run here; empty where it can."""
        return ""

    def _setting(self) -> Mapping[str, Any]:
        """What else moves the number and belongs in the protocol id."""
        return {}

    def _answer(self, lm: LanguageModel, items: Sequence[Any], done: Collection[int]) -> Iterator[dict[int, Row]]:
        """Samples by position, batch by batch; batches whose positions are all `done` may be left out."""
        raise NotImplementedError

    def _samples_expected(self, lm: LanguageModel, items: Sequence[Any]) -> int:
        """How many samples these items give in all."""
        return len(items)

    def _metric_name(self) -> str:
        return self.metric

    def _estimate(self, rows: Sequence[Row], metric: str) -> Estimate:
        """One metric over some samples."""
        return mean([float(row[metric]) for row in rows])

    def _other_metrics(self) -> tuple[str, ...]:
        return ()

    def _details(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {}

    def _scores(self, rows: Sequence[Row], started: float, partial: bool, skipped: str = "") -> Scores:
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(row["group"], []).append(row)
        total = self._estimate(rows, self.metric) if rows else None
        return Scores(
            task=self.name,
            protocol=self.protocol,
            metric=self._metric_name(),
            higher_is_better=self.higher_is_better,
            value=total.value if total else None,
            n=total.n if total else 0,
            k=total.k if total else None,
            standard_error=total.standard_error if total else None,
            chance=self.chance(),
            also={metric: self._estimate(rows, metric) for metric in self._other_metrics() if rows},
            groups={g: self._estimate(members, self.metric) for g, members in sorted(groups.items()) if g},
            samples=tuple(rows),
            seconds=time.monotonic() - started,
            partial=partial,
            truncated=sum(bool(row["truncated"]) for row in rows),
            skipped=skipped,
            details={**self._details(rows), **self._data(), **({WITNESS: found} if (found := summary(rows)) else {})},
        )

    def _data(self) -> dict[str, Any]:
        """Where the items come from, by split."""
        sources = {split: loaded(name, split).origin for name, split in self.sets()}
        return {"data": sources} if sources else {}


def restarts_of(lm: LanguageModel) -> int:
    """How often a model answered anew what it had answered; never, for what only reads answers from a file."""
    return int(getattr(lm, "restarts", 0))


def score_choices(
    lm: LanguageModel, items: Sequence[Sequence[tuple[str, str]]], done: Collection[int]
) -> Iterator[Answered[list[LogLikelihood]]]:
    """The log-likelihood of every (context, choice) pair of each item, by the item's position, as items get complete.

    Items in `done` may be left out.
    """
    pairs = [pair for choices in items for pair in choices]
    owner = [at for at, choices in enumerate(items) for _ in choices]
    start = [0, *itertools.accumulate(len(choices) for choices in items)]
    open_items: dict[int, dict[int, LogLikelihood]] = {}
    facts: dict[int, dict[int, dict[str, Any]]] = {}
    finished = [n for n, at in enumerate(owner) if at in done]
    restarts = restarts_of(lm)
    for batch in lm.loglikelihood_batches(pairs, finished):
        if restarts_of(lm) != restarts:  # what is answered anew is not joined with what was answered before
            restarts = restarts_of(lm)
            open_items.clear()
            facts.clear()
        for n, score in batch.items():
            open_items.setdefault(owner[n], {})[n - start[owner[n]]] = score
        for n, fact in batch.witness.items():
            facts.setdefault(owner[n], {})[n] = fact
        full = [at for at in dict.fromkeys(owner[n] for n in batch) if len(open_items[at]) == len(items[at])]
        scored = {at: [score for _, score in sorted(open_items.pop(at).items())] for at in full}
        yield Answered(scored, {at: merged(facts.pop(at).values()) for at in full if at in facts})


def require_prompt_room(task: Task, new_tokens: Iterable[int], window: int) -> None:
    """Raises BadInput where so many new tokens leave a model's window without a token for the prompt."""
    most = max(new_tokens, default=0)
    if most >= window:
        raise BadInput(
            f"{task.name} writes up to {most} tokens, which leave no room for a prompt in the model's window of "
            f"{window}: {_instead(task, 'max_new_tokens', window // 2)}"
        )


def require_window(task: Task, wanted: int) -> None:
    """Raises BadInput for a window (0: as long as the model's) in which no token can be predicted from another."""
    if wanted < 0 or wanted == 1:
        raise BadInput(f"{task.name} reads windows of 2 tokens or more, or 0 for the model's own, not {wanted}")


def require_window_room(task: Task, wanted: int, window: int, parameter: str = "window") -> None:
    """Raises BadInput where windows of `wanted` tokens (0: as long as the model's) do not fit into the model's.

    parameter: the field that they come from.
    """
    require_window(task, wanted)
    if wanted > window:
        raise BadInput(
            f"{task.name} reads windows of {wanted} tokens, and the model's window is {window}: "
            f"{_instead(task, parameter, window)}"
        )


def _instead(task: Task, parameter: str, value: int) -> str:
    """The way out of a task that does not fit the model."""
    settable = any(f.name == parameter for f in dataclasses.fields(task))
    return f"ask for {task.name}({parameter}={value}), or leave it out" if settable else "leave it out"


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Says in what goes wrong with the input inside the block which task it was."""
    try:
        yield
    except BadInput as error:
        raise type(error)(f"{name}: {error}") from error


def first_of_each(items: Sequence[Item], limit: int) -> Sequence[Item]:
    """The first `limit` items of each group, in the order in which all stand."""
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        seen[item.group] += 1
        if seen[item.group] <= limit:
            kept.append(item)
    return kept


def spread(items: Sequence[T], few: int) -> Sequence[T]:
    """At most `few` items: neighbours in twos, as they may share a beginning, the twos equally far apart."""
    if len(items) <= few:
        return items
    pairs = max(1, few // 2)
    return [item for n in range(pairs) for item in items[n * len(items) // pairs :][: 2 if few > 1 else 1]]


# -- numbers


def mean(values: Sequence[float]) -> Estimate:
    """Mean and its standard error from the sample's spread, sqrt(sum (x - mean)^2 / (n (n - 1))), as lm-eval has it.

    For values of 0 and 1 that is the binomial sqrt(p (1 - p) / (n - 1)), and k counts the ones.
    """
    n = len(values)
    middle = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n * (n - 1))) if n > 1 else None
    return Estimate(middle, n, error, int(sum(values)) if set(values) <= {0.0, 1.0} else None)


def pass_at_k(n: int, passed: int, k: int) -> float:
    """The chance that one of `k` out of `n` samples is right, `passed` of them being so: 1 - C(n - c, k) / C(n, k)."""
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def perplexity(losses: Sequence[float], counts: Sequence[int], texts: Sequence[object]) -> Estimate:
    """exp(sum of losses / sum of counts) over windows, each with the name of its text; n counts windows.

    The error is a bootstrap (seeded) over texts, or where there are few texts it is told from how the loss varies along
    their windows. A model that is worse than a float can say has the value infinity, and no error.
    """
    import numpy as np

    from mcbench.uncertainty import by_cluster, error_in_row, in_a_row, shared_out

    n, total, value = len(losses), sum(counts), math.inf
    if total:
        with contextlib.suppress(OverflowError):
            value = math.exp(math.fsum(losses) / total)
    if n < 2 or not total:
        return Estimate(value, n, None)
    columns = np.stack([losses, np.asarray(counts, dtype=float)], axis=1)  # [windows, 2]
    if in_a_row(texts):
        columns[:, 1] = shared_out(columns[:, 1], texts) if not all(counts) else columns[:, 1]
        with np.errstate(over="ignore", invalid="ignore"):
            around = error_in_row(value * (columns[:, 0] - math.log(value) * columns[:, 1]) / total)
        return Estimate(value, n, around if around is not None and math.isfinite(around) else None)
    columns = by_cluster(columns, texts)
    clusters = len(columns)
    drawn = np.random.default_rng(0).multinomial(clusters, np.full(clusters, 1 / clusters), size=BOOTSTRAP_REPEATS)
    loss, tokens = (drawn @ columns).T  # [repeats] each
    kept = tokens > 0  # words and bytes stand with a text's first window: a draw may hold none
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.exp(loss[kept] / tokens[kept]).std(ddof=1))
    return Estimate(value, n, error if math.isfinite(error) else None)


def last_number(text: str) -> str:
    """The last number in a text, without separators of thousands; empty where there is none."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return found[-1].replace(",", "") if found else ""


# -- samples


class SampleFile:
    """Samples as JSON lines, appended as they are produced; the first line says whose they are.

    Every line holds its position as "index" and is sealed (see `mcbench.sealed`). A line cut short by a kill is dropped
    when the file is read.
    """

    def __init__(self, path: Path, owner: Mapping[str, Any]) -> None:
        self.path = path
        self._lines = Lines(path, SAMPLES, {"schema": SAMPLES_SCHEMA, **owner})

    def read(self) -> dict[int, Row]:
        """The samples already there, by position; an absent file is begun.

        Raises BadInput where the file belongs to another model, protocol or limit, or a line was changed, moved or
        left out, or says what cannot be.
        """
        with _moved_away():
            return _by_position(self._lines.read(), self.path)

    def append(self, rows: Mapping[int, Row]) -> None:
        """Adds samples, in one write."""
        self._lines.append({"index": at, **row} for at, row in sorted(rows.items()))

    def begin(self) -> None:
        """Forgets the samples that are there."""
        self._lines.begin()


@contextlib.contextmanager
def _moved_away() -> Iterator[None]:
    """Says what to do with samples that cannot be gone on from: they are nobody's but the user's to throw away."""
    try:
        yield
    except Damaged as error:
        raise Damaged(f"{error}; move it away to begin anew") from None


def _by_position(rows: Iterable[Row], path: Path) -> dict[int, Row]:
    """Samples by their position; Damaged where one has none, or that of another, or says what cannot be."""
    known: dict[int, Row] = {}
    for row in rows:
        at = row.pop("index", None)
        if type(at) is not int or at < 0:
            reason = f"a sample has the position {at!r}"
        elif at in known:
            reason = f"sample {at} is there twice"
        elif reason := unsound(row):
            reason = f"in sample {at} {reason}"
        if reason:
            raise Damaged.of(path, SAMPLES, reason)
        known[at] = row
    return known


def unsound(row: Row) -> str:
    """What in a sample cannot be, whatever the task; empty where nothing is wrong.

    Numbers are finite, shares lie between 0 and 1, likelihoods are none above 1, counts are not negative, and what was
    chosen is what the likelihoods say.
    """
    if not isinstance(row.get("id"), str) or not isinstance(row.get("group"), str):
        return "there is no id or group"
    for name, value in row.items():
        if any(isinstance(one, float) and not math.isfinite(one) for one in _flat(value)):
            return f"{name} is {value!r}"
    share = row.get("correct", 0)
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        return f"correct is {share!r}, which is no share"
    for name in ("tokens", "words", "bytes", "truncated"):
        if any(type(count) is not int or count < 0 for count in _flat(row.get(name, 0))):
            return f"{name} is {row[name]!r}, which counts nothing"
    if "loss" in row and not (isinstance(row["loss"], int | float) and row["loss"] >= -ROUNDING):
        return f"the loss is {row['loss']!r}"
    if WITNESS in row and not sound(row[WITNESS]):
        return f"the witness is {row[WITNESS]!r}"
    for one, other in PAIRED:
        if isinstance(row.get(one), list) and isinstance(row.get(other), list) and len(row[one]) != len(row[other]):
            return f"{one} and {other} are not as many"
    return _unlike_its_likelihoods(row) if "loglikelihoods" in row else ""


def _unlike_its_likelihoods(row: Row) -> str:
    """What in the sample of a choice does not follow from its likelihoods."""
    values, answer, gold = row["loglikelihoods"], row.get("answer"), row.get("gold")
    if not isinstance(values, list) or not values or not all(isinstance(value, int | float) for value in values):
        return f"the likelihoods are {values!r}"
    if max(values) > ROUNDING:
        return f"a choice has the log-likelihood {max(values):g}, and none lies above 0"
    if 0 in _flat(row.get("tokens", 1)):
        return "a choice has no token"
    if answer is not None and (type(answer) is not int or not 0 <= answer < len(values)):
        return f"the answer is {answer!r} of {len(values)} choices"
    if type(gold) is int:
        likeliest = max(range(len(values)), key=values.__getitem__)
        if "acc" in row and row["acc"] != (likeliest == gold):
            return f"acc is {row['acc']!r}, and the likeliest choice is {likeliest}, the right one {gold}"
        if "correct" in row and answer is not None and row["correct"] != (answer == gold):
            return f"correct is {row['correct']!r}, and the answer is {answer}, the right one {gold}"
    return ""


def _flat(value: Any) -> Iterator[Any]:
    """A value, or what a list holds at any depth."""
    if isinstance(value, list):
        for inner in value:
            yield from _flat(inner)
    else:
        yield value


def completions_of(sink: Path) -> Path:
    """The file of programs that belongs to a sample file."""
    return sink.with_name(f"{sink.name.removesuffix('.jsonl')}{COMPLETIONS}")


def load_samples(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Whose samples a finished file holds (protocol, model, limit), and the samples in order; changes nothing.

    Raises BadInput where there is no such file, or it is cut short, damaged or of a newer schema.
    """
    try:
        owner, rows = read_lines(path, SAMPLES)
        known = _by_position(rows, path)
    except Damaged as error:
        raise Damaged(f"{error}; run it again") from None
    schema = owner.get("schema")
    if type(schema) is int and schema > SAMPLES_SCHEMA:
        raise BadInput(f"the samples {str(path)!r} are of schema {schema}, this mcbench knows up to {SAMPLES_SCHEMA}")
    if schema != SAMPLES_SCHEMA or sorted(known) != list(range(len(rows))):
        raise BadInput(f"the samples {str(path)!r} are damaged or cut short; run it again")
    return owner, [known[at] for at in range(len(rows))]


def unit_of(metric: str) -> str:
    """What a perplexity is per, as samples of text name it."""
    return {"word_perplexity": "words", "byte_perplexity": "bytes"}.get(metric, "tokens")


def kept(rows: Sequence[Row], metric: str) -> list[Row]:
    """Samples as a record holds them, for pairing with those of a record that nothing lies beside."""
    return rows_of(*outcomes_of(rows, metric), metric)


def rows_of(outcomes: Sequence[float], weights: Sequence[int], clusters: Sequence[int], metric: str) -> list[Row]:
    """What `outcomes_of` kept, as samples."""
    if weights:
        names = clusters or range(len(outcomes))
        return [
            {"id": text, "loss": loss, unit_of(metric): weight}
            for text, loss, weight in zip(names, outcomes, weights, strict=True)
        ]
    passages = map(str, clusters) if clusters else [""] * len(outcomes)
    return [
        {"id": at, "correct": score, "passage": passage}
        for at, (score, passage) in enumerate(zip(outcomes, passages, strict=True))
    ]


def outcomes_of(rows: Sequence[Row], metric: str) -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    """What a record keeps of the samples: outcomes, weights, clusters."""
    if not rows:
        return (), (), ()
    losses = "loss" in rows[0]
    outcomes = tuple(float(row["loss" if losses else "correct"]) for row in rows)
    weights = tuple(int(row[unit_of(metric)]) for row in rows) if losses else ()
    names = [row["id"] if losses else row.get("passage") or at for at, row in enumerate(rows)]
    place = {name: at for at, name in enumerate(dict.fromkeys(names))}
    clusters = tuple(place[name] for name in names) if len(place) < len(names) else ()
    return outcomes, weights, clusters


def keep_new(batch: Mapping[int, Row], rows: Mapping[int, Row], file: SampleFile | None) -> Iterator[tuple[int, Row]]:
    """The samples of a batch that are not known yet, written to the file first."""
    # through JSON and back, so that a resumed run holds exactly what an uninterrupted one holds
    new = {at: json.loads(json.dumps(row)) for at, row in batch.items() if at not in rows}
    if file and new:
        file.append(new)
    yield from new.items()


def identify(item: Item, prompt: str) -> Row:
    """The beginning of a sample: which item it answers and a digest of what was asked."""
    prompt_digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    shared = {"passage": item.passage} if item.passage else {}
    return {"id": item.id, "group": item.group, **shared, "prompt": prompt_digest}


def items_of(task: Task) -> tuple[Item, ...]:
    """The items of a task, made once; BadInput where there are none."""
    return _items_and_digest(task)[0]


def _items_and_digest(task: Task) -> tuple[tuple[Item, ...], str]:
    """The items of a task and their SHA-256, made once for a data folder."""
    return _made(task, current_folder())


@functools.lru_cache(maxsize=64)
def _made(task: Task, folder: Path | None) -> tuple[tuple[Item, ...], str]:
    items = tuple(task.items())
    if not items:
        raise BadInput(f"task {task.name!r} has no items")
    # the passage moves no answer, only how sure one is of their mean
    asked = [{key: v for key, v in dataclasses.asdict(item).items() if key != "passage"} for item in items]
    text = json.dumps([[type(item).__name__, each] for item, each in zip(items, asked, strict=True)], sort_keys=True)
    return items, hashlib.sha256(text.encode()).hexdigest()
