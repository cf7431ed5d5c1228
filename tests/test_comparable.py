"""What is asked of which weights decides what compares, and nothing else: a faster run joins the records of old."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from records import sample_record, with_routing
from tiny import tiny_tokenizer

from mcbench import record as records
from mcbench.comparable import unlike
from mcbench.evaluation import COMPUTING, OWN_CODE
from mcbench.leaderboard import find_records, tabulate_records
from mcbench.pipeline import run
from mcbench.record import Record
from mcbench.text import tokenizer_digest
from mcbench.versus import compare

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "leaderboards" / "records"
PMQ = COMMITTED / "reference" / "pmq-2.055"
WORDS = {"dtype": "float32", "window": 4096, "drafts": True, "witness": {"worst": 1e-6}}
# where a record says which weights were asked what; every other place is about how, when and with what outcome
IDENTITY = {
    "model.digest", "model.tokenizer", "evaluation.dtype", "evaluation.window", "calibration.digest",
    "allocation.attention", "allocation.shared", "allocation.router",
    "results.0.protocol", "results.1.protocol",
}  # fmt: skip


def whole() -> Record:
    """A record in which every field says something."""
    sample = sample_record()
    model = dataclasses.replace(sample.model, tokenizer="7" * 64)
    return with_routing(dataclasses.replace(sample, model=model, evaluation=WORDS, fallbacks=("one", "two")))


def leaves(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(content, dict | list):
        for key, inner in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(inner, (*at, key))
    else:
        yield at


def changed(content: Any, at: tuple[Any, ...]) -> Any:
    """The content with another value there."""
    made = copy.deepcopy(content)
    inner = made
    for key in at[:-1]:
        inner = inner[key]
    value = inner[at[-1]]
    if isinstance(value, bool) or value is None:
        inner[at[-1]] = not value if isinstance(value, bool) else None
    elif isinstance(value, int | float):
        inner[at[-1]] = 8 if "allocation" in at else value + 1 if isinstance(value, int) else value / 2
    else:
        inner[at[-1]] = {"label": "expert", "-inf": "inf"}.get(value, f"{value}x")
    return made


def sealed(content: Any) -> Record:
    return Record.from_json(json.dumps({"schema": records.SCHEMA, "digest": records._digest(content), **content}))


def test_only_what_was_asked_of_which_weights_keeps_two_records_apart() -> None:
    content = json.loads(whole().to_json())
    del content["schema"], content["digest"]
    names = {"results": ("task",), "allocation": ("widths",)}  # another task and other widths are another measurement
    seen = set()
    for at in leaves(content):
        if at[-1] in (*names.get(at[0], ()), "higher_is_better") or "widths" in at:
            continue
        apart = bool(unlike(whole(), sealed(changed(content, at))))
        place = ".".join(map(str, at))
        assert apart == (place in IDENTITY), place
        seen.add(place)
    assert seen >= IDENTITY


def test_what_an_older_record_does_not_say_is_taken_to_agree_where_the_weights_do() -> None:
    sample = whole()
    older = dataclasses.replace(sample, evaluation={}, model=dataclasses.replace(sample.model, tokenizer=""))
    other = dataclasses.replace(sample, model=dataclasses.replace(sample.model, tokenizer="8" * 64))
    assert unlike(older, sample) == unlike(other, older) == []
    assert unlike(other, sample) == ["they read texts with different tokenizers"]
    half = dataclasses.replace(older, environment=dataclasses.replace(sample.environment, dtype="bfloat16"))
    assert unlike(half, sample) == ["they were computed in different precisions, bfloat16 and float32"]


def test_an_older_record_stands_with_each_tokenizer_and_gives_way_to_a_newer_run_of_the_same() -> None:
    def named(method: str, tokenizer: str, created: str) -> Record:
        model = dataclasses.replace(sample_record().model, tokenizer=tokenizer)
        return sample_record(method=method, model=model, created=created)

    old = [named(method, "", "2026-01-01") for method in ("a", "b")]
    new = [named("a", "1" * 64, "2026-01-02"), named("c", "2" * 64, "2026-01-03")]
    for order in ((*old, *new), (*new, *old)):
        tables, notes = tabulate_records(order)
        found = sorted(sorted(record.method for record in table.records) for table in tables)
        assert found == [["a", "b"], ["b", "c"]]
        assert notes == ["left out: 1 record older than another of the same method, bits and seed"]


def test_a_faster_run_of_today_stands_in_the_committed_table() -> None:
    old = Record.load(PMQ)
    ways = {"prefix_sharing": "none", "tokens_per_batch": 99, "drafts": True, "experts_implementation": "faster"}
    faster = dataclasses.replace(
        old,
        method="pmq+gptq(refit=9)",
        model=dataclasses.replace(old.model, tokenizer="1" * 64),
        evaluation={**old.evaluation, **ways, "attention_implementation": "newest", "computed_by": "mcbench 2"},
        environment=dataclasses.replace(old.environment, threads=64, versions={"torch": "9"}, device="a faster one"),
        fingerprint="2" * 64,
        baseline="3" * 64,
        created="2027-01-01",
    )
    tables, _ = tabulate_records([*committed(), faster])
    assert [len(table.records) for table in tables] == [116, 112]
    assert faster in tables[0].records
    assert unlike(faster, old) == []


def test_a_run_of_today_compares_with_the_committed_records(tmp_path: Path) -> None:
    record = run("none", tasks="mini-piqa", out=tmp_path)
    tables, _ = tabulate_records([*committed(), record])
    assert len(tables) == 2 and record in tables[0].records
    comparison = compare([COMMITTED / "reference" / "none", tmp_path])
    assert comparison.others[0].contrasts[0].difference == pytest.approx(0, abs=0.004)


@pytest.mark.slow
def test_the_default_run_stands_in_the_committed_table(tmp_path: Path) -> None:
    record = run("pmq", bits=2.05, out=tmp_path, allow_code_execution=True)
    tables, _ = tabulate_records([*committed(), record])
    assert len(tables) == 2 and record in tables[0].records
    newest = max(tmp_path.rglob("record.json"), key=lambda path: path.stat().st_mtime)
    assert compare([PMQ, newest.parent]).others[0].contrasts


def test_all_code_that_an_answer_goes_through_is_named_in_its_fingerprint() -> None:
    plain = {
        "errors",
        "bounds",
        "interrupts",
        "sealed",
        "files",
        "items",
        "progress",
        "text",
        "loading",
        "fallbacks",
        "source",
        "tokens",
        "checkpoint",
        "allocation",
        "method",
        "registry",
    }
    found, to_read = set(), ["evaluation", "policy"]
    while to_read:
        name = to_read.pop()
        if name in found or name in plain:
            continue
        found.add(name)
        tree = ast.parse((ROOT / "mcbench" / f"{name}.py").read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        to_read += [m.removeprefix("mcbench.") for m in modules if m.startswith("mcbench.")]
    assert found - set(OWN_CODE) == set()
    assert {"device", "computed_by"} <= set(COMPUTING)


def test_a_tokenizer_is_known_by_what_it_makes_of_texts() -> None:
    first, again = tiny_tokenizer(), tiny_tokenizer()
    again.backend_tokenizer.enable_truncation(7)
    again.backend_tokenizer.enable_padding(length=3)
    assert tokenizer_digest(first) == tokenizer_digest(again)
    again.add_tokens(["an entry of its own"])
    assert tokenizer_digest(first) != tokenizer_digest(again)


@cache
def committed() -> tuple[Record, ...]:
    return tuple(find_records([COMMITTED]))
