"""A record comes back as it was written, or is refused with one sentence that says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import sample_perplexity, sample_record, sample_result, with_routing

from mcbench import record as records
from mcbench.allocation import BitAllocation
from mcbench.errors import BadInput
from mcbench.files import printable, require_writable, write_whole
from mcbench.record import Environment, Record, Result
from mcbench.task import Estimate, Scores

FIXTURES = Path(__file__).parent / "fixtures"


def test_a_record_comes_back_equal(tmp_path: Path) -> None:
    record = sample_record()
    assert Record.load(record.save(tmp_path / "deep" / "record.json")) == record
    assert Record.load(tmp_path / "deep") == record


def test_a_dense_model_without_calibration_comes_back_equal() -> None:
    dense = BitAllocation(np.zeros((0, 0), dtype=np.int64), attention=16, shared=16)
    record = sample_record(allocation=dense, calibration=None, results=(), baseline="")
    assert Record.from_json(record.to_json()) == record


def test_an_infinite_perplexity_is_kept_in_valid_json() -> None:
    record = sample_record(results=(sample_perplexity(value=float("inf"), standard_error=float("nan")),))
    text = record.to_json()
    assert "Infinity" not in text
    back = Record.from_json(text)
    assert back.results[0].value == float("inf")
    assert back.digest == record.digest


def test_numpy_numbers_are_written_as_numbers() -> None:
    record = sample_record(stages={"load": np.float64(1.5)}, evaluation={"window": np.int64(4096)})
    back = Record.from_json(record.to_json())
    assert back.stages == {"load": 1.5}
    assert back.evaluation == {"window": 4096}


def test_an_edited_record_is_refused() -> None:
    text = sample_record().to_json().replace('"value": 0.6,', '"value": 0.9,')
    with pytest.raises(BadInput, match="was changed after it was written"):
        Record.from_json(text)


def test_a_record_of_a_newer_schema_is_refused() -> None:
    with pytest.raises(BadInput, match=f"schema {records.SCHEMA + 1}.*upgrade"):
        Record.from_json(rewritten(lambda whole: whole, schema=records.SCHEMA + 1))


@pytest.mark.parametrize("length", [0, 1, 40, 2000, -3])
def test_a_record_cut_short_is_refused(length: int) -> None:
    with pytest.raises(BadInput, match="damaged or cut short"):
        Record.from_json(sample_record().to_json()[:length])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"seed": 0', f'"seed": 1{"0" * 400}', "of 401 digits is none of ours"),
        ('"seed": 0', '"seed": 99999999999999999999', "of 20 digits is none of ours"),
        ('"seed": 0', '"seed": 0, "seed": 0', "'seed' stands there twice"),
        ('"value": 0.6', '"value": 1e400', "the number 1e400 is none of ours"),
        ('"value": 0.6', '"value": 1e306', "the number 1e306 is none of ours"),
        ('"value": 0.6', '"value": NaN', "NaN is no number in JSON"),
        ('"value": 0.6', '"value": -Infinity', "-Infinity is no number in JSON"),
        ('"seed": 0', f'"seed": {"[" * 100}{"]" * 100}', "nested deeper"),
        ('"seed": 0', f'"seed": {"[" * 100_000}{"]" * 100_000}', "nested deeper"),
        ('"evaluation": {}', '"evaluation": ' + '{"a": ' * 40 + "1" + "}" * 40, "nested deeper"),
        ('"name": "reference"', '"name": "\\ud800"', "control character U\\+D800"),
        ('"name": "reference"', '"name": "a\\nb"', "control character U\\+000A"),
        ('"evaluation": {}', '"evaluation": {"a\\u202eb": 1}', "control character U\\+202E"),
    ],
)  # fmt: skip
def test_json_that_no_record_is_written_in_is_refused_with_the_reason(old: str, new: str, reason: str) -> None:
    text = sample_record().to_json()
    assert old in text
    with pytest.raises(BadInput, match=reason):
        Record.from_json(text.replace(old, new, 1))


CONTROLS = [
    "\0",
    "\t",
    "\n",
    "\r",
    "\x1b",
    "\x7f",
    "\x85",
    "\x9b",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\u200b",
    "\ufeff",
]


@pytest.mark.parametrize("control", CONTROLS)
def test_no_string_of_a_record_may_hold_a_control_character_and_none_is_written(control: str) -> None:
    content = json.loads(with_routing(sample_record(fallbacks=("one",), evaluation={"dtype": "x"})).to_json())
    del content["schema"], content["digest"]
    assert Record.from_json(sample_record(method=f"a{control}b").to_json()).method == f"a{printable(control)}b"
    for at in list(strings(content)):
        made = json.loads(json.dumps(content))
        inner = made
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] += control
        text = json.dumps({"schema": records.SCHEMA, "digest": records._digest(made), **made})
        with pytest.raises(BadInput, match="control character"):
            Record.from_json(text)


def strings(content: Any, at: tuple[Any, ...] = ()) -> Any:
    """Where the strings of a record are."""
    if isinstance(content, dict | list):
        for key, inner in content.items() if isinstance(content, dict) else enumerate(content):
            yield from strings(inner, (*at, key))
    elif isinstance(content, str):
        yield at


@pytest.mark.parametrize(
    "change",
    [{"n": -1}, {"k": 10**13}, {"value": 7.5}, {"baseline": -0.1}, {"standard_error": -1.0}, {"difference": 2.0}],
)
def test_what_no_measurement_gives_is_refused(change: dict[str, Any]) -> None:
    text = sample_record(results=(sample_result(**change),)).to_json()
    with pytest.raises(BadInput, match=f"cannot be right: {next(iter(change))} is .* in 'mini-piqa'"):
        Record.from_json(text)


@pytest.mark.parametrize("text", ["[]", "{}", '"record"', '{"schema": "1", "digest": ""}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not a record"):
        Record.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "zero"}, "seed cannot be 'zero'"),
        ({"seed": True}, "seed cannot be 'True'"),
        ({"extra": 1}, "extra is unknown"),
        ({"results": [{"task": "piqa"}]}, r"results\[0\].counterpart is missing"),
        ({"allocation": {"widths": [[5]], "attention": 4, "shared": 4, "router": 16}}, "allocation cannot be"),
    ],
)
def test_contents_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Record.from_json(rewritten(lambda whole: {**whole, **change}))


def test_a_record_of_an_older_schema_is_brought_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    older = rewritten(lambda whole: {("was_method" if k == "method" else k): v for k, v in whole.items()}, schema=0)
    monkeypatch.setitem(
        records._MIGRATIONS, 0, lambda whole: {("method" if k == "was_method" else k): v for k, v in whole.items()}
    )
    assert Record.from_json(older) == sample_record()


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("record-schema-*.json")), ids=lambda path: path.stem)
def test_records_of_every_schema_still_load(path: Path) -> None:
    assert Record.load(path).method == "pmq+gptq"


def test_an_older_record_keeps_its_digest() -> None:
    text = (FIXTURES / "record-schema-1.json").read_text()
    assert Record.from_json(text).digest == json.loads(text)["digest"]


def test_every_schema_has_a_fixture() -> None:
    assert [f"record-schema-{n}.json" for n in range(1, records.SCHEMA + 1)] == [
        path.name for path in sorted(FIXTURES.glob("record-schema-*.json"))
    ]


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing\.json' cannot be read: No such file"):
        Record.load(tmp_path / "nothing.json")


def test_a_record_that_cannot_be_written_says_where_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"record\.json' cannot be written"):
        sample_record().save(tmp_path / "file" / "record.json")
    with pytest.raises(BadInput, match="output folder .* cannot be written"):
        require_writable(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_writing_replaces_a_file_whole_and_leaves_no_other(tmp_path: Path) -> None:
    write_whole(tmp_path / "table.md", b"old")
    write_whole(tmp_path / "table.md", b"new")
    assert (tmp_path / "table.md").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


def test_a_result_is_the_scores_and_their_paired_difference() -> None:
    ours, theirs = (scores([True, False, False, True]), scores([True, True, False, True]))
    result = Result.of(ours, theirs, counterpart="piqa", samples="mini-piqa.jsonl")
    assert (result.value, result.baseline, result.difference) == (0.5, 0.75, -0.25)
    assert result.difference_error == pytest.approx(0.25)
    assert (result.lost, result.gained, result.counterpart) == (1, 0, "piqa")
    assert result.also == ours.also


def test_a_skipped_task_has_no_difference() -> None:
    skipped = Scores("mini-humaneval", "mini-humaneval@1", "pass@1", True, None, 0, skipped="no isolation here")
    result = Result.of(skipped, skipped)
    assert (result.value, result.difference, result.skipped) == (None, None, "no isolation here")


def test_the_machine_is_described() -> None:
    here = Environment.here(device="cpu", dtype="float32", threads=2)
    assert here.cores >= 1
    assert here.memory_bytes > 2**28
    assert {"python", "numpy", "mcbench"} <= set(here.versions)


def test_reading_records_needs_no_torch() -> None:
    check = "import sys, mcbench.record, mcbench.leaderboard, mcbench.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def scores(right: list[bool]) -> Scores:
    rows = [{"id": str(i), "acc": value, "correct": value} for i, value in enumerate(right)]
    also = {"acc_norm": Estimate(0.5, len(right), 0.25, 2)}
    value, n = sum(right) / len(right), len(right)
    return Scores("mini-piqa", "mini-piqa@1", "acc", True, value, n, sum(right), 0.25, 0.5, also, samples=rows)


def rewritten(change: Any, schema: int = records.SCHEMA) -> str:
    """A record's file with its contents changed and the digest made to match."""
    whole = json.loads(sample_record().to_json())
    del whole["schema"], whole["digest"]
    whole = change(whole)
    return json.dumps({"schema": schema, "digest": records._digest(whole), **whole})
