"""Whoever calibrates on what a task asks is told so in the record, under the table and in the leaderboard."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from records import sample_record

from mcbench.cli import main
from mcbench.items import RowItem, TextItem
from mcbench.leaderboard import leaderboard
from mcbench.overlap import DETAIL, WORDS, runs_of, share_asked
from mcbench.pipeline import run
from mcbench.reference import items
from mcbench.report import table

TEXT = " ".join(f"word{n}" for n in range(100))


def test_a_run_of_words_is_found_wherever_it_stands_in_an_item() -> None:
    runs = runs_of([TEXT])
    assert len(runs) == 100 - WORDS + 1
    assert share_asked(runs, [TextItem("0", f"before {TEXT.upper()} after")]) == 1.0
    assert share_asked(runs, [RowItem("0", {"question": {"choices": ["no", TEXT]}})]) == 1.0
    half = " ".join(TEXT.split()[: 50 + WORDS - 1])
    assert share_asked(runs, [TextItem("0", half)]) == pytest.approx(50 / 88)
    assert share_asked(runs, [TextItem("0", " ".join(TEXT.split()[: WORDS - 1]))]) == 0.0
    assert share_asked(frozenset(), [TextItem("0", TEXT)]) == 0.0


def test_a_run_calibrated_on_what_it_is_asked_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "asked.txt"
    text.write_text("\n".join(item.text for item in items("perplexity", 40, 0)))
    tasks = "mini-perplexity(count=40),mini-piqa(count=4)"
    asked = ["run", "--method", "uniform+rtn", "--bits", "2.05", "--tasks", tasks]
    calibrated = ["--calibration", str(text), "--samples", "8", "--length", "256", "--out", str(tmp_path / "runs")]
    assert main([*asked, *calibrated]) == 0
    assert "calibrated on text that mini-perplexity asks: 9" in capsys.readouterr().out
    record = run("uniform+rtn", bits=2.05, tasks=tasks, samples=8, length=256, out=tmp_path / "own")
    assert not any(DETAIL in result.details for result in record.results)


def test_the_leaderboard_marks_the_score(tmp_path: Path) -> None:
    plain = sample_record()
    first, *rest = plain.results
    marked = dataclasses.replace(first, details={**first.details, DETAIL: 0.5})
    record = dataclasses.replace(plain, results=(marked, *rest))
    assert f"on text that {first.task} asks: 50 %" in table(record)
    for name, each in (("plain", plain), ("marked", record)):
        (tmp_path / name / "runs").mkdir(parents=True)
        each.save(tmp_path / name / "runs" / "record.json")
        leaderboard([tmp_path / name / "runs"], tmp_path / name)
        text = (tmp_path / name / "README.md").read_text()
        page = (tmp_path / name / "leaderboard.html").read_text()
        assert [mark in text for mark in ("§ |", "text that this task asks", "§")] == [name == "marked"] * 3
        assert ("§" in page or "\\u00a7" in page) == (name == "marked")
