"""Evaluation tasks as tasks of lm-eval: the rows come from us, the model's answers as well.

The number is the one that lm-eval gives: a definition makes the prompts, its filters and metrics judge the answers.
What is ours is how the answers are computed, kept sample by sample and gone on with after an interruption. The
definitions of published sets are lm-eval's own; those of our own items stand in `mcbench.kinds`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mcbench.datasets import current_folder, loaded
from mcbench.errors import BadInput, require_all
from mcbench.items import Item, RowItem
from mcbench.progress import inner
from mcbench.task import (
    Estimate,
    Row,
    Task,
    identify,
    items_of,
    perplexity,
    require_prompt_room,
    require_window,
    require_window_room,
    score_choices,
)
from mcbench.witness import noted

if TYPE_CHECKING:
    from mcbench.datasets import Rows
    from mcbench.evaluation import LanguageModel, Prompt
    from mcbench.harness_model import InMemoryTask


class Part(NamedTuple):
    """Items that follow one another and share one definition, with the task that it makes of them."""

    items: Sequence[Item]
    task: InMemoryTask


class Asked(NamedTuple):
    """One item with its requests, as lm-eval makes them."""

    task: InMemoryTask
    item: Item
    requests: list[Any]


@dataclass(frozen=True)
class DefinedTask(Task):
    """A task whose requests and verdicts a definition of lm-eval makes; a subclass says which (`parts`)."""

    also: ClassVar[tuple[str, ...]] = ()

    def _window(self) -> int:
        """How many tokens are predicted at a time, 0 for the model's whole window."""
        return 0

    def parts(self, items: Sequence[Any]) -> Iterator[Part]:
        """The items in their order, as tasks that `lm_eval.evaluate` takes as well."""
        raise NotImplementedError

    def _ask(self, items: Sequence[Any]) -> list[Asked]:
        """Every item with its requests."""
        with inner("starting lm-eval"):
            from mcbench.harness_model import requests_of

        asked = []
        with inner("requests", len(items)) as step:
            for part in self.parts(items):
                for item, requests in zip(part.items, requests_of(part.task), strict=True):
                    asked.append(Asked(part.task, item, requests))
                    step()
        return asked

    def _identify(self, asked: Asked) -> Row:
        return identify(asked.item, json.dumps([request.args for request in asked.requests]))

    def _other_metrics(self) -> tuple[str, ...]:
        return self.also

    # -- answers

    def _answer(self, lm: LanguageModel, items: Sequence[Any], done: Collection[int]) -> Iterator[dict[int, Row]]:
        asked = self._ask(items)
        kind = asked[0].requests[0].request_type
        answer = {
            "loglikelihood": self._choose,
            "generate_until": self._complete,
            "loglikelihood_rolling": self._read,
        }[kind]
        yield from answer(lm, asked, done)

    def _choose(self, lm: LanguageModel, asked: Sequence[Asked], done: Collection[int]) -> Iterator[dict[int, Row]]:
        pairs = [[request.args for request in each.requests] for each in asked]
        for batch in score_choices(lm, pairs, done):
            yield {at: {**self._choice_row(asked[at], scores), **noted(batch, at)} for at, scores in batch.items()}

    def _choice_row(self, asked: Asked, scores: Sequence[Any]) -> Row:
        from mcbench.harness_model import metrics_of

        values = [score.value for score in scores]
        metrics = metrics_of(asked.task, asked.requests, [(score.value, score.greedy) for score in scores])
        doc = asked.requests[0].doc
        gold = asked.task.doc_to_text(doc) if asked.task.multiple_input else asked.task.doc_to_target(doc)
        length = [len(choice) for choice in asked.task.doc_to_choice(doc)] if self.metric == "acc_norm" else None
        weighed = [value / n for value, n in zip(values, length, strict=True)] if length else values
        return {
            **self._identify(asked),
            "loglikelihoods": values,
            "greedy": [score.greedy for score in scores],
            "answer": max(range(len(values)), key=weighed.__getitem__),
            "gold": gold,
            **metrics,
            "correct": metrics[self.metric],
            "tokens": [score.tokens for score in scores],
            "truncated": max(score.truncated for score in scores),
        }

    def _complete(self, lm: LanguageModel, asked: Sequence[Asked], done: Collection[int]) -> Iterator[dict[int, Row]]:
        prompts = self._prompts(lm, asked)
        for batch in lm.generate_batches(prompts, None, done):
            yield {at: {**self._text_row(asked[at], found[0]), **noted(batch, at)} for at, found in batch.items()}

    def _prompts(self, lm: LanguageModel, asked: Sequence[Asked]) -> list[Prompt]:
        """What is to be continued; BadInput for a definition that samples by itself."""
        from mcbench.harness_model import generation

        prompts = [generation(each.requests[0].args, lm) for each in asked]
        if any(sampling for _, sampling in prompts):
            raise BadInput(f"{self.name} is defined with sampling; only greedy generation is comparable")
        return [prompt for prompt, _ in prompts]

    def _text_row(self, asked: Asked, completion: Any) -> Row:
        from mcbench.harness_model import metrics_of

        metrics = metrics_of(asked.task, asked.requests, [completion.text])
        return {
            **self._identify(asked),
            "text": completion.text,
            "gold": str(asked.task.doc_to_target(asked.requests[0].doc)),
            **{name: float(value) if not isinstance(value, str) else value for name, value in metrics.items()},
            "correct": float(metrics[self.metric]),
            "tokens": completion.tokens,
            "finish": completion.finish,
            "truncated": completion.truncated,
        }

    def _read(self, lm: LanguageModel, asked: Sequence[Asked], done: Collection[int]) -> Iterator[dict[int, Row]]:
        texts = [each.requests[0].args[0] for each in asked]
        for batch in lm.text_batches(texts, self._window() or None, done):
            yield {at: {**self._loss_row(asked[at], score), **noted(batch, at)} for at, score in batch.items()}

    def _loss_row(self, asked: Asked, score: Any) -> Row:
        from mcbench.harness_model import metrics_of

        metrics = metrics_of(asked.task, asked.requests, [score.value])
        return {
            **self._identify(asked),
            "loss": -score.value,
            "tokens": score.tokens,
            "words": metrics["word_perplexity"][1],
            "bytes": metrics["byte_perplexity"][1],
            "truncated": 0,
        }

    def _estimate(self, rows: Sequence[Row], metric: str) -> Estimate:
        if "loss" not in rows[0]:
            return super()._estimate(rows, metric)
        losses, texts = [row["loss"] for row in rows], [row["id"] for row in rows]
        if metric == "word_perplexity":
            return perplexity(losses, [row["words"] for row in rows], texts)
        found = perplexity(losses, [row["bytes"] for row in rows], texts)
        if metric == "byte_perplexity":
            return found
        error = found.standard_error
        return Estimate(
            math.log2(found.value), found.n, error / (found.value * math.log(2)) if error is not None else None
        )


@dataclass(frozen=True)
class HarnessTask(DefinedTask):
    """A task of lm-eval: subclass it once per file and name its definition, data and splits.

    definition: the file below lm-eval's folder of tasks, with `{group}` where there is one per group of rows.
    data, split: what `mcbench.datasets` calls the rows that are asked.
    examples_split: where the examples before a question come from; `shots` of them.
    group_column: the column whose value tells which definition a row belongs to; empty where there is only one.
    passage_column: the column with the text that a question is about, where several share one; moves no answer.
    metric: the one that counts; `also` the others that lm-eval computes.
    window_field: the name of the field, an int, that says in windows of how many tokens texts are read; empty where the
        windows are the model's. A field of any other name is a parameter that moves nothing by itself.
    """

    window_field: ClassVar[str] = ""
    definition: ClassVar[str] = ""
    data: ClassVar[str] = ""
    split: ClassVar[str] = "test"
    examples_split: ClassVar[str] = ""
    group_column: ClassVar[str] = ""
    passage_column: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.example_count() < 0:
            raise BadInput(f"{self.name} shows 0 examples or more before a question, not {self.example_count()}")
        require_window(self, self._window())

    def _window(self) -> int:
        return int(getattr(self, self.window_field)) if self.window_field else 0

    def rows(self, split: str) -> Rows:
        """The rows of a split in the columns of the definition, with their source and its digest.

        Raises BadInput where they can be had from nowhere.
        """
        return loaded(self.data, split)

    def sets(self) -> Sequence[tuple[str, str]]:
        """The set that is asked, and the split that examples come from."""
        return [(self.data, split) for split in (self.split, *([self.examples_split] if self.example_count() else []))]

    def items(self) -> Sequence[RowItem]:
        """The rows that are asked, group after group."""
        found = [
            RowItem(str(at), row, str(row[self.group_column]) if self.group_column else "", self._passage(row))
            for at, row in enumerate(self.rows(self.split).rows)
        ]
        return sorted(found, key=lambda item: item.group)  # stable: within a group in the order of the file

    def _passage(self, row: Mapping[str, Any]) -> str:
        """A short name for the text that a row is about."""
        return hashlib.sha256(str(row[self.passage_column]).encode()).hexdigest()[:16] if self.passage_column else ""

    def example_count(self) -> int:
        """How many examples stand before a question."""
        return 0

    def changes(self) -> Mapping[str, Any]:
        """Fields of the definition that this task sets otherwise."""
        return {}

    def _group_of_tasks(self) -> bool:
        return bool(self.group_column)

    def chance(self) -> float | None:
        """Guessing evenly among the choices of each row; None for a perplexity, 0 for a text."""
        return _chance(self, current_folder())

    def require_data(self) -> None:
        """The rows that are asked and the examples before them; BadInput names all that is absent."""
        require_all((super().require_data, self._require_examples))

    def require_room(self, window: int) -> None:
        """A written answer must leave room for a prompt, windows fit into the model's; BadInput where they do not."""
        groups = tuple(self._groups()) if self.group_column else ("",)
        written = _new_tokens(self.definition, groups, json.dumps(self.changes()))
        require_prompt_room(self, written, window)
        require_window_room(self, self._window(), window, self.window_field)

    # -- lm-eval

    def _require_examples(self) -> None:
        """Raises BadInput where a group has too few; without its questions only whether there are any examples."""
        if not self.example_count():
            return
        examples = self.rows(self.examples_split).rows
        try:
            groups = self._groups()
        except BadInput:  # what is asked is absent, which is said elsewhere
            return
        for group in groups:
            self._require_enough(group, self._shown(group, examples))

    def _require_enough(self, group: str, examples: Sequence[Mapping[str, Any]]) -> None:
        if len(examples) < self.example_count():
            raise BadInput(
                f"{self.name} needs {self.example_count()} examples of {(group or self.data)!r}, "
                f"and there are {len(examples)}: ask for fewer shots"
            )

    def _shown(self, group: str, examples: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
        """Those of the examples that may stand before a question of the group."""
        return tuple(row for row in examples if not self.group_column or row[self.group_column] == group)

    def parts(self, items: Sequence[RowItem]) -> Iterator[Part]:
        """The items by group; items of one group stand together."""
        examples = self.rows(self.examples_split).rows if self.example_count() else ()
        for group, members in itertools.groupby(items, key=lambda item: item.group):
            mine = tuple(members)
            yield Part(mine, self._task(group, mine, self._shown(group, examples)))

    def _task(self, group: str, items: Sequence[RowItem], examples: Sequence[Mapping[str, Any]]) -> InMemoryTask:
        from mcbench.harness_model import in_memory_task

        splits: dict[str, Any] = {self.split: [item.row for item in items]}
        if examples:
            splits[self.examples_split] = examples
        self._require_enough(group, examples)
        path = self.definition.format(group=group)
        try:
            return in_memory_task(path, splits, shots=self.example_count(), **self.changes())
        except KeyError as error:
            raise BadInput(f"the rows of {self.data!r} lack the column {error}") from error

    def _setting(self) -> Mapping[str, Any]:
        count = self.example_count()
        return {
            "lm-eval": importlib.metadata.version("lm_eval"),
            "definition": _definition_digest(self.definition, tuple(self._groups()), json.dumps(self.changes())),
            "shots": count,
            "examples": _digest(self.rows(self.examples_split).rows) if count else "",
        }

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(item.group for item in self._row_items()))

    def _row_items(self) -> list[RowItem]:
        return [item for item in items_of(self) if isinstance(item, RowItem)]

    def _details(self, rows: Sequence[Row]) -> dict[str, Any]:
        setting = self._setting()
        return {"lm-eval": setting["lm-eval"], "shots": setting["shots"]}


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=32)
def _definition_digest(path: str, groups: tuple[str, ...], changes: str) -> str:
    """SHA-256 of the definitions with everything they include, their functions as source."""
    from mcbench.harness_model import definition

    configs = [definition(path.format(group=group)) for group in groups]
    text = json.dumps([configs, changes], sort_keys=True, default=inspect.getsource)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=32)
def _new_tokens(path: str, groups: tuple[str, ...], changes: str) -> tuple[int, ...]:
    """The longest answer by each definition that asks for a written one."""
    from mcbench.harness_model import definition, new_tokens

    configs = [definition(path.format(group=group)) | json.loads(changes) for group in groups]
    written = [c.get("generation_kwargs") or {} for c in configs if c.get("output_type") == "generate_until"]
    return tuple(new_tokens(settings) for settings in written)


@functools.lru_cache(maxsize=32)
def _chance(task: HarnessTask, folder: Path | None) -> float | None:
    if not task.higher_is_better:
        return None
    shares: list[float] = []
    for part in task.parts(task._row_items()):
        made = part.task
        if made.OUTPUT_TYPE != "multiple_choice":
            return 0.0
        shares += [1 / len(made.doc_to_choice(doc)) for doc in made.task_docs]
    return math.fsum(shares) / len(shares)
