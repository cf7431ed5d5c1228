"""What can go wrong around an evaluation is answered in words, counted in the record, or gone on from."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from bars import counting
from tiny import tiny_folder, tiny_tokenizer, tiny_transformer

from mcbench import progress
from mcbench.catalogue import select_tasks
from mcbench.cli import main
from mcbench.datasets import data_folder, look
from mcbench.errors import BadInput, UnknownName
from mcbench.evaluation import LanguageModel
from mcbench.items import ChoiceItem, GenerationItem, TextItem
from mcbench.kinds import ChoiceTask, GenerationTask, PerplexityTask
from mcbench.pipeline import Exam, run
from mcbench.sweep import TRIED_ITEMS, make_grid, plan
from mcbench.task import SampleFile, Task, items_of, perplexity, spread


@cache
def language_model(window: int = 8192, **dropped: None) -> LanguageModel:
    """Every byte of a text is a token; `dropped` special tokens are taken from the tokenizer."""
    tokenizer = tiny_tokenizer()
    for name in dropped:
        setattr(tokenizer, name, None)
    model = tiny_transformer("mixtral", 0, max_position_embeddings=window, sliding_window=None)
    return LanguageModel(model, tokenizer, tokens_per_batch=1000)


@dataclass(frozen=True)
class Long(ChoiceTask):
    """A question after a context of many tokens."""

    words: int = 60

    def items(self) -> Sequence[ChoiceItem]:
        return [ChoiceItem("0", "word " * self.words, (" yes", " no"), 0), ChoiceItem("1", "so", (" a", " b"), 0)]


@dataclass(frozen=True)
class Essay(ChoiceTask):
    """A question one of whose answers is longer than a small window."""

    def items(self) -> Sequence[ChoiceItem]:
        return [ChoiceItem("0", "so", (" a", " b" * 100), 0)]


@dataclass(frozen=True)
class Written(GenerationTask):
    """Prompts of which one is longer than a small window."""

    def items(self) -> Sequence[GenerationItem]:
        return [GenerationItem(str(n), "ab " * n, "never", ("\n",), 6) for n in (2, 40)]


# -- a window that is too short


def test_what_a_models_window_cannot_hold_is_named_before_anything_is_asked() -> None:
    tasks = select_tasks("wikitext2,c4(window=128),humaneval(samples=1, k=1),niah-multikey-3(lengths=(512,)),piqa")
    with pytest.raises(BadInput) as caught:
        Exam(tasks, Path("nowhere"), 1, False).require_room(256)
    assert str(caught.value).splitlines() == [
        "wikitext2 reads windows of 2048 tokens, and the model's window is 256: ask for wikitext2(window=256), "
        "or leave it out",
        "humaneval writes up to 512 tokens, which leave no room for a prompt in the model's window of 256: "
        "ask for humaneval(max_new_tokens=128), or leave it out",
    ]
    Exam(tasks, Path("nowhere"), 1, False).require_room(4096)


def test_a_written_answer_of_lm_evals_tasks_needs_room_too(sets: Path) -> None:
    with data_folder(sets):
        with pytest.raises(BadInput, match="gsm8k writes up to 256 tokens, .* window of 256: leave it out"):
            select_tasks("gsm8k")[0].require_room(256)
        select_tasks("gsm8k")[0].require_room(257)
        select_tasks("mmlu-5shot")[0].require_room(64)


def test_a_run_ends_before_its_first_task_where_a_later_one_does_not_fit(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model", max_position_embeddings=256, sliding_window=None)
    with pytest.raises(BadInput, match="humaneval writes up to 512 tokens"):
        run("none", model=str(model), tasks="mini-piqa,humaneval", limit=1, out=tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("*.jsonl"))


def test_contexts_that_lost_their_beginning_are_counted() -> None:
    for task in (Long(), Written()):
        short, long = task.evaluate(language_model(64)), task.evaluate(language_model())
        assert (short.truncated, long.truncated) == (1, 0)
        assert [bool(row["truncated"]) for row in short.samples].count(True) == 1


def test_an_answer_longer_than_the_window_names_its_task() -> None:
    with pytest.raises(BadInput, match="test-mishaps: a continuation of 200 tokens does not fit the model's window"):
        Essay().evaluate(language_model(64))


# -- tokenizers that lack a token


@pytest.mark.parametrize("dropped", [("bos_token",), ("pad_token",), ("bos_token", "pad_token"), ("eos_token",)])
def test_a_tokenizer_may_lack_a_token(dropped: tuple[str, ...]) -> None:
    """Texts without context then stand after EOS, as in lm-eval; answers after a context do not change at all."""
    lacking = language_model(**dict.fromkeys(dropped))
    for task in (Long(), Written()):
        assert task.evaluate(lacking).samples == task.evaluate(language_model()).samples
    (found,), (usual,) = (lm.perplexity(["some text"]) for lm in (lacking, language_model()))
    (after_eos,) = language_model().loglikelihoods([("</s>", "some text")])
    expected = after_eos.value if "bos_token" in dropped else -usual.loss
    assert -found.loss == pytest.approx(expected, abs=1e-4)


def test_without_bos_and_eos_a_text_without_context_is_refused() -> None:
    neither = language_model(bos_token=None, eos_token=None)
    assert Long().evaluate(neither).n == 2
    with pytest.raises(BadInput, match="mini-perplexity: a text without context needs a token before it"):
        select_tasks("mini-perplexity")[0].evaluate(neither, limit=1)


# -- a model that says nothing, or nonsense


@cache
def silent() -> LanguageModel:
    """Says the end-of-text token at once, whatever it is asked."""
    model: Any = tiny_transformer("mixtral", 0, max_position_embeddings=8192, sliding_window=None)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 1e4
        head = model.get_output_embeddings().weight
        head.normal_(std=0.01)
        head[:, 0] = 0
        head[2, 0] = 10
    return LanguageModel(model, tiny_tokenizer())


@pytest.mark.parametrize(
    "name", ["gsm8k", "humaneval(samples=1, k=1)", "humaneval(samples=2, k=2)", "niah(lengths=(512,))"]
)
def test_an_empty_completion_is_wrong_and_recorded(name: str, sets: Path) -> None:
    with data_folder(sets):
        scores = select_tasks(name)[0].evaluate(silent(), limit=2, allow_code_execution=True)
    assert (scores.value, scores.n, scores.truncated) == (0.0, 2, 0)
    for row in scores.samples:
        assert row.get("text", "") == "" and set(row.get("completions", [""])) == {""}
        assert row["tokens"] in (0, [0], [0, 0]) and row.get("finish", "end") == "end"


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert perplexity([2000.0, 1500.0], [2, 2], [0, 1]).value == math.inf
    assert perplexity([2000.0, 1500.0], [2, 2], [0, 1]).standard_error is None
    assert perplexity([1200.0, 1300.0], [2, 2], [0, 1]).value == pytest.approx(math.exp(625))


def test_words_are_no_unit_of_windows_that_leave_a_rest() -> None:
    @dataclass(frozen=True)
    class Text(PerplexityTask):
        """A text of 100 words."""

        def items(self) -> Sequence[TextItem]:
            return [TextItem("0", "word " * 100)]

    whole = Text(window=32).evaluate(language_model())
    assert set(whole.also) == {"word_perplexity", "byte_perplexity"}
    assert not Text(window=32, style="disjoint").evaluate(language_model()).also


# -- task strings


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("wikitext2(window=-5)", "wikitext2: window must lie between 0 and 1,048,576, not -5"),
        ("wikitext2(window=1)", "2 tokens or more"),
        ("c4(window=-3)", "c4: window must lie between"),
        ("wikitext2-word(window=-1)", "wikitext2-word: window must lie between"),
        ("mmlu-5shot(shots=-2)", "mmlu-5shot: shots must lie between 0 and 100, not -2"),
        ("humaneval(temperature=0)", "temperature must lie between 0.01 and 100, not 0"),
        ("humaneval(top_p=1.5)", "top_p must lie between"),
        ("humaneval(sampling_seed=-1)", "sampling_seed must lie between"),
        ("mini-humaneval(cpu_seconds=0)", "cpu_seconds must lie between"),
        ("piqa(limit=3)", "piqa has no hyper-parameter 'limit'; it has none"),
        ("WikiText2", "did you mean 'wikitext2'?"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_at_once(names: str, complaint: str) -> None:
    with pytest.raises((BadInput, UnknownName)) as caught:
        select_tasks(names)
    assert complaint in str(caught.value)


# -- killed, interrupted, out of space


RUN = ("run", "--method", "none", "--quiet")
KINDS = {
    "choices": "mini-piqa",
    "rolling": "mini-perplexity",
    "generation": "mini-gsm8k",
    "code": "mini-humaneval",
    "needles": "niah-multikey-3(lengths=(256,), depths=2, repeats=2)",
}


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The results of the one record below a folder, without their time, and its sample files."""
    (record,) = folder.rglob("record.json")
    results = json.loads(record.read_text())["results"]
    for result in results:
        del result["seconds"]
    return results, {path.name: path.read_bytes() for path in record.parent.glob("*.jsonl")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=4096, sliding_window=None)


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What a run of a task gives that nothing happened to."""

    @cache
    def given(task: str) -> Any:
        out = tmp_path_factory.mktemp("undisturbed")
        assert main(arguments(model, task, out)) == 0
        return outcome(out)

    return given


def arguments(model: Path, task: str, out: Path) -> list[str]:
    return [*RUN, "--model", str(model), "--tasks", task, "--limit", "20", "--out", str(out)]


def samples_below(out: Path) -> int:
    """How many lines are in sample files, first lines not counted."""
    return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in out.rglob("*.jsonl"))


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_says_one_line_and_the_same_command_goes_on(
    kind: str,
    model: Path,
    undisturbed: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = SampleFile.append

    def interrupted(file: SampleFile, rows: Any) -> None:
        original(file, dict(sorted(rows.items())[:1]))  # a part of the batch has reached the disk
        raise KeyboardInterrupt

    expected = undisturbed(KINDS[kind])
    with monkeypatch.context() as patch:
        patch.setattr(SampleFile, "append", interrupted)
        assert main(arguments(model, KINDS[kind], tmp_path)) == 130
    assert capsys.readouterr().err == "mcbench: interrupted; the same command goes on from here\n"
    assert samples_below(tmp_path) == 1
    assert main(arguments(model, KINDS[kind], tmp_path)) == 0
    assert outcome(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_is_stopped_goes_on_to_the_same_samples(
    kind: str, how: signal.Signals, model: Path, undisturbed: Callable[[str], Any], tmp_path: Path
) -> None:
    """Before its first sample and after it; the machine may be too quick for the second."""
    for samples in (0, 1):
        out = tmp_path / str(samples)
        command = [sys.executable, "-m", "mcbench", *arguments(model, KINDS[kind], out)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as going:
            while going.poll() is None:
                if list(out.rglob("*.jsonl")) and samples_below(out) >= samples:
                    going.send_signal(how)
                    break
                time.sleep(0.005)
            _, said = going.communicate()
        if how == signal.SIGINT and going.returncode:
            assert going.returncode == 130
            assert said.decode() == "mcbench: interrupted; the same command goes on from here\n"
        assert going.returncode in (0, 130, -signal.SIGKILL)
        assert main(arguments(model, KINDS[kind], out)) == 0
        assert outcome(out) == undisturbed(KINDS[kind])


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Files end at so many bytes, in the middle of a write, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_named_and_the_same_command_goes_on_with_space(
    kind: str,
    model: Path,
    undisturbed: Callable[[str], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = undisturbed(KINDS[kind])
    with files_of_at_most(1200):
        assert main(arguments(model, KINDS[kind], tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "samples cannot be written to" in line
    assert "File too large; those before are kept, and the same command goes on" in line
    assert [path.stat().st_size for path in tmp_path.rglob("*.jsonl")] == [1200]
    assert main(arguments(model, KINDS[kind], tmp_path)) == 0
    assert outcome(tmp_path) == expected


# -- mcbench data check


PIQA = {
    "piqa/valid.jsonl": b'{"goal": "g", "sol1": "a", "sol2": "b"}\n' * 1838,
    "piqa/valid-labels.lst": b"0\n" * 1838,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with as many rows as PIQA has; nothing else can be had."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, content in PIQA.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


def checked(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of `mcbench data check` and what it says of PIQA, or its error."""
    code = main(["data", "check", str(folder)])
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if line.startswith("piqa")]
    return code, "".join(lines) or shown.err


def test_a_whole_set_is_found_and_an_empty_folder_is_no_failure(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = checked(folder, capsys)
    assert code == 0 and line.split()[1:4] == ["validation", "1838", "1838"]
    (tmp_path / "empty").mkdir()
    code, line = checked(tmp_path / "empty", capsys)
    assert code == 0 and "needs piqa/valid.jsonl" in line


def test_files_that_are_there_and_cannot_be_used_fail_the_check(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, whole = folder / "piqa" / "valid.jsonl", PIQA["piqa/valid.jsonl"]
    rows.write_bytes(whole.replace(b"goal", b"aim"))
    code, line = checked(folder, capsys)
    assert code == 1 and "row 1 has no column 'goal'; it has 'aim'" in line
    rows.write_bytes(whole[:-20])
    code, line = checked(folder, capsys)
    assert code == 1 and "valid.jsonl line 1838 is no JSON, damaged or cut short" in line
    rows.unlink()
    packed = gzip.compress(whole)
    (folder / "piqa" / "valid.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    code, line = checked(folder, capsys)
    assert code == 1 and "valid.jsonl.gz is damaged or cut short" in line
    assert main(["data", "check", str(folder)]) == 1
    assert "; 1 set with files that cannot be used" in capsys.readouterr().out


def test_a_link_to_nothing_is_no_absent_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = folder / "piqa" / "valid.jsonl"
    rows.unlink()
    rows.symlink_to(folder / "elsewhere.jsonl")
    code, line = checked(folder, capsys)
    assert code == 1 and "valid.jsonl' is a link to" in line and "elsewhere.jsonl', which is not there" in line
    rows.unlink()
    (folder / "niah").symlink_to(folder / "gone")
    assert "is a link to" in look("niah", "test", folder).problem


def test_a_file_in_place_of_a_folder_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = checked(folder / "piqa" / "valid.jsonl", capsys)
    assert code == 2 and "valid.jsonl' is a file; name the folder that holds the data sets" in said
    with pytest.raises(BadInput, match="is a file"), data_folder(folder / "piqa" / "valid.jsonl"):
        pass


def as_somebody_else(action: Callable[[], object]) -> str:
    """What `action` says where this user may not do everything."""
    if os.geteuid():
        return str(action())
    end, begin = os.pipe()
    child = os.fork()
    if not child:
        os.setuid(65534)
        os.write(begin, str(action()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(begin)
    with os.fdopen(end, "rb") as said:
        return said.read().decode()


def test_a_folder_that_may_not_be_read_is_not_an_empty_one(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # the folder of the test itself is closed to others
        Path(place).chmod(0o755)
        data = Path(place) / "data"
        shutil.copytree(folder, data)

        def said() -> str:
            try:
                return look("piqa", "validation", data).problem
            except BadInput as error:
                return str(error)

        assert as_somebody_else(said) == ""
        (data / "piqa" / "valid.jsonl").chmod(0)
        assert "valid.jsonl" in as_somebody_else(said) and "cannot be read: Permission denied" in as_somebody_else(said)
        (data / "piqa").chmod(0)
        assert f"the data folder {str(data / 'piqa')!r} may not be read" in as_somebody_else(said)
        data.chmod(0)
        assert f"the data folder {str(data)!r} may not be read" in as_somebody_else(said)
        for path in (data, data / "piqa"):
            path.chmod(0o755)


# -- plans and progress


GROUPS = '''
from dataclasses import dataclass
from mcbench.items import ChoiceItem
from mcbench.kinds import ChoiceTask

@dataclass(frozen=True)
class Groups(ChoiceTask):
    """Twenty subjects of ten questions, each of which is a task to lm-eval."""

    def items(self):
        places = [(g, n) for g in range(20) for n in range(10)]
        return [ChoiceItem(f"{g}/{n}", f"{g} {n}", (" a", " b"), 0, f"subject {g}") for g, n in places]

    def _group_of_tasks(self):
        return True
'''


def test_a_look_takes_pairs_of_neighbours_from_all_over() -> None:
    assert list(spread(range(100), 8)) == [0, 1, 25, 26, 50, 51, 75, 76]
    assert list(spread(range(100), 1)) == [0] and list(spread(range(5), 8)) == [0, 1, 2, 3, 4]
    assert list(spread(range(9), 8)) == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("limit", [0, 7])
def test_a_plan_tries_a_handful_of_items_in_all_and_counts_them_up(
    limit: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each sample takes a second, the evaluation takes as many seconds as a run gives samples."""
    (tmp_path / "groups.py").write_text(GROUPS)
    tried: list[int] = []
    original = Task.evaluate

    def timed(task: Task, *arguments: Any, **settings: Any) -> Any:
        scores = original(task, *arguments, **settings)
        tried.append(len(scores.samples))
        return dataclasses.replace(scores, seconds=float(len(scores.samples)))

    names = f"{tmp_path / 'groups.py'},mini-piqa,mini-gsm8k,mini-perplexity(window=64, style=disjoint)"
    with monkeypatch.context() as patch:
        patch.setattr(Task, "evaluate", timed)
        settings = {"methods": "none,pmq,pmq+topk(k=1),none+topk(k=1)", "expert_bits": "2", "model": str(model)}
        planned = plan(make_grid({**settings, "tasks": names, "limit": limit}), out=tmp_path / "plan")
    seconds = planned.evaluation_seconds
    assert planned.evaluations == 1 + 1 + 2 + 1
    assert max(tried) <= TRIED_ITEMS
    assert len(tried) == 2 * 4
    if limit:
        assert seconds == 20 * 7 + 7 + 7 + 7
    else:
        assert seconds is not None
        windows = seconds - 200 - 300 - 300
        texts = "\n\n".join(item.text for item in items_of(select_tasks("mini-perplexity")[0]))  # type: ignore[union-attr]
        assert windows == len(texts.encode()) // 64


def test_what_takes_long_before_the_first_answer_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: dict[str, int | None] = {}
    original = progress._bar

    def seen(label: str, total: int | None) -> Any:
        shown.setdefault(label, total)
        return original(label, total)

    monkeypatch.setattr(progress, "_bar", seen)
    run("none", model=str(model), tasks="mini-piqa,mini-gsm8k", limit=3, out=tmp_path, quiet=False)
    assert list(shown)[:8] == [
        "load", "data", "mini-piqa", "mini-gsm8k", "starting torch and transformers", f"reading {model}",
        "evaluate 32 bits", "starting the evaluation",
    ]  # fmt: skip
    assert {"self-test", "tokens", "shared beginnings", "mini-piqa: scores"} <= set(shown)
    assert shown["data"] == 2 and shown["tokens"] is not None


def test_requests_of_lm_evals_tasks_are_counted_as_they_are_made(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, seen = counting()
    monkeypatch.setattr("mcbench.harness.inner", seen)
    with data_folder(sets):
        select_tasks("gsm8k")[0].evaluate(silent(), limit=3)
    assert counted["requests"] == [3, 3]
