"""A run goes from a method string to a record; whatever is wrong with what was asked is said in one sentence."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_folder, tiny_text
from transformers import LlamaConfig, LlamaForCausalLM

import mcbench
from mcbench.cli import _command_line, main
from mcbench.pipeline import run
from mcbench.record import Record
from mcbench.task import SampleFile

TASKS = "mini-perplexity,mini-piqa,mini-gsm8k"
LABEL = 2.1  # sixteen widths of the tiny model's experts and its attention at 4 bits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text(tmp_path_factory.mktemp("text"))


def ask(model: Path, text: Path, out: Path, **changes: Any) -> Record:
    asked: dict[str, Any] = {"method": "pmq", "expert_bits": 2.0, "model": str(model), "calibration": text}
    asked |= {"samples": 8, "length": 64, "tasks": TASKS, "limit": 4, "out": out}
    return run(**(asked | changes))


@pytest.fixture(scope="module")
def first(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    out = tmp_path_factory.mktemp("runs")
    return ask(model, text, out), out


def scores(record: Record) -> list[tuple[str, float | None, float | None, float | None]]:
    return [(r.protocol, r.value, r.baseline, r.difference) for r in record.results]


def test_the_record_says_what_was_asked_and_what_came_out(first: tuple[Record, Path]) -> None:
    record, _ = first
    assert record.method.startswith("pmq+gptq") and record.asked == "pmq"
    assert record.bits.asked == 2.0 and record.bits.expert == 2.0
    assert record.bits.expert < record.bits.label < record.bits.whole_model < record.bits.stored
    assert [r.n for r in record.results[1:]] == [4, 4] and record.partial
    assert set(record.stages) == {
        "load", "evaluate 32 bits", "calibrate", "allocate", "compress", "evaluate", "fidelity",
    }  # fmt: skip


def test_the_record_on_disk_is_the_one_returned(first: tuple[Record, Path]) -> None:
    record, out = first
    (path,) = out.glob("*pmq*/record.json")
    assert Record.load(path) == record


def test_the_same_call_gives_the_same_numbers_from_nothing(
    first: tuple[Record, Path], model: Path, text: Path, tmp_path: Path
) -> None:
    again = ask(model, text, tmp_path)
    assert scores(again) == scores(first[0])
    assert again.allocation == first[0].allocation and again.bits == first[0].bits


@pytest.mark.parametrize("after", [1, 5, 14, 20])
def test_a_run_interrupted_anywhere_goes_on_to_the_same_numbers(
    first: tuple[Record, Path], model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    written = 0
    keep = SampleFile.append

    def append(self: SampleFile, rows: Any) -> None:
        nonlocal written
        keep(self, rows)
        written += 1
        if written == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SampleFile, "append", append)
        try:
            ask(model, text, tmp_path)
        except KeyboardInterrupt:
            assert not list(tmp_path.glob("*pmq*/record.json"))
    assert scores(ask(model, text, tmp_path)) == scores(first[0])


def test_a_saved_model_has_the_size_that_was_predicted_and_the_same_scores(
    first: tuple[Record, Path], model: Path, text: Path, tmp_path: Path
) -> None:
    record = ask(model, text, tmp_path / "runs", save=tmp_path / "packed")
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert size == sum(record.bits.bytes.values())
    assert record.bits.stored == pytest.approx(8 * size / record.model.count.parameters)
    loaded = run("none", model=str(tmp_path / "packed"), tasks=TASKS, limit=4, out=tmp_path / "loaded")
    assert [r.value for r in loaded.results] == [r.value for r in record.results]


def test_runs_of_one_model_name_the_same_uncompressed_weights(
    first: tuple[Record, Path], model: Path, text: Path
) -> None:
    record, out = first
    other = ask(model, text, out, method="uniform")
    assert other.model == record.model and other.baseline == record.baseline
    assert other.fingerprint != record.fingerprint
    assert run("none", model=str(model), tasks=TASKS, limit=4, out=out).fingerprint == record.baseline


def test_the_uncompressed_model_is_a_reference_row_without_differences(model: Path, tmp_path: Path) -> None:
    record = run("none", model=str(model), tasks="mini-piqa", limit=4, out=tmp_path)
    assert record.bits.expert == 16 and record.calibration is None and record.results[0].difference is None


def test_a_dense_model_can_be_a_reference_row(tmp_path: Path) -> None:
    record = run("none", model=str(dense(tmp_path)), tasks="mini-piqa", limit=4, out=tmp_path / "runs")
    assert record.model.layers == 0 and record.bits.stored >= 16


def test_the_package_runs_from_python(first: tuple[Record, Path]) -> None:
    assert mcbench.run is run


def dense(folder: Path) -> Path:
    path = tiny_folder(folder / "dense")
    config = LlamaConfig(
        vocab_size=260, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    (path / "model.safetensors").unlink()
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def damaged(folder: Path, model: Path) -> Path:
    shutil.copytree(model, folder / "nan")
    weights = load_file(folder / "nan" / "model.safetensors")
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, folder / "nan" / "model.safetensors", metadata={"format": "pt"})
    return folder / "nan"


def half(folder: Path, model: Path) -> Path:
    shutil.copytree(model, folder / "half")
    path = folder / "half" / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder / "half"


def silent(folder: Path, model: Path) -> Path:
    shutil.copytree(model, folder / "silent")
    for path in (folder / "silent").glob("tokenizer*"):
        path.unlink()
    return folder / "silent"


def pickled(folder: Path, model: Path) -> Path:
    shutil.copytree(model, folder / "pickled")
    path = folder / "pickled" / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    torch.save(weights, folder / "pickled" / "x.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "x.bin")}
    (folder / "pickled" / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "pickled"


def shortened(folder: Path, model: Path) -> Path:
    shutil.copytree(model, folder / "short")
    path = folder / "short" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))
    return folder / "short"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which a command ends that cannot be done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    lines = [line for line in printed.err.splitlines() if line.startswith("mcbench: ")]
    assert len(lines) == 1 and "Traceback" not in printed.err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "pmp", "--bits", "2.05"], "did you mean 'pmq'"),
        (["--method", "pmq"], "needs a budget: --bits, the average"),
        (["--method", "pmq", "--bits", "7"], "reachable"),
        (["--method", "uniform", "--bits", "2.3"], "reachable"),
        (["--method", "pmq+uniform", "--bits", "2.1"], "both 'pmq' and 'uniform' allocate"),
        (["--method", "pmq(gama=2)", "--bits", "2.1"], "did you mean 'gamma'"),
        (["--method", "./nowhere.py", "--bits", "2.1"], "nowhere.py"),
        (["--bits", "2.1", "--tasks", "mini-pica"], "did you mean 'mini-piqa'"),
        (["--bits", "2.1", "--tasks", "mini-piqa,"], "empty name"),
        (["--bits", "2.1", "--widths", "1,two"], "'1,two'"),
        (["--bits", "2.1", "--widths", "5"], "widths must be some of"),
        (["--bits", "2.1", "--samples", "0"], "samples must lie between"),
        (["--bits", "2.1", "--samples", "100000"], "tokens and"),
        (["--bits", "2.1", "--length", "100000"], "does not fit the model"),
        (["--bits", "2.1", "--limit", "0"], "limit must lie between 1"),
        (["--bits", "2.1", "--device", "warp"], "'warp'"),
        (["--bits", "2.1", "--device", "meta"], "no weights to compress"),
        (["--bits", "2.1", "--tasks", ""], "tasks is empty"),
        (["--bits", "2.1", "--seed", "-1"], "the seed must lie between"),
        (["--bits", "2.1", "--save", "/"], "no name for a new folder"),
        (["--bits", "2.1", "--samples", "10000000"], "samples must lie between"),
        (["--method", "none", "--bits", "2.1"], "takes no budget"),
        (["--method", "pmq(beta=1e999)", "--bits", "2.1"], "must lie between"),
        (["--method", "pmq(beta=1, beta=2)", "--bits", "2.1"], "beta is set twice"),
        (["--bits", "2.1", "--calibration", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_wrong_input_is_answered_in_one_sentence(
    arguments: list[str], said: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--model", model, "--out", tmp_path, "--tasks", "mini-piqa", "--quiet"]
    known += [] if "--calibration" in arguments else ["--calibration", text]
    known += [] if "--samples" in arguments else ["--samples", "8"]
    known += [] if "--length" in arguments else ["--length", "64"]
    assert said in refused(capsys, "run", *known, *arguments)
    assert not list(tmp_path.rglob("*.json"))


def test_a_model_that_cannot_be_used_is_named_with_its_fault(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["run", "--bits", "2.1", "--out", tmp_path, "--calibration", text, "--tasks", "mini-piqa", "--quiet"]
    common += ["--samples", "8", "--length", "64"]
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, said in {
        tmp_path / "nowhere": "no model folder",
        empty: "no config.json",
        dense(tmp_path): "use the method 'none'",
        damaged(tmp_path, model): "NaN",
        half(tmp_path, model): "damaged or half downloaded",
        silent(tmp_path, model): "no tokenizer",
        pickled(tmp_path, model): "only safetensors files of the same folder are read",
        shortened(tmp_path, model): "no place for",
        Path("no-such-owner/no-such-model"): "HF_HUB_OFFLINE keeps the hub away",
    }.items():
        assert said in refused(capsys, *common, "--model", path), path


@pytest.mark.parametrize(("content", "said"), [("", "is empty"), ("too short", "are needed"), ("\udcff", "UTF-8")])
def test_a_calibration_text_that_cannot_serve_is_refused(
    content: str, said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode(errors="surrogateescape"))
    arguments = ["run", "--bits", "2.1", "--model", model, "--calibration", path, "--out", tmp_path, "--quiet"]
    assert said in refused(capsys, *arguments, "--tasks", "mini-piqa")


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for flag in ("--out", "--save"):
        said = refused(capsys, "run", "--bits", "2.1", "--model", model, flag, tmp_path / "file" / "runs", "--quiet")
        assert "cannot be written" in said


def test_samples_that_were_edited_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["run", "--method", "none", "--model", model, "--out", tmp_path, "--tasks", "mini-piqa", "--limit", "2"]
    assert main([str(a) for a in asked]) == 0
    capsys.readouterr()
    (path,) = tmp_path.rglob("mini-piqa*.jsonl")
    path.write_text(path.read_text().replace('"index": 1', '"index": 7'))
    assert "line 3 is not as it was written; move it away to begin anew" in refused(capsys, *asked, "--quiet")


def test_a_full_disk_ends_a_run_in_one_sentence(
    model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: SampleFile, rows: Any) -> None:
        raise OSError(28, "No space left on device", "samples.jsonl")

    monkeypatch.setattr(SampleFile, "append", full)
    arguments = ["--model", model, "--calibration", text, "--samples", "8", "--length", "64", "--out", tmp_path]
    said = refused(capsys, "run", "--bits", "2.1", *arguments, "--tasks", "mini-piqa", "--limit", "2", "--quiet")
    assert "No space left on device" in said


def test_a_record_can_be_printed_as_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(model), "--tasks", "mini-piqa", "--limit", "2", "--out", str(tmp_path), "--json"]
    assert main(["run", "--method", "none", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["method"] == "none" and printed["schema"] >= 1


def test_fields_of_a_record_are_not_lost_by_dataclass_copies(first: tuple[Record, Path]) -> None:
    record, _ = first
    assert dataclasses.replace(record) == record


def test_the_command_of_a_record_does_not_say_where_the_program_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/environment/bin/mcbench", "run", "--bits", "2.05"])
    assert _command_line() == ["mcbench", "run", "--bits", "2.05"]
