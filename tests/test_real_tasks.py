"""The published tasks ask what they say they ask: windows, problems, needles, with the data named in the record."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import random
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_up
import pytest
from made_up import SHARED
from tiny import tiny_tokenizer, tiny_transformer

import mcbench.needles
from mcbench.catalogue import TASKS, select_tasks
from mcbench.cli import main
from mcbench.composition import defaults
from mcbench.datasets import FOLDER_VARIABLE, data_folder, load
from mcbench.errors import BadInput, UnknownName
from mcbench.evaluation import Completion, LanguageModel
from mcbench.items import GenerationItem
from mcbench.kinds import CodeTask, PerplexityTask
from mcbench.sandbox import Program, isolation, run_programs
from mcbench.scoring import score
from mcbench.task import Task, completions_of, items_of, mean, pass_at_k

NEEDLES = ("niah", "niah-multikey", "niah-multikey-2", "niah-multikey-3")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


@cache
def language_model(window: int = 8192) -> LanguageModel:
    """Every byte of a text is a token."""
    model = tiny_transformer("mixtral", 0, max_position_embeddings=window, sliding_window=None)
    return LanguageModel(model, tiny_tokenizer(), tokens_per_batch=4000)


def task(text: str) -> Task:
    (found,) = select_tasks(text)
    return found


@cache
def real_tokenizer(name: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(
        gzip.decompress((SHARED / "tokenizers" / name / "tokenizer.json.gz").read_bytes()).decode()
    )


# -- parameters in the task string


def test_a_task_takes_its_parameters_in_brackets() -> None:
    found = select_tasks("niah-multikey-2(lengths=(512, 1024), depths=3), humaneval(samples=1, k=1)")
    assert [f.name for f in found] == ["niah-multikey-2", "humaneval"]
    assert found[0].lengths == (512, 1024) and found[1].samples == 1  # type: ignore[attr-defined]
    assert found[0].protocol != task("niah-multikey-2").protocol


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(UnknownName, match="humaneval has no hyper-parameter 'sample'; did you mean 'samples'"):
        select_tasks("humaneval(sample=3)")
    with pytest.raises(BadInput, match="samples must be int"):
        select_tasks("humaneval(samples=many)")
    with pytest.raises(BadInput, match="pass@10 needs at least as many samples"):
        select_tasks("humaneval(samples=3)")
    with pytest.raises(BadInput, match="is a suite and takes no parameters"):
        select_tasks("quick(count=3)")
    with pytest.raises(BadInput, match="brackets"):
        select_tasks("humaneval(samples=3")
    for wrong in ("lengths=()", "lengths=(16,)", "depths=1", "repeats=0", "characters_per_token=0"):
        with pytest.raises(BadInput):
            select_tasks(f"niah-multikey-3({wrong})")


def test_every_suite_names_tasks_that_exist() -> None:
    suites = defaults()["suites"]
    assert {"zeroshot8", "challenging", "paper", "quick"} <= set(suites)
    for members in suites.values():
        assert len(set(members)) == len(members) and set(members) <= set(TASKS.names())
    assert {*suites["zeroshot8"], *suites["challenging"]} <= set(suites["paper"]) and len(suites["zeroshot8"]) == 8
    published = {name for name in TASKS.names() if not name.startswith("mini-")}
    assert set(suites["paper"]) == published - {"gsm8k-fixed"}  # a variant that no paper asks


# -- perplexity in whole windows


@made_up.real_tokenizers
@pytest.mark.parametrize(
    ("name", "tokens", "windows"), [("llama_hf", 341_469, 166), ("olmoe_gpt-neox-olmo-dolma-v1_5", 288_730, 140)]
)
def test_wikitext_has_the_tokens_that_are_known(name: str, tokens: int, windows: int) -> None:
    """The Llama-2 figure is the one that papers divide by; it counts the BOS token."""
    wiki = task("wikitext2")
    assert isinstance(wiki, PerplexityTask)
    with data_folder(SHARED):
        text = wiki.separator.join(item.text for item in wiki.items())
    found = len(real_tokenizer(name).encode(text).ids)
    assert (found, found // wiki.window) == (tokens, windows)


def test_wikitext_is_scored_window_by_window(sets: Path) -> None:
    """Against a plain forward of the joined text, cut by hand; the first token of a window is read, not scored."""
    import torch

    lm = language_model()
    with data_folder(sets):
        scores = task("wikitext2(window=512)").evaluate(lm, limit=3)
        rows = load("wikitext2-rows", "test").rows
    ids = lm.tokenizer("\n\n".join(row["text"] for row in rows))["input_ids"]
    losses = []
    for start in range(0, 3 * 512, 512):
        window = torch.tensor([ids[start : start + 512]])
        with torch.no_grad():
            losses.append(float(lm.model(window, labels=window).loss))
    assert scores.n == 3 and scores.partial and scores.details["tokens"] == 3 * 511
    assert scores.value == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)
    assert scores.details["data"]["test"]["source"] == "wikitext2/wiki.test.raw"
    assert re.fullmatch("[0-9a-f]{64}", scores.details["data"]["test"]["sha256"])


def test_c4_takes_its_first_documents_and_windows(sets: Path) -> None:
    with data_folder(sets):
        few = task("c4(documents=20, windows=4, window=256)").evaluate(language_model())
        texts = [row["text"] for row in load("c4", "validation").rows[:20]]
    windows = language_model().perplexity([" ".join(texts)], 256, "disjoint")[:4]
    assert few.n == 4 and not few.partial
    assert few.value == pytest.approx(math.exp(sum(w.loss for w in windows) / sum(w.tokens for w in windows)))


def test_the_protocol_tells_windows_and_data_apart(sets: Path, tmp_path: Path) -> None:
    with data_folder(sets):
        ids = [task(text).protocol for text in ("wikitext2", "wikitext2(window=1024)", "c4", "c4(windows=8)")]
    (tmp_path / "c4").mkdir()
    for name in ("c4-sample.01.json", "c4-sample.02.json"):
        (tmp_path / "c4" / name).write_text(made_up.lines(made_up.documents(15)), encoding="utf-8")
    with data_folder(tmp_path):
        other = task("c4")
        ids.append(other.protocol)
        assert len(other.items()) == 30
    assert len(set(ids)) == len(ids)


def test_a_window_that_does_not_fit_the_model_is_refused(sets: Path) -> None:
    with data_folder(sets), pytest.raises(BadInput, match="a window of 2048 tokens does not fit the model"):
        task("wikitext2").evaluate(language_model(1024), limit=1)


def test_a_text_without_a_whole_window_is_refused(sets: Path) -> None:
    with data_folder(sets), pytest.raises(BadInput, match="it makes no window"):
        task("c4(documents=1, window=4096)").evaluate(language_model())


# -- HumanEval


def test_humaneval_asks_the_164_problems_of_the_package() -> None:
    items = task("humaneval").items()
    rows = load("humaneval", "test").rows
    assert len(items) == 164 and [item.prompt for item in items] == [row["prompt"] for row in rows]  # type: ignore[union-attr]
    assert items[0].stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # type: ignore[union-attr]


def test_right_and_wrong_programs_are_told_apart() -> None:
    """The published solutions pass, and the same functions without a body do not."""
    if not isolation().contained:
        pytest.skip(f"this machine confines by {isolation().name} only")
    items = task("humaneval").items()
    rows = load("humaneval", "test").rows
    right = [Program(i.prompt, r["canonical_solution"], i.tests) for i, r in zip(items, rows, strict=True)]  # type: ignore[union-attr]
    wrong = [Program(i.prompt, "    return None\n", i.tests) for i in items]  # type: ignore[union-attr]
    found = run_programs([*right, *wrong], cpu_seconds=3, wall_seconds=8)
    assert {o.status for o in found[: len(items)]} == {"passed"}
    assert {o.status for o in found[len(items) :]} == {"failed"}


class Writes:
    """A model that writes the right program in as many of its samples as it is told, problem by problem."""

    fingerprint = "writes"
    tokenizer = SimpleNamespace(eos_token="</s>")

    def __init__(self, right: list[int], samples: int) -> None:
        self.right, self.samples, self.asked = right, samples, 0

    def generate_batches(self, prompts: Any, sampling: Any, done: Any) -> Any:
        solutions = [row["canonical_solution"] for row in load("humaneval", "test").rows]
        assert sampling.samples == self.samples and sampling.temperature == 0.8 and sampling.top_p == 0.95
        for at in range(len(prompts)):
            if at not in done:
                self.asked += 1
                texts = [solutions[at] if n < self.right[at] else "    pass" for n in range(self.samples)]
                yield {at: [Completion(text, 5, "stop", 0) for text in texts]}


RIGHT = [0, 1, 2, 20]


def test_pass_at_10_and_at_1_come_from_the_same_samples(tmp_path: Path) -> None:
    if not isolation().contained:
        pytest.skip(f"this machine confines by {isolation().name} only")
    scores = task("humaneval").evaluate(Writes(RIGHT, 20), limit=4)  # type: ignore[arg-type]
    assert scores.metric == "pass@10" and scores.partial
    assert scores.value == pytest.approx(mean([pass_at_k(20, right, 10) for right in RIGHT]).value)
    assert scores.also["pass@1"].value == pytest.approx(sum(RIGHT) / 80)
    assert scores.details["data"]["test"]["rows"] == 164 and scores.details["isolation"]


def test_programs_are_written_now_and_scored_later(tmp_path: Path) -> None:
    if not isolation().contained:
        pytest.skip(f"this machine confines by {isolation().name} only")
    human, writer = task("humaneval(samples=2, k=1)"), Writes([0, 1, 2, 2], 2)
    at_once = human.evaluate(Writes([0, 1, 2, 2], 2), limit=4, sink=tmp_path / "once.jsonl")  # type: ignore[arg-type]
    sink = tmp_path / f"{human.protocol}.jsonl"
    later = human.evaluate(writer, limit=4, sink=sink, execute=False)  # type: ignore[arg-type]
    assert later.value is None and "mcbench score" in later.skipped and not sink.exists()
    assert "isolation" not in later.details
    found = score(completions_of(sink))
    assert (found.value, found.samples) == (at_once.value, at_once.samples) and found.protocol == at_once.protocol
    again = human.evaluate(writer, limit=4, sink=sink)  # type: ignore[arg-type]
    assert again.samples == at_once.samples and writer.asked == 4  # nothing was written twice
    assert sorted(sink.read_bytes().splitlines()) == sorted((tmp_path / "once.jsonl").read_bytes().splitlines())


def test_programs_killed_while_being_written_go_on(tmp_path: Path) -> None:
    human = task("humaneval(samples=2, k=1)")
    sink = tmp_path / f"{human.protocol}.jsonl"
    human.evaluate(Writes([1] * 4, 2), limit=4, sink=sink, execute=False)  # type: ignore[arg-type]
    file = completions_of(sink)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in range(len(lines)):
        file.write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        if kept:
            with pytest.raises(BadInput, match=f"holds programs for {kept - 1} of 4 problems"):
                score(file)
        human.evaluate(Writes([1] * 4, 2), limit=4, sink=sink, execute=False)  # type: ignore[arg-type]
        assert file.read_bytes() == whole
        sink.unlink(missing_ok=True)


def test_a_file_of_programs_that_does_not_belong_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    human = task("humaneval(samples=2, k=1)")
    sink = tmp_path / f"{human.protocol}.jsonl"
    human.evaluate(Writes([1], 2), limit=1, sink=sink, execute=False)  # type: ignore[arg-type]
    file = completions_of(sink)
    head, *rest = file.read_bytes().splitlines(keepends=True)
    owner = json.loads(head)

    def refused(reason: str, **changes: Any) -> None:
        file.write_bytes(json.dumps({**owner, **changes}).encode() + b"\n" + b"".join(rest))
        with pytest.raises((BadInput, UnknownName), match=reason):
            score(file)

    refused("and here the task is", protocol="humaneval@00000000")
    refused("no task that runs programs", protocol="niah@00000000")
    refused("no task that runs programs", protocol="nothing@00000000")
    refused("does not begin", protocol=3)
    refused("does not begin", limit="all")
    refused("has no hyper-parameter", parameters={"colour": 1})
    file.write_bytes(b"\x00")
    with pytest.raises(BadInput, match="does not begin"):
        score(file)
    assert main(["score", str(sink)]) == 2 and "ends in .completions.jsonl" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "none.completions.jsonl")]) == 2


CONTRIBUTED = """
from dataclasses import dataclass

from mcbench.items import CodeItem
from mcbench.items import GenerationItem
from mcbench.kinds import CodeTask


@dataclass(frozen=True)
class Mine(CodeTask):
    def items(self):
        return [CodeItem("0", "x = 1  #", "assert x == 1", (), 4)]
"""


def test_the_programs_of_a_contributed_task_are_scored_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(CONTRIBUTED)
    contributed = task(str(mine))
    sink = tmp_path / f"{contributed.protocol}.jsonl"
    told = contributed.evaluate(language_model(), sink=sink, execute=False).skipped
    file = completions_of(sink)
    assert f"`mcbench score {file} --task {mine}`" in told
    with pytest.raises(BadInput, match="written for 'mine'.*--task ./mine.py"):
        score(file)
    with pytest.raises(BadInput, match="'niah-multikey-2' is no task that runs programs"):
        score(file, task="niah-multikey-2")
    assert main(["score", str(file), "--task", str(mine), "--allow-code-execution", "--quiet"]) == 0
    assert "100" in capsys.readouterr().out


# -- needles


def test_a_text_that_needs_more_keys_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcbench.needles, "CITIES", ("Lima",))
    with pytest.raises(BadInput, match="a text of 90000 tokens needs more than the 1000 numbered cities there are"):
        task("niah-multikey-2(lengths=(90000,))").items()


@pytest.mark.parametrize("name", NEEDLES)
def test_a_needle_stands_once_in_its_place(name: str, sets: Path) -> None:
    with data_folder(sets):
        items = task(f"{name}(lengths=(2048, 4096), depths=5, repeats=2)").items()
    assert len(items) == 2 * 5 * 2 and len({item.id for item in items}) == len(items)
    for item in items:
        length, depth = (float(n) for n in re.findall(r"[\d.]+", item.group))
        before, hay, after = item.prompt.split("\n\n")  # type: ignore[union-attr]
        key = re.search(r"is the secret number of (.*)\?", after)
        assert key is not None
        needle = f"The secret number of {key[1]} is {item.answer}."  # type: ignore[union-attr]
        assert hay.count(needle) == 1 and hay.count(f"of {key[1]} is") == 1
        others = hay.count("The secret number of") - 1
        assert {"niah": others == 0, "niah-multikey": others == 3}.get(name, others > 20)
        place = hay.index(needle) / (len(hay) - len(needle))
        assert abs(place - depth) < 0.04
        assert before.startswith("Remember") and length * 1.2 < len(item.prompt)  # type: ignore[union-attr]


@made_up.real_tokenizers
@pytest.mark.parametrize("tokenizer", ["llama_hf", "olmoe_gpt-neox-olmo-dolma-v1_5"])
def test_a_text_of_a_length_fits_that_many_tokens(tokenizer: str) -> None:
    for name in NEEDLES:
        with data_folder(SHARED):
            items = task(f"{name}(lengths=(4096, 16384), depths=3)").items()
        for item in items:
            assert isinstance(item, GenerationItem)
            tokens = len(real_tokenizer(tokenizer).encode(item.prompt).ids) + item.max_new_tokens
            assert 0.5 < tokens / float(item.group.split()[0]) <= 1, name


def test_who_copies_the_number_finds_the_needle() -> None:
    """An answer read from the text by rule counts as right; that of another key, or half of it, as wrong."""

    class Reads:
        fingerprint = "reads"
        tokenizer = SimpleNamespace(eos_token="</s>")

        def generate_batches(self, prompts: Any, sampling: Any = None, done: Any = ()) -> Any:
            for at, prompt in enumerate(prompts):
                key = prompt.text.rsplit("number of ", 1)[1].removesuffix(" is")
                value = prompt.text.split(f"number of {key} is ", 1)[1].split(".")[0]
                text = f" {value}. The" if at % 3 == 0 else f" {value}" if at % 3 == 1 else f" {value[:-1]}"
                yield {at: [Completion(text, 5, "stop", 7 if at == 0 else 0)]}

    scores = task("niah-multikey-2(lengths=(512,), depths=3, repeats=3)").evaluate(Reads())  # type: ignore[arg-type]
    assert (scores.k, scores.n, scores.truncated) == (6, 9, 1)
    assert set(scores.groups) == {"512 tokens, depth 0.00", "512 tokens, depth 0.50", "512 tokens, depth 1.00"}


def test_a_text_longer_than_the_window_is_counted() -> None:
    scores = task("niah-multikey-3(lengths=(512, 4096), depths=2, repeats=1)").evaluate(language_model(2048))
    assert scores.n == 4 and scores.truncated == 2
    assert [bool(row["truncated"]) for row in scores.samples] == [False, False, True, True]


def test_needles_are_the_same_every_time_and_others_for_another_seed(sets: Path) -> None:
    with data_folder(sets):
        one, same, other = (task(f"niah(depths=2, repeats=1, seed={seed})").protocol for seed in (0, 0, 1))
    assert one == same != other
    random.seed(1)
    with data_folder(sets):
        assert task("niah(depths=2, repeats=1)").items() == task("niah(depths=2, repeats=1, seed=0)").items()


# -- LongBench


def test_the_rules_of_longbench_give_the_scores_of_the_package_that_it_uses() -> None:
    """ROUGE-L of texts that share words and sentences against the package `rouge`."""
    rouge, rng = pytest.importorskip("rouge").Rouge(), random.Random(0)
    rule = longbench().RULES["qmsum"]
    for _ in range(60):
        answer = made_up.sentences(rng, rng.randrange(1, 5))
        kept = [word for word in answer.split(" ") if rng.random() < 0.7]
        text = f"{' '.join(kept)}\n{made_up.sentences(rng, rng.randrange(1, 3))} "
        expected = rouge.get_scores([text.strip()], [answer], avg=True)["rouge-l"]["f"]
        assert rule.score(text, answer, []) == pytest.approx(expected, abs=1e-12)


def test_the_lengths_and_stops_of_longbench_are_those_of_lm_eval() -> None:
    import yaml

    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        pytest.skip("lm-eval is not installed")
    for name, rule in longbench().RULES.items():
        text = (Path(spec.origin).parent / "tasks" / "longbench" / f"{name}.yaml").read_text()
        settings = yaml.safe_load(re.sub("!function", "", text))["generation_kwargs"]
        assert (settings["max_gen_toks"], tuple(settings["until"])) == (rule.max_new_tokens, rule.stop), name


def test_each_rule_of_longbench_by_example() -> None:
    rules = longbench().RULES
    words = rules["hotpotqa"].score
    assert words("The answer: Bob Dylan.", "bob dylan", []) == pytest.approx(2 * 2 / (3 + 2))
    assert words("", "x", []) == words("!?", "x", []) == 0
    number = rules["passage_retrieval_en"].score
    assert number("Paragraph 7", "Paragraph 7", []) == 1 and number("7, 8 and 9", "Paragraph 7", []) == 1 / 3
    assert rules["passage_count"].score("none", "7", []) == 0
    named, classes = rules["trec"].score, ["Date", "Food", "Food and drink"]
    assert named("Food", "Food", classes) == 1 and named("Date or Food", "Food", classes) == 0.5
    assert named("Food and drink", "Food and drink", classes) == 1  # "Food" is a part of the right name
    line = rules["lcc"].score
    assert line("# a comment\n\n    return x\n", "    return x", []) == 1 and line("", "x", []) == 0
    assert rules["samsum"].score("", "a. b.", []) == 0 and rules["samsum"].score("a b", "a b.", []) == pytest.approx(1)


def test_longbench_runs_and_counts_what_the_window_cuts(sets: Path) -> None:
    with data_folder(sets):
        long = task("longbench")
        items = items_of(long)
        rows = [row for batch in long._answer(language_model(2048), items[:2], ()) for row in batch.values()]
        scores = long._scores(rows, 0.0, True)
        assert len(items) == 6
        assert [item.group for item in long.items_within(1)] == list(dict.fromkeys(item.group for item in items))
    assert scores.n == 2 == scores.truncated and scores.metric == "score" and set(scores.groups) == {"2wikimqa"}
    assert scores.details["data"]["test"]["official"] == 3750


def longbench() -> Any:
    return importlib.import_module(type(task("longbench")).__module__)


# -- at the shell


def test_a_run_without_its_data_ends_with_one_error_that_names_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--method", "none", "--tasks", "wikitext2,niah", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "wikitext2/wiki.test.raw" in told and "niah/PaulGrahamEssays/*.txt" in told and "--data-dir" in told
    assert main(["run", "--method", "none", "--tasks", "wikitext2", "--data-dir", "nowhere", "--quiet"]) == 2
    assert "no data folder at 'nowhere'" in capsys.readouterr().err


def test_data_check_prints_what_a_folder_can_serve(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(sets)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"wikitext2 +test +33 +33 +wikitext2/wiki.test.raw", told)
    assert main(["data", "check", "nowhere"]) == 2


def test_every_code_task_says_what_writing_without_running_needs() -> None:
    human = task("humaneval(samples=1, k=1)")
    assert isinstance(human, CodeTask)
    with pytest.raises(BadInput, match="need a file to go to"):
        human.evaluate(language_model(), limit=1, execute=False)


def test_a_run_may_leave_its_programs_to_another_machine(tmp_path: Path) -> None:
    """Written by one run, scored apart, and picked up by the next run, which writes no program."""
    if not isolation().contained:
        pytest.skip(f"this machine confines by {isolation().name} only")
    from mcbench.pipeline import run

    asked = {"tasks": "mini-humaneval(count=3)", "out": tmp_path}
    (result,) = run("none", execute=False, **asked).results  # type: ignore[arg-type]
    assert result.value is None and "mcbench score" in result.skipped
    (file,) = tmp_path.rglob("*.completions.jsonl")
    scores = score(file)
    before = file.read_bytes(), file.with_name(f"{scores.protocol}.jsonl").read_bytes()
    (result,) = run("none", **asked).results  # type: ignore[arg-type]
    assert (result.value, result.n) == (scores.value, 3)
    assert before == (file.read_bytes(), file.with_name(f"{scores.protocol}.jsonl").read_bytes())
