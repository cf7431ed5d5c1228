"""The official tasks give lm-eval's numbers: the same requests, log-likelihoods, decisions and metrics as its own
transformers backend, however requests are batched, on made-up rows in the published forms and on the real ones where
they are at hand; and its stored requests of the whole splits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import made_up
import pytest
from made_up import SHARED
from tiny import tiny_tokenizer, tiny_transformer

from mcbench.catalogue import TASKS
from mcbench.datasets import SETS, data_folder
from mcbench.errors import BadInput
from mcbench.evaluation import Completion, LanguageModel
from mcbench.harness import HarnessTask
from mcbench.model import load_model
from mcbench.pipeline import Exam
from mcbench.task import Scores, _made, items_of

ZERO_SHOT = ("piqa", "arc-easy", "arc-challenge", "boolq", "hellaswag", "winogrande", "mathqa", "mmlu")
OFFICIAL = (*ZERO_SHOT, "mmlu-5shot", "gsm8k", "gsm8k-fixed", "wikitext2-word")
ARCHITECTURES = ("mixtral", "qwen2_moe", "gpt_oss", "olmoe")  # plain, shared experts, sliding window, other norms
NEW_TOKENS = 8  # of a generation in these tests


@pytest.fixture(autouse=True)
def _sets(made_up_folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The made-up sets, or the published ones for a test that is marked as needing them."""
    real = request.node.get_closest_marker("skipif") is not None
    if not real:
        made_up.install(monkeypatch)
    with data_folder(SHARED if real else made_up_folder):
        yield


def official(name: str, **settings: Any) -> HarnessTask:
    task = TASKS.get(name)(**settings)
    assert isinstance(task, HarnessTask)
    return task


@cache
def language_model(architecture: str = "mixtral", tokens_per_batch: int = 4000) -> LanguageModel:
    """Every byte is a token here, so the window is that of five examples."""
    model = tiny_transformer(architecture, 0, max_position_embeddings=8192, hidden_size=16, num_hidden_layers=2)
    return LanguageModel(model, tiny_tokenizer(), tokens_per_batch=tokens_per_batch)


@cache
def reference() -> LanguageModel:
    moe = load_model("reference")
    return LanguageModel(moe.model, moe.tokenizer)


@pytest.fixture(autouse=True)
def _short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never stops by itself."""
    kept = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0}
    written = {"generation_kwargs": {**kept, "max_gen_toks": NEW_TOKENS}}
    for name in ("gsm8k", "gsm8k-fixed"):
        changes = TASKS.get(name).changes  # type: ignore[attr-defined]
        monkeypatch.setattr(TASKS.get(name), "changes", lambda self, changes=changes: {**changes(self), **written})


def by_lm_eval(task: HarnessTask, lm: Any, count: int) -> dict[str, Any]:
    """lm-eval's own run of the same rows: its requests, its loop, its metrics, by any of its backends."""
    from lm_eval.evaluator import evaluate

    (part,) = task.parts(items_of(task)[:count])  # type: ignore[arg-type]
    made = part.task
    found: dict[str, Any] = evaluate(lm, {made.task_name: made}, bootstrap_iters=0)
    return {"results": found["results"][made.task_name], "samples": found["samples"][made.task_name]}


def hflm(lm: LanguageModel, batch_size: int = 4) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size, max_length=lm.window)


def first_answers(task: HarnessTask, lm: LanguageModel, count: int) -> Scores:
    """Our scores of the same first rows, where a limit would ask so many of each subject."""
    rows = [row for batch in task._answer(lm, items_of(task)[:count], ()) for row in batch.values()]
    return task._scores(rows, 0.0, True)


def require_equal(task: HarnessTask, scores: Scores, expected: dict[str, Any]) -> None:
    """Per sample and in sum; an answer that lm-eval filters in two ways stands there twice."""
    rows = {int(row["id"]): row for row in scores.samples}
    for sample in expected["samples"]:
        row = rows[int(items_of(task)[sample["doc_id"]].id)]
        if "loglikelihoods" in row:
            found = [(value, greedy) for value, greedy in sample["filtered_resps"]]
            # lm-eval sums in fp32, which has steps of 6e-5 at -600 nats: hence one part in a million as well
            assert row["loglikelihoods"] == pytest.approx([value for value, _ in found], abs=1e-4, rel=1e-6)
            assert row["greedy"] == [greedy for _, greedy in found]
            assert [row[name] for name in sample["metrics"]] == [sample[name] for name in sample["metrics"]]
        elif "text" in row:
            assert row["text"] == sample["resps"][0][0]
            assert row[f"exact_match,{sample['filter']}"] == sample["exact_match"]
        else:
            assert -row["loss"] == pytest.approx(sample["resps"][0][0], abs=1e-4, rel=1e-6)
    for metric in (task.metric, *task.also):
        key = metric if "," in metric else f"{metric},none"
        value = scores.value if metric == task.metric else scores.also[metric].value
        assert value is not None
        digits = ".4f" if task.higher_is_better else ".5g"  # a perplexity of 1e30 has no fourth decimal
        assert format(value, digits) == format(expected["results"][key], digits)


# -- the same requests


def asked_by_lm_eval(name: str, rows: dict[str, list[Any]], folder: Path, limit: int | None) -> list[Any]:
    """The arguments of every request that `lm_eval.simple_evaluate` makes of its own task on these rows, in its order.

    Nothing of ours is in between: its registry, its loader of JSON files, its sampler with its default seed.
    """
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    from mcbench.harness_model import DEFINITIONS, SPLITS, definition

    class Notes(LM):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[Any] = []

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            self.asked += [request.args for request in requests]
            return [(-1.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            self.asked += [request.args for request in requests]
            return [-1.0] * len(requests)

        def generate_until(self, requests: list[Any]) -> list[str]:
            self.asked += [request.args for request in requests]
            return [""] * len(requests)

    asked = official(name)
    path = asked.definition.format(group=GROUPS.get(name, ""))
    named: set[Any] = {definition(path).get(key) for key in SPLITS} - {None}
    files: dict[str, str] = {}
    for split in {*rows, *named}:
        found = rows.get(split, rows[asked.split])  # a split that is not used must be there all the same
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    own = {
        "include": str(DEFINITIONS / path),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "num_fewshot": asked.example_count(),
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    notes = Notes()
    manager = TaskManager(include_defaults=False)
    simple_evaluate(
        model=notes, tasks=[str(folder / "task.yaml")], task_manager=manager, limit=limit, bootstrap_iters=0
    )
    return notes.asked


GROUPS = {"mmlu": "abstract_algebra", "mmlu-5shot": "astronomy"}


def require_the_requests_of_lm_eval(name: str, folder: Path, limit: int | None) -> None:
    task = official(name)
    group = GROUPS.get(name, "")
    splits = [split for split in (task.split, task.examples_split or ("dev" if group else "train")) if split]
    splits = [split for split in splits if split in SETS[task.data].forms]
    rows = {split: [r for r in task.rows(split).rows if not group or r["subject"] == group] for split in splits}
    items = [item for item in items_of(task) if item.group == group][:limit]
    ours = [request.args for each in task._ask(items) for request in each.requests]
    theirs = asked_by_lm_eval(name, rows, folder, limit)
    assert len(ours) >= 3
    if isinstance(theirs[0][-1], dict):
        ours, theirs = ([args[0] for args in side] for side in (ours, theirs))  # how long an answer is, tests shorten
    assert ours == theirs


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "gsm8k-fixed"])
def test_every_request_is_the_one_that_lm_eval_makes_of_its_own_task(name: str, tmp_path: Path) -> None:
    require_the_requests_of_lm_eval(name, tmp_path, None)


@made_up.shared
@pytest.mark.parametrize("name", ["gsm8k"])
def test_every_prompt_of_the_whole_split_is_lm_evals(name: str, tmp_path: Path) -> None:
    require_the_requests_of_lm_eval(name, tmp_path, None)


def test_a_limit_asks_the_prompts_that_lm_eval_asks_under_it(tmp_path: Path) -> None:
    require_the_requests_of_lm_eval("gsm8k", tmp_path, 7)


def test_fixed_examples_stand_before_every_question_and_are_a_task_of_their_own() -> None:
    prompts = {
        name: [each.requests[0].args[0] for each in official(name)._ask(items_of(official(name)))]
        for name in ("gsm8k", "gsm8k-fixed")
    }
    beginnings = {name: {prompt.rpartition("Question:")[0] for prompt in found} for name, found in prompts.items()}
    assert (len(beginnings["gsm8k-fixed"]), len(beginnings["gsm8k"])) == (1, 20)
    assert not set(prompts["gsm8k"]) & set(prompts["gsm8k-fixed"])
    assert all(prompt.count("Question:") == 6 for found in prompts.values() for prompt in found)


TARGETS = {
    "piqa": "piqa-v0",
    "arc-easy": "arc_easy-v0",
    "arc-challenge": "arc_challenge-v0",
    "boolq": "boolq-v1",
    "winogrande": "winogrande-v0",
    "mathqa": "mathqa-v0",
}


@made_up.stored_requests
@pytest.mark.parametrize("name", TARGETS)
def test_whole_splits_give_the_requests_and_metrics_that_an_older_lm_eval_stored(name: str) -> None:
    """The request hash, and the metrics of random answers, of its version 0: an independent tool and dataset copy."""
    from mcbench.harness_model import metrics_of

    targets = json.loads((SHARED / "lm_eval_targets" / "lm_eval_v0_targets.json").read_text())
    task = official(name)
    asked = task._ask(items_of(task))
    random.Random(42).shuffle(asked)
    turn = -1 if name == "boolq" else 1  # it asked for yes before no
    requests = [list(request.args) for each in asked for request in each.requests[::turn]]
    digest = hashlib.sha256(json.dumps(requests, sort_keys=True).encode()).hexdigest()
    assert digest == targets[f"{TARGETS[name]}-loglikelihood"]
    rng = random.Random(42)
    found: dict[str, list[float]] = {}
    for each in asked:
        answers = [(-rng.random(), False) for _ in each.requests][::turn]
        for metric, value in metrics_of(each.task, each.requests, answers).items():
            found.setdefault(metric, []).append(value)
    expected = targets[f"{TARGETS[name]}-res.json"]["results"][TARGETS[name].partition("-")[0]]
    for metric, values in found.items():
        assert sum(values) / len(values) == pytest.approx(expected[metric], abs=1e-12)


# -- the same answers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ("piqa", "winogrande", "hellaswag", "mmlu", "mmlu-5shot", "gsm8k"))
def test_answers_and_metrics_are_those_of_lm_evals_own_backend(name: str, architecture: str) -> None:
    task, lm, count = official(name), language_model(architecture), 2 if name == "gsm8k" else 6
    expected = by_lm_eval(task, hflm(lm), count)
    require_equal(task, first_answers(task, lm, count), expected)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_reference_model_answers_as_with_lm_evals_own_backend(name: str) -> None:
    task, lm = official(name), reference()
    count = 2 if name == "wikitext2-word" else 8
    expected = by_lm_eval(task, hflm(lm, 8), count)
    require_equal(task, first_answers(task, lm, count), expected)


@made_up.shared
def test_real_questions_are_answered_as_with_lm_evals_own_backend() -> None:
    for name in OFFICIAL:
        task, lm = official(name), reference()
        count = 1 if name == "wikitext2-word" else 5
        require_equal(task, first_answers(task, lm, count), by_lm_eval(task, hflm(lm, 8), count))


@pytest.mark.parametrize("tokens_per_batch", [1, 3000, 12_000, 48_000])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batches_of_either_backend_change_nothing(batch_size: int, tokens_per_batch: int) -> None:
    task, lm = official("arc-easy"), language_model("mixtral", tokens_per_batch)
    expected = by_lm_eval(task, hflm(lm, batch_size), 16)
    require_equal(task, task.evaluate(lm, limit=16), expected)


def test_shuffled_requests_get_the_same_answers() -> None:
    from mcbench.harness_model import HarnessLM

    lm = language_model()
    asked = [request for name in ("piqa", "mmlu-5shot", "winogrande") for each in ask(name, 6) for request in each]
    turned = random.Random(0).sample(asked, len(asked))
    plain, shuffled = HarnessLM(lm).loglikelihood(asked), HarnessLM(lm).loglikelihood(turned)
    found = {request.args: answer for request, answer in zip(turned, shuffled, strict=True)}
    for request, (value, greedy) in zip(asked, plain, strict=True):
        assert found[request.args][0] == pytest.approx(value, abs=1e-4, rel=1e-6)
        assert found[request.args][1] == greedy


def ask(name: str, count: int) -> list[list[Any]]:
    task = official(name)
    return [each.requests for each in task._ask(items_of(task)[:count])]


@pytest.mark.parametrize("name", ("piqa", "mmlu", "gsm8k", "wikitext2-word"))
def test_our_backend_serves_lm_evals_own_loop(name: str) -> None:
    """`simple_evaluate(model=HarnessLM(...))` of anyone gives what its own backend gives."""
    from mcbench.harness_model import HarnessLM

    task, lm = official(name), reference()
    count = 1 if name == "wikitext2-word" else 6
    ours, theirs = by_lm_eval(task, HarnessLM(lm), count), by_lm_eval(task, hflm(lm, 8), count)
    digits = ".4f" if task.higher_is_better else ".5g"
    for key, value in theirs["results"].items():
        if isinstance(value, float):
            assert format(ours["results"][key], digits) == format(value, digits)


# -- as a task of ours


@pytest.mark.parametrize("name", ("piqa", "gsm8k", "wikitext2-word"))
def test_a_run_killed_anywhere_goes_on_to_the_same_scores(name: str, tmp_path: Path) -> None:
    settings = {"window": 512} if name == "wikitext2-word" else {}
    task, lm, whole = official(name, **settings), reference(), tmp_path / "whole.jsonl"
    count = 2 if name == "wikitext2-word" else 5
    expected = task.evaluate(lm, limit=count, sink=whole)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + count and expected.partial
    for kept in range(1, len(lines)):
        killed = tmp_path / f"killed-{kept}.jsonl"
        killed.write_bytes(b"".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        found = task.evaluate(lm, limit=count, sink=killed)
        assert dataclasses.replace(found, seconds=expected.seconds) == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_task_says_what_it_is(name: str) -> None:
    task = official(name)
    assert task.name == name and type(task).__doc__ and not task.counterpart
    assert task.protocol.startswith(f"{name}@") and task.protocol == official(name).protocol


def test_the_protocol_changes_with_examples_and_data() -> None:
    tasks = [official("mmlu-5shot"), official("mmlu-5shot", shots=4), official("mmlu")]
    tasks += [official("gsm8k"), official("gsm8k-fixed"), official("gsm8k", shots=4)]
    hashes = {task.protocol.partition("@")[2] for task in tasks}
    assert len(hashes) == len(tasks)


@pytest.mark.parametrize(("name", "chance"), [("piqa", 0.5), ("mmlu", 0.25), ("mathqa", 0.2), ("gsm8k", 0.0)])
def test_guessing_is_worth_one_choice_in_all(name: str, chance: float) -> None:
    assert official(name).chance() == pytest.approx(chance)


def test_questions_about_one_passage_say_so_and_keep_their_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    boolq = official("boolq")
    items, protocol = items_of(boolq), boolq.protocol
    assert (len(items), len({item.passage for item in items})) == (20, 10)
    (row,) = boolq.evaluate(language_model(), limit=1).samples
    assert row["passage"] == items[0].passage
    monkeypatch.setattr(type(boolq), "passage_column", "")
    _made.cache_clear()
    assert boolq.protocol == protocol and items_of(boolq)[0].passage == ""
    _made.cache_clear()


def test_mmlu_weighs_a_subject_by_its_size() -> None:
    task, lm = official("mmlu"), language_model()
    some = [item for item in items_of(task) if item.group in ("astronomy", "anatomy")]
    rows = [row for batch in task._answer(lm, some, frozenset()) for row in batch.values()]
    sizes = {group: sum(row["group"] == group for row in rows) for group in ("astronomy", "anatomy")}
    scores = task._scores(rows, 0.0, True)
    assert sizes == {"anatomy": 10, "astronomy": 15}
    pooled = sum(scores.groups[group].value * size for group, size in sizes.items()) / len(rows)
    assert scores.value == pytest.approx(pooled, abs=1e-12)


def test_what_does_not_fit_the_window_is_cut_and_counted() -> None:
    model = tiny_transformer("mixtral", 0, hidden_size=16, num_hidden_layers=2)  # a window of 512 bytes
    lm = LanguageModel(model, tiny_tokenizer())
    scores = first_answers(official("mmlu-5shot"), lm, 3)
    assert scores.truncated == 3 and all(row["truncated"] > 0 for row in scores.samples)
    expected = by_lm_eval(official("mmlu-5shot"), hflm(lm), 3)  # which cuts as well, with a warning
    require_equal(official("mmlu-5shot"), scores, expected)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(BadInput, match="needs 6 examples of 'abstract_algebra', and there are 5"):
        official("mmlu-5shot", shots=6).evaluate(language_model(), limit=1)
    with pytest.raises(BadInput, match="shots must lie between 0 and 100, not -1"):
        official("gsm8k", shots=-1)


def test_a_run_finds_absent_and_too_few_examples_at_the_door(
    made_up_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    tasks = (official("piqa"), official("gsm8k", shots=80), official("mmlu-5shot", shots=9))
    with pytest.raises(BadInput) as refused:
        Exam(tasks, tmp_path, None, False).require_data()
    few, fewer = str(refused.value).split("\n")
    assert few == "gsm8k needs 80 examples of 'gsm8k', and there are 60: ask for fewer shots"
    assert fewer.startswith("mmlu-5shot needs 9 examples of 'abstract_algebra', and there are 5")
    (tmp_path / "gsm8k").mkdir()
    file = made_up_folder / "gsm8k" / "test.jsonl"
    (tmp_path / "gsm8k" / file.name).symlink_to(file)
    with data_folder(tmp_path), pytest.raises(BadInput) as refused:
        Exam((official("gsm8k"), official("mmlu-5shot")), tmp_path, None, False).require_data()
    assert [line.split(" is in no")[0] for line in str(refused.value).split("\n")] == [
        "the train split of 'gsm8k'", "the test split of 'mmlu'", "the dev split of 'mmlu'"
    ]  # fmt: skip


def test_a_tokenizer_without_special_tokens_is_enough_where_there_is_a_context() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    lm = LanguageModel(language_model().model, tokenizer)
    expected, scores = (official("piqa").evaluate(each, limit=3) for each in (language_model(), lm))
    assert [row["correct"] for row in scores.samples] == [row["correct"] for row in expected.samples]
    assert official("gsm8k", shots=1).evaluate(lm, limit=1).n == 1
    with pytest.raises(BadInput, match="neither BOS nor EOS"):
        official("wikitext2-word").evaluate(lm, limit=1)


def test_an_empty_completion_is_kept_and_wrong() -> None:
    task = official("gsm8k")
    (asked,) = task._ask(items_of(task)[:1])
    row = task._text_row(asked, Completion("", 0, "end", 0))
    assert (row["text"], row["finish"], row["tokens"], row["correct"]) == ("", "end", 0, 0.0)
    assert row["strict-match"] == row["flexible-extract"] == "[invalid]"


def test_a_generation_setting_that_is_not_known_is_refused() -> None:
    from mcbench.harness_model import generation

    prompt, sampling = generation(("a", {"until": ["\n"], "temperature": 0.5, "do_sample": True}), language_model())
    assert prompt.stop == ("\n", "</s>") and sampling is not None and sampling.temperature == 0.5
    with pytest.raises(BadInput, match="knows no setting num_beams"):
        generation(("a", {"until": ["\n"], "num_beams": 3}), language_model())


def test_a_policy_that_looks_ahead_takes_the_safe_path() -> None:
    """Every distinct text is then computed by itself, from its beginning."""
    shared = reference()
    lm = LanguageModel(shared.model, shared.tokenizer, prefix_sharing=False)
    assert lm.settings()["prefix_sharing"] == "none" and shared.settings()["prefix_sharing"] == "trie"
    for name in ("mmlu-5shot", "gsm8k"):
        alone, together = (first_answers(official(name), each, 3) for each in (lm, shared))
        assert [row["correct"] for row in alone.samples] == [row["correct"] for row in together.samples]
        assert alone.value == together.value and lm.fingerprint != shared.fingerprint
