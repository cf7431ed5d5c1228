"""The kinds of evaluation tasks whose items are ours: choices, texts to write, programs to write, texts to read.

Each has a definition for lm-eval, whose functions look at the items; so they are asked and judged as any task of
lm-eval is, and `parts` gives them to its own loop. Subclass a kind once per file and give its items.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mcbench.bounds import Between, Seed, Window
from mcbench.errors import BadInput
from mcbench.harness import Asked, DefinedTask, Part
from mcbench.items import ChoiceItem, CodeItem, GenerationItem, TextItem
from mcbench.progress import track
from mcbench.task import (
    ALLOW,
    Estimate,
    Row,
    SampleFile,
    completions_of,
    identify,
    items_of,
    mean,
    pass_at_k,
    perplexity,
    require_prompt_room,
    require_window,
    require_window_room,
    restarts_of,
)
from mcbench.witness import ROW as WITNESS
from mcbench.witness import noted, summary

if TYPE_CHECKING:
    from mcbench.evaluation import LanguageModel
    from mcbench.sandbox import Outcome, Program

JUDGED_BY = 2  # ways of running programs so far: verdicts of an earlier one are made anew
PROGRAMS_AT_A_TIME = 32  # problems, between two writes of the sample file
SPLIT = "test"


@dataclass(frozen=True)
class ItemTask(DefinedTask):
    """A task whose items the package makes; a subclass says what lm-eval is to ask about one."""

    def parts(self, items: Sequence[Any]) -> Iterator[Part]:
        """Neighbours with the same settings of generation are one task."""
        from mcbench.harness_model import task_of

        for settings, members in itertools.groupby(items, key=self._generation):
            mine = tuple(members)
            config: dict[str, Any] = {"task": self.name, "test_split": SPLIT, **self._definition(mine)}
            if settings:
                config["generation_kwargs"] = settings
            yield Part(mine, task_of(config, {SPLIT: [{"place": at} for at in range(len(mine))]}))

    def _definition(self, items: Sequence[Any]) -> dict[str, Any]:
        """Fields of the definition; its functions get a row that says the item's "place" in the sequence."""
        raise NotImplementedError

    def _generation(self, item: Any) -> dict[str, Any]:
        """How an answer is written, in lm-eval's words; empty where nothing is written."""
        return {}


@dataclass(frozen=True)
class ChoiceTask(ItemTask):
    """Multiple choice by log-likelihood: "acc" takes the likeliest choice, "acc_norm" the likeliest per character.

    As lm-eval has it: the length of a choice is that of its text without the space before it.
    """

    metric: ClassVar[str] = "acc"

    def items(self) -> Sequence[ChoiceItem]:
        """The questions."""
        raise NotImplementedError

    def chance(self) -> float | None:
        """Guessing evenly among the choices of each item."""
        items = [item for item in items_of(self) if isinstance(item, ChoiceItem)]
        return math.fsum(1 / len(item.choices) for item in items) / len(items)

    def _definition(self, items: Sequence[ChoiceItem]) -> dict[str, Any]:
        for item in items:
            if not all(choice.startswith(" ") and choice.strip() for choice in item.choices):
                raise BadInput(
                    f"item {item.id!r} of {self.name} has the choices {list(item.choices)}: begin each with a space"
                )
            if not 0 <= item.gold < len(item.choices):
                raise BadInput(
                    f"item {item.id!r} of {self.name} has the gold {item.gold} and {len(item.choices)} choices: "
                    "count them from 0"
                )
        metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
        return {
            "output_type": "multiple_choice",
            "doc_to_text": lambda row: items[row["place"]].context,
            "doc_to_choice": lambda row: [choice[1:] for choice in items[row["place"]].choices],
            "doc_to_target": lambda row: items[row["place"]].gold,
            "target_delimiter": " ",
            "metric_list": metrics,
        }

    def _identify(self, asked: Asked) -> Row:
        assert isinstance(asked.item, ChoiceItem)
        return identify(asked.item, asked.item.context)

    def _other_metrics(self) -> tuple[str, ...]:
        return tuple(metric for metric in ("acc", "acc_norm") if metric != self.metric)


@dataclass(frozen=True)
class WrittenTask(ItemTask):
    """A task whose answers are written: texts or programs."""

    def chance(self) -> float | None:
        """Guessing what is written never succeeds."""
        return 0.0

    def require_room(self, window: int) -> None:
        """The longest answer must leave room for a prompt; BadInput where it does not."""
        written = [i.max_new_tokens for i in items_of(self) if isinstance(i, GenerationItem | CodeItem)]
        require_prompt_room(self, written, window)

    def _generation(self, item: GenerationItem | CodeItem) -> dict[str, Any]:
        return {"until": list(item.stop), "max_gen_toks": item.max_new_tokens, "do_sample": False}

    def _identify(self, asked: Asked) -> Row:
        assert isinstance(asked.item, GenerationItem | CodeItem)
        return identify(asked.item, asked.item.prompt)


@dataclass(frozen=True)
class GenerationTask(WrittenTask):
    """Greedy generation: the answer extracted from what the model writes must equal the item's."""

    metric: ClassVar[str] = "exact_match"

    def items(self) -> Sequence[GenerationItem]:
        """The prompts."""
        raise NotImplementedError

    def extract(self, text: str) -> str:
        """The answer in a completion; by default all of it without the spaces around it."""
        return text.strip()

    def gold(self, item: GenerationItem) -> Any:
        """The right answer, as a sample shows it."""
        return item.answer

    def score(self, item: GenerationItem, text: str) -> float:
        """The metric of one completion, between 0 and 1."""
        return self.extract(text) == item.answer

    def _unlike(self, row: Row, item: Any) -> str:
        problem, text = super()._unlike(row, item), row.get("text")
        if problem or not isinstance(text, str):
            return problem or "there is no text"
        found = {"answer": self.extract(text), "gold": self.gold(item), "correct": float(self.score(item, text))}
        name = next((n for n, value in found.items() if row.get(n) != json.loads(json.dumps(value))), "")
        return f"{name} is {row.get(name)!r}, and the text says {found[name]!r}" if name else ""

    def _definition(self, items: Sequence[GenerationItem]) -> dict[str, Any]:
        return {
            "output_type": "generate_until",
            "doc_to_text": lambda row: items[row["place"]].prompt,
            "doc_to_target": lambda row: items[row["place"]].answer,
            "process_results": lambda row, texts: {self.metric: self.score(items[row["place"]], texts[0])},
            "metric_list": [{"metric": self.metric, "aggregation": "mean", "higher_is_better": True}],
        }

    def _text_row(self, asked: Asked, completion: Any) -> Row:
        from mcbench.harness_model import metrics_of

        assert isinstance(asked.item, GenerationItem)
        found = metrics_of(asked.task, asked.requests, [completion.text])
        return {
            **self._identify(asked),
            "text": completion.text,
            "answer": self.extract(completion.text),
            "gold": self.gold(asked.item),
            **found,
            "correct": found[self.metric],
            "tokens": completion.tokens,
            "finish": completion.finish,
            "truncated": completion.truncated,
        }


@dataclass(frozen=True)
class CodeTask(WrittenTask):
    """Function completion: prompt and completion run confined, and the tests ask them (see `mcbench.sandbox`).

    With `samples` = 1 the completion is greedy. With more, they are drawn at `temperature` and `top_p`, and the value
    is the unbiased pass@`k` of n `samples` per problem (Chen et al. 2021, https://arxiv.org/abs/2107.03374, eq. 1).
    A program may use `cpu_seconds` of processor time and twice that plus two seconds of wall-clock time.
    """

    metric: ClassVar[str] = "pass@k"

    samples: Annotated[int, Between(1, 1000)] = 1
    k: Annotated[int, Between(1, 1000)] = 1
    temperature: Annotated[float, Between(0.01, 100)] = 0.8
    top_p: Annotated[float, Between(0.001, 1)] = 0.95
    sampling_seed: Seed = 0
    cpu_seconds: Annotated[int, Between(1, 600)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.samples:
            raise BadInput(f"pass@{self.k} needs at least as many samples; there are {self.samples}")

    def items(self) -> Sequence[CodeItem]:
        """The problems."""
        raise NotImplementedError

    def _unable(self, allow_code_execution: bool) -> str:
        from mcbench.sandbox import isolation

        found = isolation()
        if found.contained or allow_code_execution:
            return ""
        return f"programs would run with {found.name} only ({found.missing}); {ALLOW} runs them"

    def _setting(self) -> Mapping[str, Any]:
        return {"draw": 2} if self.samples > 1 else {}  # counts the ways of drawing from the same distribution

    def _unlike(self, row: Row, item: Any) -> str:
        texts, statuses = row.get("completions"), row.get("statuses")
        if not isinstance(texts, list) or len(texts) != self.samples:
            return f"there are not {self.samples} programs"
        if statuses is None:  # not run yet
            return ""
        share = pass_at_k(self.samples, statuses.count("passed"), self.k)
        if row.get("pass@k") != share:
            return f"pass@k is {row.get('pass@k')!r}, and the programs say {share:g}"
        return super()._unlike(row, item)

    def _metric_name(self) -> str:
        return f"pass@{self.k}"

    def _other_metrics(self) -> tuple[str, ...]:
        return ("pass@1",) if self.k > 1 else ()

    def _estimate(self, rows: Sequence[Row], metric: str) -> Estimate:
        if metric != "pass@1":
            return super()._estimate(rows, metric)
        return mean([row["statuses"].count("passed") / len(row["statuses"]) for row in rows])

    def _details(self, rows: Sequence[Row]) -> dict[str, Any]:
        from mcbench.sandbox import isolation

        return {"isolation": isolation().name} if rows else {}

    def _prepare(self, lm: LanguageModel, items: Sequence[CodeItem], limit: int | None, sink: Path | None) -> str:
        if sink is None:
            raise BadInput("programs that are not run need a file to go to")
        file = SampleFile(completions_of(sink), self._completions_owner(lm.fingerprint, limit))
        rows = file.read()
        self._require_own(rows, items, file.path)
        if given_up := summary(rows.values()).get("given_up"):
            lm.give_up(given_up)
        new = self._keep(lm, self._write(lm, items, frozenset(rows)), rows, file)
        for at, row in track(new, len(items) - len(rows), self.name):
            rows[at] = row
        return f"generated, not run: `mcbench score {file.path}{self._named()}` runs them"

    def _named(self) -> str:
        """How `mcbench score` is told of a task that does not come with the package; empty for one that does."""
        if type(self).__module__.startswith("mcbench.tasks."):
            return ""
        return f" --task {getattr(sys.modules[type(self).__module__], '__file__', None) or './FILE.py'}"

    def _written(
        self, lm: LanguageModel, items: Sequence[CodeItem], limit: int | None, sink: Path | None
    ) -> Mapping[int, Row]:
        if sink is None or not completions_of(sink).exists():
            return {}
        file = SampleFile(completions_of(sink), self._completions_owner(lm.fingerprint, limit))
        rows = file.read()
        self._require_own(rows, items, file.path)
        return rows

    def _score(self, written: Mapping[int, Row], items: Sequence[CodeItem]) -> Iterator[dict[int, Row]]:
        order = sorted(written)
        for start in range(0, len(order), PROGRAMS_AT_A_TIME):
            yield self._run({at: written[at] for at in order[start : start + PROGRAMS_AT_A_TIME]}, items)

    def _definition(self, items: Sequence[CodeItem]) -> dict[str, Any]:
        def judge(row: Mapping[str, int], texts: Sequence[str]) -> dict[str, float]:
            """Of one program alone, for lm-eval's own loop; here those of a batch run together."""
            from mcbench.sandbox import isolation

            found = isolation()
            if not found.contained:
                raise BadInput(
                    f"{self.name}: lm-eval's own loop runs programs only where they are confined, and here there is "
                    f"{found.name} only ({found.missing}): go to a machine that confines them, or use `mcbench run`"
                )
            item = items[row["place"]]
            return {"passed": float(self._outcomes([_program(item, texts[0])])[0].status == "passed")}

        return {
            "output_type": "generate_until",
            "doc_to_text": lambda row: items[row["place"]].prompt,
            "doc_to_target": lambda row: items[row["place"]].tests,
            "process_results": judge,
            "metric_list": [{"metric": "passed", "aggregation": "mean", "higher_is_better": True}],
        }

    def _completions_owner(self, fingerprint: str, limit: int | None) -> dict[str, Any]:
        parameters = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"protocol": self.protocol, "model": fingerprint, "limit": limit, "parameters": parameters}

    def _write(self, lm: LanguageModel, items: Sequence[CodeItem], done: Collection[int]) -> Iterator[dict[int, Row]]:
        """What the model writes for each problem, batch by batch."""
        from mcbench.evaluation import Sampling

        sampling = (
            Sampling(self.temperature, self.top_p, self.samples, self.sampling_seed) if self.samples > 1 else None
        )
        prompts = self._prompts(lm, self._ask(items))
        for batch in lm.generate_batches(prompts, sampling, done):
            yield {
                at: {
                    **identify(items[at], items[at].prompt),
                    "completions": [completion.text for completion in completions],
                    "tokens": [completion.tokens for completion in completions],
                    "truncated": max(completion.truncated for completion in completions),
                    **noted(batch, at),
                }
                for at, completions in batch.items()
            }

    def _answer(self, lm: LanguageModel, items: Sequence[CodeItem], done: Collection[int]) -> Iterator[dict[int, Row]]:
        restarts = restarts_of(lm)
        for batch in self._write(lm, items, done):
            again = restarts_of(lm) != restarts
            yield self._run({at: row for at, row in batch.items() if again or at not in done}, items)

    def _run(self, batch: Mapping[int, Row], items: Sequence[CodeItem]) -> dict[int, Row]:
        """Runs the programs of all completions of a batch."""
        programs = [_program(items[at], text) for at, row in batch.items() for text in row["completions"]]
        outcomes = iter(self._outcomes(programs))
        return {
            at: {
                **self._row(row, [next(outcomes) for _ in row["completions"]]),
                "judged": _digest_of_programs(items[at], row["completions"]),
            }
            for at, row in batch.items()
        }

    def _outdated(
        self, rows: Mapping[int, Row], written: Mapping[int, Row], items: Sequence[CodeItem]
    ) -> Mapping[int, Row]:
        found = {}
        for at, row in rows.items():
            current = written.get(at, row)
            if row.get("judged") != _digest_of_programs(items[at], current["completions"]):
                found[at] = current
        return found

    def _outcomes(self, programs: Sequence[Program]) -> list[Outcome]:
        from mcbench.sandbox import run_programs

        return run_programs(programs, cpu_seconds=self.cpu_seconds, wall_seconds=2 * self.cpu_seconds + 2)

    def _row(self, written: Row, outcomes: Sequence[Any]) -> Row:
        passed = sum(outcome.status == "passed" for outcome in outcomes)
        share = pass_at_k(len(outcomes), passed, self.k)
        return {
            **{
                key: written[key]
                for key in ("id", "group", "passage", "prompt", "completions", WITNESS)
                if key in written
            },
            "statuses": [outcome.status for outcome in outcomes],
            "messages": [outcome.message for outcome in outcomes],
            "pass@k": share,
            "correct": passed > 0 if self.samples == 1 else share,
            "tokens": written["tokens"],
            "truncated": written["truncated"],
        }


@dataclass(frozen=True)
class PerplexityTask(ItemTask):
    """Token perplexity: exp(nats per token); where texts are scored whole, words and bytes are other units of the loss.

    `window`: tokens predicted at a time, 0 for the model's whole window. `style`: "rolling" scores every token of
    every text; "disjoint" joins all texts first with `separator`, cuts whole windows and drops the rest (GPTQ's way).
    The standard error is a bootstrap over windows: tokens within one are not independent. Words are what whitespace
    parts; lm-eval counts an empty one more at an end with whitespace. As a task of lm-eval (`parts`) it reads text by
    text, rolling, whatever the style: lm-eval has no other.
    """

    metric: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False
    _one_sample_an_item: ClassVar[bool] = False  # but one a window

    window: Window = 0
    style: Literal["rolling", "disjoint"] = "rolling"
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_window(self, self.window)

    def items(self) -> Sequence[TextItem]:
        """The texts."""
        raise NotImplementedError

    def require_room(self, window: int) -> None:
        """The windows must fit into the model's; BadInput where they do not."""
        require_window_room(self, self.window, window)

    def _most_windows(self) -> int | None:
        """How many windows are scored at most; None for all."""
        return None

    def _first(self, items: Sequence[Any], limit: int | None) -> tuple[Sequence[Any], bool]:
        if self.style == "rolling":
            return super()._first(items, limit)
        most = min((n for n in (limit, self._most_windows()) if n is not None), default=None)
        return [_Joined("all", self.separator.join(item.text for item in items), most=most)], limit is not None

    def _some(self, items: Sequence[Any], few: int) -> Sequence[Any]:
        if not isinstance(items[0], _Joined):
            return super()._some(items, few)
        (text,) = items
        return [dataclasses.replace(text, most=few if text.most is None else min(few, text.most))]

    def _answer(self, lm: LanguageModel, items: Sequence[TextItem], done: Collection[int]) -> Iterator[dict[int, Row]]:
        window, most = self._limits(items)
        texts = [asked.requests[0].args[0] for asked in self._ask(items)]
        for batch in lm.perplexity_batches(texts, window, self.style, done, most):
            yield {
                at: {
                    **identify(items[window.text], items[window.text].text),
                    "loss": window.loss,
                    "tokens": window.tokens,
                    "words": window.words,
                    "bytes": window.bytes,
                    "truncated": 0,
                    **noted(batch, at),
                }
                for at, window in batch.items()
            }

    def _definition(self, items: Sequence[TextItem]) -> dict[str, Any]:
        metrics = ("word_perplexity", "byte_perplexity")
        return {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": lambda row: items[row["place"]].text,
            "metric_list": [
                {"metric": m, "aggregation": "weighted_perplexity", "higher_is_better": False} for m in metrics
            ],
        }

    def _unlike(self, row: Row, item: Any) -> str:
        sizes = {"words": len(item.text.split()), "bytes": len(item.text.encode())}
        name = next((name for name, size in sizes.items() if row.get(name) not in (0, size)), "")
        return f"the text has {sizes[name]} {name}, not {row.get(name)!r}" if name else super()._unlike(row, item)

    def _limits(self, items: Sequence[TextItem]) -> tuple[int | None, int | None]:
        """The window, and how many windows are scored at most."""
        return self.window or None, items[0].most if isinstance(items[0], _Joined) else None

    def _samples_expected(self, lm: LanguageModel, items: Sequence[TextItem]) -> int:
        window, most = self._limits(items)
        return lm.count_windows([item.text for item in items], window, self.style, most)

    def _details(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {"tokens": sum(row["tokens"] for row in rows), "windows": len(rows)}

    def _estimate(self, rows: Sequence[Row], metric: str) -> Estimate:
        unit = {"perplexity": "tokens", "word_perplexity": "words", "byte_perplexity": "bytes"}[metric]
        return perplexity([row["loss"] for row in rows], [row[unit] for row in rows], [row["id"] for row in rows])

    def _other_metrics(self) -> tuple[str, ...]:
        # words and bytes are those of whole texts, of which whole windows leave a rest
        return ("word_perplexity", "byte_perplexity") if self.style == "rolling" else ()


@dataclass(frozen=True)
class _Joined(TextItem):
    """All texts as one, of which at most so many windows are scored."""

    most: int | None = None


def _program(item: CodeItem, text: str) -> Program:
    from mcbench.sandbox import Program

    return Program(item.prompt, text, item.tests)


def _digest_of_programs(item: CodeItem, texts: Sequence[str]) -> str:
    """What a verdict is a verdict on: the problem, its tests, and what completes it."""
    judged = json.dumps([item.prompt, item.tests, list(texts), JUDGED_BY])
    return hashlib.sha256(judged.encode()).hexdigest()[:16]
