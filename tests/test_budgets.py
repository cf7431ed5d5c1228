"""The study of nine budgets makes the records that it says it makes, and tells of them what they hold and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import sample_record, sample_result, with_bits
from scripts import script

from mcbench.allocation import BitAllocation
from mcbench.record import FILE_NAME, Record, Result

ROOT = Path(__file__).parents[1]
N = 200

budgets = script("budgets")
validity = script("validity")


def results(right: int, loss: float) -> tuple[Result, ...]:
    """Every family with so many of its N items right, and texts of ten tokens that cost so many nats a token."""
    generator = np.random.default_rng(0)
    losses = tuple(10 * (loss + generator.uniform(-0.1, 0.1)) for _ in range(N))
    plain: dict[str, Any] = {"baseline": None, "difference": None, "difference_error": None, "samples": "", "also": {}}
    found = [
        sample_result(
            budgets.perplexity(), metric="perplexity", higher_is_better=False, k=None, chance=None, n=N,
            value=float(np.exp(sum(losses) / (10 * N))), outcomes=losses, weights=(10,) * N, clusters=tuple(range(N)),
            **plain,
        )
    ]  # fmt: skip
    outcomes = (1.0,) * right + (0.0,) * (N - right)
    found += [sample_result(t, n=N, k=right, value=right / N, outcomes=outcomes, **plain) for t in budgets.families()]
    return tuple(found)


def record(method: str, bits: float, right: int, loss: float) -> Record:
    made = sample_record(method=f"{method}+gptq", asked=method, results=results(right, loss))
    return with_bits(made, asked=bits, asked_as="label")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """PMQ is worse than uniform at 2 bits and like it at 2.5; random draws are all worse than PMQ at 2 bits."""
    kept = BitAllocation(np.full((2, 4), 16), attention=16, shared=16)
    plain = sample_record(
        method="none", asked="none", allocation=kept, calibration=None, baseline="", fingerprint="b" * 64,
        results=results(180, 1.0),
    )  # fmt: skip
    found = [with_bits(plain, asked=None, asked_as="", expert=16.0, label=16.0)]
    found += [record("uniform", 2.0, 160, 1.1), record("uniform", 2.5, 170, 1.05)]
    found += [record("pmq", 2.0, 140, 1.3), record("pmq", 2.5, 170, 1.05)]
    found += [record(name, 2.0, 100 + at, 1.5) for at, name in enumerate(budgets.RANDOM)]
    for one in found:
        one.save(tmp_path / "records" / budgets.place(one) / FILE_NAME)
    return tmp_path / "records"


def told(board: Path, out: Path) -> str:
    assert budgets.main(["tell", str(board), "--models", "reference", "--out", str(out)]) == 0
    return out.read_text(encoding="utf-8")


def rows(text: str, head: str) -> Iterator[list[str]]:
    """The cells of the lines of the table behind a heading, without its first two lines."""
    table = text.split(head, 1)[1].split("\n\n", 2)[1]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_differences_are_those_of_the_records_and_only_what_is_clear_is_marked(board: Path, tmp_path: Path) -> None:
    text = told(board, tmp_path / "told.md")
    uniform, drawn = rows(text, "Perplexity, relative")
    low, same = uniform[1:]
    assert low.startswith(f"{100 * np.expm1(0.2):+.1f}") and low.endswith("*")
    assert same.startswith("+0.0") and not same.endswith("*")
    assert drawn[1].startswith(f"{100 * np.expm1(-0.2):+.1f}") and drawn[1].endswith("*") and drawn[2] == ""
    uniform, drawn = rows(text, "Mean of the families, points")
    assert uniform[1].startswith("-10.0") and uniform[1].endswith("*") and uniform[2].startswith("+0.0")
    assert drawn[1].startswith("+19.0 (+18.0 to +20.0)")
    counted = {row[0]: row[1] for row in rows(text, "Task by task")}
    assert set(counted) == {budgets.perplexity(), *budgets.families()}
    assert set(counted.values()) == {"0 / 1 of 2"}


def test_scores_and_bits_are_those_of_the_records(board: Path, tmp_path: Path) -> None:
    text = told(board, tmp_path / "told.md")
    means = {row[0]: row[1:] for row in rows(text, "### Mean of the families")}
    assert means["uniform"] == ["80.0", "85.0"]
    assert means["pmq"] == ["70.0", "85.0"]
    assert means[budgets.ALL_RANDOM] == ["51.0 ± 0.8", ""]
    assert "perplexity 2.7" in text and "mean of 10 families 90.0 %" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tell", "nowhere"], "there is no folder 'nowhere'"),
        (["tell", "{board}", "--models", "another"], "there is no record of 'another'"),
        (["tell", "{board}", "--models", "reference,"], "has an empty name"),
    ],
)
def test_wrong_input_names_the_value(
    board: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert budgets.main([a.format(board=board) for a in arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_record_without_a_family_is_refused_not_averaged(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = board / "pmq-2.5" / FILE_NAME
    whole = Record.load(path)
    dataclasses.replace(whole, results=whole.results[:-1]).save(path)
    assert budgets.main(["tell", str(board), "--models", "reference"]) == 2
    assert "has no score of mini-" in capsys.readouterr().err


def test_the_grids_make_each_record_once_and_all_that_the_verdict_is_judged_by() -> None:
    cells = [
        (cell.composition.asked, grid.widths, cell.bits, cell.expert_bits, cell.seed)
        for grid in budgets.grids("reference", "mini")
        for cell in grid.cells()
    ]
    assert len(cells) == len(set(cells)) == 1 + 9 * (8 + 5) + 3 + 1 + 5
    judged = {(c.method, c.expert_bits) for c in validity.CONFIGURATIONS}
    assert judged <= {(asked, expert) for asked, _, bits, expert, _ in cells if bits is None}


def test_the_committed_figures_are_what_the_committed_records_give(tmp_path: Path) -> None:
    committed = ROOT / "leaderboards" / "findings" / "budgets.md"
    again = tmp_path / "budgets.md"
    assert budgets.main(["tell", str(ROOT / "leaderboards" / "records"), "--out", str(again)]) == 0
    assert again.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


def test_records_lie_where_their_method_and_budget_say() -> None:
    places: dict[str, Any] = {
        "pmq-2.05": record("pmq", 2.05, 100, 1.0),
        "random-seed=3-1.69125": record("random(seed=3)", 1.69125, 100, 1.0),
        "uniform-2-experts": with_bits(record("uniform", 2.0, 100, 1.0), asked_as="expert"),
    }
    for expected, made in places.items():
        assert budgets.place(made) == expected
