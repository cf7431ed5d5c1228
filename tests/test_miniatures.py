"""Asked as tasks of lm-eval, through its own loop and backend, the miniatures get the same answers sample by sample."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from mcbench.catalogue import TASKS
from mcbench.evaluation import LanguageModel
from mcbench.items import ChoiceItem, CodeItem, GenerationItem, TextItem
from mcbench.model import load_model
from mcbench.sandbox import run_programs
from mcbench.task import Scores, Task

CHOICES = ("piqa", "arc-easy", "arc-challenge", "boolq", "hellaswag", "winogrande", "mathqa", "mmlu")
WRITTEN = ("gsm8k", "needle", "needle-multikey")


@cache
def reference() -> LanguageModel:
    moe = load_model("reference")
    return LanguageModel(moe.model, moe.tokenizer)


def miniature(name: str, count: int) -> Task:
    return TASKS.get(f"mini-{name}")(count=count)  # type: ignore[call-arg]


def by_lm_eval(rows: list[dict[str, Any]], backend: Any = None, **config: Any) -> dict[str, Any]:
    """Rows asked by a definition of our own in lm-eval's loop; without a backend by its own transformers one."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from mcbench.harness_model import InMemoryTask

    task = InMemoryTask({"task": "miniature", "test_split": "test", **config}, {"test": rows})
    lm = reference()
    backend = backend or HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
    found: dict[str, Any] = evaluate(backend, {"miniature": task}, bootstrap_iters=0)
    return {"results": found["results"]["miniature"], "samples": found["samples"]["miniature"]}


def ours() -> Any:
    from mcbench.harness_model import HarnessLM

    return HarnessLM(reference())


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_made_as_lm_eval_makes_them(name: str) -> None:
    task = miniature(name, 12)
    items = [item for item in task.items() if isinstance(item, ChoiceItem)]
    assert all(choice.startswith(" ") for item in items for choice in item.choices)
    rows = [
        {"context": item.context, "choices": [choice[1:] for choice in item.choices], "gold": item.gold}
        for item in items
    ]
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    definition = {"doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "gold"}
    for backend in (None, ours()):
        expected = by_lm_eval(rows, backend, output_type="multiple_choice", metric_list=metrics, **definition)
        scores = task.evaluate(reference())
        for row, sample in zip(scores.samples, expected["samples"], strict=True):
            values = [value for value, _ in sample["filtered_resps"]]
            assert row["loglikelihoods"] == pytest.approx(values, abs=1e-4, rel=1e-6)
            assert (row["acc"], row["acc_norm"]) == (sample["acc"], sample["acc_norm"])
        require_metric(scores, expected["results"])


def require_metric(scores: Scores, results: dict[str, Any]) -> None:
    assert scores.value is not None
    assert f"{scores.value:.4f}" == f"{results[f'{scores.metric},none']:.4f}"


@pytest.mark.parametrize("name", WRITTEN)
def test_texts_are_written_as_lm_eval_has_them_written(name: str) -> None:
    task = miniature(name, 6)
    items = [item for item in task.items() if isinstance(item, GenerationItem)]
    rows = [{"prompt": item.prompt, "answer": item.answer} for item in items]
    settings = {"until": list(items[0].stop), "max_gen_toks": items[0].max_new_tokens, "do_sample": False}
    metrics = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    definition = {"doc_to_text": "prompt", "doc_to_target": "answer", "generation_kwargs": settings}
    assert {(item.stop, item.max_new_tokens) for item in items} == {(items[0].stop, items[0].max_new_tokens)}
    for backend in (None, ours()):
        expected = by_lm_eval(rows, backend, output_type="generate_until", metric_list=metrics, **definition)
        for row, sample in zip(task.evaluate(reference()).samples, expected["samples"], strict=True):
            assert row["text"] == sample["resps"][0][0]


def test_programs_are_written_and_judged_as_in_lm_evals_loop() -> None:
    """The sandbox is the metric of its definition: a program passes there where it passes here."""
    task = miniature("humaneval", 24)
    scores = task.evaluate(reference(), allow_code_execution=True)
    for backend, count in ((None, 4), (ours(), 24)):
        expected = programs_by_lm_eval(task, backend, count)
        for row, sample in zip(scores.samples[:count], expected["samples"], strict=True):
            assert row["completions"] == [sample["resps"][0][0]]
            assert row["correct"] == sample["passed"]
    require_metric(scores, {"pass@1,none": expected["results"]["passed,none"]})
    assert {row["correct"] for row in scores.samples} == {False, True}  # both verdicts were seen


def programs_by_lm_eval(task: Task, backend: Any, count: int) -> dict[str, Any]:
    """The first problems as a task of lm-eval whose results are the sandbox's verdicts."""
    items = [item for item in task.items() if isinstance(item, CodeItem)][:count]
    rows = [{"prompt": item.prompt, "tests": item.tests} for item in items]
    assert {(item.stop, item.max_new_tokens) for item in items} == {(items[0].stop, items[0].max_new_tokens)}
    return by_lm_eval(
        rows,
        backend,
        output_type="generate_until",
        doc_to_text="prompt",
        doc_to_target="tests",
        generation_kwargs={"until": list(items[0].stop), "max_gen_toks": items[0].max_new_tokens, "do_sample": False},
        process_results=passed,
        metric_list=[{"metric": "passed", "aggregation": "mean", "higher_is_better": True}],
    )


def passed(row: dict[str, Any], answers: list[str]) -> dict[str, float]:
    (outcome,) = run_programs([f"{row['prompt']}{answers[0]}\n{row['tests']}\n"], cpu_seconds=2, wall_seconds=6)
    return {"passed": float(outcome.status == "passed")}


def test_texts_are_read_as_lm_eval_reads_them() -> None:
    task = TASKS.get("mini-perplexity")()
    items = [item for item in task.items() if isinstance(item, TextItem)][:3]
    metrics = [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}]
    rows = [{"text": item.text} for item in items]
    definition = {"doc_to_text": "", "doc_to_target": "text", "output_type": "loglikelihood_rolling"}
    for backend in (None, ours()):
        expected = by_lm_eval(rows, backend, metric_list=metrics, **definition)
        for item, sample in zip(items, expected["samples"], strict=True):
            loss = sum(window.loss for window in reference().perplexity([item.text]))
            assert -loss == pytest.approx(sample["resps"][0][0], abs=1e-4, rel=1e-6)
