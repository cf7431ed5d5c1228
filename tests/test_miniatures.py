"""The miniatures are tasks of lm-eval: its own loop and its own backend answer them as we do, sample by sample."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from mcbench.catalogue import TASKS
from mcbench.evaluation import LanguageModel
from mcbench.kinds import ItemTask
from mcbench.model import load_model
from mcbench.task import Scores, items_of

CHOICES = ("piqa", "arc-easy", "arc-challenge", "boolq", "hellaswag", "winogrande", "mathqa", "mmlu")
WRITTEN = ("gsm8k", "needle", "needle-multikey")


@cache
def reference() -> LanguageModel:
    moe = load_model("reference")
    return LanguageModel(moe.model, moe.tokenizer)


def miniature(name: str, count: int) -> ItemTask:
    task = TASKS.get(f"mini-{name}")(count=count)  # type: ignore[call-arg]
    assert isinstance(task, ItemTask)
    return task


def by_lm_eval(task: ItemTask, *, ours: bool, count: int | None = None) -> dict[str, Any]:
    """The task in lm-eval's own loop, through our backend or its own transformers one."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from mcbench.harness_model import HarnessLM

    (part,) = task.parts(items_of(task)[:count])
    lm = reference()
    backend = HarnessLM(lm) if ours else HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
    found: dict[str, Any] = evaluate(backend, {task.name: part.task}, bootstrap_iters=0)
    return {"results": found["results"][task.name], "samples": found["samples"][task.name]}


def require_metric(scores: Scores, results: dict[str, Any], name: str) -> None:
    assert scores.value is not None
    assert f"{scores.value:.4f}" == f"{results[f'{name},none']:.4f}"


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_made_as_lm_eval_makes_them(name: str) -> None:
    task = miniature(name, 12)
    scores = task.evaluate(reference())
    for ours in (False, True):
        expected = by_lm_eval(task, ours=ours)
        for row, sample in zip(scores.samples, expected["samples"], strict=True):
            values = [value for value, _ in sample["filtered_resps"]]
            assert row["loglikelihoods"] == pytest.approx(values, abs=1e-4, rel=1e-6)
            assert (row["acc"], row["acc_norm"]) == (sample["acc"], sample["acc_norm"])
        require_metric(scores, expected["results"], scores.metric)


@pytest.mark.parametrize("name", WRITTEN)
def test_texts_are_written_and_judged_as_in_lm_evals_loop(name: str) -> None:
    task = miniature(name, 6)
    scores = task.evaluate(reference())
    for ours in (False, True):
        expected = by_lm_eval(task, ours=ours)
        for row, sample in zip(scores.samples, expected["samples"], strict=True):
            assert row["text"] == sample["resps"][0][0]
            assert row["exact_match"] == sample["exact_match"]
        require_metric(scores, expected["results"], "exact_match")


def test_programs_are_written_and_judged_as_in_lm_evals_loop() -> None:
    """The sandbox is the metric of its definition: a program passes there where it passes here."""
    task = miniature("humaneval", 24)
    scores = task.evaluate(reference(), allow_code_execution=True)
    for ours, count in ((False, 4), (True, 24)):
        expected = by_lm_eval(task, ours=ours, count=count)
        for row, sample in zip(scores.samples[:count], expected["samples"], strict=True):
            assert row["completions"] == [sample["resps"][0][0]]
            assert row["correct"] == sample["passed"]
    require_metric(scores, expected["results"], "passed")
    assert {row["correct"] for row in scores.samples} == {False, True}  # both verdicts were seen


def test_texts_are_read_as_lm_eval_reads_them() -> None:
    task = miniature("perplexity", 5)
    scores = task.evaluate(reference())
    for ours in (False, True):
        expected = by_lm_eval(task, ours=ours)
        for row, sample in zip(scores.samples, expected["samples"], strict=True):
            assert -row["loss"] == pytest.approx(sample["resps"][0][0], abs=1e-4, rel=1e-6)
        # not so per word: lm-eval counts an empty word before and after the whitespace at the ends of a text
        assert f"{scores.also['byte_perplexity'].value:.4f}" == f"{expected['results']['byte_perplexity,none']:.4f}"
