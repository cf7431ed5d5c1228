"""A study of the papers is a grid that can be run, and what it says of an order follows from paired differences."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scipy import stats

from mcbench.catalogue import TASKS
from mcbench.cli import main
from mcbench.composition import compose
from mcbench.reproduce import kendall, order, studies, study


@pytest.mark.parametrize("name", [name for name, s in studies().items() if not s.refused])
def test_every_row_of_a_study_is_a_method_and_every_column_a_task(name: str) -> None:
    chosen = study(name)
    assert {line.key for line in chosen.lines()} == set(chosen.rows)
    assert all(compose(method).parts for method in chosen.rows.values())
    assert set(chosen.columns.values()) <= set(TASKS.names())
    if chosen.table:  # every published figure of a column has its row
        published = [f for f in chosen.figures if f.metric in chosen.columns]
        assert sum(len(set(line.published) & set(chosen.columns)) for line in chosen.lines()) == len(published) > 0


def test_tau_is_that_of_scipy() -> None:
    rng = random.Random(0)
    for n in (2, 5, 9, 30):
        one, other = ([float(rng.randint(0, 5)) for _ in range(n)] for _ in range(2))
        one[0], one[1], other[0], other[1] = 0, 1, 2, 3
        assert kendall(one, other) == pytest.approx(stats.kendalltau(one, other).statistic)
    assert kendall([1, 1], [2, 3]) is None


def test_an_order_needs_two_standard_errors() -> None:
    assert order(1.0, 2.1, 1.0) == "holds" and order(-1.0, 2.1, 1.0) == "contradicted"
    assert order(1.0, 1.9, 1.0) == "cannot tell" and order(1.0, 5.0, None) == "cannot tell"


@pytest.mark.slow
def test_a_study_runs_from_end_to_end_and_says_that_it_is_partial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["reproduce", "table7", "--bits", "2.05", "--limit", "4", "--samples", "4", "--length", "64"]
    assert main([*asked, "--out", str(tmp_path), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "published, Mixtral-8x7B: ppl" in printed and "measured, reference: mini-perplexity" in printed
    rows = {line.split("|")[1].strip(): line for line in printed.splitlines() if line.startswith("| ")}
    assert "5.91" in rows["PMQ"] and "6.65" in rows["Hessian(HAWQ-V2)"] and "3.84" in rows["FP16"]
    assert "±" in rows["PMQ"] and "**Partial**" in printed and "2.058" in printed  # the label's known error
    (pairs,) = [line for line in printed.splitlines() if line.startswith("| mini-perplexity")]
    assert sum(int(cell) for cell in pairs.split("|")[2:5]) == 3  # of three rows
    assert main([*asked, "--out", str(tmp_path), "--quiet", "--dry-run"]) == 0
    assert "to do" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [(["table77"], "did you mean 'table7'"), (["table8"], "OmniQuant"), (["table7", "--bits", "2.06"], "has no row"),
     (["latency"], "mcbench profile")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_with_the_reason(
    asked: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *asked]) == 2
    assert said in capsys.readouterr().err


def test_the_studies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(studies())
